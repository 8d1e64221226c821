"""Features of any number of images in one Parquet file: streamed, resumable, the same whether it was stopped or not.

While it works, finished rows lie in OUTPUT.parts/ as small Parquet files that appear whole or not at all; at the end
they are joined, a few thousand rows in memory at a time, and the folder is removed. Batches are cut by row number, so
a resumed run computes the very batches that an uninterrupted one would.
"""

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.types import IGNORE_LABEL
from ...data.sources import ImageData
from ...data.stream import FIRST, RowPlace, row_key, row_label, rows_in_order
from ...data.transforms import Unreadable, resize
from ...errors import ConfigError
from .encoder import Encoder, Preprocessing
from .parts import PART_SECONDS, DType, Item, Parts, PartWriter, schema

AHEAD = 2  # batches that are read and decoded while one is computed

# What of the data's settings says nothing about which rows there are, or how their pixels are computed.
BESIDE = {"num_workers", "cache", "crop_scale", "crop_ratio", "flip_rate", "max_skipped_rate", "shuffle_buffer"}

Report = Callable[[int, int | None], None]  # rows done, rows in all (None where nobody knows)


class Embedded(NamedTuple):
    """What was written. num_rows: of the file; num_resumed: rows of the source that an earlier start had done;
    skipped: "row", "key" and "reason" of each unreadable image, also in `skipped_file`; seconds: of this start."""

    file: Path
    num_rows: int
    num_resumed: int
    skipped: list[dict[str, Any]]
    skipped_file: Path
    seconds: float


def embed(
    checkpoint: Any,
    source: Any,
    output: str | Path,
    *,
    dtype: DType = "float32",
    batch_size: int = 64,
    num_workers: int = 2,
    limit: int | None = None,
    overwrite: bool = False,
    report: Report | None = None,
    part_seconds: float = PART_SECONDS,
    **place: Any,
) -> Embedded:
    """Writes features of all images of a source to a Parquet file; started again after a kill, it goes on.

    checkpoint: as in `Encoder`, or an Encoder; `place` (layer, pooling, attention, weights, precision) goes to it.
    source: what `data.source` takes, or a data part such as `ImageData(source=..., split="test", streaming=True)`; its
    `split` is embedded. num_workers: threads that decode. limit: the first rows only. part_seconds: how much work a
    kill may cost.

    Columns: row (of the source), key, path (of image files), label and label_name (where there are labels), embedding
    (fixed-size list). Unreadable images are left out and named in OUTPUT's .skipped.jsonl; the rows of others do not
    change. The file's metadata ("nextembed", JSON) holds all settings.
    Raises ConfigError for an output that exists (without `overwrite`), for parts that other settings left, and for a
    checkpoint or source that cannot be used; DataError if no image is readable.
    """
    output, started = Path(output), time.monotonic()
    parts = Parts(output)
    parts.check(overwrite)
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} should be at least 1, got {value}")
    encoder = checkpoint if isinstance(checkpoint, Encoder) else Encoder(checkpoint, **place)
    data = fitting(source, encoder.preprocessing) if isinstance(source, str | os.PathLike) else source
    if isinstance(data, ImageData) or hasattr(data, "mean"):
        preprocessing = encoder.preprocessing
        encoder.preprocessing = preprocessing._replace(mean=data.mean, std=data.std, background=data.background)
    rows: Any = data.rows("train")
    total = len(rows) if hasattr(rows, "__len__") else None
    if total == 0:
        raise ConfigError("data: there are no images to embed")
    settings = describe(encoder, data, dtype, batch_size, limit, total)
    expected = total if limit is None else min(limit, total) if total is not None else limit
    with parts.opened(settings, overwrite) as done:
        start = parts.place()
        _same_data(rows, total, start, parts)
        reader, names = encoder.reader(data.max_pixels, data.max_bytes), data.class_names()

        def read(place: RowPlace, row: Any) -> Item:
            pixels, reason = None, ""
            try:
                pixels = resize(reader.read(row.get("image")), encoder.preprocessing.size)
            except Unreadable as err:
                reason = str(err)
            return _item(place, row, names, pixels, reason)

        wanted = rows_in_order(rows, start)
        if limit is not None:
            wanted = itertools.islice(wanted, max(0, limit - start.row))
        if not done:
            writer = PartWriter(parts, schema(encoder.width, dtype), part_seconds)
            _work(encoder, decoded(wanted, batch_size, read, num_workers), writer, report, expected)
        settings["num_rows"] = parts.join(schema(encoder.width, dtype), settings)
    seconds = time.monotonic() - started
    return Embedded(output, settings["num_rows"], start.row, parts.skipped, parts.skipped_file, seconds)


