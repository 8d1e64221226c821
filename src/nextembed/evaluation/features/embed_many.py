"""Features as a folder of files, by one process or many; after a stop only missing files are computed."""

import os
import time
from collections.abc import Sized
from pathlib import Path
from typing import NamedTuple

from ...core.belonging import make_folder
from ...core.config import validated
from ...core.files import clean, locked, to_json, write_json, write_text
from ...data.images import ImagePart
from ...data.rows import FIRST
from ...errors import ConfigError, DataError
from .embed import Report, describe, encoder_of, fitting
from .encoder import Checkpoint, Encoder
from .on_ray import Task, compute
from .parts import Skipped
from .settings import ManySettings
from .shard_writing import (
    LOCK,
    OWN,
    SKIPPED_FILE,
    Work,
    Written,
    all_written,
    begin_folder,
    check_output,
    name_of,
    settings_of,
    write_file,
    written,
)
from .stored import BEGUN, LIST


class EmbeddedMany(NamedTuple):
    """The result. num_rows: of all files; num_resumed: files that an earlier start had finished; skipped: "row", "key"
    and "reason" of each unreadable image, also in `skipped_file`; seconds: of this start."""

    folder: Path
    num_files: int
    num_rows: int
    num_resumed: int
    skipped: list[Skipped]
    skipped_file: Path
    seconds: float


def embed_many(
    checkpoint: Checkpoint | Encoder,
    source: str | os.PathLike[str] | ImagePart,
    output: str | Path,
    *,
    overwrite: bool = False,
    report: Report | None = None,
    **settings: object,
) -> EmbeddedMany:
    """Features of a source as files of `shard_rows` rows each, the same however often the work was stopped.

    Args:
        checkpoint: as of `Encoder`; for `engine="ray"` a path or a hub id that every machine reaches.
        source: what `data.source` takes, or a data part; its `split` is embedded.
        output: the folder; for `engine="ray"` on a file system that every machine shares.
        overwrite: whether features that are there, or files that other settings left, may go.
        report: is called with rows done, and rows in all (None where nobody knows).
        settings: see `ManySettings`; `shard_rows` is needed.

    Returns:
        Rows written, and the images left out with the reason.

    Raises:
        ConfigError: for an output that exists, and for a checkpoint or source that cannot be used.
        DataError: if no image is readable.
    """
    folder, began = Path(output).expanduser(), time.monotonic()
    many = validated(ManySettings, settings, "embed")
    if many.shard_rows is None:
        raise ConfigError("embed: give the number of rows per file, e.g. --shard-rows 100000")
    check_output(folder, overwrite)
    chosen = settings_of(many.model_dump())
    encoder = encoder_of(checkpoint, chosen)
    data = source if isinstance(source, ImagePart) else fitting(source, encoder.preprocessing)
    encoder.preprocessing = encoder.preprocessing._replace(mean=data.mean, std=data.std, background=data.background)
    rows = data.rows("train")
    total = len(rows) if isinstance(rows, Sized) else None
    if total == 0:
        raise ConfigError("data: there are no images to embed")
    saved = describe(encoder, data, chosen, total) | {"shard_rows": many.shard_rows}
    make_folder(folder)
    with locked(folder / LOCK, f"another process is writing {folder}"):
        clean(folder)
        begin_folder(folder, saved, overwrite)
        own = Work(encoder, data, rows, chosen, folder, saved)
        expected = min((n for n in (total, chosen.limit) if n is not None), default=None)
        if many.engine == "ray":
            if total is None:
                raise ConfigError("--engine ray: rows of a stream have no numbers; set data.streaming=false")
            files, resumed = by_ray(own, many, expected or 0, report)
        else:
            files, resumed = here(own, many.shard_rows, expected, report)
        left_out = data.left_out("train").items()
        every: list[Skipped] = [{"row": None, "key": key, "reason": reason} for key, reason in left_out]
        every += [one for file in files for one in file.skipped]
        finish(own, files, every)
        (folder / LOCK).unlink(missing_ok=True)
    num_rows, skipped_file = sum(one.rows for one in files), folder / SKIPPED_FILE
    return EmbeddedMany(folder, len(files), num_rows, resumed, every, skipped_file, time.monotonic() - began)


def here(own: Work, shard_rows: int, total: int | None, report: Report | None) -> tuple[list[Written], int]:
    """Computes all files, one after the other; returns also how many existed."""
    files: list[Written] = []
    place, resumed = FIRST, 0
    while total is None or place.row < total:
        number = len(files)
        made = written(own.folder, number, own.saved)
        resumed += made is not None
        if made is None:
            end = place.row + shard_rows if total is None else min(place.row + shard_rows, total)
            told = None if report is None else lambda done, _: report(done, total)
            made = write_file(own, number, place, end, told)
        if made is None:
            break
        files.append(made)
        place = made.place
    return files, resumed


def by_ray(own: Work, many: ManySettings, total: int, report: Report | None) -> tuple[list[Written], int]:
    """Computes all files with processes of Ray; returns also how many existed."""
    step = many.shard_rows or 1
    there = dict(all_written(own, step, total))
    missing = [number for number, one in there.items() if one is None]
    tasks: list[Task] = [{"number": n, "begin": n * step, "end": min(n * step + step, total)} for n in missing]
    done = sum(one is not None for one in there.values()) * step
    for number in compute(own, many, tasks) if tasks else ():
        there[number] = written(own.folder, number, own.saved)
        done += step
        if report is not None:
            report(min(done, total), total)
    lost = [number for number, one in there.items() if one is None]
    if lost:
        raise DataError(f"{own.folder / name_of(lost[0])} is missing: do all Ray machines share this folder?")
    return [one for one in there.values() if one is not None], len(there) - len(missing)


def finish(own: Work, files: list[Written], skipped: list[Skipped]) -> None:
    """Writes the list of all files and removes those of earlier settings."""
    if not any(one.rows for one in files):
        first = "; ".join(f"{one['key']}: {one['reason']}" for one in skipped[:2])
        raise DataError(f"none of the {len(skipped)} images is readable: {' '.join(first.split())}")
    names = {one.file for one in files}
    for path in own.folder.glob("features-*.parquet"):
        if path.name not in names and OWN.fullmatch(path.name):
            path.unlink()
    if skipped:
        write_text(own.folder / SKIPPED_FILE, "".join(to_json(one) + "\n" for one in skipped))
    else:
        (own.folder / SKIPPED_FILE).unlink(missing_ok=True)
    num_rows = sum(one.rows for one in files)
    listed = [{"file": one.file, "rows": one.rows, "begin": one.begin} for one in files]
    about = {"num_rows": num_rows, "num_skipped": len(skipped), "files": listed, "settings": own.saved}
    write_json(own.folder / LIST, about)
    (own.folder / BEGUN).unlink()
