"""Documents of text, images and videos as the data of a run: the settings every source shares, and its batches."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

import numpy as np
from pydantic import Field

from ..core.config import Part
from ..core.text import check_text
from ..core.types import Document, Encode, Loading, Role, Segment
from ..errors import ConfigError, DataError, MissingSplit, NextEmbedError
from .draws import sample_seed, uniform
from .found import Found
from .limits import Limits, expression_of
from .packing import DocumentLoader, DocumentStream, Fit, State
from .record import AnyRow, check_readable, key_of, keyed, own_line, reading, reason_of, row_at
from .rows import Ordered, Rows, RowSequence
from .shuffle import Mark, read_on
from .skipped import SkipLog
from .transforms import ImageReader, Unreadable

R = TypeVar("R")


class DocumentPart(Limits, Part):
    """Documents packed into rows of one length, from any source.

    A source of your own is a subclass in your own file, chosen with `kind: my_file.py:MyDocuments`:

        class MyDocuments(DocumentPart):
            def rows(self, split):
                return [{"key": "a", "picture": "a.png", "words": "an apple"}]

            def document(self, row, seed):
                return {"key": row["key"], "segments": [self.image(row["picture"]), text(row["words"])]}

    Attributes:
        long: what happens to documents above `max_length`: "truncate" cuts the end off (never through an image), "skip"
            leaves them out.
        pack_window: number of documents that wait for a row with room for them; more leave less padding.
        num_readers: number of parts of the data that a rank reads in turn; a run must resume with the same number.
    """

    long: Literal["truncate", "skip"] = "truncate"
    pack_window: int = Field(64, gt=0, le=65_536)
    num_readers: int = Field(2, gt=0, le=1024)

    def rows(self, split: Role) -> Rows | RowSequence:
        """The rows of a split, not decoded yet. A row is a dict; its "key" is a unique name, else the row number.

        Args:
            split: "train", "validation" or "test".

        Returns:
            A list, or an object with `__len__` and `__getitem__`; for data that only comes in sequence, an object with
            `read(seed, epoch, reader, num_readers)`.
        """
        raise NotImplementedError

    def document(self, row: Any, seed: int) -> Document:
        """The document that a row stands for, decoded.

        Args:
            row: as `rows` gives it.
            seed: of this row in this epoch, for random choices.

        Returns:
            Its segments.

        Raises:
            Unreadable: the row cannot be used; it is skipped and named.
        """
        raise NotImplementedError

    def summary(self, split: Role) -> Found:
        """What opening a split finds: documents that are used, and files that are not. Raises as `rows`.

        Args:
            split: "train", "validation" or "test".

        Returns:
            The findings.
        """
        used, found = total_length(self.row_sources(split)), self.around()
        reasons = Counter(self.unused(split).values()).most_common()
        notes = tuple(f"{count:,} rows are not used: {reason}" for reason, count in reasons)
        skipped = self.left_out(split)
        return replace(
            found, split=expression_of(self, split), used=used, skipped=skipped, notes=(*found.notes, *notes)
        )

    def unused(self, split: Role) -> dict[str, str]:
        """Rows that the settings exclude; known once the rows are open.

        Args:
            split: "train", "validation" or "test".

        Returns:
            The reason for each key.
        """
        return {}

    def row_sources(self, split: Role) -> list["RowSource"]:
        """The sources that documents are drawn from; several for a mixture.

        Args:
            split: "train", "validation" or "test".

        Returns:
            One or more sources.

        Raises:
            ConfigError: the split does not exist.
        """
        rows = self.rows(split)
        if isinstance(rows, Rows) and len(rows) == 0:
            raise MissingSplit(f"data: the {split} split is empty")
        return [RowSource(self, rows)]

    def source_weights(self) -> list[float]:
        """Relative frequency of documents from each source."""
        return [1.0]

    def train_loader(self, loading: Loading, *, encode: Encode, max_length: int) -> DocumentLoader:
        """Endless batches of one rank: rows of `max_length` positions, filled with whole documents.

        Args:
            loading: batch size, rank, workers and seed.
            encode: what a model makes of a document.
            max_length: positions of a row.

        Returns:
            The loader; its state can be saved.

        Raises:
            ConfigError: For a source that cannot work; the loader raises DataError if more than `max_skipped_rate` of
                the documents are unreadable.
        """
        sources, start = self.row_sources("train"), loading.start
        num_readers = self.num_readers
        fewest = min((source.length for source in sources if source.length is not None), default=None)
        if fewest is not None and fewest < loading.world_size * num_readers:
            if fewest < loading.world_size:
                raise ConfigError(
                    f"data: the train split has {fewest} documents, fewer than ranks ({loading.world_size})"
                )
            num_readers = 1
        if start is not None and "documents" not in start:
            raise ConfigError("data: the run to resume was not on packed documents")
        sized = (loading.rank, loading.world_size, num_readers, len(sources))
        state = State(*sized) if start is None else State.load(start["documents"], *sized)
        log = SkipLog(loading.skipped_path, self.max_skipped_rate, total_length(sources), "documents")
        log.leave_out(self.left_out("train"), loading.rank == 0)
        log.leave_out(self.unused("train"), loading.rank == 0, counts=False)
        choose = Choose(self.source_weights(), loading.seed)
        stream = DocumentStream(sources, choose, Fit(encode, max_length, self.long), log, loading.seed, state)
        return DocumentLoader(stream, loading, max_length, self.pack_window, self.num_workers)

    def documents(self, split: Role, num: int | None = None, seed: int = 0) -> "Documents":
        """The documents of a split in their own order, for evaluation; random choices are those of epoch 0.

        Args:
            split: "train", "validation" or "test".
            num: so many of the first rows; None takes all.
            seed: of random choices.

        Returns:
            Documents, decoded one after the other.
        """
        return Documents(self.row_sources(split), self.max_skipped_rate, num, seed)

    def reader(self) -> ImageReader:
        """The reader of images under the limits of the settings."""
        return ImageReader(3, self.background, self.max_pixels, self.max_bytes)

    def image(self, value: object, loss: bool = True) -> Segment:
        """An image as a segment.

        Args:
            value: bytes, a path, a PIL image or an array.
            loss: whether its latents are targets.

        Returns:
            The segment.

        Raises:
            Unreadable: the image does not decode.
        """
        return {"kind": "image", "value": self.reader().read(value), "loss": loss}


def text(value: str, loss: bool = True) -> Segment:
    return {"kind": "text", "value": value, "loss": loss}


class RowSource:
    """The rows of a part as what `packing` reads. length: number of rows, None if unknown."""

    def __init__(self, part: DocumentPart, rows: Rows | RowSequence):
        self.part, self.rows = part, rows
        self.length = len(rows) if isinstance(rows, Rows) else None

    def read(self, seed: int, epoch: int, reader: int, num_readers: int, mark: Mark) -> Iterator[tuple[Mark, AnyRow]]:
        """One reader's rows of an epoch, in the order given by (seed, epoch), from a mark on, each with the mark after
        it."""
        if not isinstance(self.rows, Rows):
            yield from in_sequence(read_on(self.rows, seed, epoch, reader, num_readers, mark))
            return
        order = np.random.default_rng(sample_seed(seed, epoch, "order")).permutation(len(self.rows))
        for number, index in enumerate(order[reader::num_readers][mark.passed :].tolist(), mark.passed + 1):
            yield Mark(number), row_at(self.rows, index)

    def in_order(self, seed: int) -> Iterator[AnyRow]:
        """The rows in storage order; for sequences without one, in the order of the first epoch."""
        if isinstance(self.rows, Rows):
            yield from (row_at(self.rows, index) for index in range(len(self.rows)))
        elif isinstance(self.rows, Ordered):
            yield from in_sequence(row for _, row in self.rows.in_order())
        else:
            yield from in_sequence(self.rows.read(seed, 0, 0, 1))

    def document(self, row: AnyRow, seed: int, epoch: int, count: int) -> Document:
        own = sample_seed(seed, epoch, key_of(row, count))
        return {"seed": own, **decoded(self.part, row, own)}


def decoded(part: DocumentPart, row: AnyRow, seed: int) -> Document:
    """The document of a row. Raises Unreadable for any fault of the row, DataError for an error in the user's own
    code."""
    check_readable(row)
    with reading(key_of(row, 0)):
        document: object = part.document(row, seed)
        if not isinstance(document, dict) or not isinstance(document.get("segments"), list):
            raise DataError(f"data: document() of {type(part).__name__} gives no {{'key': ..., 'segments': [...]}}")
        if not document["segments"]:
            raise Unreadable("the document is empty")
        for segment in document["segments"]:
            if isinstance(segment["value"], str):
                check_text(segment["value"])
    return cast(Document, document)


def in_sequence(rows: Iterator[R]) -> Iterator[R]:
    """The rows of a reader. Raises DataError if it fails, because then there is no next row."""
    try:
        yield from rows
    except NextEmbedError:
        raise
    except Exception as err:
        raise DataError(f"data: the rows cannot be read any further: {reason_of(err)} ({own_line(err)})") from err


class Choose:
    """The source of a reader's next document: drawn by weight from (seed, reader, number of the draw)."""

    def __init__(self, weights: list[float], seed: int):
        self.edges, self.seed = np.cumsum(weights) / np.sum(weights), seed

    def __call__(self, reader: int, drawn: int) -> int:
        if len(self.edges) == 1:
            return 0
        value = uniform(sample_seed(self.seed, reader, "mixture"), drawn)
        return min(int(np.searchsorted(self.edges, value, side="right")), len(self.edges) - 1)


