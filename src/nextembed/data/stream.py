"""The endless training stream: which sample comes when, what replaces unreadable ones, and how a run resumes.

What a batch holds is a function of the seed and of its place in the stream. For rows that can be indexed
(`MapStream`) it depends on neither workers nor ranks nor micro-batch size; for rows that only come in
sequence (`SequentialStream`) on the number of readers (ranks x workers) as well.
"""

import atexit
import contextlib
import math
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol, TypedDict, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..core.signals import held_back, kill_workers, left_to_parent
from ..core.types import IGNORE_LABEL, Batch
from ..errors import ConfigError, DataError, NextEmbedError
from .collate import Collate
from .draws import sample_seed
from .shuffle import START, Mark, read_on
from .skipped import SkipLog
from .transforms import ImageReader, RandomResizedCrop, Unreadable

DOCUMENT_MARK = -1  # begins the positions of packed documents, which `packing.State` reads


class Row(TypedDict, total=False):
    """One undecoded sample. image: bytes, path, PIL image or uint8 array; an Unreadable if the row could not be read.
    label: class id. label_name: where the source has text for labels. key: its name. place: where a stream has it, the
    same in every epoch and for every reader; else the key tells rows apart."""

    image: Any
    label: int
    label_name: str
    key: str
    place: str


@runtime_checkable
class Rows(Protocol):
    """Rows that can be indexed, e.g. a list of Row."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class RowSequence(Protocol):
    """Rows that only come one after the other, e.g. read from a network. One that is `shuffle.Resumable`, too, is not
    read again from the epoch's start when a run resumes."""

    def read(self, seed: int, epoch: int, reader: int, num_readers: int) -> Iterator[Row]:
        """The part of an epoch that belongs to one of `num_readers` readers; the same arguments give the same order."""


class RowPlace(NamedTuple):
    """How far rows have been read in the order they are stored: row: in all; shard: the one being read; passed: rows
    of that shard. Rows that can be indexed are one shard."""

    row: int
    shard: int
    passed: int


FIRST = RowPlace(0, 0, 0)


def rows_in_order(rows: Any, start: RowPlace = FIRST) -> Iterator[tuple[RowPlace, Row]]:
    """Rows as they are stored, from a place on, each with the place after it.

    Raises ConfigError for a sequence of the user's own that has no `in_order`.
    """
    if hasattr(rows, "in_order"):
        return rows.in_order(start)
    if not isinstance(rows, Rows):
        raise ConfigError(f"data: {type(rows).__name__} cannot give its rows in order (it has no `in_order`)")
    return ((RowPlace(i + 1, 0, i + 1), rows[i]) for i in range(start.row, len(rows)))


class Cache(NamedTuple):
    """A small data set, decoded once, by row. images: uint8 [C, H, W], None where unreadable."""

    images: list[Tensor | None]
    keys: list[str]
    labels: list[int]


def build_cache(rows: Rows, reader: ImageReader, log: SkipLog) -> Cache:
    """Decodes every row. Unreadable ones are logged; raises DataError if they are too many, or all."""
    images: list[Tensor | None] = []
    keys, labels = [], []
    for index, row in enumerate(_in_order(rows)):
        keys.append(row_key(row, index))
        labels.append(row_label(row))
        try:
            images.append(reader.read(row.get("image")))
        except Unreadable as err:
            images.append(None)
            log.add(keys[-1], str(err), len(rows), str(index))  # all are going to be looked at
    log.check(len(images))
    if all(image is None for image in images):
        raise DataError(f"none of the {len(images)} images is readable")
    return Cache(images, keys, labels)


def decoded_bytes(rows: Rows, reader: ImageReader, num_probed: int = 32) -> int:
    """Estimated size of all rows once decoded, from the headers of some that lie evenly apart."""
    sizes = []
    for index in np.linspace(0, len(rows) - 1, min(num_probed, len(rows))).astype(int):
        try:
            height, width = reader.read_size(rows[int(index)].get("image"))
            sizes.append(height * width * reader.num_channels)
        except Unreadable:
            continue
    return int(np.mean(sizes) * len(rows)) if sizes else 0


