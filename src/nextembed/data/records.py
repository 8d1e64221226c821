"""Rows with columns of any modality as documents: which columns, in which reading orders, how often."""

import math
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from ..core.config import DATA, Config
from ..core.types import Document, Role, Segment
from ..data.draws import Draws
from ..errors import ConfigError, unknown
from .documents import DocumentPart, text
from .joined import Join, JoinedRows, has_value, present
from .labels import FewRows
from .layouts import Layouts, check_layouts, choices, drawn_layout
from .loading import Feature, media_of
from .media import Media
from .pairs import TEXTS
from .record import Record
from .rows import Rows, RowSequence
from .stored import IndexedRows, StreamedRows
from .tables import DocumentTable, field, is_there, words
from .transforms import Unreadable

PLACE = re.compile(r"\{([^{}]+)\}")
NOTHING = "it has the values for none of data.layouts"


class Piece(Config):
    """What one segment of a document is.

    Attributes:
        kind: text, image, video, audio, series, or one of `own_kinds`.
        column: column of the value, "captions.es" for a field inside a column; null: the column of the piece's name.
            From a list of texts one is chosen at random.
        prompts: templates for a text, one chosen at random. "{text}" stands for the column's text, "{other}" for that
            of the column `other`. Templates without {text} need no column: "What is it?".
        loss: whether it is to be predicted.
    """

    kind: str
    column: str | None = None
    prompts: list[str] = Field(default=["{text}"], min_length=1)
    loss: bool = True

    @property
    def is_fixed(self) -> bool:
        """Whether it is a fixed text that needs no column."""
        return self.kind == "text" and self.column is None and not any("{text}" in prompt for prompt in self.prompts)


