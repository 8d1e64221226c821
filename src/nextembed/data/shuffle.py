"""Shuffled rows of a sequence. Reading can continue anywhere without reading earlier rows again."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from ..errors import DataError
from .draws import sample_seed
from .rows import RowSequence


class Mark(NamedTuple):
    """Position of a reader in an epoch. passed: rows that it has returned. shard: from which it has to read again, in
    its own order; before: rows of the shards before that."""

    passed: int = 0
    shard: int = 0
    before: int = 0


START = Mark()
CHANGED = "the data, or data.shuffle_buffer, is not as before the stop: the run cannot resume at the same row"


@runtime_checkable
class Resumable(Protocol):
    """Rows in sequence that can be read from a mark on."""

    def read_on(
        self, seed: int, epoch: int, reader: int, num_readers: int, mark: Mark = START
    ) -> Iterator[tuple[Mark, Any]]:
        """One reader's rows of an epoch from a mark on, with the mark after each."""


def read_on(
    rows: RowSequence, seed: int, epoch: int, reader: int, num_readers: int, mark: Mark = START
) -> Iterator[tuple[Mark, Any]]:
    """A reader's rows of an epoch from a mark on, with the mark after each. A sequence without `read_on` is read again
    up to the mark, without decoding."""
    if isinstance(rows, Resumable):
        return rows.read_on(seed, epoch, reader, num_readers, mark)
    found = itertools.islice(rows.read(seed, epoch, reader, num_readers), mark.passed, None)
    return ((Mark(passed), row) for passed, row in enumerate(found, mark.passed + 1))


class Stored(Protocol):
    """A row in storage. number: in the reader's own order; shard, before: as of `Mark`."""

    @property
    def number(self) -> int: ...
    @property
    def shard(self) -> int: ...
    @property
    def before(self) -> int: ...

    @property
    def load(self) -> Callable[[], Any]:
        """Reads its values; an Unreadable if they cannot be decoded."""


S = TypeVar("S", bound=Stored)


def mixed(stored: Iterable[S], size: int, seed: int, mark: Mark = START) -> Iterator[tuple[Mark, S, Any]]:
    """All rows, shuffled within groups of `size`, with the mark after each. Each returned row makes room for one of the
    next group, so that reading is spread evenly. stored: the rows from the mark's shard on. Raises DataError if they
    are not those of before the stop.
    """
    block, given = divmod(mark.passed, size)
    rows = (one for one in stored if one.number >= block * size)
    held = [(one, one.load()) for one in itertools.islice(rows, size)]
    if given > len(held) or (held and held[0][0].number != block * size):
        raise DataError(CHANGED)
    passed = mark.passed
    while held:
        order = np.random.default_rng(sample_seed(seed, block, "block")).permutation(len(held))
        first, waiting, following = held[0][0], dict(enumerate(held)), list[tuple[S, Any]]()
        held.clear()  # returned rows are not kept
        for at in order[given:].tolist():
            following += ((one, one.load()) for one in itertools.islice(rows, 1))
            passed += 1
            yield Mark(passed, first.shard, first.before), *waiting.pop(at)
        held = following + [(one, one.load()) for one in itertools.islice(rows, size - len(following))]
        block, given = block + 1, 0
