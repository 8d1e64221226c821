"""Rows as they come from a source: a user's columns, information of the library about them, and their faults."""

import base64
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from ..errors import DataError, NextEmbedError
from .archives import MOST, is_member, place_of, read_member
from .rows import Rows
from .transforms import Unreadable

URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.I)
RAW = "bytes:"  # before the path of a file whose name is no UTF-8
PACKAGE = str(Path(__file__).parents[1])
LIBRARIES = (sysconfig.get_path("stdlib"), "<frozen ")
MISTAKES = (AttributeError, NameError, TypeError, ImportError, AssertionError, NotImplementedError)


class Folder(NamedTuple):
    """The folder of files that rows name. Absolute paths and paths out of it are refused. max_bytes: of members of
    archives."""

    path: Path | None
    max_bytes: int = MOST

    def read(self, value: object) -> object:
        """A column's value (bytes, {"bytes", "path"}, the name of a file) as bytes or a path. In JSON, bytes are in
        base64. Raises Unreadable."""
        if isinstance(value, dict):
            if isinstance(value.get("bytes"), str):
                return from_base64(value["bytes"])
            if value.get("bytes") is not None:
                return value["bytes"]
            value = value.get("path")
        if value is None:
            raise Unreadable("no file")
        if not isinstance(value, str):
            return value
        if is_member(value):
            try:
                self.inside(place_of(value)[0])
            except ValueError:
                raise Unreadable(f"'{value[:80]}' is not a member of an archive") from None
            return read_member(value, self.max_bytes)
        if URL.match(value):
            if self.path is not None:
                raise Unreadable(f"'{value[:80]}' is a URL; files of rows are not downloaded")
            with fsspec.open(value, "rb") as file:  # of a hub data set that is streamed
                return file.read()
        if self.path is None:
            return Path(value)
        return self.inside(plain_path(value))

    def inside(self, name: str) -> Path:
        """The path of a file in the folder. Raises Unreadable for one that is not."""
        if self.path is None:
            raise Unreadable("there is no data folder")
        full = self.path / name
        if not Path(os.path.normpath(full.absolute())).is_relative_to(self.path):
            raise Unreadable(f"'{name[:80]}' lies outside the data folder")
        return full


def stored_path(path: str) -> str:
    """A path as a table can hold it: of one that is no UTF-8, the bytes."""
    return path if path.isprintable() or not _has_surrogates(path) else RAW + os.fsencode(path).hex()


def plain_path(stored: str) -> str:
    """The path that `stored_path` made it of. Raises Unreadable."""
    try:
        if is_member(stored):
            return "/".join(place_of(stored))
        if not stored.startswith(RAW):
            return stored
        return os.fsdecode(bytes.fromhex(stored.removeprefix(RAW)))
    except ValueError:
        raise Unreadable(f"'{stored[:80]}' is not a path") from None


def _has_surrogates(path: str) -> bool:
    return any("\ud800" <= mark <= "\udfff" for mark in path)


def from_base64(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise Unreadable("its bytes are not base64") from None


class Record(dict[str, Any]):
    """The columns of a row, under whatever names they have.

    key: a permanent name of the row. folder: of the files that it names. error: why it cannot be read; it then has no
    columns. known: columns with values in the source, from which those to use are chosen for all rows; None if each row
    decides.
    """

    def __init__(
        self,
        columns: dict[str, Any],
        key: str,
        folder: Folder | None = None,
        error: str | None = None,
        known: frozenset[str] | None = None,
    ) -> None:
        super().__init__(columns)
        self.key, self.folder, self.error, self.known = key, folder or Folder(None), error, known

    def but(self, **facts: Any) -> "Record":
        """The same columns, with other facts."""
        return type(self)(
            self, **{"key": self.key, "folder": self.folder, "error": self.error, "known": self.known, **facts}
        )


AnyRow = Record | Mapping[str, Any]  # of a table, or a user's own


def key_of(row: AnyRow, index: int) -> str:
    """The key of a row: "key" of a user's own row, if present, else the row number."""
    return row.key if isinstance(row, Record) else str(row.get("key", index))


def keyed(row: AnyRow, index: int) -> AnyRow:
    """The row with a key of its own."""
    return row if isinstance(row, Record) or "key" in row else {**row, "key": str(index)}


def check_readable(row: object) -> None:
    """Raises Unreadable for a row that could not be read."""
    if isinstance(row, Record) and row.error is not None:
        raise Unreadable(row.error)


def row_at(rows: Rows, index: int) -> Any:
    """A row with its key; if reading it fails, a row with the reason."""
    try:
        with reading(str(index)):
            return keyed(rows[index], index)
    except Unreadable as err:
        return Record({}, str(index), error=str(err))


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Errors that the content of a row causes while it is read, decoded or encoded become Unreadable, with the reason.
    An error in a user's own code is not the row's fault: DataError with file and line.
    """
    try:
        yield
    except (Unreadable, NextEmbedError):
        raise
    except Exception as err:
        at = own_line(err)
        if at and isinstance(err, MISTAKES):
            hint = "raise nextembed.Unreadable for a row that cannot be read"
            raise DataError(f"{at}: {reason_of(err)} (in row {key}; {hint})") from err
        raise Unreadable(reason_of(err) + (f" ({at})" if at else "")) from err


def own_line(err: BaseException) -> str | None:
    """ "FILE, line N" where an error comes from a user's own code, possibly through a library that it called; None if
    it comes from nextembed, possibly because of a row."""
    for frame, line in reversed(list(traceback.walk_tb(err.__traceback__))):
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            return None
        if not file.startswith(LIBRARIES) and not {"site-packages", "dist-packages"} & set(Path(file).parts):
            return f"{file}, line {line}"
    return None


def reason_of(err: BaseException) -> str:
    """One line of at most 200 characters."""
    text = (str(err).strip().splitlines() or [""])[0][:200]
    return (
        text
        if text and isinstance(err, Unreadable | ValueError | OSError)
        else f"{type(err).__name__}: {text}".rstrip(": ")
    )
