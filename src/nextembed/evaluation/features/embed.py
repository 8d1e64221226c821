"""Features of any number of images in one Parquet file: streamed, resumable, the same whether it was stopped or not.

Meanwhile, finished rows are in OUTPUT.parts/ as small Parquet files, written atomically; at the end they are joined, a
few thousand rows in memory at a time, and the folder is removed. Batches are cut by row number, so a resumed run
computes the very batches that an uninterrupted one would.
"""

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...core.config import validated
from ...core.types import IGNORE_LABEL
from ...data.images import ImagePart
from ...data.rows import FIRST, Row, RowPlace, Rows, RowSequence, row_key, row_label, rows_in_order
from ...data.sources import ImageData
from ...data.transforms import Unreadable, resize
from ...errors import ConfigError, DataError
from .encoder import Checkpoint, Encoder, Preprocessing
from .parts import Item, Parts, PartWriter, Skipped, schema
from .settings import EmbedSettings

AHEAD = 2  # batches that are read and decoded while one is computed

# Settings of the data that do not affect which rows there are or how their pixels are computed.
BESIDE = {"num_workers", "cache", "crop_scale", "crop_ratio", "flip_rate", "max_skipped_rate", "shuffle_buffer"}

Report = Callable[[int, int | None], None]  # rows done, rows in all (None if unknown)


class Embedded(NamedTuple):
    """The result. num_rows: of the file; num_resumed: rows of the source that an earlier start had finished; skipped:
    "row", "key" and "reason" of each unreadable image, also in `skipped_file`; seconds: of this start."""

    file: Path
    num_rows: int
    num_resumed: int
    skipped: list[Skipped]
    skipped_file: Path
    seconds: float


def encoder_of(checkpoint: Checkpoint | Encoder, settings: EmbedSettings) -> Encoder:
    """The encoder of a checkpoint, or the given one. Raises DataError for weights that are not finite, because some
    attention kernels hide them, and the features would look normal."""
    encoder = checkpoint
    if not isinstance(encoder, Encoder):
        places = (settings.layer, settings.pooling, settings.attention, settings.weights, settings.precision)
        encoder = Encoder(encoder, *places)
    for name, value in encoder.trunk.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(
                f"{encoder.checkpoint or 'the model'}: the weights {name} are not finite numbers (NaN or infinite): "
                "they are damaged, or diverged in training"
            )
    return encoder


def embed(
    checkpoint: Checkpoint | Encoder,
    source: str | os.PathLike[str] | ImagePart,
    output: str | Path,
    *,
    overwrite: bool = False,
    report: Report | None = None,
    **settings: Any,
) -> Embedded:
    """Writes features of all images of a source to a Parquet file; started again after a kill, it continues.

    Columns: row (of the source), key, path (of image files), label and label_name (where there are labels), embedding
    (fixed-size list). Unreadable images are left out and named in OUTPUT's .skipped.jsonl; the rows of others do not
    change. The file's metadata ("nextembed", JSON) holds all settings.

    Args:
        checkpoint: as of `Encoder`, or an Encoder.
        source: what `data.source` takes, or a data part such as `ImageData(source=..., split="test", streaming=True)`;
            its `split` is embedded.
        output: the file.
        overwrite: whether a file that is there, or parts that other settings left, may go.
        report: is called with rows done, and rows in all (None where nobody knows).
        settings: see `EmbedSettings`.

    Returns:
        Rows written, and the images left out with the reason.

    Raises:
        ConfigError: for an output that exists, and for a checkpoint or source that cannot be used.
        DataError: if no image is readable.
    """
    output, started = Path(output), time.monotonic()
    parts = Parts(output)
    parts.check(overwrite)
    chosen = validated(EmbedSettings, settings, "embed")
    encoder = encoder_of(checkpoint, chosen)
    data = source if isinstance(source, ImagePart) else fitting(source, encoder.preprocessing)
    encoder.preprocessing = encoder.preprocessing._replace(mean=data.mean, std=data.std, background=data.background)
    rows = data.rows("train")
    total = len(rows) if isinstance(rows, Sized) else None
    if total == 0:
        raise ConfigError("data: there are no images to embed")
    saved = describe(encoder, data, chosen, total)
    expected = min((n for n in (total, chosen.limit) if n is not None), default=None)
    with parts.opened(saved, expected, overwrite) as done:
        start = parts.place()
        _same_data(rows, start, parts)
        if not done:
            layout = schema(encoder.width, chosen.dtype)
            writer = PartWriter(parts, layout, chosen.part_seconds)
            read, wanted = reading_of(encoder, data), rows_in_order(rows, start)
            if chosen.limit is not None:
                wanted = itertools.islice(wanted, max(0, chosen.limit - start.row))
            work(encoder, decoded(wanted, chosen.batch_size, read, chosen.num_workers), writer, report, expected)
        parts.leave_out(data.left_out("train"))
        num_rows = parts.join(schema(encoder.width, chosen.dtype), saved)
    return Embedded(output, num_rows, start.row, parts.skipped, parts.skipped_file, time.monotonic() - started)