def _work(
    encoder: Encoder, batches: Iterator[list[Item]], writer: "PartWriter", report: Report | None, total: int | None
) -> None:
    """Embeds every batch; on Ctrl-C too, what is done is kept."""
    try:
        for items in batches:
            images = [item.pixels for item in items if item.pixels is not None]
            values = encoder(torch.stack(images)) if images else torch.zeros(0, encoder.width)
            writer.add(items, values)
            if report is not None:
                report(items[-1].place.row, total)
    except KeyboardInterrupt:
        writer.flush()
        raise
    writer.flush()


def fitting(source: str | os.PathLike[str], preprocessing: Preprocessing) -> ImageData:
    """A source's data settings, with the pixels as the model expects them."""
    _, _, mean, std, background = preprocessing
    return ImageData(source=str(source), mean=mean, std=std, background=background)


def describe(
    encoder: Encoder, data: Any, dtype: DType, batch_size: int, limit: int | None, total: int | None
) -> dict[str, Any]:
    """All that the file's content depends on: its metadata, and what a resumed run has to agree with."""
    name, here = encoder.checkpoint, Path(encoder.checkpoint or "")
    return {
        "nextembed_version": version("nextembed"),
        "checkpoint": str(here.resolve()) if name and here.exists() else name,
        "weights": encoder.place.weights,
        "weights_digest": encoder.digest(),
        "layer": encoder.place.key.layer,
        "num_layers": int(encoder.config.num_hidden_layers),
        "pooling": encoder.place.key.pooling,
        "attention": encoder.place.key.attention,
        "width": encoder.width,
        "image_size": encoder.preprocessing.size,
        "num_channels": encoder.preprocessing.num_channels,
        "mean": encoder.preprocessing.mean,
        "std": encoder.preprocessing.std,
        "background": list(encoder.preprocessing.background),
        "precision": encoder.precision,
        "device": next(encoder.trunk.parameters()).device.type,
        "batch_size": batch_size,
        "dtype": dtype,
        "source": str(getattr(data, "source", data.kind)),
        "split": str(getattr(data, "split", "train")),
        "data": data.model_dump(mode="json", exclude=BESIDE) | _whole_source(data),
        "limit": limit,
        "source_rows": total,
    }


def _whole_source(data: Any) -> dict[str, Any]:
    """A local source by its whole path, so that the images are found again from any folder."""
    path = Path(str(getattr(data, "source", ""))).expanduser()
    return {"source": str(path.resolve())} if data.kind == "images" and data.source != "emoji" and path.exists() else {}


def decoded(
    rows: Iterator[tuple[RowPlace, Any]],
    batch_size: int,
    read: Callable[[RowPlace, Any], Item],
    num_workers: int,
) -> Iterator[list[Item]]:
    """Batches of rows in their order, read by threads: decoders let go of Python's lock. At most 1 + `AHEAD` batches
    are in memory."""
    if num_workers < 1:
        while batch := list(itertools.islice(rows, batch_size)):
            yield [read(*numbered) for numbered in batch]
        return
    ahead: deque[list[Future[Item]]] = deque()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
    try:
        while batch := list(itertools.islice(rows, batch_size)):
            ahead.append([pool.submit(read, *numbered) for numbered in batch])
            if len(ahead) > AHEAD:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def _item(place: RowPlace, row: Any, names: list[str], pixels: Tensor | None, reason: str) -> Item:
    label = row_label(row)
    name = row.get("label_name") or (names[label] if 0 <= label < len(names) else None)
    image = row.get("image")
    path = str(Path(image).absolute()) if isinstance(image, str | os.PathLike) else None
    known = None if label == IGNORE_LABEL else label
    return Item(place, row_key(row, place.row - 1), path, known, name, pixels, reason)


def _same_data(rows: Any, total: int | None, start: RowPlace, parts: "Parts") -> None:
    """Raises ConfigError if the row that an earlier start ended with is another one now."""
    if start == FIRST or total is None or parts.last_key is None:
        return
    if row_key(rows[start.row - 1], start.row - 1) != parts.last_key:
        raise ConfigError(
            f"the source has changed since {parts.folder} was begun (row {start.row - 1} was '{parts.last_key}'); "
            "start anew: remove that folder"
        )