class Documents:
    """Documents in their own order, decoded when asked for. Iterating leaves out what cannot be read.

    `skipped.reasons` names what was left out. `len` and indices work where the number of rows is known; an index of an
    unreadable document raises DataError.
    """

    def __init__(self, sources: list[RowSource], max_skipped_rate: float, num: int | None = None, seed: int = 0):
        self.sources, self.num, self.seed = sources, num, seed
        total = total_length(sources)
        total = num if total is None else min(total, total if num is None else num)
        self.skipped = SkipLog(None, max_skipped_rate, total, "documents")

    def __len__(self) -> int:
        if self.skipped.length is None:
            raise TypeError("a stream of documents has no length")
        return self.skipped.length

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = index
        for source in self.sources:
            assert isinstance(source.rows, Rows)
            if at < len(source.rows):
                row = row_at(source.rows, at)
                try:
                    return self._decoded(source, row, at)
                except Unreadable as err:
                    raise DataError(f"document {key_of(row, at)} is unreadable: {err}") from None
            at -= len(source.rows)
        raise IndexError(index)

    def __iter__(self) -> Iterator[Document]:
        seen = 0
        for source, number, row in itertools.islice(self._rows(), self.num):
            seen += 1
            try:
                yield self._decoded(source, row, number)
            except Unreadable as err:
                self.skipped.add(key_of(row, number), reason_of(err), seen)
        self.skipped.check(seen)

    def _rows(self) -> Iterator[tuple[RowSource, int, AnyRow]]:
        for source in self.sources:
            yield from ((source, number, row) for number, row in enumerate(source.in_order(self.seed)))

    def _decoded(self, source: RowSource, row: AnyRow, number: int) -> Document:
        row = keyed(row, number)
        return decoded(source.part, row, sample_seed(self.seed, 0, key_of(row, number)))


def total_length(sources: list[RowSource]) -> int | None:
    """Rows of all sources; None where one is not known."""
    known = [source.length for source in sources if source.length is not None]
    return sum(known) if len(known) == len(sources) else None
