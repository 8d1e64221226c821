"""The endless training stream: order of samples, replacement of unreadable ones, and resuming.

What a batch holds is a function of the seed and of its place in the stream. For rows that can be indexed
(`MapStream`) it depends on neither workers nor ranks nor micro-batch size; for rows that only come in
sequence (`SequentialStream`) on the number of readers (ranks x workers) as well.
"""

import atexit
import contextlib
import gc
import itertools
import math
import multiprocessing
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..core.signals import held_back, kill_workers, left_to_parent
from ..core.types import Batch, Loading
from ..errors import ConfigError, DataError, NextEmbedError
from .collate import Collate, Label
from .draws import sample_seed, view_seed
from .rows import Row, Rows, RowSequence, row_key, row_label, rows_in_order
from .shuffle import START, Mark, read_on
from .skipped import SkipLog
from .transforms import ImageReader, RandomResizedCrop, Unreadable, WrongKind, resize

R = TypeVar("R")
S = TypeVar("S")
State = dict[str, Any]  # position of a run in its data, as JSON
NUM_LOOKED = 4  # rows that tell images from clips
DOCUMENT_MARK = -1  # begins the positions of packed documents, which `packing.State` reads


class View(Protocol):
    """How samples are made from rows. Both methods raise Unreadable."""

    def crop(self, row: Row, seed: int) -> tuple[list[Tensor], Label]:
        """For training: crops uint8 [C, S, S], as many for each row, and the label."""

    def whole(self, row: Row, size: int) -> tuple[Tensor, Label]:
        """For evaluation: the whole image at this size, uint8 [C, H, W], and the label."""


@dataclass(frozen=True)
class ImageView:
    """Images with the id of a class. crops: one, or one for each view that an objective compares."""

    reader: ImageReader
    crops: tuple[RandomResizedCrop, ...]

    def crop(self, row: Row, seed: int) -> tuple[list[Tensor], Label]:
        if len(self.crops) == 1:
            return [self.reader.read_crop(row.get("image"), self.crops[0], seed)], row_label(row)
        image = self.reader.read(row.get("image"))
        return [crop.one(image, view_seed(seed, view)) for view, crop in enumerate(self.crops)], row_label(row)

    def whole(self, row: Row, size: int) -> tuple[Tensor, Label]:
        return resize(self.reader.read(row.get("image")), size), row_label(row)


class Cache(NamedTuple):
    """A small data set, decoded once, by row. images: uint8 [C, H, W], None where unreadable."""

    images: list[Tensor | None]
    keys: list[str]
    labels: list[int]
    crops: tuple[RandomResizedCrop, ...]

    def cropped(self, indices: list[int], seeds: list[int]) -> list[Tensor]:
        """[B, C, S, S] of each crop."""
        images = [cast(Tensor, self.images[i]) for i in indices]
        shapes = [image.shape[1:] for image in images]
        drawn = [crop.draw(shapes, [view_seed(seed, view) for seed in seeds]) for view, crop in enumerate(self.crops)]
        return [crop.apply(images, *boxes_flips) for crop, boxes_flips in zip(self.crops, drawn)]


def build_cache(rows: Rows, view: ImageView, log: SkipLog) -> Cache:
    """Decodes every row. Unreadable ones are logged; raises DataError if they are too many, or all."""
    cache = Cache([], [], [], view.crops)
    for index, (_, row) in enumerate(rows_in_order(rows)):
        cache.keys.append(row_key(row, index))
        cache.labels.append(row_label(row))
        try:
            cache.images.append(view.reader.read(row.get("image")))
        except Unreadable as err:
            cache.images.append(None)
            log.add(cache.keys[-1], str(err), len(rows), str(index))  # all will be read
    log.check(len(cache.images))
    if all(image is None for image in cache.images):
        raise DataError(f"none of the {len(rows)} images is readable")
    return cache


def decoded_bytes(rows: Rows, reader: ImageReader, num_probed: int = 32) -> int:
    """Estimated size of all rows once decoded, from the headers of evenly spaced ones."""
    sizes = []
    for index in np.linspace(0, len(rows) - 1, min(num_probed, len(rows))).astype(int):
        try:
            height, width = reader.read_size(rows[int(index)].get("image"))
            sizes.append(height * width * reader.num_channels)
        except Unreadable:
            continue
    return int(np.mean(sizes) * len(rows)) if sizes else 0


def tries(index: int, total: int, seed: int) -> Iterator[int]:
    """A row, then all others as replacements, in an order given by the seed. The order is a walk with a fixed stride,
    which costs nothing, and replacements of neighbouring rows are far apart.
    """
    yield index
    start, stride = seed % total, seed // total % total or 1
    while math.gcd(stride, total) > 1:
        stride += 1
    yield from (at for at in ((start + step * stride) % total for step in range(total)) if at != index)


