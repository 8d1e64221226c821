"""Documents of text, images and videos as the data of a run: the settings every source shares, and its batches."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field

from ..core.config import Part
from ..core.text import check_text
from ..core.types import Document, Encode, Segment
from ..errors import ConfigError, DataError, MissingSplit, NextEmbedError
from .draws import sample_seed, uniform
from .images import Role
from .packing import DocumentLoader, DocumentStream, Fit, State
from .record import check_readable, key_of, keyed, own_line, reading, reason_of, row_at
from .shuffle import Mark, read_on
from .skipped import SkipLog
from .stream import Rows
from .transforms import Colour, ImageReader, Unreadable


class PackingPart(Part):
    """Settings of documents packed into rows of one length, whatever they come from.

    long: of documents above `max_length`, "truncate" cuts the end off (never through an image), "skip" leaves them out.
    pack_window: documents that wait for a row with room for them; more leave less padding. num_readers: parts of the
    data that a rank reads by turns; a run has to resume with the same. num_workers: processes a rank that read, decode
    and encode, at most one a reader; 0 is none but this one. It does not change what comes.
    background: RGB under transparent pixels. max_pixels, max_bytes: an image above makes its document unreadable;
    max_skipped_rate: share of unreadable documents above which the run stops.
    """

    long: Literal["truncate", "skip"] = "truncate"
    pack_window: int = Field(64, gt=0, le=65_536)
    num_readers: int = Field(2, gt=0, le=1024)
    num_workers: int = Field(2, ge=0, le=256)
    background: Colour = (255, 255, 255)
    max_pixels: int = Field(64_000_000, gt=0)
    max_bytes: int = Field(100_000_000, gt=0)
    max_skipped_rate: float = Field(0.01, ge=0, le=1)

    def row_sources(self, split: Role) -> list["RowSource"]:
        """What documents are drawn from. Raises ConfigError for a split that does not exist."""
        raise NotImplementedError

    def source_weights(self) -> list[float]:
        """How often a document comes from each source."""
        return [1.0]

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
    ) -> DocumentLoader:
        """Endless batches of one rank: `micro_batch_size` rows of `max_length` positions, filled with whole documents.

        encode: what a model makes of a document. skipped_path: of `skipped.jsonl`, shared by all ranks. start: the
        state to resume from (see `stream.advance`). pin_memory: None pins where there is an accelerator. Raises
        ConfigError for a source that cannot work; the loader raises DataError if more than `max_skipped_rate` of the
        documents are unreadable.
        """
        sources = self.row_sources("train")
        sizes = [source.length for source in sources]
        num_readers = self.num_readers
        if (fewest := min((size for size in sizes if size is not None), default=None)) is not None:
            if fewest < world_size:
                raise ConfigError(f"data: the train split has {fewest} documents, fewer than ranks ({world_size})")
            if fewest < world_size * num_readers:
                num_readers = 1
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        log = SkipLog(skipped_path, self.max_skipped_rate, total, "documents")
        if start is not None and "documents" not in start:
            raise ConfigError("data: the run to resume was not on packed documents")
        sized = (rank, world_size, num_readers, len(sources))
        state = State(*sized) if start is None else State.load(start["documents"], *sized)
        choose = Choose(self.source_weights(), seed)
        stream = DocumentStream(list(sources), choose, Fit(encode, max_length, self.long), log, seed, state)
        pin = torch.accelerator.is_available() if pin_memory is None else pin_memory
        return DocumentLoader(stream, micro_batch_size, max_length, self.pack_window, self.num_workers, seed, pin)

    def documents(self, split: Role, num: int | None = None, seed: int = 0) -> "Documents":
        """The documents of a split in their own order, for evaluation; what is random in them as in epoch 0 of `seed`.

        num: so many of the first rows; None takes all.
        """
        return Documents(self.row_sources(split), self.max_skipped_rate, num, seed)


class DocumentPart(PackingPart):
    """One source of documents.

    A source of your own is a subclass in your own file, chosen with `kind: my_file.py:MyDocuments`:

        class MyDocuments(DocumentPart):
            def rows(self, split):
                return [{"key": "a", "picture": "a.png", "words": "an apple"}]

            def document(self, row, seed):
                return {"key": row["key"], "segments": [self.image(row["picture"]), text(row["words"])]}
    """

    def rows(self, split: Role) -> Any:
        """A list of dicts with "key" (else the row number), or anything with `__len__` and `__getitem__`; or an object
        with `read(seed, epoch, reader, num_readers)` for what only comes in sequence. Not decoded yet."""
        raise NotImplementedError

    def document(self, row: Any, seed: int) -> Document:
        """A row, decoded. seed: of this row in this epoch, for random choices. Raises Unreadable."""
        raise NotImplementedError

    def row_sources(self, split: Role) -> list["RowSource"]:
        rows = self.rows(split)
        if isinstance(rows, Rows) and len(rows) == 0:
            raise MissingSplit(f"data: the {split} split is empty")
        return [RowSource(self, rows)]

    def reader(self) -> ImageReader:
        return ImageReader(3, self.background, self.max_pixels, self.max_bytes)

    def image(self, value: Any, loss: bool = True) -> Segment:
        """An image segment of bytes, a path, a PIL image or an array. Raises Unreadable."""
        return {"kind": "image", "value": self.reader().read(value), "loss": loss}


def text(value: str, loss: bool = True) -> Segment:
    return {"kind": "text", "value": value, "loss": loss}


class RowSource:
    """The rows of a part as what `packing` reads. length: number of rows, None if unknown."""

    def __init__(self, part: DocumentPart, rows: Any):
        self.part, self.rows = part, rows
        self.length = len(rows) if isinstance(rows, Rows) else None

    def read(self, seed: int, epoch: int, reader: int, num_readers: int, mark: Mark) -> Iterator[tuple[Mark, Any]]:
        """One reader's rows of an epoch, in the order that (seed, epoch) draws, from a mark on, each with the mark
        after it."""
        if self.length is None:
            yield from in_sequence(read_on(self.rows, seed, epoch, reader, num_readers, mark))
            return
        order = np.random.default_rng(sample_seed(seed, epoch, "order")).permutation(self.length)[reader::num_readers]
        for number, index in enumerate(order[mark.passed :].tolist(), mark.passed + 1):
            yield Mark(number), row_at(self.rows, index)

    def document(self, row: Any, seed: int, epoch: int, count: int) -> Document:
        own = sample_seed(seed, epoch, key_of(row, count))
        return {"seed": own, **decoded(self.part, row, own)}


def decoded(part: DocumentPart, row: Any, seed: int) -> Document:
    """The document of a row. Raises Unreadable for whatever is wrong with the row; DataError for a mistake in the
    user's own code."""
    check_readable(row)
    with reading(key_of(row, 0)):
        document: Any = part.document(row, seed)
        if not isinstance(document, dict) or not isinstance(document.get("segments"), list):
            raise DataError(f"data: document() of {type(part).__name__} gives no {{'key': ..., 'segments': [...]}}")
        if not document["segments"]:
            raise Unreadable("the document is empty")
        for segment in document["segments"]:
            if isinstance(segment["value"], str):
                check_text(segment["value"])
    return cast(Document, document)


