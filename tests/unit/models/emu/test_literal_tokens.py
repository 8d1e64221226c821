"""Special tokens in user text are plain text; those written by the library are tokens."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

import nextembed.data.kinds  # noqa: F401
from nextembed.core.config import DATA
from nextembed.data.documents import text
from nextembed.data.messages import render
from nextembed.errors import DataError
from nextembed.evaluation.language.examples import Example
from nextembed.evaluation.language.protocols import INSTRUCTED, with_shots
from nextembed.inference.conversation import Conversation, style_of
from nextembed.inference.prompts import Prompt, read_piece, read_prompts
from nextembed.models.emu import EmuProcessor
from nextembed.models.emu.vocabulary import train_tokenizer
from nextembed.models.omni import OmniProcessor

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


@pytest.mark.parametrize("words", WORDS)
def test_prompts(processor, words):
    plain = [1, *processor.tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
    for prompt in (words, [words], [{"text": words}], [[words]]):
        assert processor(prompt)["input_ids"][0].tolist() == plain
    assert specials(processor, processor([{"markup": "a </s> b"}, "c </s>"])["input_ids"][0]) == ["<s>", "</s>"]


@pytest.mark.parametrize("words", WORDS)
def test_in_a_system_message(processor, words):
    talk = Conversation(system=words)
    talk.ask("hello")
    found = processor([dict(one) for one in talk.to_document(style_of(processor))["segments"]])["input_ids"][0]
    assert specials(processor, found) == ["<s>", "[USER]", "[ASSISTANT]"]
    assert f"{words} [USER]" in processor.tokenizer.decode(found)


@pytest.mark.parametrize("words", WORDS)
def test_in_an_evaluation(processor, words):
    """In questions, preceding text, example answers and candidates; special tokens of the template stay tokens."""
    item = Example("a", [{"kind": "image", "value": PICTURE}], words, f" {words}", [words], [words, "b"], 0)
    prompt = with_shots(INSTRUCTED["vqa"], item, [item], True, "</s>")
    ids = processor([dict(one) for one in prompt])["input_ids"][0]
    one = ["[IMG]", "[/IMG]", "[USER]", "[IMG]", *["<image>"] * N, "[/IMG]", "[ASSISTANT]"]
    assert specials(processor, ids) == ["<s>", *one, "</s>", *one]
    assert (
        processor.tokenizer.decode(ids, skip_special_tokens=True).count(words) == 5
    )  # question and preceding text twice, the answer once
    candidate = processor.tokenize(words, [{"kind": "text", "value": ""}], 0)
    assert candidate == processor.tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def rows_of(words):
    """A row of each document kind with the words in every text field."""
    said = [{"role": role, "content": [{"type": "text", "text": words}]} for role in ("system", "user", "assistant")]
    return {
        "text": {"text": words},
        "pairs": {"image": "a.png", "text": words},
        "interleaved": {"segments": [{"text": words}, {"image": "a.png"}, {"type": "text", "value": words}]},
        "messages": {"messages": said},
        "records": {"image": "a.png", "caption": words},
    }


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("kind", ["text", "pairs", "interleaved", "messages", "records"])
def test_in_training_data(processor, tmp_path, words, kind):
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "train.jsonl").write_text(json.dumps(rows_of(words)[kind]) + "\n")
    pieces = {"pieces": {"image": "image", "caption": "text"}} if kind == "records" else {}
    data = DATA.parse({"kind": kind, "source": str(tmp_path / "train.jsonl"), "max_skipped_rate": 0.0} | pieces)
    (document,) = data.documents("train")
    found = processor.encode_document(document)
    allowed = {"<s>", "</s>", "[IMG]", "<image>", "[/IMG]"} | (
        {"[USER]", "[ASSISTANT]"} if kind == "messages" else set()
    )
    names = specials(processor, found.positions["input_ids"])
    assert set(names) <= allowed and names.count("<s>") == names.count("</s>") == 1
    assert names.count("<image>") == N * len(found.values["pixel_values"])
    assert names.count("[USER]") == names.count("[ASSISTANT]") == (kind == "messages")
    times = {"interleaved": 2, "messages": 3}.get(kind, 1)
    assert processor.tokenizer.decode(found.positions["input_ids"], skip_special_tokens=True).count(words) == times


@pytest.mark.parametrize("words", WORDS)
def test_in_names_of_classes(processor, tmp_path, words):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", words])})
    datasets.Dataset.from_dict({"image": [PICTURE], "label": [1]}, features).to_parquet(tmp_path / "a.parquet")
    layouts = {"label image": 1.0}
    (document,) = DATA.parse({"kind": "records", "source": str(tmp_path), "layouts": layouts}).documents("train")
    ids = processor.encode_document(document).positions["input_ids"]
    assert specials(processor, ids) == ["<s>", "[IMG]", *["<image>"] * N, "[/IMG]", "</s>"]
    assert words in processor.tokenizer.decode(ids)


@pytest.mark.parametrize("words", WORDS)
def test_in_a_file_of_prompts(processor, tmp_path, words):
    rows = [{"text": words}, {"pieces": [words]}, {"pieces": [{"text": words}]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for prompt in [*read_prompts(tmp_path / "a.jsonl"), Prompt([read_piece(words)])]:
        assert specials(processor, processor(prompt.pieces)["input_ids"][0]) == ["<s>"]


def test_a_question_in_a_file_of_prompts_is_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "question": 5}\n')
    with pytest.raises(DataError, match="line 1: the question is not text"):
        read_prompts(tmp_path / "a.jsonl")


@pytest.mark.parametrize("words", WORDS)
def test_in_an_omni(processor, words):
    omni = OmniProcessor({"text": {"vocabulary": len(processor.tokenizer)}}, words=processor.tokenizer)
    ids = omni([words])["input_ids"][0, 1:].tolist()
    assert ids == processor.tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_text_without_special_tokens_is_unchanged(processor):
    whole = " [USER]: what is it? [ASSISTANT]:"
    segments = render([("user", [text("what is it?")])], "[USER]", "[ASSISTANT]", reply=True)
    ids = processor.encode_document({"key": "", "segments": segments}, end=False).positions["input_ids"].tolist()
    assert ids == [1, *processor.tokenizer(whole.strip(), add_special_tokens=False)["input_ids"]]


def test_a_plain_placeholder_next_to_images_is_an_error(processor):
    for pieces in ([PICTURE, "a <image> tag"], ["<image>\nwhat is it?", PICTURE]):
        with pytest.raises(
            ValueError, match=r"the text '<image>' in a list with images is ambiguous: .* write {'text': ...}"
        ):
            processor(pieces)
    ids = processor([PICTURE, {"text": "a <image> tag"}])["input_ids"][0]
    assert specials(processor, ids) == ["<s>", "[IMG]", *["<image>"] * N, "[/IMG]"]
