"""Metadata files of images and videos: their columns, and the files that they name."""

import os
from pathlib import Path

from ..core.files import first_line, from_json
from ..errors import ConfigError
from .lines import read_delimited, read_header
from .listing import METADATA
from .origins import Origin
from .record import stored_path


def csv_in(origin: Origin, name: str) -> list[str]:
    """The metadata files of a split, if all are CSV."""
    found = [file for file in origin.of_split(name) if Path(file).name in METADATA]
    return found if all(file.endswith(".csv") for file in found) else []


def metadata_columns(tables: list[str], kind: str) -> tuple[dict[str, list[object]], dict[str, str]]:
    """The columns of `metadata.csv` files, without conversion, and which of them are media.

    kind: "image" or "video", what `file_name` names; `NAME_file_name` is a column NAME of the same. Raises ConfigError
    for one that names no files, DataError for one that cannot be read.
    """
    rows: list[dict[str, object]] = []
    media: dict[str, str] = {}
    for table in tables:
        named = {own: own.removesuffix("file_name").rstrip("_") or kind for own in read_header(table) if is_name(own)}
        if not named:
            raise ConfigError(f"data.source: {table} has no column 'file_name'")
        media |= dict.fromkeys(named.values(), kind)
        for _, row in read_delimited(table):
            rows.append(
                {
                    named.get(own, own): media_at(table, value) if value and own in named else value or None
                    for own, value in row.items()
                }
            )
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return {column: [row.get(column) for row in rows] for column in columns}, media


def is_name(column: str) -> bool:
    return column == "file_name" or column.endswith("_file_name")


def media_at(table: str, path: str) -> dict[str, object]:
    """A file that is named in metadata, relative to these."""
    return {"bytes": None, "path": stored_path(os.path.join(os.path.dirname(table), path))}


def metadata_fault(folder: Path, err: Exception) -> tuple[Path, Exception]:
    """Which metadata file of an image folder is broken, and where."""
    files = sorted(file for file in folder.rglob("metadata.*") if file.name in METADATA)
    for file in files:
        lines = file.read_bytes().splitlines() if file.suffix == ".jsonl" else []
        for number, line in enumerate(lines, 1):
            try:
                if line.strip() and not isinstance(from_json(line), dict):
                    raise ValueError("it is not an object")
            except ValueError as own:
                return file, ValueError(f"line {number} is not JSON: {first_line(own)}")
    return (files[0] if len(files) == 1 else folder), err
