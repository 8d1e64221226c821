"""Packing of documents into rows of one length: truncation, what shares a row, and resuming.

Readers (ranks x `num_readers`) each own a part of every epoch. A rank takes a fixed number of documents from each of
its readers in turn; workers decode and encode them, each for some of the readers, so neither the documents nor their
order depend on the number of workers. The main process packs.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ..core.types import IGNORE_LABEL, Batch, Document, Encode, Encoded, Loading, Segment
from ..errors import ConfigError, DataError
from .draws import sample_seed, signed
from .record import AnyRow, key_of, reading, reason_of
from .shuffle import START, Mark
from .skipped import SkipLog
from .stream import DOCUMENT_MARK, RowOf, TrainLoader, endless, worker_of
from .transforms import Unreadable

STRETCH = 16  # documents of one reader, one after the other
OK, UNREADABLE, TRUNCATED, TOO_LONG = range(4)
NO_TARGET = {"labels": IGNORE_LABEL, "regression_mask": False, "latent_mask": False}  # the log entry, by key
OUTCOMES = ("whole", "unreadable", "truncated", "too_long")


class DocumentPlace(NamedTuple):
    """Position of a document: reader (of all ranks), source, epoch of that source, number of its row in it, from 1;
    then from where it can be read again: see `shuffle.Mark`."""

    reader: int
    source: int
    epoch: int
    row: int
    shard: int = 0
    before: int = 0
    next_shard: int = 0
    next_before: int = 0

    @property
    def mark(self) -> Mark:
        """The mark before this document."""
        return Mark(self.row - 1, self.shard, self.before)


Fitted = tuple[DocumentPlace, int, Encoded | None]  # with the index into OUTCOMES


class Stretch(NamedTuple):
    """Encoded documents of one reader, laid end to end so that few tensors cross between processes.

    places [K, 8]; outcomes, lengths [K]: index into OUTCOMES and positions of each (0: left out). positions, values: as
    of `Encoded`; counts [K] by the names of values: how many of them each document has.
    """

    places: Tensor
    outcomes: Tensor
    lengths: Tensor
    positions: dict[str, Tensor]
    values: dict[str, Tensor]
    counts: dict[str, Tensor]


class Source(Protocol):
    """Rows that become documents."""

    def read(self, seed: int, epoch: int, reader: int, num_readers: int, mark: Mark) -> Iterator[tuple[Mark, AnyRow]]:
        """One reader's rows of an epoch from a mark on, with the mark after each."""

    def document(self, row: AnyRow, seed: int, epoch: int, count: int) -> Document:
        """Raises Unreadable."""


class State:
    """The state of the readers of one rank, as JSON or int64 values. turn: the reader (of this rank) whose turn it is,
    offset: documents already taken in this turn. drawn: number of documents that each reader has read; readers: epoch
    and mark of each in each source. pending: documents that were read but not packed yet.
    """

    def __init__(self, rank: int, world_size: int, num_readers: int, num_sources: int):
        self.rank, self.sizes = rank, (world_size, num_readers, num_sources)
        self.turn = self.offset = 0
        self.drawn = [0] * num_readers
        self.readers = [[(0, START)] * num_sources for _ in range(num_readers)]
        self.pending: list[DocumentPlace] = []

    @classmethod
    def load(cls, values: list[int], rank: int, world_size: int, num_readers: int, num_sources: int) -> "State":
        """Raises ConfigError if the stopped run had other ranks, readers or sources."""
        state = cls(rank, world_size, num_readers, num_sources)
        names = ("number of ranks", "data.num_readers", "number of data.sources")
        for name, now, then in zip(names, state.sizes, values[1:4]):
            if now != then:
                raise ConfigError(
                    f"{name}: a run on packed documents must resume with the same value as before, {then}, not {now}"
                )
        state.turn, state.offset, num_pending = values[4:7]
        rest = iter(values[7:])
        state.drawn = [next(rest) for _ in range(num_readers)]
        state.readers = [
            [(next(rest), Mark(*itertools.islice(rest, 3))) for _ in range(num_sources)] for _ in range(num_readers)
        ]
        state.pending = [DocumentPlace(*itertools.islice(rest, 8)) for _ in range(num_pending)]
        return state

    def values(self) -> list[int]:
        flat = [DOCUMENT_MARK, *self.sizes, self.turn, self.offset, len(self.pending), *self.drawn]
        flat += [number for reader in self.readers for epoch, mark in reader for number in (epoch, *mark)]
        return flat + [number for place in self.pending for number in place]

    def num_packed(self) -> int:
        """Documents of this rank that were read and wait no more."""
        return sum(self.drawn) - len(self.pending)

    def take(self, place: DocumentPlace) -> None:
        """Advances after a document: to the next one of this turn, or to the next reader."""
        num_readers = self.sizes[1]
        number = place.reader - self.rank * num_readers
        self.readers[number][place.source] = (place.epoch, Mark(place.row, place.next_shard, place.next_before))
        self.drawn[number] += 1
        self.offset += 1
        if self.offset == STRETCH:
            self.turn, self.offset = (self.turn + 1) % num_readers, 0


