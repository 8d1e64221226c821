"""A growing table of features on disk: parts that are written atomically and joined into one Parquet file."""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from ...core.files import (
    SCRATCH_NAME,
    checked_file,
    clean,
    from_json,
    locked,
    read_text,
    replacing,
    to_json,
    write_json,
    write_text,
)
from ...data.rows import FIRST, RowPlace
from ...errors import ConfigError, DataError

METADATA = b"nextembed"  # key of the file's metadata that holds our settings as JSON
DType = Literal["float32", "float16"]

PART_BYTES = 64 * 2**20  # limit of embeddings in memory before a part is written
PART_SECONDS = 30.0  # limit of work that a kill can cost
GROUP_BYTES = 8 * 2**20  # embeddings of a row group: what a search reads at a time


OWN = re.compile(r"part-\d{6}\.parquet|joined\.parquet|settings\.json|lock")  # files in OUTPUT.parts/


class Item(NamedTuple):
    """One row of the source. pixels: uint8 [C, S, S], or None and the reason."""

    place: RowPlace
    key: str
    path: str | None
    label: int | None
    label_name: str | None
    pixels: Tensor | None = None
    reason: str = ""


class Skipped(TypedDict):
    """An image that was left out. row: None for a file that was not a row."""

    row: int | None
    key: str
    reason: str


class Done(NamedTuple):
    """Metadata of a part: the position after it, the key of its last row, and rows left out since the previous part."""

    place: RowPlace
    last_key: str
    skipped: list[Skipped]


def schema(width: int, dtype: DType) -> pa.Schema:
    """The columns of a file of features."""
    number = pa.float32() if dtype == "float32" else pa.float16()
    columns = {"row": pa.int64(), "key": pa.string(), "path": pa.string(), "label": pa.int64()}
    return pa.schema([*columns.items(), ("label_name", pa.string()), ("embedding", pa.list_(number, width))])


class Sink(Protocol):
    """Receives parts."""

    def write(self, table: pa.Table, done: Done) -> None: ...


