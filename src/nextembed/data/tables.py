"""Rows of documents from Parquet, JSON lines, text, CSV, webdataset archives, folders and the hub."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, field_validator

from ..core.config import Config
from ..core.files import first_line, from_json
from ..core.remote import check_address
from ..core.types import Role
from ..errors import ConfigError, DataError, MissingSplit, unknown
from .archives import MOST
from .chosen import Where
from .found import Found
from .grouping import ClassFolder, Folders, splits_of_path
from .lines import read_delimited, read_json_list, read_lines
from .listing import shown
from .loading import Table, choose, class_names, is_empty, load, take
from .naming import parse_split, splits_named
from .origins import Format, Origin, Rules, find_origin, find_table
from .record import Folder, Record, check_readable
from .rows import Rows, RowSequence
from .stored import IndexedRows, R, StreamedRows, ToRow, Values
from .tar_tables import notes_of_archives
from .text_tables import load_text
from .transforms import Unreadable

PEEKED = 1000  # rows that are checked for columns with values


class TableSettings(Config):
    """Source and selection of the rows of a table.

    Attributes:
        source: where the rows come from; see each kind of data.
        subset: configuration of a hub data set that has several.
        split: rows for training, as in `load_dataset`: "train[:-5000]".
        validation: rows for choosing (layers, best weights), in the same notation.
        test: rows for the final measurement, in the same notation.
        where: keeps rows whose column has this value, or one of these: {"vendor": "noto"}; null matches rows without a
            value. In a text column values are compared as text, in a class column by the name of the class.
        split_column: column that names each row's split, for sources that keep all splits in one file.
        streaming: reads in sequence, without a local copy.
        shuffle_buffer: size of the shuffle buffer of a stream, in rows.
        format: which files of a folder to use, if it contains several kinds: images, videos, parquet, tar, zip, jsonl,
            json, csv or txt.
        folders: how names like "train" are read where they are ambiguous: "splits" as splits, leaving out what matches
            none; "classes" as classes, never as splits.
        class_folder: which of the folders below a split is the class of an image, if they are nested: "top" (also for
            null, unless there are folders above the splits as well), "last", or "none".
        hidden: include files and folders whose name starts with a dot.
    """

    source: str
    subset: str | None = None
    split: str = "train"
    validation: str = "validation"
    test: str = "test"
    where: Where = Field(default_factory=dict)
    split_column: str | None = None
    streaming: bool = False
    shuffle_buffer: int = Field(1000, gt=0, le=10_000_000)
    format: Format | None = None
    folders: Folders = None
    class_folder: ClassFolder = None
    hidden: bool = False

    def rules(self) -> Rules:
        """How the source is read."""
        return Rules(self.format, self.folders, self.class_folder, self.hidden, self.streaming)

    @field_validator("source")
    @classmethod
    def _holds_no_secret(cls, source: str) -> str:
        try:
            return check_address(source)
        except ConfigError as err:
            raise ValueError(str(err).removeprefix("data.source: ")) from None

    def origin(self) -> Origin:
        """The origin of the source."""
        return find_origin(self.source, self.rules())

    def left_out(self, split: Role) -> dict[str, str]:
        """Files that may be rows of a split and cannot be used, each with the reason."""
        name = parse_split(self.expression(split))[0]
        wanted = next(iter(splits_named(name)), name)
        found = {}
        for file in self.origin().left_out:
            named = set() if self.folders == "classes" else splits_of_path(file)
            if wanted in named or (not named and wanted == "train"):
                found[shown(file.name)] = file.reason
        return found

    def around(self) -> Found:
        """What lies around the rows: files of other kinds, and the splits."""
        origin = self.origin()
        notes = () if self.streaming else tuple(notes_of_archives(origin))
        return Found("", None, beside=origin.beside, splits=tuple(sorted(origin.files or {})), notes=notes)

    def expression(self, split: Role) -> str:
        """The name, or expression like "train[:90%]", by which a split is read."""
        return {"train": self.split, "validation": self.validation, "test": self.test}[split]

    @contextmanager
    def asked_for(self, split: Role) -> Iterator[None]:
        """Turns a missing split into a ConfigError if the settings name it, because it may be mistyped. The default
        names ("validation", "test") may be missing."""
        try:
            yield
        except MissingSplit as err:
            field = "split" if split == "train" else split
            if self.expression(split) != type(self).model_fields[field].default:
                raise ConfigError(f"data.{field}: {str(err).removeprefix('data: ')}") from None
            raise

    def splits_by(self) -> str | None:
        """The column that names each row's split."""
        return self.split_column or ("split" if self.source == "emoji" else None)

    def stored_split(self, split: Role) -> str:
        """The name under which the rows of a split are stored, possibly together with others."""
        return "train" if self.splits_by() else parse_split(self.expression(split))[0]

    def opened(self, origin: Origin, split: Role) -> Table:
        """The rows of a split, with its columns as they are. Raises ConfigError for what does not exist."""
        expression, split_column = self.expression(split), self.splits_by()
        name, part = parse_split(expression)
        data = self.loaded(origin, "train" if split_column else expression)
        if split_column:
            data = take(choose(data, split_column, [name], self.streaming, MissingSplit), part)
        for column, wanted in self.where.items():
            data = choose(data, column, wanted if isinstance(wanted, list) else [wanted], self.streaming)
        return data

    def loaded(self, origin: Origin, expression: str) -> Table:
        """The rows of a split expression, unfiltered."""
        return load(origin, expression, self.subset, self.streaming)

    def streamed(
        self, data: Table, to_row: ToRow[R], origin: Origin, split: Role, has_columns: bool = True
    ) -> StreamedRows[R]:
        """Rows in the order of the stream, shuffled in a buffer."""
        return StreamedRows(data, to_row, self.shuffle_buffer, origin, self.stored_split(split), has_columns)