def check_kind(rows: Rows, reader: ImageReader) -> None:
    """Raises ConfigError if the first rows that can be read are clips for a model of images, or the other way."""
    wrong = ""
    for at in range(min(NUM_LOOKED, len(rows))):
        row = rows[at]
        try:
            reader.read_size(row.get("image"))
        except WrongKind as err:
            wrong = wrong or f"data: {row_key(row, at)}: {err}"
        except Unreadable:
            continue
        else:
            return
    if wrong:
        raise ConfigError(wrong)


class MapStream(IterableDataset[Batch]):
    """Endless batches of rows that can be indexed: epoch after epoch, each a permutation from (seed, epoch).

    Place p of the stream is row perm[p % N] of epoch p // N; an unreadable row is replaced by one that place p draws
    from all rows (`tries`). Micro-batch m of rank r of R covers the places (m R + r) b ... + b, so
    accumulation and ranks divide the same samples among them. position [B, 2]: the place, and the first place
    after this micro-batch of all ranks.
    """

    def __init__(
        self, rows: Rows, view: View, collate: Collate, log: SkipLog, loading: Loading, cache: Cache | None = None
    ):
        self.rows, self.view, self.collate, self.log = rows, view, collate, log
        self.loading, self.cache = loading, cache
        if loading.start is not None and "next" not in loading.start:
            raise ConfigError("data.streaming: the run to resume was streaming; it cannot continue without")
        self.first = 0 if loading.start is None else int(loading.start["next"])
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[Batch]:
        worker, num_workers = worker_of()
        size, ranks = self.loading.micro_batch_size, self.loading.world_size
        micro_batch = worker
        while True:
            begin = self.first + (micro_batch * ranks + self.loading.rank) * size
            yield self.batch(begin, self.first + (micro_batch + 1) * ranks * size)
            micro_batch += num_workers

    def batch(self, begin: int, following: int) -> Batch:
        places = range(begin, begin + self.loading.micro_batch_size)
        epochs = [p // len(self.rows) for p in places]
        indices = [int(self._permutation(e)[p % len(self.rows)]) for e, p in zip(epochs, places)]
        position = torch.tensor([[p, following] for p in places])
        if self.cache is not None:
            images = self.cache.images
            indices = [next(at for at in self._tries(i, p) if images[at] is not None) for i, p in zip(indices, places)]
            seeds = [sample_seed(self.loading.seed, e, self.cache.keys[i]) for e, i in zip(epochs, indices)]
            labels = [self.cache.labels[i] for i in indices]
            return self.collate(self.cache.cropped(indices, seeds), labels, position, seeds)
        samples = [self._read(i, e, p) for i, e, p in zip(indices, epochs, places)]
        crops, classes, drawn = zip(*samples)
        return self.collate([torch.stack(view) for view in zip(*crops)], classes, position, drawn)

    def _read(self, index: int, epoch: int, place: int) -> tuple[list[Tensor], Label, int]:
        """Crops uint8 [C, S, S], label and seed of a row, or of the one that replaces it."""
        for at in self._tries(index, place):
            row = self.rows[at]
            key = row_key(row, at)
            seed = sample_seed(self.loading.seed, epoch, key)
            try:
                return *self.view.crop(row, seed), seed
            except Unreadable as err:
                self.log.add(key, str(err), place + 1, str(at))
        raise DataError(f"none of the {len(self.rows)} images is readable")

    def _tries(self, index: int, place: int) -> Iterator[int]:
        return tries(index, len(self.rows), sample_seed(self.loading.seed, place, "replacement"))

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            rng = np.random.default_rng(sample_seed(self.loading.seed, epoch, "order"))
            self._epoch, self._order = epoch, rng.permutation(len(self.rows))
        return self._order


class RowOf(NamedTuple):
    """Where a row of a reader is: its epoch, and the marks before and after it."""

    epoch: int
    before: Mark
    after: Mark


class SequentialStream(IterableDataset[Batch]):
    """Endless batches of rows that only come in sequence, from readers (rank x worker) that each own a part.

    An unreadable row is replaced by the reader's next readable one. position [B, 7]: reader, number of readers, workers
    a rank, epoch, and how far this reader is in it (`shuffle.Mark`), this sample included.
    """

    def __init__(
        self, rows: RowSequence, view: View, collate: Collate, log: SkipLog, loading: Loading, num_workers: int
    ):
        self.rows, self.view, self.collate, self.log = rows, view, collate, log
        self.loading, self.num_workers = loading, max(1, num_workers)
        self.num_good, self.num_wrong = 0, 0  # rows that this process has read, and those of the wrong kind
        self.num_readers = loading.world_size * self.num_workers
        start = loading.start
        if start is not None and "readers" not in start:
            raise ConfigError("data.streaming: the run to resume was not streaming; it cannot continue with it")
        for name, now in (("num_workers", self.num_workers), ("num_readers", self.num_readers)):
            if start is not None and start[name] != now:
                what = "data.num_workers" if name == "num_workers" else "number of ranks x data.num_workers"
                raise ConfigError(
                    f"{what}: a streaming run must resume with the same value as before, {start[name]}, not {now}"
                )

    def __iter__(self) -> Iterator[Batch]:
        start = self.loading.start or {"readers": {}, "worker": 0}
        # Torch asks worker 0 first; the stopped run may have been at another one.
        worker = (worker_of()[0] + start["worker"]) % self.num_workers
        reader = self.loading.rank * self.num_workers + worker
        epoch, *mark = start["readers"].get(str(reader), (0,))
        samples = endless(
            lambda epoch, mark: read_on(self.rows, self.loading.seed, epoch, reader, self.num_readers, mark),
            partial(self._sample, reader), self.log, (reader, self.num_readers), (epoch, Mark(*mark)),
        )  # fmt: skip
        readable = (sample for sample in samples if sample is not None)
        while True:
            crops, labels, position, seeds = zip(*itertools.islice(readable, self.loading.micro_batch_size))
            yield self.collate([torch.stack(view) for view in zip(*crops)], labels, torch.tensor(position), seeds)

    def _sample(
        self, reader: int, row: Row, place: RowOf, seen: int
    ) -> tuple[bool, tuple[list[Tensor], Label, list[int], int] | None]:
        """Crops, label, position and seed of a row; None if it is unreadable."""
        epoch, _, mark = place
        key = row_key(row, mark.passed)
        seed = sample_seed(self.loading.seed, epoch, key)
        try:
            crops, label = self.view.crop(row, seed)
        except Unreadable as err:
            own = row.get("place") or row.get("key") or f"{reader}/{mark.passed}"
            self.log.add(key, str(err), seen, str(own))
            self.num_wrong += isinstance(err, WrongKind)
            if self.num_good == 0 and self.num_wrong == NUM_LOOKED:
                raise ConfigError(f"data: {key}: {err}") from None
            return False, None
        self.num_good += 1
        return True, (crops, label, [reader, self.num_readers, self.num_workers, epoch, *mark], seed)


def endless(
    read: Callable[[int, Mark], Iterator[tuple[Mark, R]]],
    use: Callable[[R, RowOf, int], tuple[bool, S]],
    log: SkipLog,
    who: tuple[int, int],
    start: tuple[int, Mark],
) -> Iterator[S]:
    """Samples from the rows of one reader, epoch after epoch.

    read: (epoch, mark) -> rows, each with the mark after it. use: (row, its place, rows that all readers have seen,
    about) -> whether it is readable, and what is given; it logs what is not. who: reader, and number of readers. start:
    epoch, and mark in it. Raises DataError if there are no rows, none is readable, or too many are not.
    """
    (reader, num_readers), (epoch, first) = who, start
    longest = 0  # rows of this reader that are known to exist
    while True:
        mark, num_readable = first, 0
        for after, row in read(epoch, first):
            readable, made = use(row, RowOf(epoch, mark, after), max(after.passed, longest) * num_readers)
            mark, num_readable = after, num_readable + readable
            yield made
        count = mark.passed
        if count == 0:
            raise DataError(f"the data has no row for reader {reader} of {num_readers}; use fewer workers")
        if first == START and num_readable == 0:
            raise DataError(f"none of the {count} {log.what} read can be used: {log.first()}")
        if first == START and count - num_readable > log.max_rate * count:
            log.check(count * num_readers, at_least=0)  # short data would never reach MIN_SEEN
        epoch, first, longest = epoch + 1, START, max(count, longest)


def advance(state: State | None, position: Tensor) -> State:
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


def valid_state(state: object) -> bool:
    """Whether a state that was read from a file is one that `advance` gives, or None."""
    match state:
        case None:
            return True
        case {"next": int(place)}:
            return place >= 0
        case {"documents": [int(), int(ranks), int(readers), int(sources), int(), int(), int(waiting), *rest]}:
            whole = len(rest) == readers + 4 * readers * sources + 8 * waiting and all(type(n) is int for n in rest)
            return whole and min(ranks, readers, sources, waiting + 1, *rest) >= 0
        case {"readers": dict(readers), "worker": int(), "num_workers": int(workers), "num_readers": int(count)}:
            whole = all(len(place) == 1 + len(START) for place in readers.values())
            numbers = [number for place in readers.values() for number in place]
            return whole and workers > 0 and count > 0 and all(type(n) is int and n >= 0 for n in numbers)
    return False


class TrainLoader(DataLoader[Batch]):
    """A torch DataLoader of ready batches, without end. Data errors of workers come out as one clear line.

    num_rows: samples of an epoch, None if that is not known. log: what could not be used.
    """

    def __init__(
        self,
        stream: IterableDataset[Any],
        num_workers: int,
        loading: Loading,
        log: SkipLog,
        num_rows: int | None = None,
    ):
        self.num_rows, self.log = num_rows, log
        self.workers: list[BaseProcess] = []
        super().__init__(
            stream,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=loading.pins,
            persistent_workers=num_workers > 0,
            prefetch_factor=4 if num_workers else None,
            generator=torch.Generator().manual_seed(
                loading.seed
            ),  # otherwise torch draws a seed from the global generator
            worker_init_fn=_start_worker,
        )

    def facts(self) -> dict[str, float]:
        """Rows and files of the data, where that is known, and how many of them turned out to be of no use so far."""
        rows: dict[str, float] = {} if self.log.length is None else {"data_rows": self.log.length}
        return rows | {"data_skipped": self.log.count()}

    def shares(self) -> dict[str, tuple[int, int]]:
        """Counts of processed samples since the last call: by name, how many, and out of how many."""
        return {}

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        before = multiprocessing.active_children()
        if self.num_workers:
            gc.collect()  # before a worker starts and does so itself
        with held_back():
            batches = super().__iter__()
        atexit.register(kill_workers)
        self.workers = [child for child in multiprocessing.active_children() if child not in before] or self.workers
        try:
            yield from batches
        except (DataError, ConfigError) as err:
            # A worker's error arrives with the worker's traceback as its text; its last line is the message.
            kind = type(err).__name__
            found = type(err)(str(err).rstrip().rpartition(f"{kind}: ")[2])
            # Workers end at once if they are let go here. What only the garbage collector finds, at some later time,
            # has lost its queues by then, and torch waits for each worker until its time limits.
            del batches
            self._iterator = err.__traceback__ = None
            raise found from None


@contextlib.contextmanager
def checked_workers(loader: object) -> Iterator[None]:
    """Turns the death of a loader's worker into a DataError of one line: torch raises through a signal, wherever the
    main process is."""
    try:
        yield
    except NextEmbedError:
        raise
    except Exception as err:
        workers = loader.workers if isinstance(loader, TrainLoader) else []
        said = str(err)
        patience = 60 if isinstance(err, ConnectionError | EOFError) else 5  # seconds; a busy machine takes long
        try:
            closed = wait([worker.sentinel for worker in workers], patience)
            for worker in workers:
                if worker.sentinel in closed:
                    worker.join(patience)  # all its connections close before it ends; exitcode would not wait
        except RuntimeError as later:  # torch raises of its end while it is waited for
            said += f"\n{later}"
        codes = [worker.exitcode for worker in workers if worker.exitcode]
        if code := codes[0] if codes else _exit_code_in(said):
            raise DataError(_death(code)) from None
        raise


def _exit_code_in(message: str) -> int | None:
    """What torch's message says of a worker's end, as an exit code. It is needed where torch raised in the very moment
    in which the exit code had been read from the system but not noted yet: it is lost then."""
    if ended := re.search(r"DataLoader worker \(pid \d+\) exited unexpectedly with exit code (\d+)", message):
        return int(ended[1])
    if killed := re.search(r"DataLoader worker \(pid \d+\) is killed by signal: ([^.]+)\.", message):
        return -next((n for n in signal.valid_signals() if signal.strsignal(n) == killed[1]), 0) or None
    return None


def _death(exit_code: int) -> str:
    signum = -exit_code
    if signum == 9:
        return "a data worker was killed (signal 9), usually because memory ran out: lower data.num_workers"
    if signum == 7:
        return "a data worker died (signal 7), usually because shared memory ran out: enlarge /dev/shm"
    how = f"signal {signum}" if signum > 0 else f"exit code {exit_code}"
    return f"a data worker died ({how}); data.num_workers=0 reads in the main process and shows where"


def worker_of() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _start_worker(worker: int) -> None:
    gc.freeze()  # uncollected video decoders of the parent would wait for ever for threads that do not exist here
    left_to_parent()
    sys.excepthook = _without_lost_connections
    torch.set_num_threads(1)


def _without_lost_connections(kind: type[BaseException], err: BaseException, trace: TracebackType | None) -> None:
    """What a worker prints of an error outside the reading of data. When the main process stops in the middle of a
    batch, it says why; that the connection to it is lost is no news."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, err, trace)
