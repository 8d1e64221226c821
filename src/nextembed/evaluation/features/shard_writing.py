"""A folder of features: files with a fixed number of rows of the source, the same whichever process computes them."""

import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.belonging import check_own_folder
from ...core.config import validated
from ...core.files import SCRATCH_NAME, from_json, read_text, replacing, to_json, write_json
from ...data.images import ImagePart
from ...data.rows import FIRST, RowPlace, Rows, RowSequence, rows_in_order
from ...errors import ConfigError
from .embed import Report, decoded, reading_of, work
from .encoder import Encoder
from .parts import GROUP_BYTES, METADATA, Done, PartWriter, Skipped, first_change, schema
from .settings import EmbedSettings
from .stored import BEGUN, LIST

SHARD = b"nextembed_shard"  # key of a file's metadata: the rows it stands for, and those that were left out
SKIPPED_FILE, LOCK = "features.skipped.jsonl", "lock"
OWN = re.compile(r"features-\d{6,}\.parquet|" + "|".join(map(re.escape, (LIST, BEGUN, SKIPPED_FILE, LOCK))))


class Written(NamedTuple):
    """A finished file. place: position in the source after its last row. skipped: of its rows."""

    file: str
    begin: int
    place: RowPlace
    rows: int
    skipped: list[Skipped]


class Work(NamedTuple):
    """Everything that determines a file, the same on every machine. saved: its metadata."""

    encoder: Encoder
    data: ImagePart
    rows: Rows | RowSequence
    chosen: EmbedSettings
    folder: Path
    saved: dict[str, object]


class Tables:
    """Keeps the parts of one file."""

    def __init__(self) -> None:
        self.tables: list[pa.Table] = []
        self.skipped: list[Skipped] = []
        self.place = FIRST

    def write(self, table: pa.Table, done: Done) -> None:
        self.tables.append(table)
        self.skipped += done.skipped
        self.place = done.place


def name_of(number: int) -> str:
    return f"features-{number:06d}.parquet"


def write_file(own: Work, number: int, begin: RowPlace, end: int, report: Report | None = None) -> Written | None:
    """The features of a range of rows, as one file; None if there are no rows. Batches start at the file's first row,
    so that a file does not depend on earlier ones.
    """
    layout, sink = schema(own.encoder.width, own.chosen.dtype), Tables()
    wanted = itertools.islice(rows_in_order(own.rows, begin), end - begin.row)
    read = reading_of(own.encoder, own.data)
    batches = decoded(wanted, own.chosen.batch_size, read, own.chosen.num_workers)
    work(own.encoder, batches, PartWriter(sink, layout, float("inf")), report, None)
    if not sink.tables:
        return None
    table = pa.concat_tables(sink.tables).combine_chunks()
    about = {"begin": begin.row, "place": sink.place, "skipped": sink.skipped}
    metadata = {METADATA: to_json(own.saved | {"num_rows": table.num_rows}), SHARD: to_json(about)}
    with replacing(own.folder / name_of(number)) as scratch:
        group = max(64, GROUP_BYTES // (own.encoder.width * 4))
        pq.write_table(table.replace_schema_metadata(metadata), scratch, use_dictionary=False, row_group_size=group)
    return Written(name_of(number), begin.row, sink.place, table.num_rows, sink.skipped)


def written(folder: Path, number: int, saved: dict[str, object]) -> Written | None:
    """A file that an earlier start finished; None if there is none, or if it is damaged or has other settings."""
    try:
        metadata = pq.read_metadata(folder / name_of(number))
        about, own = (json.loads(metadata.metadata[key]) for key in (SHARD, METADATA))
        place = RowPlace(*about["place"])
        if own | {"num_rows": None} != json.loads(to_json(saved | {"num_rows": None})):
            return None
        return Written(name_of(number), about["begin"], place, metadata.num_rows, about["skipped"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def check_output(folder: Path, overwrite: bool) -> None:
    """Raises ConfigError for a folder that holds something else, or features that may not be replaced."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; --shard-rows writes a folder")
    names = os.listdir(folder) if folder.is_dir() else []
    strange = [one for one in names if not OWN.fullmatch(one) and not SCRATCH_NAME.fullmatch(one)]
    strange += [one for one in (BEGUN, LIST) if one in names and not _is_ours(folder / one)]
    if strange:
        raise ConfigError(
            f"{folder} contains {min(strange)}, which nextembed embed did not write: choose another folder"
        )
    check_own_folder(folder, (BEGUN, LIST), LOCK)
    if LIST in names and BEGUN not in names and not overwrite:
        raise ConfigError(f"{folder} already contains features; --overwrite replaces them")


def _is_ours(file: Path) -> bool:
    """Whether a list of files was written by this library."""
    try:
        found = from_json(read_text(file))
    except (ValueError, ConfigError):
        return False
    said = found.get("settings") if isinstance(found, dict) and file.name == LIST else found
    return isinstance(said, dict) and "shard_rows" in said


def begin_folder(folder: Path, saved: dict[str, object], overwrite: bool) -> None:
    """Writes the settings of the folder. Raises ConfigError if it was started with others."""
    file = folder / BEGUN
    if file.exists():
        found = from_json(read_text(file))
        if found != json.loads(to_json(saved)) and not overwrite:
            raise ConfigError(
                f"{folder} contains unfinished output of other settings ({first_change(found, saved)}): repeat "
                "the original command to resume it, or add --overwrite to start over"
            )
    write_json(file, saved)
    (folder / LIST).unlink(missing_ok=True)


def all_written(own: Work, shard_rows: int, total: int) -> Iterator[tuple[int, Written | None]]:
    """Each file of a source of known size, by number, or None where it has to be computed."""
    for number in range(-(-total // shard_rows)):
        yield number, written(own.folder, number, own.saved)


def settings_of(values: dict[str, object]) -> EmbedSettings:
    """The settings of `embed` among those of many files."""
    names = EmbedSettings.model_fields
    return validated(EmbedSettings, {name: value for name, value in values.items() if name in names}, "embed")
