"""Undecoded rows as they come from a source: their content, and access by index, in sequence, or in storage order."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypedDict, runtime_checkable

from ..core.types import IGNORE_LABEL
from ..errors import ConfigError


class Row(TypedDict, total=False):
    """One undecoded sample. image: bytes, path, PIL image or uint8 array; an Unreadable if the row could not be read.
    mask: the same, or None; no_mask: then names what was looked for. label: class id. label_name: if labels are text in
    the source. key: its name. place: position in a stream, the same in every epoch and for every reader; otherwise the
    key identifies the row."""

    image: object
    mask: object
    no_mask: str
    label: int
    label_name: str
    key: str
    place: str


@runtime_checkable
class Rows(Protocol):
    """Rows with an index, such as a list: of images a Row each, of documents a Record or the user's own."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class RowSequence(Protocol):
    """Rows that only come in sequence, for example over a network. If they are also `shuffle.Resumable`, a resumed run
    does not read the epoch from its start."""

    def read(self, seed: int, epoch: int, reader: int, num_readers: int) -> Iterator[Any]:
        """The part of an epoch that belongs to one of `num_readers` readers; the same arguments give the same order."""


class RowPlace(NamedTuple):
    """A position in storage order: row: number of rows before it; shard: index of the shard; passed: rows of that shard
    before it. Rows with an index are one shard."""

    row: int
    shard: int
    passed: int


FIRST = RowPlace(0, 0, 0)


@runtime_checkable
class Ordered(Protocol):
    """Rows with fast access in storage order."""

    def in_order(self, start: RowPlace = FIRST) -> Iterator[tuple[RowPlace, Any]]:
        """The rows from a position on, each with the position after it."""


def rows_in_order(rows: Rows | RowSequence, start: RowPlace = FIRST) -> Iterator[tuple[RowPlace, Any]]:
    """Rows in storage order, from a position on, each with the position after it.

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
