"""Chat prompts have the same tokens as conversations in training."""

import numpy as np
import pytest
import torch
from transformers import ViTImageProcessorPil

from nextembed.data.messages import IMAGE_SYSTEM, VIDEO_SYSTEM, read_turns, render
from nextembed.errors import ConfigError
from nextembed.evaluation.language.protocols import INSTRUCTED
from nextembed.inference.conversation import Conversation, Style, style_of
from nextembed.models.emu import EmuProcessor
from nextembed.models.emu.vocabulary import train_tokenizer

IMAGE = np.full((6, 5, 3), 90, dtype=np.uint8)


@pytest.fixture(scope="module")
def processor() -> EmuProcessor:
    return EmuProcessor(ViTImageProcessorPil(size={"height": 8, "width": 8}), train_tokenizer(["what is it?"], 300), 4)


def spoken() -> Conversation:
    talk = Conversation()
    talk.ask(IMAGE, "what is it?")
    talk.answer("a cat")
    talk.ask("sure?")
    return talk


def words(talk: Conversation, style: Style) -> list[str]:
    return [s["value"] if s["kind"] == "text" else s["kind"].upper() for s in talk.to_document(style)["segments"]]


def test_style_of_instruction_tuned_emu(processor) -> None:
    style = style_of(processor)
    assert style == Style("[USER]", "[ASSISTANT]", "</s>", True)
    assert words(spoken(), style) == [
        f"{IMAGE_SYSTEM} [USER]:", "IMAGE", "what is it? [ASSISTANT]:", " a cat", "</s>",
        " [USER]: sure? [ASSISTANT]:",
    ]  # fmt: skip


def test_base_models_get_question_and_answer_prompts() -> None:
    style = Style("Question", "Answer", "\n", False)
    assert words(spoken(), style) == [
        "Question:", "IMAGE", "what is it? Answer:", " a cat", "\n", " Question: sure? Answer:"
    ]  # fmt: skip


@pytest.mark.parametrize("style", [Style("[USER]", "[ASSISTANT]", "</s>", True), Style("Q", "A", "\n", False)])
def test_a_prompt_equals_the_training_text_before_the_answer(style: Style, processor) -> None:
    """A conversation saved by `chat`, read as training data: the ids before the next answer are those of the prompt."""
    talk = spoken()
    asked = processor.encode_document(talk.to_document(style), end=False)
    system = talk.system_line() if style.instruct else ""
    talk.answer("yes, a cat")
    row = talk.to_messages() | {"images": [IMAGE]}
    segments = render(read_turns(row, None, None), style.user, style.assistant, system, style.turn_end)
    trained = processor.encode_document({"key": "", "segments": segments})
    ids, labels, length = trained.positions["input_ids"], trained.positions["labels"], asked.length
    assert torch.equal(ids[:length], asked.positions["input_ids"])
    answer = processor.tokenizer(" yes, a cat", add_special_tokens=False)["input_ids"]
    assert ids[length:].tolist() == labels[length:].tolist() == [*answer, 2]
    assert torch.equal(trained.values["pixel_values"], asked.values["pixel_values"])


def test_system_lines() -> None:
    style = Style("[USER]", "[ASSISTANT]", "", True)
    video, two, own = Conversation(), Conversation(), Conversation(system="Be brief.")
    video.ask({"video": [IMAGE, IMAGE]}, "who?")
    two.ask(IMAGE, "and", IMAGE)
    own.ask("hello")
    assert words(video, style) == [f"{VIDEO_SYSTEM} [USER]:", "VIDEO", "who? [ASSISTANT]:"]
    assert words(two, style) == ["[USER]:", "IMAGE", "and", "IMAGE", " [ASSISTANT]:"]
    assert words(own, style) == ["Be brief. [USER]: hello [ASSISTANT]:"]
    assert INSTRUCTED["video_qa"].startswith(VIDEO_SYSTEM) and INSTRUCTED["vqa"].startswith(IMAGE_SYSTEM)


def test_turns_out_of_order() -> None:
    talk = Conversation()
    with pytest.raises(ConfigError, match="no question to answer"):
        talk.to_document(Style("Q", "A", "", False))
    talk.ask("who?")
    with pytest.raises(ConfigError, match="no answer yet"):
        talk.ask("again")
    talk.answer("me")
    with pytest.raises(ConfigError, match="no question to answer"):
        talk.to_document(Style("Q", "A", "", False))
    with pytest.raises(ConfigError, match="empty question"):
        talk.ask(" ")