class DocumentStream(IterableDataset[Stretch]):
    """Endless stretches of encoded documents of one rank, from where `state` says.

    choose: (reader, number of documents drawn before) -> source. num_readers: of this rank.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        choose: Callable[[int, int], int],
        fit: "Fit",
        log: SkipLog,
        seed: int,
        state: State,
    ):
        self.sources, self.choose, self.fit, self.log = sources, choose, fit, log
        self.seed, self.state = seed, state
        world_size, self.num_readers, _ = state.sizes
        self.all_readers = world_size * self.num_readers

    def __iter__(self) -> Iterator[Stretch]:
        worker, num_workers = worker_of()
        # Torch asks worker 0 first; turns continue from where the stopped run was.
        own = [(self.state.turn + i) % self.num_readers for i in range(worker, self.num_readers, num_workers)]
        endless = {number: self.documents(number) for number in own}
        left = STRETCH - self.state.offset
        while True:
            for number in own:
                size = left if number == self.state.turn else STRETCH
                yield gather([next(endless[number]) for _ in range(size)])
            left = STRETCH

    def documents(self, number: int) -> Iterator[Fitted]:
        """All documents of a reader, source by source as `choose` says."""
        reader = self.state.rank * self.num_readers + number
        rows = [self.rows(source, reader, *start) for source, start in enumerate(self.state.readers[number])]
        for drawn in itertools.count(self.state.drawn[number]):
            yield next(rows[self.choose(reader, drawn)])

    def rows(self, source: int, reader: int, epoch: int, mark: Mark) -> Iterator[Fitted]:
        """The documents of one source in one reader, epoch after epoch."""

        def fitted(row: AnyRow, place: RowOf, num_seen: int) -> tuple[bool, Fitted]:
            epoch, before, after = place
            document = DocumentPlace(reader, source, epoch, after.passed, *before[1:], *after[1:])
            outcome, encoded = self.encode(row, document, num_seen)
            return encoded is not None, (document, outcome, encoded)

        read = partial(self.read, source, reader)
        return endless(read, fitted, self.log, (reader, self.all_readers), (epoch, mark))

    def read(self, source: int, reader: int, epoch: int, mark: Mark) -> Iterator[tuple[Mark, AnyRow]]:
        return self.sources[source].read(self.seed, epoch, reader, self.all_readers, mark)

    def encode(self, row: AnyRow, place: DocumentPlace, num_seen: int) -> tuple[int, Encoded | None]:
        """As `Fit`; documents that are left out are logged."""
        try:
            document = self.sources[place.source].document(row, self.seed, place.epoch, place.row)
            outcome, encoded = self.fit(document)
            if encoded is not None and not has_target(encoded):
                raise Unreadable("it has no prediction target")
            reason, asked_for = self.fit.too_long, self.fit.long == "skip"
        except Unreadable as err:
            outcome, encoded, reason, asked_for = UNREADABLE, None, reason_of(err), False
        if encoded is None:
            key = key_of(row, place.row)
            named = key if len(self.sources) == 1 else f"{place.source}/{key}"
            self.log.add(named, reason, num_seen, counts=not asked_for)
        return outcome, encoded

    def again(self, places: list[DocumentPlace]) -> list[tuple[DocumentPlace, Encoded]]:
        """Documents that were read before a stop but not packed, in the same order."""
        found: dict[DocumentPlace, Encoded] = {}
        for reader, source, epoch in {place[:3] for place in places}:
            wanted = {place.row: place for place in places if place[:3] == (reader, source, epoch)}
            for mark, row in self.read(source, reader, epoch, wanted[min(wanted)].mark):
                if (place := wanted.pop(mark.passed, None)) is not None:
                    encoded = self.encode(row, place, 0)[1]
                    if encoded is None:
                        raise DataError(
                            f"document {key_of(row, place.row)} was readable before the run stopped, but is not now"
                        )
                    found[place] = encoded
                if not wanted:
                    break
        if lost := [place for place in places if place not in found]:
            raise DataError(f"the data has changed since the run stopped: {len(lost)} documents are missing")
        return [(place, found[place]) for place in places]


def gather(documents: list[Fitted]) -> Stretch:
    encoded = [one for _, _, one in documents if one is not None]
    names = (list(encoded[0].positions), list(encoded[0].values)) if encoded else ([], [])
    return Stretch(
        torch.tensor([list(place) for place, _, _ in documents]),
        torch.tensor([outcome for _, outcome, _ in documents]),
        torch.tensor([0 if one is None else one.length for _, _, one in documents]),
        {name: torch.cat([one.positions[name] for one in encoded]) for name in names[0]},
        {name: torch.cat([one.values[name] for one in encoded]) for name in names[1]},
        {name: torch.tensor([0 if one is None else len(one.values[name]) for _, _, one in documents])
         for name in names[1]},
    )  # fmt: skip


def spread(stretch: Stretch) -> Iterator[Fitted]:
    """What `gather` was given."""
    lengths = stretch.lengths.tolist()
    positions = {name: rows.split(lengths) for name, rows in stretch.positions.items()}
    values = {name: rows.split(stretch.counts[name].tolist()) for name, rows in stretch.values.items()}
    for number, (place, outcome) in enumerate(zip(stretch.places.tolist(), stretch.outcomes.tolist())):
        encoded = None
        if lengths[number]:
            encoded = Encoded(*({name: rows[number] for name, rows in parts.items()} for parts in (positions, values)))
        yield DocumentPlace(*place), outcome, encoded


class Fit:
    """Encodes a document within `max_length`; a longer one is truncated or left out. A cut never goes through an image
    or video: text is cut anywhere, and an image that does not fit ends the document before it. A document without
    targets is left out, too. long: "truncate" or "skip". too_long: why a document is left out. The cost is that of
    `max_length` positions, however many segments a document has.
    """

    def __init__(self, encode: Encode, max_length: int, long: str):
        self.encode, self.max_length, self.long = encode, max_length, long
        self.too_long = f"too long: more than {max_length} positions" + (
            "" if long == "skip" else ", and no prediction target before the cut"
        )

    def __call__(self, document: Document) -> tuple[int, Encoded | None]:
        """An index into OUTCOMES, and what is left. Raises Unreadable for a document that cannot be encoded."""
        segments, end = document["segments"], 0
        while True:  # usually once: segments without positions are rare, so no more of them can fit
            end = self._end(segments, max(self.max_length + 1, 2 * end))
            document = {**document, "segments": segments[:end]}
            encoded = self._encode(document)
            if encoded.length > self.max_length or end == len(segments):
                break
        if encoded.length == 0:
            raise Unreadable("the document is empty")
        if encoded.length <= self.max_length:
            return OK, encoded
        cut = self._cut(document) if self.long == "truncate" else None
        return (TOO_LONG, None) if cut is None else (TRUNCATED, cut)

    def _end(self, segments: list[Segment], end: int) -> int:
        """`end`, or one more if it lies between text and an image, because text is encoded differently before an
        image."""
        between = 0 < end < len(segments) and segments[end - 1]["kind"] == "text" != segments[end]["kind"]
        return min(end + between, len(segments))

    def _encode(self, document: Document) -> Encoded:
        with reading(document.get("key", "")):
            return self.encode(document)

    def _cut(self, document: Document) -> Encoded | None:
        segments = document["segments"]
        fits, too_long = 0, len(segments)  # number of segments that fit, and that do not; by bisection
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if self._encode({**document, "segments": segments[:middle]}).length <= self.max_length:
                fits = middle
            else:
                too_long = middle
        if fits == 0 and segments[0]["kind"] != "text":
            return None
        more = self._encode({**document, "segments": segments[:too_long]})
        values, length = more.values, self.max_length
        if segments[fits]["kind"] != "text":
            # What both share: all before the image, without an end token.
            less = self._encode({**document, "segments": segments[:fits]})
            values = less.values
            both = min(less.length, length)
            same = less.positions["input_ids"][:both] == more.positions["input_ids"][:both]
            length = both if bool(same.all()) else int(same.int().argmin())
        cut = Encoded({name: rows[:length] for name, rows in more.positions.items()}, values)
        return cut if has_target(cut) else None


def has_target(document: Encoded) -> bool:
    """Whether a document has targets; if the user's own encoder does not say, all positions are."""
    marks = [(document.positions[name], none) for name, none in NO_TARGET.items() if name in document.positions]
    return not marks or any(bool((rows != none).any()) for rows, none in marks)