def reading_of(encoder: Encoder, data: ImagePart) -> Callable[[RowPlace, Row], Item]:
    """The reader of rows as the encoder expects them."""
    reader, names = encoder.reader(data.max_pixels, data.max_bytes), data.class_names()

    def read(place: RowPlace, row: Row) -> Item:
        image, label = row.get("image"), row_label(row)
        item = Item(
            place,
            row_key(row, place.row - 1),
            str(Path(image).absolute()) if isinstance(image, str | os.PathLike) else None,
            None if label == IGNORE_LABEL else label,
            row.get("label_name") or (names[label] if 0 <= label < len(names) else None),
        )
        try:
            return item._replace(pixels=resize(reader.read(image), encoder.preprocessing.size))
        except Unreadable as err:
            return item._replace(reason=str(err))

    return read


def work(
    encoder: Encoder, batches: Iterator[list[Item]], writer: PartWriter, report: Report | None, total: int | None
) -> None:
    """Embeds every batch; finished ones are kept, also after Ctrl-C."""
    try:
        for items in batches:
            images = [item.pixels for item in items if item.pixels is not None]
            values = encoder(torch.stack(images)) if images else torch.zeros(0, encoder.width)
            check_finite(items, values)
            writer.add(items, values)
            if report is not None:
                report(items[-1].place.row, total)
    except KeyboardInterrupt:
        writer.flush()
        raise
    writer.flush()


def check_finite(items: list[Item], values: torch.Tensor) -> None:
    """Raises DataError, with the first image, for features that are not finite, which could not be compared."""
    wrong = ~torch.isfinite(values).all(1)
    if wrong.any():
        key = [item.key for item in items if item.pixels is not None][int(wrong.int().argmax())]
        raise DataError(
            f"the features of {key} are not finite numbers (NaN or infinite), as are those of "
            f"{int(wrong.sum()) - 1} others: the model's weights are damaged, or diverged in training"
        )


def fitting(source: str | os.PathLike[str], preprocessing: Preprocessing) -> ImageData:
    """A source's data settings, with the pixels as the model expects them."""
    _, _, mean, std, background = preprocessing
    return ImageData(source=str(source), mean=mean, std=std, background=background)


def describe(encoder: Encoder, data: ImagePart, settings: EmbedSettings, total: int | None) -> dict[str, object]:
    """Everything that determines the file's content: its metadata, which a resumed run has to match."""
    name, here = encoder.checkpoint, Path(encoder.checkpoint or "")
    values = data.model_dump(mode="json", exclude=BESIDE)
    source = str(values.get("source", data.kind))
    if data.kind == "images" and source != "emoji" and (path := Path(source).expanduser()).exists():
        values["source"] = str(path.resolve())  # so that the images are found again from any folder
    key, preprocessing = encoder.place.key, encoder.preprocessing
    return {
        "nextembed_version": version("nextembed"),
        "checkpoint": str(here.resolve()) if name and here.exists() else name,
        "weights": encoder.place.weights,
        "weights_digest": encoder.digest(),
        "num_layers": int(encoder.config.num_hidden_layers),
        **key._asdict(),
        "width": encoder.width,
        "image_size": preprocessing.size,
        "num_channels": preprocessing.num_channels,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "background": list(preprocessing.background),
        "precision": encoder.precision,
        "device": next(encoder.trunk.parameters()).device.type,
        "batch_size": settings.batch_size,
        "dtype": settings.dtype,
        "source": source,
        "split": str(values.get("split", "train")),
        "data": values,
        "limit": settings.limit,
        "source_rows": total,
    }


def decoded(
    rows: Iterator[tuple[RowPlace, Row]],
    batch_size: int,
    read: Callable[[RowPlace, Row], Item],
    num_workers: int,
) -> Iterator[list[Item]]:
    """Batches of rows in their order, read by threads: decoders release Python's lock. At most 1 + `AHEAD` batches are
    in memory."""
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


def _same_data(rows: Rows | RowSequence, start: RowPlace, parts: Parts) -> None:
    """Raises ConfigError if the last row of an earlier start is different now."""
    if start == FIRST or not isinstance(rows, Rows) or parts.last_key is None:
        return
    if row_key(rows[start.row - 1], start.row - 1) != parts.last_key:
        raise ConfigError(
            f"the source has changed since {parts.folder} was started (row {start.row - 1} was "
            f"'{parts.last_key}'); remove that folder to start over"
        )
