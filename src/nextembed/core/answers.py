"""Answers of a model of documents: written to answers.json, shown in the report, and checked for being all the same."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from .files import write_json
from .saved import load

MIN_ANSWERS = 4  # fewer say nothing about all
SAME = 0.9  # two texts that are at least this similar count as the same
MOST = 0.75  # if at least this share of answers is the same, the model has collapsed
VARIED = 0.5  # if more of the true answers are the same, it is not the model's fault
MAX_SHOWN = 60  # characters of an answer that a sentence quotes

REASONS = {
    "emu": "text does not depend on the image. Train longer, or raise the learning rate of what connects encoder and "
    "language model.",
    "omni": "text does not depend on what stands before it. Train longer.",
}

Picture = Annotated[str, Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/=]*$")]


@dataclass
class Answer:
    """A document up to a text that is a target. before, pictures: its text and images up to there; said: what the model
    wrote; true: the target text."""

    before: str
    said: str
    true: str
    pictures: list[Picture] = field(default_factory=list)


@dataclass
class Answers:
    """Greedy answers to documents of a split, each with different images, sounds or texts. model: kind of the model."""

    split: str
    rows: list[Answer]
    model: Literal["emu", "omni"] = "emu"

    def save(self, path: str | Path) -> Path:
        write_json(path, asdict(self))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Answers":
        """Reads answers.json. Raises ConfigError, one line that names the file and the value that is wrong."""
        return load(cls, path)

    def collapse(self) -> str | None:
        """A warning if (nearly) all answers, or all answers to one prompt, are the same although the true ones are not;
        else None."""
        prompts = dict.fromkeys(row.before for row in self.rows)
        groups = [self.rows, *([row for row in self.rows if row.before == prompt] for prompt in prompts)]
        return next((found for rows in groups if (found := self._collapsed(rows))), None)

    def _collapsed(self, rows: Sequence[Answer]) -> str | None:
        if len(rows) < MIN_ANSWERS:
            return None
        count, text = most_frequent([row.said for row in rows])
        varied = most_frequent([row.true for row in rows])[0] <= VARIED * len(rows)
        if not varied or count < MOST * len(rows):
            return None
        asked = "" if len(rows) == len(self.rows) else f" with the prompt '{shortened(rows[0].before)}'"
        asked = asked.replace("the prompt ''", "no text before the answer")
        said = f"the same answer, '{shortened(text)}'" if text else "an empty answer"
        return (
            f"{count} of {len(rows)} {self.split} documents{asked} get {said}, although the true texts differ: the "
            + REASONS[self.model]
        )


def shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def most_frequent(texts: Sequence[str]) -> tuple[int, str]:
    """The most frequent text, and how many texts are (nearly) the same. Case and white space are ignored."""
    plain = [" ".join(text.casefold().split()) for text in texts]
    counts = [sum(alike(one, other) for other in plain) for one in plain]
    largest = max(range(len(plain)), key=lambda i: counts[i])
    return counts[largest], " ".join(texts[largest].split())


def alike(one: str, other: str) -> bool:
    return one == other or SequenceMatcher(None, one, other, autojunk=False).ratio() >= SAME
