"""Rows of images as they come from a source, undecoded: what they hold, by index or in sequence, and in order."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypedDict, runtime_checkable

from ..core.types import IGNORE_LABEL
from ..errors import ConfigError


class Row(TypedDict, total=False):
    """One undecoded sample. image: bytes, path, PIL image or uint8 array; an Unreadable if the row could not be read.
    mask: alike, or None where there is none; no_mask: then says what was looked for. label: class id. label_name: where
    the source has text for labels. key: its name. place: where a stream has it, the same in every epoch and for every
    reader; else the key tells rows apart."""

    image: object
    mask: object
    no_mask: str
    label: int
    label_name: str
    key: str
    place: str


@runtime_checkable
class Rows(Protocol):
    """Rows that can be indexed, e.g. a list: a Row each of images, of documents a Record or the user's own."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class RowSequence(Protocol):
    """Rows that only come one after the other, e.g. read from a network. One that is `shuffle.Resumable`, too, is not
    read again from the epoch's start when a run resumes."""

    def read(self, seed: int, epoch: int, reader: int, num_readers: int) -> Iterator[Any]:
        """The part of an epoch that belongs to one of `num_readers` readers; the same arguments give the same order."""


class RowPlace(NamedTuple):
    """How far rows have been read in the order they are stored: row: in all; shard: the one being read; passed: rows
    of that shard. Rows that can be indexed are one shard."""

    row: int
    shard: int
    passed: int


FIRST = RowPlace(0, 0, 0)


@runtime_checkable
class Ordered(Protocol):
    """Rows that have a fast way through all of them as they are stored."""

    def in_order(self, start: RowPlace = FIRST) -> Iterator[tuple[RowPlace, Any]]:
        """The rows from a place on, each with the place after it."""


def rows_in_order(rows: Rows | RowSequence, start: RowPlace = FIRST) -> Iterator[tuple[RowPlace, Any]]:
    """Rows as they are stored, from a place on, each with the place after it.

    Raises ConfigError for a sequence of the user's own that has no `in_order`.
    """
    if isinstance(rows, Ordered):
        return rows.in_order(start)
    if not isinstance(rows, Rows):
        raise ConfigError(f"data: {type(rows).__name__} cannot give its rows in order (it has no `in_order`)")
    return ((RowPlace(i + 1, 0, i + 1), rows[i]) for i in range(start.row, len(rows)))


def row_key(row: Row, index: int) -> str:
    return str(row.get("key", index))


def row_label(row: Row) -> int:
    label = row.get("label")
    return IGNORE_LABEL if label is None else int(label)
