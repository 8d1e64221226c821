"""A growing table of features on disk: parts that appear whole or not at all, joined into one Parquet file."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from ..data.stream import FIRST, RowPlace
from ..errors import ConfigError, DataError

METADATA = b"nextembed"  # key of the file's metadata that holds our settings as JSON
DType = Literal["float32", "float16"]

PART_BYTES = 64 * 2**20  # embeddings kept in memory before a part is written, at most
PART_SECONDS = 30.0  # and work that a kill can cost, at most
GROUP_BYTES = 8 * 2**20  # embeddings of a row group: what a search reads at a time


class Item(NamedTuple):
    """One row of the source. pixels: uint8 [C, S, S], or None and the reason."""

    place: RowPlace
    key: str
    path: str | None
    label: int | None
    label_name: str | None
    pixels: Tensor | None
    reason: str = ""


def schema(width: int, dtype: DType) -> pa.Schema:
    number = pa.float32() if dtype == "float32" else pa.float16()
    columns = {"row": pa.int64(), "key": pa.string(), "path": pa.string(), "label": pa.int64()}
    return pa.schema([*columns.items(), ("label_name", pa.string()), ("embedding", pa.list_(number, width))])


class PartWriter:
    """Collects rows and writes them as parts: as often as `seconds` and memory ask for."""

    def __init__(self, parts: "Parts", layout: pa.Schema, seconds: float):
        self.parts, self.schema, self.seconds = parts, layout, seconds
        self._clear()

    def _clear(self) -> None:
        self.items: list[Item] = []
        self.values: list[np.ndarray] = []
        self.skipped: list[dict[str, Any]] = []
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
        if self.last is None:
            return
        rows = [item.place.row - 1 for item in self.items]
        columns = [rows] + [[getattr(i, n) for i in self.items] for n in ("key", "path", "label", "label_name")]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self.schema)]
        kind = self.schema.field("embedding").type
        with np.errstate(over="ignore"):
            flat = np.concatenate(self.values).astype(kind.value_type.to_pandas_dtype()).reshape(-1)
        if kind.value_type == pa.float16() and np.isinf(flat).any():
            raise DataError("a feature is outside the range of float16 (65,504); use float32")
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), type=kind))
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        self.parts.write(table, {"place": self.last.place, "last_key": self.last.key, "skipped": self.skipped})
        self._clear()


class Parts:
    """OUTPUT.parts/: settings.json, and part-000000.parquet, ..., each with the place after it in its metadata."""

    def __init__(self, output: Path):
        self.output, self.folder = output, output.with_name(output.name + ".parts")
        self.files: list[Path] = []
        self.skipped: list[dict[str, Any]] = []
        self.last_key: str | None = None
        self._place = FIRST

    def check(self, overwrite: bool) -> None:
        """Raises ConfigError, before anything is loaded, for an output that may not be written."""
        if self.output.is_dir() or not self.output.name:
            raise ConfigError(f"{self.output} is a folder; name a file, e.g. features.parquet")
        if self.output.exists() and not overwrite and not self.folder.exists():
            raise ConfigError(f"{self.output} exists; --overwrite replaces it")

    def place(self) -> RowPlace:
        """Where the finished parts end."""
        return self._place

    @contextlib.contextmanager
    def opened(self, settings: dict[str, Any], overwrite: bool) -> Iterator[bool]:
        """The folder, made or found again, locked while the block runs; yields whether all rows are done.

        Raises ConfigError for parts of other settings, unless `overwrite`: they are removed then.
        """
        file = self.folder / "settings.json"
        found = read_json(file) if file.is_file() else None
        if found is not None and found.get("settings") != settings and not overwrite:
            raise ConfigError(
                f"{self.folder} holds a part of the work under other settings ({_first_change(found, settings)}): "
                "repeat the command as it was to go on, or add --overwrite to start anew"
            )
        if self.output.exists() and not overwrite and not _made_with(self.output, settings):
            raise ConfigError(f"{self.output} exists; --overwrite replaces it")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise ConfigError(f"cannot write {self.folder}: {err.strerror}") from None
        with _locked(self.folder / "lock"):
            if found is None or found.get("settings") != settings:
                for part in self.folder.glob("*.parquet*"):
                    part.unlink()
                _write_text(file, json.dumps({"settings": settings}, indent=1))
            self._find()
            total, limit = settings["source_rows"], settings["limit"]
            end = min(n for n in (total, limit, float("inf")) if n is not None)
            yield self._place.row >= end
        shutil.rmtree(self.folder)

    def _find(self) -> None:
        """The finished parts; from a damaged one on (power was lost), they are removed."""
        for number, file in enumerate(sorted(self.folder.glob("part-*.parquet"))):
            try:
                state = json.loads(pq.read_schema(file).metadata[METADATA])
                assert file.name == f"part-{number:06d}.parquet" == f"part-{len(self.files):06d}.parquet"
            except (OSError, ValueError, KeyError, TypeError, AssertionError):
                file.unlink()
                continue
            self._take(file, state)

    def _take(self, file: Path, state: dict[str, Any]) -> None:
        self.files.append(file)
        self.skipped += state["skipped"]
        self._place, self.last_key = RowPlace(*state["place"]), state["last_key"]

    def write(self, table: pa.Table, state: dict[str, Any]) -> None:
        """One more part; it is there whole or not at all."""
        file = self.folder / f"part-{len(self.files):06d}.parquet"
        scratch = file.with_suffix(".parquet.tmp")
        try:
            pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(state)}), scratch, use_dictionary=False)
            os.replace(scratch, file)
        except OSError as err:
            raise DataError(f"cannot write {file}: {err.strerror or err}") from None
        self._take(file, state)

    def join(self, layout: pa.Schema, settings: dict[str, Any]) -> int:
        """All parts as the output, and the skipped images beside it; gives the number of rows.

        Row groups have a fixed number of rows, wherever parts were cut. Columns in which nothing is known are left out.
        """
        metadata = [pq.read_metadata(file) for file in self.files]
        num_rows = sum(m.num_rows for m in metadata)
        if num_rows == 0:
            first = "; ".join(f"{s['key']}: {s['reason']}" for s in self.skipped[:2])
            shutil.rmtree(self.folder)  # nothing in it is worth resuming
            raise DataError(f"none of the {len(self.skipped)} images is readable: {' '.join(first.split())}")
        empty = {name for name in ("path", "label", "label_name") if _nulls(metadata, layout, name) == num_rows}
        layout = pa.schema([field for field in layout if field.name not in empty])
        settings = settings | {"num_rows": num_rows, "num_skipped": len(self.skipped)}
        layout = layout.with_metadata({METADATA: json.dumps(settings, ensure_ascii=False)})
        scratch = self.folder / "joined.parquet.tmp"
        texts = [name for name in ("label", "label_name") if name in layout.names]
        try:
            with pq.ParquetWriter(scratch, layout, use_dictionary=texts, write_statistics=["row"]) as writer:
                for table in self._groups(layout):
                    writer.write_table(table, row_group_size=table.num_rows)
            skipped_file = self.output.with_suffix(".skipped.jsonl")
            if self.skipped:
                _write_text(skipped_file, "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in self.skipped))
            elif skipped_file.exists():
                skipped_file.unlink()
            os.replace(scratch, self.output)
        except OSError as err:
            raise DataError(f"cannot write {self.output}: {err.strerror or err}") from None
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


def _nulls(metadata: list[Any], layout: pa.Schema, name: str) -> int:
    """How many rows of all parts hold nothing in a column; "embedding" is the last, so the others keep their number."""
    column = layout.names.index(name)
    return sum(m.row_group(g).column(column).statistics.null_count for m in metadata for g in range(m.num_row_groups)
               if m.row_group(g).num_rows)  # fmt: skip


def _made_with(output: Path, settings: dict[str, Any]) -> bool:
    """Whether a file is what these settings make: it was finished, and then the parts were not removed any more."""
    try:
        found = json.loads(pq.read_schema(output).metadata[METADATA])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(found.get(name) == value for name, value in settings.items())


def _first_change(found: dict[str, Any], settings: dict[str, Any]) -> str:
    before = found.get("settings") or {}
    for name, value in settings.items():
        if before.get(name) != value:
            if isinstance(value, dict) and isinstance(before.get(name), dict):
                return _first_change({"settings": before[name]}, value)
            return f"{name} {before.get(name)!r}, now {value!r}"
    return "fields that this version does not have"


def read_json(file: Path) -> dict[str, Any]:
    """An object from a JSON file; empty if there is none in it."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write_text(file: Path, text: str) -> None:
    scratch = file.with_name(f".tmp-{file.name}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, file)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time; a killed one holds nothing. Raises ConfigError if another is at work."""
    with file.open("w") as handle:
        with contextlib.suppress(ImportError):  # Windows has no such lock
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"another process is writing {file.parent}") from None
        yield
