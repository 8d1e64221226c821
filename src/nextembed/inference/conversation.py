"""A conversation with images, as data: turns, the document that a model reads, and a file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..core.files import read_text, to_json, write_text
from ..core.types import Document, Segment
from ..data.messages import IMAGE_SYSTEM, VIDEO_SYSTEM, render
from ..errors import ConfigError
from ..models.emu.processing_emu import EmuProcessor, Piece, as_segment


@dataclass
class Style:
    """Format of turns. user, assistant: labels, followed by a colon, before each side's text; turn_end: text after each
    answer but the last."""

    user: str
    assistant: str
    turn_end: str
    instruct: bool


def style_of(processor: EmuProcessor) -> Style:
    """Emu's instructed format where the tokenizer has `[USER]` and `[ASSISTANT]`, else questions and answers."""
    tokenizer = processor.tokenizer
    if {"[USER]", "[ASSISTANT]"} <= set(tokenizer.get_vocab()):
        return Style("[USER]", "[ASSISTANT]", tokenizer.eos_token or "", True)
    return Style("Question", "Answer", "\n", False)


@dataclass
class Turn:
    """One turn: segments of text, images and videos. sources: origin of pictures, for the file."""

    role: Literal["user", "assistant"]
    segments: list[Segment]
    sources: list[str | None] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its text only."""
        return " ".join(s["value"] for s in self.segments if s["kind"] == "text")


@dataclass
class Conversation:
    """Turns of a conversation, user and assistant alternating.

    Attributes:
        system: said first; None takes Emu's line for an image or a video, where there is one.
        turns: what was said so far.
    """

    turns: list[Turn] = field(default_factory=list)
    system: str | None = None

    def ask(self, *pieces: Piece, sources: list[str | None] | None = None) -> None:
        """A turn of the user.

        Args:
            pieces: text, images, {"video": frames}.
            sources: where pictures came from, for the file that `save` writes.

        Raises:
            ConfigError: if it is the assistant's turn, or nothing is asked.
        """
        if self.turns and self.turns[-1].role == "user":
            raise ConfigError("the last question has no answer yet")
        found = [as_segment(piece) for piece in pieces]
        if not any(s["kind"] != "text" or s["value"].strip() for s in found):
            raise ConfigError("an empty question")
        self.turns.append(Turn("user", found, sources or []))

    def answer(self, text: str) -> None:
        """Adds the assistant's answer.

        Args:
            text: the answer.

        Raises:
            ConfigError: there is no unanswered question.
        """
        if not self.turns or self.turns[-1].role != "user":
            raise ConfigError("there is no question to answer")
        self.turns.append(Turn("assistant", [{"kind": "text", "value": text}]))

    def drop_oldest(self) -> bool:
        """Leaves out the oldest question and its answer; False where only the last question is left."""
        if len(self.turns) < 3:
            return False
        del self.turns[:2]
        return True

    def system_line(self) -> str:
        """What stands before the first turn."""
        if self.system is not None:
            return self.system
        kinds = [s["kind"] for turn in self.turns for s in turn.segments]
        if "video" in kinds:
            return VIDEO_SYSTEM
        return IMAGE_SYSTEM if kinds.count("image") == 1 else ""  # interleaved input has an empty system line

    def to_document(self, style: Style) -> Document:
        """The conversation as a document that ends where the next answer begins, as in training.

        Args:
            style: markers of the turns, for example `{system} [USER]: ... [ASSISTANT]:`.

        Returns:
            Its segments of text and images.

        Raises:
            ConfigError: there is no question.
        """
        if not self.turns or self.turns[-1].role != "user":
            raise ConfigError("there is no question to answer")
        turns: list[tuple[str, list[Segment]]] = [(turn.role, turn.segments) for turn in self.turns]
        system = self.system_line() if style.instruct and self.system is None else ""
        if self.system:  # a user's text, without special tokens
            turns.insert(0, ("system", [{"kind": "text", "value": self.system}]))
        return {"key": "", "segments": render(turns, style.user, style.assistant, system, style.turn_end, reply=True)}

    def to_messages(self) -> dict[str, object]:
        """{"messages": [...]}: role and content of each turn; a picture by its file, where it has one."""
        messages: list[dict[str, object]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        for turn in self.turns:
            content: list[dict[str, object]] = []
            sources = iter(turn.sources)
            for segment in turn.segments:
                kind = segment["kind"]
                content.append({"type": kind, kind: segment["value"] if kind == "text" else next(sources, None)})
            messages.append({"role": turn.role, "content": content})
        return {"messages": messages}

    def save(self, file: str | Path) -> Path:
        """Appends the conversation to a file, in the form that data of kind `messages` reads.

        Args:
            file: a .jsonl file; one line is added.

        Returns:
            The file.

        Raises:
            ConfigError: the file has another ending.
        """
        file = Path(file)
        if file.suffix != ".jsonl":
            raise ConfigError(f"a conversation is saved to a .jsonl file, not {file}")
        before = read_text(file) if file.is_file() else ""
        before += "\n" if before and not before.endswith("\n") else ""
        write_text(file, before + to_json(self.to_messages()) + "\n")
        return file