def _kind_alone(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {name: {"kind": piece} if isinstance(piece, str) else piece for name, piece in value.items()}


Pieces = Annotated[dict[str, Piece], BeforeValidator(_kind_alone)]


@DATA.register("records")
class Records(Media, DocumentTable, DocumentPart):
    """Documents of the columns of a table: an image and its caption, a sound and what is said, a series and its class.

    Attributes:
        pieces: what segments can be made of, by a name of your own: {"caption": "text", "es": {"kind": "text",
            "column": "captions.es"}}; see `Piece`. null detects them: columns of images, sounds, videos and series, and
            one of text or of classes.
        layouts: sequences of pieces, in reading order, with their relative frequency: {"image caption": 2, "caption
            image": 1, "image caption|es": 1}. Of names separated by | one is drawn. null: every pair of pieces, in both
            orders. A row is used for the layouts whose values it has; one that has none is left out.
        joins: other tables, by name, whose rows belong to these: {"stamps": {"source": "stamps", "by": "id"}} gives the
            columns "stamps.image", ...
    """

    pieces: Pieces | None = None
    layouts: Layouts | None = None
    joins: dict[str, Join] = Field(default_factory=dict)

    _found: dict[str, Piece] = PrivateAttr(default_factory=dict)
    _unused: dict[Role, dict[str, str]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _fit_together(self) -> "Records":
        if self.pieces is None:
            return self
        if not self.pieces:
            raise ValueError("pieces: give at least one")
        for name, piece in self.pieces.items():
            if not name or any(mark in name for mark in " |"):
                raise ValueError(f"pieces: the name '{name}' must not contain a space or |")
            if piece.kind not in self.kinds_known():
                raise ValueError(unknown(f"pieces.{name}.kind:", piece.kind, self.kinds_known()))
        if self.layouts is not None:
            check_layouts(self.layouts, self.pieces)
        return self

    # -- rows

    def rows(self, split: Role) -> Rows | RowSequence:
        """Rows of a split that can make a document. Raises ConfigError for what does not fit the columns."""
        rows = super().rows(split)
        if self.pieces is None and not self._found:
            self._found = pieces_of({name: media_of(one) for name, one in columns_of(rows).items()})
            if not self._found:
                raise ConfigError("data.pieces: give the kind of each column, e.g. {image: image, caption: text}")
            if self.layouts is not None:
                try:
                    check_layouts(self.layouts, self._found)
                except ValueError as err:
                    raise ConfigError(f"data.layouts: {err}") from None
        if not isinstance(rows, Rows):
            if self.joins:
                raise ConfigError("data.joins: joining tables needs streaming=false")
            return rows
        if self.joins:
            rows = JoinedRows(rows, {name: (join.by, self._other(join, split)) for name, join in self.joins.items()})
        return self._usable(rows, split)

    def check(self, columns: list[str]) -> None:
        super().check(columns)
        if twice := [name for name in self.joins if name in columns]:
            raise ConfigError(f"data.joins: '{twice[0]}' is already a column of the table; choose another name")
        for name in self.pieces or {}:
            column = self._column(name)
            if column is not None and not is_there(column, [*columns, *self.joins]):
                raise ConfigError(unknown(f"data.pieces.{name}.column:", column, [*columns, *self.joins]))

    def _other(self, join: Join, split: Role) -> Rows:
        splits = {"split": self.split, "validation": self.validation, "test": self.test}
        rows = DocumentTable(source=join.source, where=join.where, **splits).rows(split)
        assert isinstance(rows, Rows)
        return rows

    def _usable(self, rows: Rows, split: Role) -> Rows:
        """The rows that fit at least one layout."""
        pieces = self.pieces_known()
        used = {name for layout, weight in self.layouts_known().items() if weight for name in _names(layout)}
        has = {name: present(rows, column) for name in pieces if name in used and (column := self._column(name))}
        fits: dict[tuple[bool, ...], bool] = {}  # few different patterns of present values occur
        indices = []
        for index in range(len(rows)):
            pattern = tuple(column[index] for column in has.values())
            if pattern not in fits:
                there = {name for name, one in zip(has, pattern) if one} | {n for n, p in pieces.items() if p.is_fixed}
                weighed = self.layouts_known().items()
                fits[pattern] = any(weight and choices(layout, there.__contains__) for layout, weight in weighed)
            if fits[pattern]:
                indices.append(index)
        if not indices and len(rows):
            raise ConfigError(f"data.layouts: no row of the {split} split has all values that one of the layouts needs")
        stay = set(indices)
        self._unused[split] = {f"row {index}": NOTHING for index in range(len(rows)) if index not in stay}
        return rows if len(indices) == len(rows) else FewRows(rows, indices)

    def unused(self, split: Role) -> dict[str, str]:
        return self._unused.get(split, {})

    # -- documents

    def pieces_known(self) -> dict[str, Piece]:
        """The pieces in the settings, or those that were detected when rows were read."""
        return self.pieces or self._found

    def layouts_known(self) -> dict[str, float]:
        return self.layouts or every_two(self.pieces_known())

    def possible(self, row: Record) -> list[str]:
        """The layouts that a row has all values for, with alternatives expanded: "image caption", "image es"."""
        found = [names for layout in self.layouts_known() for names in choices(layout, lambda n: self.has(row, n))]
        return list(dict.fromkeys(" ".join(names) for names in found))

    def document(self, row: Record, seed: int) -> Document:
        draw = Draws(seed)
        names = drawn_layout(self.layouts_known(), lambda name: self.has(row, name), draw)
        if names is None:
            raise Unreadable(NOTHING)
        return {"key": row.key, "segments": [self.read(row, name, draw) for name in names]}

    def make(self, row: Record, layout: str, seed: int = 0) -> Document:
        """The document of a row in one layout, for evaluation: "image caption". Raises Unreadable without its values.

        seed: for the choice of prompts and of texts in a list.
        """
        check_layouts({layout: 1.0}, self.pieces_known())
        draw = Draws(seed)
        names = drawn_layout({layout: 1.0}, lambda name: self.has(row, name), draw)
        if names is None:
            raise Unreadable(f"it lacks a value for '{layout}'")
        return {"key": row.key, "segments": [self.read(row, name, draw) for name in names]}

    def has(self, row: Record, name: str) -> bool:
        """Whether a row has a value for a piece."""
        column = self._column(name)
        return column is None or has_value(row, column)

    def read(self, row: Record, name: str, draw: Draws) -> Segment:
        """A piece of a row, decoded. Raises Unreadable."""
        piece, column = self.pieces_known()[name], self._column(name)
        value = None if column is None else field(row, column)
        if self.own_kinds.get(piece.kind, piece.kind) == "text":
            segment = text(self.written(piece, row, column, value, draw), piece.loss)
            segment["kind"] = piece.kind
            return segment
        joined = row.get(str(column).split(".")[0])
        home = joined if isinstance(joined, Record) else row
        return self.segment(piece.kind, value, home.folder, piece.loss)

    def written(self, piece: Piece, row: Record, column: str | None, value: object, draw: Draws) -> str:
        """The text of a piece, in one of its prompts."""
        if isinstance(value, list):
            value = value[draw.below(len(value))] if value else ""
        prompt = piece.prompts[draw.below(len(piece.prompts))]

        def filled(match: re.Match[str]) -> str:
            name = match[1]
            found = (column, value) if name == "text" and column else (name, field(row, name))
            return words(_plain(found[1]), str(found[0]))

        return PLACE.sub(filled, prompt)

    def _column(self, name: str) -> str | None:
        piece = self.pieces_known()[name]
        return None if piece.is_fixed else piece.column or name


def _plain(value: object) -> object:
    """A number as text; one that is not finite counts as missing."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, int | float) else value


def _names(layout: str) -> list[str]:
    return [name for place in layout.split() for name in place.split("|")]


def every_two(pieces: dict[str, Piece]) -> dict[str, float]:
    """All layouts of two pieces, in both orders; a single piece alone."""
    pairs = [f"{a} {b}" for a in pieces for b in pieces if a != b]
    return dict.fromkeys(pairs or pieces, 1.0)


def columns_of(rows: Rows | RowSequence) -> Mapping[str, Feature]:
    """Types of the columns; empty if rows are JSON, whose columns are not known in advance."""
    if (isinstance(rows, IndexedRows) and rows.has_columns) or (isinstance(rows, StreamedRows) and rows.has_columns):
        return rows.data.features or {}
    return {}


def pieces_of(media: dict[str, str | None]) -> dict[str, Piece]:
    """Pieces detected from column types: all media, and one text or else class."""
    found = {name: Piece(kind=kind) for name, kind in media.items() if kind not in (None, "text", "label")}
    likely = [name for name in TEXTS if media.get(name) == "text"]
    likely += [name for name, kind in media.items() if kind == "label"]
    return found | {name: Piece(kind="text") for name in likely[:1]}