class DocumentLoader(TrainLoader):
    """Endless packed batches (`core.types.Batch`) of one rank.

    counts: documents so far by outcome ("whole", "truncated", "too_long", "unreadable"). fill_rate: share of all
    positions so far that are no padding. num_rows: None, because a row of the batch holds several documents, and how
    many rows an epoch fills is not known before it is read.
    """

    def __init__(self, stream: DocumentStream, loading: Loading, max_length: int, window: int, num_workers: int):
        divisors = [n for n in range(1, stream.num_readers + 1) if stream.num_readers % n == 0 and n <= num_workers]
        super().__init__(stream, max(divisors, default=0), loading, stream.log)
        self.stream, self.size, self.length, self.window = stream, loading.micro_batch_size, max_length, window
        self.pinned = loading.pins
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self._filled = self._total = 0
        self._packed = stream.state.num_packed()
        self._told = dict(self.counts)

    def facts(self) -> dict[str, float]:
        """As of any data, and the documents that all ranks have packed since the run began; with data of known size
        the epochs that this makes."""
        seen = self._packed * self.stream.state.sizes[0]
        epochs = {"epoch": seen / self.log.length} if self.log.length else {}
        return super().facts() | {"documents_seen": seen} | epochs

    def shares(self) -> dict[str, tuple[int, int]]:
        new = {outcome: count - self._told[outcome] for outcome, count in self.counts.items()}
        self._told = dict(self.counts)
        used = new["whole"] + new["truncated"]
        return {"truncated_rate": (new["truncated"], used)} if used else {}

    @property
    def fill_rate(self) -> float:
        return self._filled / max(1, self._total)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        first = self.stream.state
        state = State.load(first.values(), first.rank, *first.sizes)
        waiting = self.stream.again(state.pending)
        stretches = cast(Iterator[Stretch], super().__iter__())
        documents = (document for stretch in stretches for document in spread(stretch))
        while True:
            rows, seeds = [], []
            for _ in range(self.size):
                while len(waiting) < self.window:
                    place, outcome, encoded = next(documents)
                    state.take(place)
                    self.counts[OUTCOMES[outcome]] += 1
                    if encoded is not None:
                        waiting.append((place, encoded))
                place = waiting[0][0]  # of the oldest document, which is always in the row
                seeds.append(sample_seed(self.stream.seed, place.epoch, f"{place.reader}/{place.source}/{place.row}"))
                rows.append(first_fit(waiting, self.length))
            state.pending = [place for place, _ in waiting]
            self._packed = state.num_packed()
            batch = pack(rows, self.length, state.values())
            batch["seeds"] = signed(seeds)
            self._filled += int((batch["document_ids"] > 0).sum())
            self._total += self.size * self.length
            yield cast(Batch, {n: cast(Tensor, t).pin_memory() for n, t in batch.items()}) if self.pinned else batch


