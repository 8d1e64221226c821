"""Prompts and right answers: one `Example` class for every layout of annotations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...core.text import check_text
from ...core.types import Segment
from ...errors import ConfigError, DataError

FORMATS = ("coco", "vqav2", "okvqa", "vizwiz", "visdial", "mmvet", "table")


@dataclass
class Example:
    """One item to score a model on.

    pictures: segments of kind "image" (a path, encoded bytes or a PIL image) or "video" (frames), in reading order.
    question: text of the question, empty for captions; before: the preceding text (caption and turns of a dialog).
    references: captions, annotators' answers or the one right answer. candidates: answers to choose from, target: index
    of the right one, relevance: of each in [0, 1], if annotated. kind: of question or answer, if known. split: of the
    item, where one file has several.
    """

    key: str
    pictures: list[Segment] = field(default_factory=list)
    question: str = ""
    before: str = ""
    references: list[str] = field(default_factory=list)
    candidates: list[str] = field(default_factory=list)
    target: int | None = None
    relevance: list[float] | None = None
    kind: str = ""
    split: str = ""

    def __post_init__(self) -> None:
        for text in (self.question, self.before, *self.references, *self.candidates, self.kind):
            try:
                check_text(text)
            except ValueError as err:
                raise DataError(f"item {self.key}: {err}") from None


class ImageFolder:
    """Finds images that annotations name. folder: names are relative to it and may not leave it; also found in the
    subfolders given at the call, as official downloads have them."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser().resolve()
        if not self.folder.is_dir():
            raise ConfigError(f"no such folder of images: {folder}")

    def path(self, name: object, *subfolders: str) -> Path:
        """The file of an image. Raises DataError if there is none, or if the name leads out of the folder."""
        if not isinstance(name, str) or not name:
            raise DataError(f"an image is given by its file name, not by {name!r}")
        places = [self.folder / name, *(self.folder / sub / name for sub in subfolders if sub)]
        for place in places:
            found = place.resolve()
            if not found.is_relative_to(self.folder):
                raise DataError(f"image '{name}' lies outside of the folder {self.folder}")
            if found.is_file():
                return found
        raise DataError(f"image '{name}' is not in {self.folder}")

    def segment(self, name: object, *subfolders: str) -> Segment:
        """The image of this name; see `path`."""
        return {"kind": "image", "value": self.path(name, *subfolders)}


def texts(value: object, what: str) -> list[str]:
    """A text, or a list of texts or of {"answer": text}, as texts; empty ones are left out. Raises DataError for
    anything else."""
    if value is None or value == "":
        return []
    values = [value] if isinstance(value, str | int | float) else value
    if not isinstance(values, Sequence):
        raise DataError(f"{what}: a text or a list of texts, not {type(value).__name__}")
    found = []
    for one in values:
        one = one.get("answer") if isinstance(one, dict) else one
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise DataError(f"{what}: a text or a list of texts, not a list of {type(one).__name__}")
        if isinstance(one, float) and not math.isfinite(one):
            raise DataError(f"{what}: {one} is not text")
        found.append(str(one))
    return found