class DocumentTable(TableSettings):
    """Documents of which each is a row of a table that Hugging Face `datasets` can read.

    Attributes:
        source: a Parquet, JSON-lines (.jsonl), JSON (.json: a list), CSV or text file; a folder of such files named by
            split (train.jsonl, test.parquet); webdataset archives ("shards/*.tar"); an image folder with
            metadata.jsonl; a hub id; or "emoji" and "glosses", which come with the package. Files that rows name are
            relative to the folder, and may not lie outside.
    """

    def rows(self, split: Role) -> Rows | RowSequence:
        """Rows of a split (`Record`). Raises ConfigError for a source, split or column that does not exist."""
        with self.asked_for(split):
            origin = self.origin()
            if origin.builder == "json":
                return self._listed(origin, split)
            data = self.opened(origin, split)
            in_lines = is_lines(origin)
            known = known_columns(origin, self.stored_split(split), data)
            most = int(dict(self).get("max_bytes", MOST))
            to_record = ToRecord(origin.folder, in_lines, class_names(data.features), known, most)
            if self.streaming:
                return self.streamed(data, to_record, origin, split, not in_lines)
            return IndexedRows(data, to_record, not in_lines)

    def origin(self) -> Origin:
        return find_table(self.source, self.rules())

    def check(self, columns: list[str]) -> None:
        """Raises ConfigError if the columns asked for are not there."""
        for field, name in self:
            if field.endswith("_column") and field != "split_column" and name and not is_there(name, columns):
                raise ConfigError(unknown(f"data.{field}:", name, columns))

    def loaded(self, origin: Origin, expression: str) -> Table:
        """Raises ConfigError for columns that are not there."""
        in_lines = is_lines(origin)
        if in_lines and (self.where or self.splits_by()):
            raise ConfigError("data.where: rows of JSON lines cannot be selected by a column; use Parquet")
        if origin.builder in ("text", "csv"):
            unit = "row" if origin.builder == "csv" else "line" if in_lines else self.text_unit()
            data = load_text(origin, expression, self.streaming, unit)
        else:
            data = super().loaded(origin, expression)
        if not in_lines:
            self.check(list(data.column_names or data.features or []))
        return data

    def text_unit(self) -> str:
        """What a row of text files is: "line", "paragraph" or "document"."""
        return "line"

    def _listed(self, origin: Origin, split: Role) -> list[Record]:
        """The rows of lists in JSON."""
        if self.where or self.splits_by():
            raise ConfigError("data.where: rows of a JSON list cannot be selected by a column; use Parquet")
        name, part = parse_split(self.expression(split))
        records = read_json(origin, name)
        self.check(sorted({name for record in records[:100] if isinstance(record, dict) for name in record}))
        to_record = ToRecord(origin.folder, known=filled(records[:PEEKED]))
        return [to_record(records[at], index) for index, at in enumerate(part.of(len(records)))]


def is_lines(origin: Origin) -> bool:
    """Whether the files hold lines of JSON, not text."""
    files = [file for found in (origin.files or {}).values() for file in found]
    return origin.builder == "text" and not all(file.lower().endswith(".txt") for file in files)


def is_there(column: str, columns: list[str]) -> bool:
    """Whether this column, or the one that it is a field of, is among the columns."""
    return column in columns or column.split(".")[0] in columns