def first_fit(waiting: list[tuple[DocumentPlace, Encoded]], length: int) -> list[Encoded]:
    """Takes out the oldest document, and each later one that still fits; the oldest never waits for another row."""
    row: list[Encoded] = []
    left: list[tuple[DocumentPlace, Encoded]] = []
    room = length
    for place, encoded in waiting:
        if encoded.length <= room:
            row.append(encoded)
            room -= encoded.length
        else:
            left.append((place, encoded))
    waiting[:] = left
    return row


def pack(rows: list[list[Encoded]], length: int, position: list[int]) -> Batch:
    """The batch of rows of documents; padding is 0 (id 0, document 0), without targets."""
    first = rows[0][0]
    batch: dict[str, Tensor] = {
        name: part.new_full((len(rows), length, *part.shape[1:]), NO_TARGET.get(name, 0))
        for name, part in first.positions.items()
    }
    batch |= {name: torch.cat([one.values[name] for row in rows for one in row]) for name in first.values}
    for name in ("document_ids", "position_ids"):
        batch[name] = torch.zeros(len(rows), length, dtype=torch.int64)
    for number, row in enumerate(rows):
        at = 0
        for document, one in enumerate(row, 1):
            here = (number, slice(at, at + one.length))
            for name, part in one.positions.items():
                batch[name][here] = part
                if name in NO_TARGET:
                    batch[name][number, at] = NO_TARGET[name]  # the previous document must not predict it
            batch["document_ids"][here] = document
            batch["position_ids"][here] = torch.arange(one.length)
            at += one.length
    batch["position"] = torch.tensor(position).repeat(len(rows), 1)
    return cast(Batch, batch)
