"""Image-text pairs, and plain text, as documents."""

from typing import Literal

from pydantic import Field, field_validator

from ..core.config import DATA
from ..core.types import Document, Segment
from .documents import DocumentPart, text
from .draws import uniform
from .record import Record
from .tables import DocumentTable, field, first_of, words

IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "file_name", "image_path", "file")
TEXTS = ("text", "txt", "caption", "json.caption", "json.text", "captions", "title", "name", "TEXT")


@DATA.register("pairs")
class PairData(DocumentTable, DocumentPart):
    """An image and its text; both are learned from each other.

    Attributes:
        image_column: column of the image; null: detected; "json.image" is a field inside a column.
        text_column: column of the text; null: detected. From a list of captions one is chosen at random.
        order: which comes first; "random" chooses for each pair in each epoch, as Emu does.
        prompts: templates for the text, one chosen at random; "{text}" stands for it.
    """

    image_column: str | None = None
    text_column: str | None = None
    order: Literal["image_first", "text_first", "random"] = "random"
    prompts: list[str] = Field(default=["{text}"], min_length=1)

    @field_validator("prompts")
    @classmethod
    def _have_a_place(cls, prompts: list[str]) -> list[str]:
        if lacking := [prompt for prompt in prompts if "{text}" not in prompt]:
            raise ValueError(f"'{lacking[0]}' has no {{text}}")
        return prompts

    def document(self, row: Record, seed: int) -> Document:
        image = self.image_column or first_of(row, IMAGES, "an image", "image_column")
        column = self.text_column or first_of(row, TEXTS, "text", "text_column")
        value = field(row, column)
        if isinstance(value, list):
            value = value[int(uniform(seed, 0) * len(value))] if value else ""
        prompt = self.prompts[int(uniform(seed, 1) * len(self.prompts))]
        written = text(prompt.replace("{text}", words(value, column)))
        shown = self.image(row.folder.read(field(row, image)))
        return {"key": row.key, "segments": ordered(shown, written, self.order, seed)}


def ordered(shown: Segment, written: Segment, order: str, seed: int) -> list[Segment]:
    """Both, in the given or drawn order."""
    first = order == "image_first" or (order == "random" and uniform(seed, 2) < 0.5)
    return [shown, written] if first else [written, shown]


@DATA.register("text")
class TextData(DocumentTable, DocumentPart):
    """Plain text; each row is a document.

    Attributes:
        text_column: column of the text; null: detected.
        sample_by: what one row of a .txt file is: a line, a paragraph or the document.
    """

    text_column: str | None = None
    sample_by: Literal["line", "paragraph", "document"] = "line"

    def text_unit(self) -> str:
        return self.sample_by

    def document(self, row: Record, seed: int) -> Document:
        column = self.text_column or first_of(row, TEXTS, "text", "text_column")
        return {"key": row.key, "segments": [text(words(field(row, column), column))]}
