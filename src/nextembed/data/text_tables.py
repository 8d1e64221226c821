"""CSV, TSV, JSON lines and text files as tables of `datasets`, all columns text."""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from ..errors import ConfigError, DataError, MissingSplit, NextEmbedError
from .lines import read_delimited, read_header, read_units, stamp
from .loading import Stamped, Table, cannot_read, streamed_text, take, text_table
from .naming import parse_split
from .origins import Origin


def load_text(origin: Origin, expression: str, streaming: bool, unit: str) -> Table:
    """The rows of a split of text files.

    unit: "row" of CSV and TSV files; of others, whose only column is "text", "line", "paragraph" or "document".
    Raises ConfigError for what does not exist or is empty, DataError for a file that is damaged, which it names.
    """
    name, part = parse_split(expression)
    if streaming and not part.is_whole:
        raise ConfigError(f"data: split '{expression}' selects part of the rows, which needs streaming=false")
    files = origin.of_split(name)
    try:
        columns = common_columns(files) if unit == "row" else ["text"]
        stamped = [(file, stamp(file)) for file in files]
    except OSError as err:
        raise cannot_read(err.filename, err, origin.builder) from None
    rows = partial(rows_of, unit)
    if next(rows(stamped), None) is None:
        raise MissingSplit(f"data: split '{expression}' of {origin.folder} is empty: {_some(files)} has no rows")
    if streaming:
        return streamed_text(rows, columns, stamped)
    try:
        data = text_table(rows, columns, stamped)
    except Exception as err:  # `datasets` wraps what a reader raises
        cause = err.__cause__ or err
        raise (cause if isinstance(cause, NextEmbedError) else cannot_read(origin.folder, err, origin.builder)) from err
    return take(data, part)


def _some(files: list[str]) -> str:
    return Path(files[0]).name + (f" (and {len(files) - 1:,} more)" if len(files) > 1 else "")


def rows_of(unit: str, files: list[Stamped]) -> Iterator[Mapping[str, str | None]]:
    """The rows of files, one after the other. Raises DataError for one that cannot be read."""
    for file, _ in files:
        try:
            if unit == "row":
                yield from (row for _, row in read_delimited(file))
            else:
                yield from ({"text": one} for one in read_units(file, unit))
        except OSError as err:
            raise cannot_read(file, err, "text") from None


def common_columns(files: list[str]) -> list[str]:
    """The columns of CSV or TSV files. Raises DataError for a file whose first line differs from that of most."""
    headers = {file: read_header(file) for file in files}
    common, _ = Counter(frozenset(names) for names in headers.values()).most_common(1)[0]
    for file, names in headers.items():
        if set(names) != common:
            expected = ", ".join(sorted(common))[:200]
            raise cannot_read(file, ValueError(f"its first line does not name the columns {expected}"), "csv")
    found = headers[files[0]]
    if not found:
        raise DataError(f"data.source: '{files[0]}' is empty: its first line should name the columns")
    return found