def row_key(row: Row, index: int) -> str:
    return str(row.get("key", index))


def row_label(row: Row) -> int:
    label = row.get("label")
    return IGNORE_LABEL if label is None else int(label)


def _in_order(rows: Rows) -> Iterator[Row]:
    # Sources may have a faster way through all rows than one index at a time.
    return iter(cast(Any, rows)) if hasattr(rows, "__iter__") else (rows[i] for i in range(len(rows)))


def tries(index: int, total: int, seed: int) -> Iterator[int]:
    """A row, and then, for when it cannot be read, all others in an order that the seed draws.

    The order is a walk by a fixed stride, so it costs nothing to draw, and what replaces rows that lie side by side
    lies anywhere.
    """
    yield index
    start, stride = seed % total, seed // total % total or 1
    while math.gcd(stride, total) > 1:
        stride += 1
    yield from (at for at in ((start + step * stride) % total for step in range(total)) if at != index)


class Place(NamedTuple):
    """How one rank takes part. start: the state of a stopped run, or None."""

    micro_batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    start: dict[str, Any] | None = None


class MapStream(IterableDataset[Batch]):
    """Endless batches of rows that can be indexed: epoch after epoch, each a permutation from (seed, epoch).

    Place p of the stream is row perm[p % N] of epoch p // N; an unreadable row is replaced by one that place p draws
    from all rows (`tries`). Micro-batch m of rank r of R covers the places (m R + r) b ... + b, so
    accumulation and ranks divide the same samples among them. position [B, 2]: the place, and the first place
    after this micro-batch of all ranks.
    """

    def __init__(
        self,
        rows: Rows,
        reader: ImageReader,
        crop: RandomResizedCrop,
        collate: Collate,
        log: SkipLog,
        place: Place,
        cache: Cache | None = None,
    ):
        self.rows, self.reader, self.crop, self.collate, self.log = rows, reader, crop, collate, log
        self.place, self.cache = place, cache
        if place.start is not None and "next" not in place.start:
            raise ConfigError("data.streaming: the run to resume was streaming; it cannot go on without")
        self.first = 0 if place.start is None else int(place.start["next"])
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[Batch]:
        worker, num_workers = _worker()
        size, ranks = self.place.micro_batch_size, self.place.world_size
        micro_batch = worker
        while True:
            begin = self.first + (micro_batch * ranks + self.place.rank) * size
            yield self.batch(begin, self.first + (micro_batch + 1) * ranks * size)
            micro_batch += num_workers

    def batch(self, begin: int, following: int) -> Batch:
        places = range(begin, begin + self.place.micro_batch_size)
        epochs = [p // len(self.rows) for p in places]
        indices = [int(self._permutation(e)[p % len(self.rows)]) for e, p in zip(epochs, places)]
        position = torch.tensor([[p, following] for p in places])
        if self.cache is None:
            samples = [self._read(i, e, p) for i, e, p in zip(indices, epochs, places)]
            pixels, labels, seeds = zip(*samples)
            return self.collate(torch.stack(pixels), labels, position, seeds)
        return self._cached(self.cache, indices, epochs, places, position)

    def _read(self, index: int, epoch: int, place: int) -> tuple[Tensor, int, int]:
        """Pixels uint8 [C, S, S], label and seed of a row, or of the one that replaces it."""
        for at in self._tries(index, place):
            row = self.rows[at]
            key = row_key(row, at)
            seed = sample_seed(self.place.seed, epoch, key)
            try:
                return self.reader.read_crop(row.get("image"), self.crop, seed), row_label(row), seed
            except Unreadable as err:
                self.log.add(key, str(err), place + 1, str(at))
        raise DataError(f"none of the {len(self.rows)} images is readable")

    def _tries(self, index: int, place: int) -> Iterator[int]:
        return tries(index, len(self.rows), sample_seed(self.place.seed, place, "replacement"))

    def _cached(self, cache: Cache, indices: list[int], epochs: list[int], places: range, position: Tensor) -> Batch:
        indices = [
            next(at for at in self._tries(i, p) if cache.images[at] is not None) for i, p in zip(indices, places)
        ]
        seeds = [sample_seed(self.place.seed, e, cache.keys[i]) for e, i in zip(epochs, indices)]
        images = [cast(Tensor, cache.images[i]) for i in indices]
        boxes, flips = self.crop.draw([image.shape[1:] for image in images], seeds)
        pixels = self.crop.apply(images, boxes, flips)
        return self.collate(pixels, [cache.labels[i] for i in indices], position, seeds)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            rng = np.random.default_rng(sample_seed(self.place.seed, epoch, "order"))
            self._epoch, self._order = epoch, rng.permutation(len(self.rows))
        return self._order


class SequentialStream(IterableDataset[Batch]):
    """Endless batches of rows that only come in sequence, from readers (rank x worker) that each own a part.

    An unreadable row is replaced by the reader's next readable one. position [B, 7]: reader, number of readers, workers
    a rank, epoch, and how far this reader is in it (`shuffle.Mark`), this sample included.
    """

    def __init__(
        self,
        rows: RowSequence,
        reader: ImageReader,
        crop: RandomResizedCrop,
        collate: Collate,
        log: SkipLog,
        place: Place,
        num_workers: int,
    ):
        self.rows, self.reader, self.crop, self.collate, self.log = rows, reader, crop, collate, log
        self.place, self.num_workers = place, max(1, num_workers)
        self.num_readers = place.world_size * self.num_workers
        start = place.start
        if start is not None and "readers" not in start:
            raise ConfigError("data.streaming: the run to resume was not streaming; it cannot go on with it")
        for name, now in (("num_workers", self.num_workers), ("num_readers", self.num_readers)):
            if start is not None and start[name] != now:
                what = "data.num_workers" if name == "num_workers" else "number of ranks x data.num_workers"
                raise ConfigError(f"{what}: a streaming run resumes with the same as before, {start[name]}, not {now}")

    def __iter__(self) -> Iterator[Batch]:
        start = self.place.start or {"readers": {}, "worker": 0}
        # Torch asks worker 0 first; the stopped run may have stood at another one.
        worker = (_worker()[0] + start["worker"]) % self.num_workers
        reader = self.place.rank * self.num_workers + worker
        epoch, *mark = start["readers"].get(str(reader), (0,))
        samples = self._samples(reader, epoch, Mark(*mark))
        while True:
            pixels, labels, position, seeds = zip(*(next(samples) for _ in range(self.place.micro_batch_size)))
            yield self.collate(torch.stack(pixels), labels, torch.tensor(position), seeds)

    def _samples(self, reader: int, epoch: int, start: Mark) -> Iterator[tuple[Tensor, int, list[int], int]]:
        longest = 0  # rows of this reader that are known to exist
        while True:
            count, num_readable = start.passed, 0
            for mark, row in read_on(self.rows, self.place.seed, epoch, reader, self.num_readers, start):
                count = mark.passed
                key = row_key(row, count)
                seed = sample_seed(self.place.seed, epoch, key)
                try:
                    pixels = self.reader.read_crop(row.get("image"), self.crop, seed)
                except Unreadable as err:
                    own = row.get("place") or row.get("key") or f"{reader}/{count}"
                    self.log.add(key, str(err), max(count, longest) * self.num_readers, str(own))
                    continue
                num_readable += 1
                yield pixels, row_label(row), [reader, self.num_readers, self.num_workers, epoch, *mark], seed
            if count == 0:
                raise DataError(f"the data has no row for reader {reader} of {self.num_readers}; use fewer workers")
            if start == START:
                if num_readable == 0:
                    raise DataError(f"none of the {count} images read is readable")
                if count - num_readable > self.log.max_rate * count:
                    self.log.check(count * self.num_readers, at_least=0)  # short data would never reach MIN_SEEN
            epoch, start, longest = epoch + 1, START, max(count, longest)


def advance(state: dict[str, Any] | None, position: Tensor) -> dict[str, Any]:
    """The state (JSON values) after a consumed batch: what to save, and to give as `start` to resume.

    state: after the batch before, or the `start` of this run, or None. position [B, P]: of the batch, on any
    device.
    """
    last = position[-1].tolist()
    if last[0] == DOCUMENT_MARK:
        return {"documents": last}
    if len(last) == 2:
        return {"next": last[1]}
    reader, num_readers, num_workers, *place = last
    readers = {**(state or {}).get("readers", {}), str(reader): place}
    worker = (reader + 1) % num_workers
    return {"readers": readers, "worker": worker, "num_workers": num_workers, "num_readers": num_readers}


def valid_state(state: Any) -> bool:
    """Whether a state that was read from a file is one that `advance` gives, or None."""
    match state:
        case None:
            return True
        case {"next": int(place)}:
            return place >= 0
        case {"documents": [int(), int(ranks), int(readers), int(sources), int(), int(), int(waiting), *rest]}:
            whole = len(rest) == readers + 4 * readers * sources + 6 * waiting and all(type(n) is int for n in rest)
            return whole and min(ranks, readers, sources, waiting + 1, *rest) >= 0
        case {"readers": dict(readers), "worker": int(), "num_workers": int(workers), "num_readers": int(count)}:
            whole = all(len(place) == 1 + len(START) for place in readers.values())
            numbers = [number for place in readers.values() for number in place]
            return whole and workers > 0 and count > 0 and all(type(n) is int and n >= 0 for n in numbers)
    return False


class TrainLoader(DataLoader[Batch]):
    """A torch DataLoader of ready batches, without end. Data errors of workers come out as one clear line."""

    def __init__(self, stream: IterableDataset[Batch], num_workers: int, seed: int, pin_memory: bool):
        self.workers: list[BaseProcess] = []
        super().__init__(
            stream,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            prefetch_factor=4 if num_workers else None,
            generator=torch.Generator().manual_seed(seed),  # else torch draws a seed from the global generator
            worker_init_fn=_start_worker,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        before = multiprocessing.active_children()
        with held_back():
            batches = super().__iter__()
        atexit.register(kill_workers)
        self.workers = [child for child in multiprocessing.active_children() if child not in before] or self.workers
        try:
            yield from batches
        except (DataError, ConfigError) as err:
            # A worker's error arrives with the worker's traceback as its text; its last line is the message.
            kind = type(err).__name__
            raise type(err)(str(err).rstrip().rpartition(f"{kind}: ")[2]) from None


@contextlib.contextmanager
def checked_workers(loader: Any) -> Iterator[None]:
    """An error in the block is a DataError of one line if it comes of the death of one of the loader's workers: torch
    raises wherever the main process is at that moment, by a signal."""
    try:
        yield
    except NextEmbedError:
        raise
    except Exception:
        workers = getattr(loader, "workers", [])
        wait([worker.sentinel for worker in workers], timeout=5)  # its connections end a moment before it does
        for worker in workers:
            if worker.exitcode:
                raise DataError(_death(worker.exitcode)) from None
        raise


def _death(exit_code: int) -> str:
    signum = -exit_code
    if signum == 9:
        return "a data worker was killed (signal 9), most often for want of memory: lower data.num_workers"
    if signum == 7:
        return "a data worker died (signal 7), most often for want of shared memory: enlarge /dev/shm"
    how = f"signal {signum}" if signum > 0 else f"exit code {exit_code}"
    return f"a data worker died ({how}); data.num_workers=0 reads in the main process and shows where"


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _start_worker(worker: int) -> None:
    left_to_parent()
    torch.set_num_threads(1)
