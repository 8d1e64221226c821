"""Rows of documents from Parquet, JSON lines, text, CSV, webdataset archives, folders and the hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from ..core.files import first_line, from_json
from ..errors import ConfigError, MissingSplit, unknown
from .documents import DocumentPart
from .images import Role
from .loading import choose, class_names, load, parse_split, quiet
from .origins import Origin, find_table
from .record import Folder, Record, check_readable
from .sources import IndexedRows, StreamedRows
from .splits import asked_for
from .transforms import Unreadable


class TablePart(DocumentPart):
    """Documents of which each is a row of a table that Hugging Face `datasets` can read.

    source: a Parquet, JSON-lines (.jsonl), JSON (.json: a list), CSV or text file; a folder of such files named by
    split (train.jsonl, test.parquet); webdataset archives ("shards/*.tar"); an image folder with metadata.jsonl; a
    hub id; or "emoji" and "glosses", which come with the package. Files that rows name are relative to the folder,
    and may not lie outside. subset, split, validation, test, where, split_column, streaming, shuffle_buffer: as of
    `images`.
    """

    source: str
    subset: str | None = None
    split: str = "train"
    validation: str = "validation"
    test: str = "test"
    where: dict[str, Any] = Field(default_factory=dict)
    split_column: str | None = None
    streaming: bool = False
    shuffle_buffer: int = Field(1000, gt=0, le=10_000_000)

    def rows(self, split: Role) -> Any:
        """Rows of a split. Raises ConfigError for a source, split or column that does not exist."""
        with asked_for(self, split):
            return self._rows(split)

    def _rows(self, split: Role) -> Any:
        origin = find_table(self.source)
        expression = {"train": self.split, "validation": self.validation, "test": self.test}[split]
        name, part = parse_split(expression)
        split_column = self.split_column or ("split" if self.source == "emoji" else None)
        if origin.builder == "json":
            if self.where or split_column:
                raise ConfigError("data.where: a list in JSON has no columns to choose rows by; use Parquet")
            records = read_json(origin, name)
            self.check(self.columns_of(records))
            return JsonRows(records[part], ToRecord(origin.folder))
        where = ({split_column: name} if split_column else {}) | self.where
        data = self._load(origin, "train" if split_column else expression)
        in_lines = origin.builder == "text" and not self._is_text(origin)
        if not in_lines:
            self.check(list(data.column_names or data.features or []))
        for column, wanted in where.items():
            if in_lines:
                raise ConfigError("data.where: JSON lines have no columns to choose rows by; use Parquet")
            kind = MissingSplit if column == split_column else ConfigError
            data = choose(data, column, wanted if isinstance(wanted, list) else [wanted], self.streaming, kind)
        if split_column and part != slice(None):
            if self.streaming:
                raise ConfigError(f"data: split '{expression}' takes a part of the rows; that needs streaming=false")
            data = data.select(range(*part.indices(len(data))))
        to_record: Any = ToRecord(origin.folder, in_lines, class_names(data.features))
        if self.streaming:
            return StreamedRows(data, to_record, self.shuffle_buffer, origin, "train" if split_column else name)
        return IndexedRows(data, to_record)

    def check(self, columns: list[str]) -> None:
        """Raises ConfigError if the columns asked for are not there."""
        for field in type(self).model_fields:
            name = getattr(self, field)
            if field.endswith("_column") and field != "split_column" and name and not is_there(name, columns):
                raise ConfigError(unknown(f"data.{field}:", name, columns))

    def columns_of(self, records: list[Any]) -> list[str]:
        return sorted({name for record in records[:100] if isinstance(record, dict) for name in record})

    def _load(self, origin: Origin, expression: str) -> Any:
        if origin.builder != "text":
            return load(origin, expression, self.subset, self.streaming)
        sample_by = getattr(self, "sample_by", "line") if self._is_text(origin) else "line"
        data = load(origin, expression, None, self.streaming, sample_by=sample_by)
        with quiet(True):
            return data.filter(has_text, input_columns=["text"])  # blank lines are no rows

    def _is_text(self, origin: Origin) -> bool:
        files = [file for found in (origin.files or {}).values() for file in found]
        return all(file.lower().endswith(".txt") for file in files)


def is_there(column: str, columns: list[str]) -> bool:
    """Whether columns have this one, or the one that it is a field of."""
    return column in columns or column.split(".")[0] in columns


def has_text(value: str) -> bool:
    return bool(value.strip())


def read_json(origin: Origin, split: str) -> list[Any]:
    """The rows of JSON files that each hold a list of objects. Raises ConfigError for a file that does not."""
    files = origin.files or {}
    if split not in files:
        raise MissingSplit(unknown("data: split", split, files))
    found: list[Any] = []
    for file in files[split]:
        try:
            rows = from_json(Path(file).read_bytes())
        except ValueError as err:
            raise ConfigError(f"data.source: {file} is not JSON: {err}") from None
        if not isinstance(rows, list) or not any(isinstance(row, dict) for row in rows):
            raise ConfigError(f"data.source: {file} should hold a list of objects, or be JSON lines named .jsonl")
        found += rows
    return found


class ToRecord(NamedTuple):
    """Makes a Record of what `datasets` gives. json_lines: that is a line of JSON. class_names: of columns that hold
    class ids; the row gets the name."""

    folder: Path | None
    json_lines: bool = False
    class_names: dict[str, list[str]] = {}

    def __call__(self, record: Any, index: int | str) -> Record:
        if isinstance(record, Unreadable):
            return Record({}, str(index), Folder(self.folder), str(record))
        row, error = parsed(record["text"]) if self.json_lines else as_row(record)
        for column, names in self.class_names.items():
            label = row.get(column)
            row[column] = names[label] if isinstance(label, int) and 0 <= label < len(names) else None
        return Record(row, self.key(record, index), Folder(self.folder), error)

    def key(self, record: Any, index: int | str) -> str:
        if isinstance(record, dict) and "__key__" in record and "__url__" in record:  # of a webdataset archive
            return f"{Path(str(record['__url__'])).name}/{record['__key__']}"
        return str(index)


def parsed(line: str) -> tuple[dict[str, Any], str | None]:
    """The row of a line of JSON, and what is wrong with it."""
    try:
        return as_row(from_json(line))
    except ValueError as err:
        return {}, f"not JSON: {first_line(err)}"


def as_row(value: Any) -> tuple[dict[str, Any], str | None]:
    return (dict(value), None) if isinstance(value, dict) else ({}, "the row is not a JSON object")


class JsonRows:
    """Rows that are in memory."""

    def __init__(self, records: list[Any], to_record: ToRecord):
        self.records, self.to_record = records, to_record

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.to_record(self.records[index], index)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))


def field(row: dict[str, Any], name: str) -> Any:
    """The value of a column, or of a field inside it: "json.caption". Raises Unreadable where there is none."""
    check_readable(row)
    if name in row:  # dots may be part of a column's own name
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, bytes | str):
            try:
                value = from_json(value)
            except ValueError:
                raise Unreadable(f"'{name}': not JSON") from None
        if not isinstance(value, dict) or part not in value:
            raise Unreadable(f"it has no '{name}'")
        value = value[part]
    return value


def words(value: Any, name: str) -> str:
    """Text of a column. Raises Unreadable for what is none, or nothing but white space."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise Unreadable(f"'{name}' is not text") from None
    if value is None:
        raise Unreadable(f"it has no '{name}'")
    if not isinstance(value, str):
        raise Unreadable(f"'{name}' is not text but {type(value).__name__}")
    if not value.strip():
        raise Unreadable(f"'{name}' is empty")
    return value.strip()


def first_of(row: dict[str, Any], names: tuple[str, ...], what: str, setting: str) -> str:
    """The first of some columns that the row has. Raises Unreadable, naming the setting, if it has none."""
    check_readable(row)
    for name in names:
        top = row.get(name.split(".")[0])
        if top is not None and ("." not in name or (isinstance(top, dict) and name.split(".")[1] in top)):
            return name
    raise Unreadable(f"none of its columns looks like {what} (data.{setting}): {', '.join(map(str, row))[:200]}")