def in_sequence(rows: Iterator[Any]) -> Iterator[Any]:
    """The rows of a reader. Raises DataError if it fails: there is no next row, then."""
    try:
        yield from rows
    except NextEmbedError:
        raise
    except Exception as err:
        raise DataError(f"data: the rows cannot be read any further: {reason_of(err)} ({own_line(err)})") from err


class Choose:
    """Which source a reader's next document comes from: drawn by weight from (seed, reader, number of the draw)."""

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
        sizes = [source.length for source in sources]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
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
            assert source.length is not None
            if at < source.length:
                return self._document(source, row_at(source.rows, at), at)
            at -= source.length
        raise IndexError(index)

    def __iter__(self) -> Iterator[Document]:
        seen = 0
        for source, number, row in itertools.islice(self._rows(), self.num):
            seen += 1
            try:
                yield decoded(source.part, *self._seeded(row, number))
            except Unreadable as err:
                self.skipped.add(key_of(row, number), reason_of(err), seen)
        self.skipped.check(seen)

    def _rows(self) -> Iterator[tuple[RowSource, int, Any]]:
        for source in self.sources:
            known = source.length is not None
            rows = (row_at(source.rows, i) for i in range(source.length or 0)) if known else self._stream(source)
            yield from ((source, number, row) for number, row in enumerate(rows))

    def _document(self, source: RowSource, row: Any, number: int) -> Document:
        try:
            return decoded(source.part, *self._seeded(row, number))
        except Unreadable as err:
            raise DataError(f"document {key_of(row, number)} is unreadable: {err}") from None

    def _seeded(self, row: Any, number: int) -> tuple[Any, int]:
        row = keyed(row, number)
        return row, sample_seed(self.seed, 0, key_of(row, number))

    def _stream(self, source: RowSource) -> Iterator[Any]:
        if hasattr(source.rows, "in_order"):
            return in_sequence(row for _, row in source.rows.in_order())
        return in_sequence(source.rows.read(self.seed, 0, 0, 1))
