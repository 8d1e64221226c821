"""Rows of tables that `datasets` reads, by index or in sequence."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from pyarrow import Table as ArrowTable

from ..errors import NextEmbedError
from .archives import check_tar
from .damaged_tables import find_fault
from .draws import sample_seed
from .loading import Table, cannot_read, metadata_fault
from .origins import Origin
from .record import reason_of
from .rows import FIRST, RowPlace
from .shuffle import START, Mark, mixed
from .transforms import Unreadable

Values = dict[str, Any]  # of a row, by column
Stored = Values | Unreadable  # values in a table; an Unreadable if they cannot be decoded
R = TypeVar("R", covariant=True)
FEW_SHARDS = 4  # per reader: one more or less makes a difference


class ToRow(Protocol[R]):
    """Makes a row of what is stored."""

    def __call__(self, record: Stored, index: int | str) -> R: ...


class IndexedRows(Generic[R]):
    """Rows of a `datasets.Dataset`. has_columns: whether its columns are the rows', not lines of JSON."""

    def __init__(self, data: Table, to_row: ToRow[R], has_columns: bool = True):
        self.data, self.to_row, self.has_columns = data, to_row, has_columns

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> R:
        return self.to_row(record_at(self.data, index), index)

    def __iter__(self) -> Iterator[R]:
        return (row for _, row in self.in_order())

    def in_order(self, start: RowPlace = FIRST) -> Iterator[tuple[RowPlace, R]]:
        """The rows from a place on, each with the place after it."""
        for begin in range(start.row, len(self.data), 256):
            for index, record in enumerate(records_from(self.data, begin, begin + 256), begin):
                yield RowPlace(index + 1, 0, index + 1), self.to_row(record, index)


def record_at(data: Table, index: int) -> Stored:
    """A row; an Unreadable for one whose values cannot be decoded, such as text that is not UTF-8."""
    try:
        return data[index]
    except ValueError as err:
        return Unreadable(reason_of(err))


def records_from(data: Table, begin: int, end: int) -> list[Stored]:
    """The rows of a stretch, each as of `record_at`."""
    try:
        records = data[begin:end]
        return [dict(zip(records, values)) for values in zip(*records.values())]
    except ValueError:  # one of them
        return [record_at(data, index) for index in range(begin, min(end, len(data)))]


