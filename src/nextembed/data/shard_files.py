"""Files of shards: tar of webdataset, Parquet, and JSON lines. The same rows give the same bytes."""

import base64
import hashlib
import io
import tarfile
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.files import to_json

GROUP_ROWS, GROUP_BYTES = 1000, 16 * 2**20  # of a row group of Parquet, at most: what a stream reads at a time
BLOCK = 2**20


class Media(NamedTuple):
    """The unchanged file of a picture, sound or video. name: of the file, with its extension."""

    data: bytes
    name: str

    @property
    def ending(self) -> str:
        """ "jpg"; "bin" if unknown."""
        return Path(self.name).suffix.lower().lstrip(".") or "bin"


class Packed(NamedTuple):
    """A row that is ready to be written. name: "000012_cat", unique in a split. columns: values, with `Media` at any
    depth. label: its class id, or the name of its class; None if there is none."""

    name: str
    columns: dict[str, object]
    label: int | str | None = None

    @property
    def size(self) -> int:
        """Approximate size in bytes."""
        return _size(self.columns)


def _size(value: object) -> int:
    if isinstance(value, Media):
        return len(value.data) + len(value.name)
    if isinstance(value, dict):
        return sum(len(str(key)) + _size(own) for key, own in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str | bytes) else 8


class ShardFile(Protocol):
    """A shard that is being written."""

    def add(self, row: Packed) -> None: ...

    def close(self) -> None: ...


class TarShard:
    """A webdataset archive: `NAME.jpg`, `NAME.cls` with the class, `NAME.json` with all other columns."""

    def __init__(self, file: Path, schema: pa.Schema):
        self.archive = tarfile.open(file, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  # until `close`

    def add(self, row: Packed) -> None:
        rest = {}
        for column, value in row.columns.items():
            if isinstance(value, Media):
                self._member(f"{row.name}.{value.ending}", value.data)
            elif value is not None:
                rest[column] = value
        if row.label is not None:
            self._member(f"{row.name}.cls", str(row.label).encode())
        if rest:
            self._member(f"{row.name}.json", to_json(in_json(rest)).encode(errors="replace"))

    def _member(self, name: str, data: bytes) -> None:
        about = tarfile.TarInfo(name)
        about.size = len(data)  # no time and no owner, which would differ each time
        self.archive.addfile(about, io.BytesIO(data))

    def close(self) -> None:
        self.archive.close()


class ParquetShard:
    """A table with the columns of the source."""

    def __init__(self, file: Path, schema: pa.Schema):
        self.schema, self.writer = schema, pq.ParquetWriter(file, schema)
        self.waiting: list[dict[str, object]] = []
        self.size = 0

    def add(self, row: Packed) -> None:
        values = dict(row.columns)
        if row.label is not None and "label" in self.schema.names:
            values["label"] = row.label
        self.waiting.append({name: _in_table(value) for name, value in values.items()})
        self.size += row.size
        if len(self.waiting) >= GROUP_ROWS or self.size >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self.waiting:
            table = pa.Table.from_pylist(self.waiting, self.schema)
            self.writer.write_table(table, row_group_size=len(self.waiting))
        self.waiting, self.size = [], 0

    def close(self) -> None:
        self._flush()
        self.writer.close()


class LinesShard:
    """JSON lines, with the bytes of media in base64."""

    def __init__(self, file: Path, schema: pa.Schema):
        self.file: IO[bytes] = file.open("wb")

    def add(self, row: Packed) -> None:
        self.file.write((to_json(in_json(row.columns)) + "\n").encode(errors="replace"))

    def close(self) -> None:
        self.file.close()


FILES: dict[str, type[TarShard] | type[ParquetShard] | type[LinesShard]] = {
    "tar": TarShard,
    "parquet": ParquetShard,
    "jsonl": LinesShard,
}


def in_json(value: object) -> object:
    """The value converted for JSON."""
    if isinstance(value, Media):
        return {"bytes": base64.b64encode(value.data).decode(), "path": value.name}
    if isinstance(value, dict):
        return {str(key): in_json(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [in_json(own) for own in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _in_table(value: object) -> object:
    if isinstance(value, Media):
        return {"bytes": value.data, "path": value.name}
    if isinstance(value, dict):
        return {key: _in_table(own) for key, own in value.items()}
    return [_in_table(own) for own in value] if isinstance(value, list | tuple) else value


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            found.update(block)
    return found.hexdigest()