class PartWriter:
    """Collects rows and writes them as parts: as often as `seconds` and memory ask for."""

    def __init__(self, parts: Sink, layout: pa.Schema, seconds: float):
        self.parts, self.schema, self.seconds = parts, layout, seconds
        self._clear()

    def _clear(self) -> None:
        self.items: list[Item] = []
        self.values: list[np.ndarray] = []
        self.skipped: list[Skipped] = []
        self.last: Item | None = None
        self.size, self.since = 0, time.monotonic()

    def add(self, items: list[Item], values: Tensor) -> None:
        """One batch: all its rows, and the features [readable rows, D]."""
        self.items += [item._replace(pixels=None) for item in items if item.pixels is not None]
        self.skipped += [
            {"row": item.place.row - 1, "key": item.key, "reason": item.reason} for item in items if item.pixels is None
        ]
        self.values.append(values.numpy())
        self.last = items[-1]
        self.size += values.numel() * values.element_size()
        if self.size >= PART_BYTES or time.monotonic() - self.since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Writes the collected rows as a part."""
        if self.last is None:
            return
        rows = [(item.place.row - 1, item.key, item.path, item.label, item.label_name) for item in self.items]
        arrays = [pa.array([row[n] for row in rows], self.schema.field(n).type) for n in range(5)]
        kind = self.schema.field("embedding").type
        with np.errstate(over="ignore"):
            flat = np.concatenate(self.values).astype(kind.value_type.to_pandas_dtype()).reshape(-1)
        if kind.value_type == pa.float16() and np.isinf(flat).any():
            raise DataError("a feature is outside the range of float16 (65,504); set dtype to float32")
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), type=kind))
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        self.parts.write(table, Done(self.last.place, self.last.key, self.skipped))
        self._clear()


class Parts:
    """OUTPUT.parts/: settings.json, and part-000000.parquet, ..., each with the place after it in its metadata."""

    def __init__(self, output: Path):
        self.output, self.folder = output, output.parent / f"{output.name}.parts"
        self.skipped_file = output.parent / f"{output.stem}.skipped.jsonl"
        self.files: list[Path] = []
        self.skipped: list[Skipped] = []
        self.last_key: str | None = None
        self._place = FIRST

    def check(self, overwrite: bool) -> None:
        """Raises ConfigError for an output that may not be written, before anything is loaded."""
        checked_file(self.output)
        self._check_foreign()
        if self.output.exists() and not overwrite and not self.folder.exists():
            raise ConfigError(f"{self.output} exists; --overwrite replaces it")

    def _check_foreign(self) -> None:
        """Raises ConfigError if files of other origin have names that are written, emptied or removed here."""
        if os.path.lexists(self.folder):
            if self.folder.is_symlink() or not self.folder.is_dir():
                raise ConfigError(f"{self.folder} was not created by nextembed embed: choose another output")
            names = sorted(os.listdir(self.folder))
            strange = [name for name in names if not (OWN.fullmatch(name) or SCRATCH_NAME.fullmatch(name))]
            if "settings.json" not in names:
                strange += [name for name in names if name.endswith(".parquet")]
            elif _read_settings(self.folder / "settings.json") is None:
                strange += ["settings.json"]
            if strange:
                raise ConfigError(
                    f"{self.folder} contains {strange[0]}, which nextembed embed did not write: choose another output"
                )
        if self.skipped_file.exists() and not _names_skipped(self.skipped_file):
            raise ConfigError(f"{self.skipped_file} was not written by nextembed embed: choose another output")

    def place(self) -> RowPlace:
        """The position after the finished parts."""
        return self._place

    @contextlib.contextmanager
    def opened(self, settings: dict[str, object], end: int | None, overwrite: bool) -> Iterator[bool]:
        """Context with the folder, new or existing, locked; yields whether all rows up to `end` are done. Raises
        ConfigError for parts of other settings, unless `overwrite`, which removes them.
        """
        self._check_foreign()
        file = self.folder / "settings.json"
        found = _read_settings(file)
        if file.is_file() and found != settings and not overwrite:
            raise ConfigError(
                f"{self.folder} contains unfinished output of other settings ({first_change(found, settings)}): "
                "repeat the original command to resume it, or add --overwrite to start over"
            )
        if self.output.exists() and not overwrite and not _made_with(self.output, settings):
            raise ConfigError(f"{self.output} exists; --overwrite replaces it")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise ConfigError(f"cannot write {self.folder}: {err.strerror}") from None
        with locked(self.folder / "lock", f"another process is writing {self.folder}"):
            clean(self.folder)
            if found != settings:
                self._remove("part-*.parquet")
                write_json(file, {"settings": settings})
            self._find()
            yield end is not None and self._place.row >= end
            self._remove()

    def _remove(self, pattern: str = "*") -> None:
        """Removes our files, settings.json last, and the folder if it is then empty."""
        for file in sorted(self.folder.glob(pattern), key=lambda file: file.name == "settings.json"):
            if OWN.fullmatch(file.name):
                file.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _find(self) -> None:
        """The finished parts; from a damaged one on (after a power cut), they are removed."""
        for number, file in enumerate(sorted(self.folder.glob("part-*.parquet"))):
            try:
                state = json.loads(pq.read_schema(file).metadata[METADATA])
                done = Done(RowPlace(*state["place"]), state["last_key"], state["skipped"])
                assert file.name == f"part-{number:06d}.parquet" == f"part-{len(self.files):06d}.parquet"
            except (OSError, ValueError, KeyError, TypeError, AssertionError):
                file.unlink()
                continue
            self._take(file, done)

    def _take(self, file: Path, done: Done) -> None:
        self.files.append(file)
        self.skipped += done.skipped
        self._place, self.last_key = done.place, done.last_key

    def write(self, table: pa.Table, done: Done) -> None:
        """Writes one more part, atomically."""
        file = self.folder / f"part-{len(self.files):06d}.parquet"
        with replacing(file) as scratch:
            pq.write_table(
                table.replace_schema_metadata({METADATA: to_json(done._asdict())}), scratch, use_dictionary=False
            )
        self._take(file, done)

    def leave_out(self, files: dict[str, str]) -> None:
        """Records files that were unusable when the data was opened, with reasons."""
        self.skipped[:0] = [{"row": None, "key": key, "reason": reason} for key, reason in files.items()]

    def join(self, layout: pa.Schema, settings: dict[str, object]) -> int:
        """Writes all parts as the output, with the list of skipped images; returns the number of rows. Row groups have
        a fixed number of rows, independent of parts. Empty columns are left out.
        """
        metadata = [pq.read_metadata(file) for file in self.files]
        num_rows = sum(m.num_rows for m in metadata)
        if num_rows == 0:
            first = "; ".join(f"{s['key']}: {s['reason']}" for s in self.skipped[:2])
            self._remove()  # nothing in it needs to be resumed
            raise DataError(f"none of the {len(self.skipped)} images is readable: {' '.join(first.split())}")
        empty = {name for name in ("path", "label", "label_name") if _nulls(metadata, layout, name) == num_rows}
        layout = pa.schema([field for field in layout if field.name not in empty])
        settings = settings | {"num_rows": num_rows, "num_skipped": len(self.skipped)}
        layout = layout.with_metadata({METADATA: to_json(settings)})
        joined = self.folder / "joined.parquet"  # here, where the next start finds it after a kill
        texts = [name for name in ("label", "label_name") if name in layout.names]
        with (
            replacing(joined) as scratch,
            pq.ParquetWriter(scratch, layout, use_dictionary=texts, write_statistics=["row"]) as writer,
        ):
            for table in self._groups(layout):
                writer.write_table(table, row_group_size=table.num_rows)
        if self.skipped:
            write_text(self.skipped_file, "".join(to_json(one) + "\n" for one in self.skipped))
        else:
            self.skipped_file.unlink(missing_ok=True)
        try:
            os.replace(joined, self.output)
        except OSError as err:
            raise ConfigError(f"cannot write {self.output}: {err.strerror}") from None
        return num_rows

    def _groups(self, layout: pa.Schema) -> Iterator[pa.Table]:
        kind = layout.field("embedding").type
        size = max(64, GROUP_BYTES // (kind.list_size * kind.value_type.bit_width // 8))
        waiting: list[pa.Table] = []
        for file in self.files:
            waiting.append(pq.read_table(file, columns=layout.names).cast(layout))
            while sum(t.num_rows for t in waiting) >= size:
                table = pa.concat_tables(waiting)
                yield table.slice(0, size).combine_chunks()
                waiting = [table.slice(size)]
        rest = pa.concat_tables(waiting)
        if rest.num_rows:
            yield rest.combine_chunks()


def _nulls(metadata: list[pq.FileMetaData], layout: pa.Schema, name: str) -> int:
    """Number of rows without a value in each column, over all parts; "embedding" is the last, so the others keep their
    number."""
    column = layout.names.index(name)
    return sum(m.row_group(g).column(column).statistics.null_count for m in metadata for g in range(m.num_row_groups)
               if m.row_group(g).num_rows)  # fmt: skip


def _made_with(output: Path, settings: Mapping[str, object]) -> bool:
    """Whether a file is the finished output of these settings, whose parts were not removed before a stop."""
    try:
        found = json.loads(pq.read_schema(output).metadata[METADATA])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(found.get(name) == value for name, value in settings.items())


def _names_skipped(file: Path) -> bool:
    """Whether a file is a list of skipped images, as it is written here."""
    try:
        rows = [from_json(line) for line in read_text(file).split("\n") if line]
    except (ConfigError, ValueError):
        return False
    return all(isinstance(row, dict) and row.keys() == {"row", "key", "reason"} for row in rows)


def first_change(before: object, settings: Mapping[str, object]) -> str:
    """The first setting that differs, as text."""
    values = before if isinstance(before, dict) else {}
    for name, value in settings.items():
        if (old := values.get(name)) != value:
            if isinstance(value, dict) and isinstance(old, dict):
                return first_change(old, value)
            return f"{name} {old!r}, now {value!r}"
    return "fields that this version does not know"


def _read_settings(file: Path) -> object:
    """The settings of the parts in a folder; None if unknown."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