def read_json(origin: Origin, split: str) -> list[object]:
    """The rows of JSON files that each hold a list of objects. Raises ConfigError for a file that does not."""
    found: list[object] = []
    for file in origin.of_split(split):
        try:
            rows = read_json_list(file)
        except DataError as err:
            raise ConfigError(f"data.source: {err}") from None
        if not any(isinstance(row, dict) for row in rows):
            raise ConfigError(f"data.source: {file} should be a list of objects, or JSON lines named .jsonl")
        found += rows
    return found


class ToRecord(NamedTuple):
    """Makes a Record of what `datasets` gives. json_lines: that is a line of JSON. class_names: of columns that hold
    class ids; the row gets the name. known: see `Record`."""

    folder: Path | None
    json_lines: bool = False
    class_names: dict[str, list[str]] = {}
    known: frozenset[str] | None = None
    max_bytes: int = MOST

    def __call__(self, record: object, index: int | str) -> Record:
        if isinstance(record, Unreadable):
            return Record({}, str(index), Folder(self.folder), str(record))
        row, error = as_row(record)
        if self.json_lines:
            row, error = parsed(row["text"])
        elif "__key__" in row and isinstance(row.get("json"), str):  # from an archive
            row["json"] = parsed(row["json"])[0]
        for column, names in self.class_names.items():
            label = row.get(column)
            row[column] = names[label] if isinstance(label, int) and 0 <= label < len(names) else None
        return Record(row, self.key(record, index), Folder(self.folder, self.max_bytes), error, self.known)

    def key(self, record: object, index: int | str) -> str:
        if isinstance(record, dict) and "__key__" in record and "__url__" in record:  # from a webdataset archive
            return f"{Path(str(record['__url__'])).name}/{record['__key__']}"
        return str(index)


def parsed(line: str) -> tuple[Values, str | None]:
    """The row of a line of JSON, and what is wrong with it."""
    try:
        return as_row(from_json(line))
    except ValueError as err:
        return {}, f"not JSON: {first_line(err)}"


def as_row(value: object) -> tuple[Values, str | None]:
    return (dict(value), None) if isinstance(value, dict) else ({}, "the row is not a JSON object")


def field(row: Values, name: str) -> object:
    """The value of a column, or of a field inside it: "json.caption". Raises Unreadable where there is none."""
    check_readable(row)
    if name in row:  # dots may be part of a column's own name
        return row[name]
    value: object = row
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


def words(value: object, name: str) -> str:
    """Text of a column. Raises Unreadable if it is not text, or only white space."""
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


def first_of(row: Values, names: tuple[str, ...], what: str, setting: str) -> str:
    """The first of some columns that the source has, or the row where that is not known. Raises Unreadable, naming the
    setting, if there is none."""
    check_readable(row)
    known = filled([row]) if not isinstance(row, Record) or row.known is None else row.known
    if found := next((name for name in names if name in known), None):
        return found
    raise Unreadable(f"none of its columns looks like {what} (data.{setting}): {', '.join(map(str, row))[:200]}")


def known_columns(origin: Origin, split: str, data: Table) -> frozenset[str] | None:
    """The columns with values, so that a row without a value does not change the choice; None for archives, whose
    samples have a column for each kind of file."""
    if origin.builder in ("csv", "text"):
        return filled(itertools.islice(text_rows(origin, split), PEEKED))
    names = [name for name in data.column_names or [] if not is_empty(data, name)]
    if "__key__" in names:
        return None
    fields = {name: (data.features or {}).get(name) for name in names}
    inner = [f"{name}.{key}" for name, feature in fields.items() if isinstance(feature, dict) for key in feature]
    return frozenset([*names, *inner])


def text_rows(origin: Origin, split: str) -> Iterator[object]:
    """The rows of text files as they stand there; lines that are not JSON are none."""
    for file in origin.of_split(split):
        if origin.builder == "csv":
            yield from (row for _, row in read_delimited(file))
        elif file.lower().endswith(".txt"):
            yield {"text": file}
        else:
            yield from (parsed(line)[0] for line in read_lines(file))


def filled(rows: Iterable[object]) -> frozenset[str]:
    """Columns, and fields inside them, that are not null or empty text in some row."""
    found: set[str] = set()
    for row in rows:
        for name, value in row.items() if isinstance(row, dict) else ():
            if value is not None and value != "":
                found.add(name)
            if isinstance(value, dict):
                found.update(f"{name}.{inner}" for inner in value)
    return frozenset(found)
