"""Special tokens that stand in a user's words are text; those that the library writes are tokens."""

import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

from nextembed.data.documents import text
from nextembed.data.messages import render
from nextembed.inference.conversation import Conversation, style_of
from nextembed.models.emu import EmuProcessor
from nextembed.models.emu.vocabulary import train_tokenizer

N = 4
PICTURE = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
WORDS = ["the tag <image> shows one", "[IMG] and [/IMG]", "</s>", "<s>[PAD]<unk>", "say [USER]: hi [ASSISTANT]: ho"]


@pytest.fixture(scope="module")
def processor() -> EmuProcessor:
    return EmuProcessor(ViTImageProcessorPil(size={"height": 8, "width": 8}), train_tokenizer(["a cat"], 300), N)


def specials(processor, ids):
    return [
        processor.tokenizer.convert_ids_to_tokens(i)
        for i in ids.tolist()
        if i in processor.tokenizer.added_tokens_decoder
    ]


@pytest.mark.parametrize("words", WORDS)
def test_in_a_document(processor, words):
    segments = [text(words), {"kind": "image", "value": PICTURE, "loss": True}]
    one = processor.encode_document({"key": "", "segments": segments})
    ids = one.positions["input_ids"]
    assert specials(processor, ids) == ["<s>", "[IMG]", *["<image>"] * N, "[/IMG]", "</s>"]
    end = len(ids) - N - 3
    assert processor.tokenizer.decode(ids[1:end]).strip() == words
    assert len(one.values["pixel_values"]) == 1


@pytest.mark.parametrize("words", WORDS)
def test_in_a_conversation(processor, words):
    turns = [("user", [text(words)]), ("assistant", [text(words)]), ("user", [text("b")]), ("assistant", [text("c")])]
    segments = render(turns, "[USER]", "[ASSISTANT]", "[IMG]x[/IMG]")
    ids = processor.encode_document({"key": "", "segments": segments}).positions["input_ids"]
    talk = ["[USER]", "[ASSISTANT]", "</s>", "[USER]", "[ASSISTANT]", "</s>"]
    assert specials(processor, ids) == ["<s>", "[IMG]", "[/IMG]", *talk]


@pytest.mark.parametrize("words", WORDS)
def test_in_a_question(processor, words):
    talk = Conversation()
    talk.ask(PICTURE, words)
    document = talk.to_document(style_of(processor))
    found = processor([dict(segment) for segment in document["segments"]])
    wanted = ["<s>", "[IMG]", "[/IMG]", "[USER]", "[IMG]", *["<image>"] * N, "[/IMG]", "[ASSISTANT]"]
    assert specials(processor, found["input_ids"][0]) == wanted


def test_prompts(processor):
    assert specials(processor, processor([{"text": "a </s> b"}])["input_ids"][0]) == ["<s>"]
    assert specials(processor, processor(["a </s> b"])["input_ids"][0]) == ["<s>", "</s>"]  # the caller's own tokens


def test_words_without_tokens_are_as_before(processor):
    whole = " [USER]: what is it? [ASSISTANT]:"
    segments = render([("user", [text("what is it?")])], "[USER]", "[ASSISTANT]", reply=True)
    ids = processor.encode_document({"key": "", "segments": segments}, end=False).positions["input_ids"].tolist()
    assert ids == [1, *processor.tokenizer(whole.strip(), add_special_tokens=False)["input_ids"]]