class StreamedRows(Generic[R]):
    """Rows of a `datasets.IterableDataset`, in an order that (seed, epoch) draws: shards (files) are dealt out anew,
    then every `shuffle_buffer` rows are mixed.

    Each reader owns shards if there are enough for all; else each takes every n-th row. A row is named by its shard and
    its number there, which stay the same. A stopped run reads on from the shard in which the rows of the
    buffer begin. Raises DataError, with the name of the file, for a shard that cannot be read to its end.
    """

    def __init__(
        self, data: Table, to_row: ToRow[R], shuffle_buffer: int, origin: Origin, split: str, has_columns: bool = True
    ):
        self.has_columns = has_columns
        self.data, self.to_row, self.shuffle_buffer = data, to_row, shuffle_buffer
        self.origin, self.files = origin, (origin.files or {}).get(split, [])

    def divided(self, num_readers: int) -> str:
        """How the shards are divided among readers, and its disadvantages, as text."""
        num = self.data.num_shards
        said = f"{num:,} shard{'s' * (num != 1)} for {num_readers:,} reader{'s' * (num_readers != 1)}"
        if num < num_readers:
            return (
                f"{said} (ranks x data.num_workers): each reads all of them and keeps every {num_readers}th row; more "
                "shards (nextembed shard) or fewer workers are faster"
            )
        fewest, more = divmod(num, num_readers)
        if more and fewest < FEW_SHARDS:
            return f"{said}: some read {fewest}, others {fewest + 1} per epoch, so rows of the former repeat sooner"
        return said

    def read(self, seed: int, epoch: int, reader: int, num_readers: int) -> Iterator[R]:
        return (row for _, row in self.read_on(seed, epoch, reader, num_readers))

    def read_on(
        self, seed: int, epoch: int, reader: int, num_readers: int, mark: Mark = START
    ) -> Iterator[tuple[Mark, R]]:
        """`read` from a mark on, with the mark after each row. Shards before the mark's are not read again."""
        order = np.random.default_rng(sample_seed(seed, epoch, "shards")).permutation(self.data.num_shards).tolist()
        deals = (order[reader::num_readers], 0, 1) if len(order) >= num_readers else (order, reader, num_readers)
        own = sample_seed(seed, epoch, f"reader {reader}")
        for after, one, record in mixed(self._dealt(*deals, mark), self.shuffle_buffer, own, mark):
            yield after, self.to_row(record, f"{self._name(one.file)}:{one.row}")

    def _dealt(self, shards: list[int], first: int, step: int, mark: Mark) -> Iterator["StoredRow"]:
        """Every `step`-th row of some shards, counted from the first one, but from the mark's shard on."""
        count = mark.before
        for shard in range(mark.shard, len(shards)):
            before = count
            for row, decode in enumerate(self._records(shards[shard])):
                if count % step == first:
                    yield StoredRow(count // step, shard, before, shards[shard], row, decode)
                count += 1

    def in_order(self, start: RowPlace = FIRST) -> Iterator[tuple[RowPlace, R]]:
        """The rows as they are stored, unshuffled, from a place on, each with the place after it. Only the shard that
        the place lies in is read anew. Keys hold row numbers, as without streaming."""
        index = start.row
        for shard in range(start.shard, self.data.num_shards):
            passed = start.passed if shard == start.shard else 0
            for decode in itertools.islice(self._records(shard), passed, None):
                index, passed = index + 1, passed + 1
                yield RowPlace(index, shard, passed), self.to_row(decode(), index - 1)

    def _records(self, shard: int) -> Iterator[Callable[[], Stored]]:
        """The rows of a shard, to be decoded."""
        try:
            if self.origin.builder == "webdataset" and self._is_file(shard) and not self.origin.remote:
                check_tar(self.files[shard])
            # Tables, for a value that cannot be decoded ends any other reader; and `iter`, not `__iter__`, which
            # would divide the rows among torch's workers a second time.
            for table in self.data.with_format("arrow").shard(self.data.num_shards, shard).iter(batch_size=1):
                yield partial(self._decoded, shard, table)
        except NextEmbedError:
            raise
        except Exception as err:  # broken files may raise anything
            raise cannot_read(*self._fault(shard, err), self.origin.builder) from err

    def _decoded(self, shard: int, table: ArrowTable) -> Stored:
        """The row of a table; an Unreadable for values that cannot be decoded."""
        features = self.data.features
        try:
            values = table.to_pylist()[0]
            return values if features is None else features.decode_example(values)
        except ValueError as err:
            return Unreadable(reason_of(err))
        except Exception as err:
            raise cannot_read(*self._fault(shard, err), self.origin.builder) from err

    def _is_file(self, shard: int) -> bool:
        return len(self.files) == self.data.num_shards and "/**" not in self.files[shard]

    def _fault(self, shard: int, err: Exception) -> tuple[object, Exception]:
        if self._is_file(shard) and not self.origin.remote:
            fault = find_fault(self.files, self.files[shard]) if self.origin.builder == "parquet" else None
            return fault or (self.files[shard], err)
        if self.origin.builder in ("imagefolder", "videofolder") and self.origin.folder is not None:
            return metadata_fault(self.origin.folder, err)
        return self._name(shard), err

    def _name(self, shard: int) -> str:
        if not self._is_file(shard):
            return f"shard {shard}"
        if self.origin.remote:
            return self.files[shard].rpartition("//")[2]
        file, folder = Path(self.files[shard]), self.origin.folder
        return file.relative_to(folder).as_posix() if folder and file.is_relative_to(folder) else str(file)


class StoredRow(NamedTuple):
    """See `shuffle.Stored`. file, row: the shard as it is stored, and the number of the row in it."""

    number: int
    shard: int
    before: int
    file: int
    row: int
    load: Callable[[], Stored]
