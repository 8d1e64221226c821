"""Plain text as documents: what a small language model is warmed up on."""

from pathlib import Path

from pydantic import Field

from ..core.config import DATA
from ..core.types import Document
from ..errors import ConfigError
from .documents import DocumentPart, Role
from .origins import find_origin
from .sources import load

BUNDLED = Path(__file__).parent / "sample" / "glosses.parquet"


@DATA.register("text")
class TextDocuments(DocumentPart):
    """Rows of text, one document each.

    source: a hub id, a Parquet file or a folder of them by split; "glosses" is the sample that comes with the
    package, short descriptions of things. column: of it. num_validation: where there is no validation split, so
    many of the last training rows are kept apart as one.
    """

    source: str = "glosses"
    column: str = "text"
    num_validation: int = Field(500, ge=0)

    def read(self, split: Role) -> "TextRows":
        path = str(BUNDLED) if self.source == "glosses" else self.source
        origin = find_origin(path)
        if origin.files is None or split in origin.files:
            texts = self._texts(origin, split)
            only_train = origin.files is not None and "validation" not in origin.files and self.num_validation
            return TextRows(texts[: -self.num_validation] if only_train and split == "train" else texts)
        if split == "validation" and self.num_validation:
            return TextRows(self._texts(origin, "train")[-self.num_validation :])
        raise ConfigError(f"data: {self.source} has no {split} split")

    def _texts(self, origin: object, split: str) -> list[str]:
        data = load(origin, split, None, False)  # type: ignore[arg-type]
        if self.column not in data.column_names:
            raise ConfigError(f"data.column: no column '{self.column}' in: {', '.join(data.column_names)}")
        return [str(value) for value in data[self.column]]


class TextRows:
    """`Documents` of one text segment each."""

    def __init__(self, texts: list[str]):
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def key(self, index: int) -> str:
        return str(index)

    def document(self, index: int, seed: int) -> Document:
        return {"key": str(index), "segments": [{"kind": "text", "value": self.texts[index], "loss": True}]}
