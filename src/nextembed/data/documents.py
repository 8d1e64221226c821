"""Documents as the data of a run: what every source of them shares, and the endless stream of packed rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import IterableDataset

from ..core.config import Part
from ..core.types import Batch, Document, Encode, Encoded
from ..errors import ConfigError, DataError
from .collate import sample_seed
from .packing import collate_rows, pack
from .stream import Place, SkipLog, TrainLoader, _worker
from .transforms import Unreadable

Role = Literal["train", "validation", "test"]


class Documents(Protocol):
    """Documents that can be indexed. `document(index, seed)`: decoded; what is random in it depends on the seed alone.

    Raises Unreadable for one that cannot be read."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str: ...

    def document(self, index: int, seed: int) -> Document: ...


class DocumentPart(Part):
    """Settings of document data.

    A source of your own is a subclass in your own file, chosen with `kind: my_file.py:MyDocuments`, with a method
    `read(split)` that gives `Documents`.

    window: documents that are packed together; more leave less padding. long: a document longer than a row is left out
    ("skip", named in skipped.jsonl) or stops the run ("error"). max_skipped_rate: share of unreadable documents above
    which it stops. num_workers: processes a rank that read and decode; 0 is none but this one.
    """

    window: int = Field(256, ge=1)
    long: Literal["skip", "error"] = "skip"
    max_skipped_rate: float = Field(0.01, ge=0, le=1)
    num_workers: int = Field(0, ge=0)

    def read(self, split: Role) -> Documents:
        """The documents of a split. Raises ConfigError for a split that is not there."""
        raise NotImplementedError

    def documents(self, split: Role, num: int | None = None, seed: int = 0) -> Iterator[Document]:
        """Decoded documents of a split in a fixed order, for evaluation; unreadable ones are left out."""
        found = self.read(split)
        for index in range(len(found) if num is None else min(num, len(found))):
            try:
                yield found.document(index, sample_seed(seed, 0, found.key(index)))
            except Unreadable:
                continue

    def train_loader(
        self,
        *,
        encode: Encode,
        max_length: int,
        micro_batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        skipped_path: Path | None = None,
        start: dict[str, Any] | None = None,
        pin_memory: bool | None = None,
    ) -> TrainLoader:
        """Endless training batches of one rank, `micro_batch_size` packed rows of `max_length` positions each."""
        found = self.read("train")
        if len(found) == 0:
            raise ConfigError("data: the train split is empty")
        log = SkipLog(skipped_path, self.max_skipped_rate, len(found))
        place = Place(micro_batch_size, seed, rank, world_size, start)
        stream = PackedStream(found, encode, max_length, self.window, self.long == "skip", log, place, self.num_workers)
        pin = torch.accelerator.is_available() if pin_memory is None else pin_memory
        return TrainLoader(stream, self.num_workers, seed, pin)


class PackedStream(IterableDataset[Batch]):
    """Endless batches of packed documents, epoch after epoch in an order from (seed, epoch).

    Place p of the stream is document perm[p % N] of epoch p // N. Windows of so many places are dealt out to the
    readers (rank x worker) in turn; each packs its windows into rows and reads these as one sequence. position [B, 5]:
    reader, number of readers, workers a rank, the window of the row, and the number of its rows that are passed.
    """

    def __init__(
        self,
        documents: Documents,
        encode: Encode,
        max_length: int,
        window: int,
        skip_long: bool,
        log: SkipLog,
        place: Place,
        num_workers: int,
    ):
        self.rows, self.encode, self.max_length = documents, encode, max_length
        self.window, self.skip_long, self.log = window, skip_long, log
        self.place, self.num_workers = place, max(1, num_workers)
        self.num_readers = place.world_size * self.num_workers
        for name, now in (("num_workers", self.num_workers), ("num_readers", self.num_readers)):
            if place.start is not None and place.start.get(name) != now:
                what = "data.num_workers" if name == "num_workers" else "number of ranks x data.num_workers"
                raise ConfigError(
                    f"{what}: the run resumes with the same as before, {place.start.get(name)}, not {now}"
                )
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[Batch]:
        start = self.place.start or {"readers": {}, "worker": 0}
        worker = (_worker()[0] + start["worker"]) % self.num_workers  # torch asks worker 0 first
        reader = self.place.rank * self.num_workers + worker
        window, passed = start["readers"].get(str(reader), (reader, 0))
        rows = self._rows(window, passed)
        while True:
            taken = [next(rows) for _ in range(self.place.micro_batch_size)]
            batch = collate_rows([row for row, _, _ in taken], self.max_length)
            where = [[reader, self.num_readers, self.num_workers, at, count] for _, at, count in taken]
            batch["position"] = torch.tensor(where)
            yield batch

    def _rows(self, window: int, passed: int) -> Iterator[tuple[list[Encoded], int, int]]:
        """Rows of this reader's windows, each with its window and how many of that window's rows are passed then."""
        barren = 0
        while True:
            encoded = self._encoded(window)
            barren = 0 if encoded else barren + 1
            if barren * self.window > len(self.rows):
                raise DataError(
                    f"none of the {len(self.rows)} documents is readable and fits {self.max_length} positions"
                )
            rows = pack([len(one.input_ids) for one in encoded], self.max_length)
            for count, row in enumerate(rows, 1):
                if count > passed:
                    yield [encoded[i] for i in row], window, count
            window, passed = window + self.num_readers, 0

    def _encoded(self, window: int) -> list[Encoded]:
        found = []
        for place in range(window * self.window, (window + 1) * self.window):
            epoch, at = divmod(place, len(self.rows))
            index = int(self._permutation(epoch)[at])
            key = self.rows.key(index)
            try:
                one = self.encode(self.rows.document(index, sample_seed(self.place.seed, epoch, key)))
                if len(one.input_ids) > self.max_length:
                    reason = f"{len(one.input_ids)} positions, a row has {self.max_length} (model.max_length)"
                    if not self.skip_long:
                        raise DataError(f"document {key}: {reason}")
                    raise Unreadable(reason)
            except Unreadable as err:
                self.log.add(key, str(err), place + 1)
                continue
            found.append(one)
        return found

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            rng = np.random.default_rng(sample_seed(self.place.seed, epoch, "order"))
            self._epoch, self._order = epoch, rng.permutation(len(self.rows))
        return self._order
