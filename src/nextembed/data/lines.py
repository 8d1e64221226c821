"""The reader of CSV, TSV, JSON lines and text. Values are the characters of the file, without conversion."""

import codecs
import csv
import itertools
import re
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO

from ..core.files import first_line, from_json
from ..core.text import MARK_BYTES, check_text
from ..errors import ConfigError, DataError

MARKS = (  # at the beginning of a file; the longer ones first
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
TABS = (".tsv", ".tab")
DELIMITED = (".csv", *TABS)
SMALL = 2**20  # files up to this size are compared by all of their content
BLOCK = 2**16

csv.field_size_limit(2**31 - 1)  # Python's own limit of 131,072 is less than a long document


def encoding_of(file: str | Path) -> str:
    """The encoding of a file by its first bytes; UTF-8 if they do not show it."""
    with open(file, "rb") as opened:
        head = opened.read(4096)
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    if head and not len(head) % 2 and b"\0" in head:  # UTF-16 without a mark: every second byte of Latin text is 0
        for name, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
            if zeros.count(0) > 0.4 * len(zeros):
                return name
    return "utf-8"


def opened(file: str | Path, newline: str) -> IO[str]:
    """A file as text. Invalid bytes are marked, so that `check_text` can report them."""
    return open(file, encoding=encoding_of(file), errors=MARK_BYTES, newline=newline)


def read_lines(file: str | Path) -> Iterator[str]:
    """The lines of a file, split at line feeds alone (U+2028, U+0085 and others stand in texts), without their ends."""
    with opened(file, "\n") as found:
        for line in found:
            yield line.removesuffix("\n").removesuffix("\r")


def read_units(file: str | Path, unit: str) -> Iterator[str]:
    """Rows of a text file: its lines, its paragraphs (separated by blank lines), or all of it; blank ones are skipped.
    unit: "line", "paragraph" or "document"."""
    if unit == "document":
        with opened(file, "") as found:
            units = iter([found.read()])
    elif unit == "paragraph":
        groups = itertools.groupby(read_lines(file), lambda line: bool(line.strip()))
        units = ("\n".join(lines) for has_text, lines in groups if has_text)
    else:
        units = read_lines(file)
    yield from (one for one in units if one.strip())


def read_json_lines(file: str | Path) -> Iterator[tuple[int, object]]:
    """(number of the line, value) of each line that is not blank. Raises DataError, with the line, for anything that is
    not JSON or not text."""
    for number, line in enumerate(read_lines(file), 1):
        if line.strip():
            try:
                yield number, from_json(check_text(line))
            except ValueError as err:
                raise DataError(f"{file}, line {number}: not JSON: {first_line(err)}") from None


def holds_list(file: str | Path) -> bool:
    """Whether JSON begins with a list, not with a line of JSON lines."""
    first = next((line for line in read_lines(file) if line.strip()), "")
    return first.lstrip().startswith("[")


def read_json_list(file: str | Path) -> list[object]:
    """The values of a JSON list. Raises DataError for anything else."""
    with opened(file, "") as found:
        try:
            values = from_json(found.read())
        except ValueError as err:
            raise DataError(f"{file} is not JSON: {first_line(err)}") from None
    if not isinstance(values, list):
        raise DataError(f"{file} should be a list of objects, or JSON lines named .jsonl")
    return values


def read_fields(file: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of each row of a CSV or TSV file, the header too; blank lines are skipped.
    Fields are separated by tabs in .tsv and .tab; otherwise by the comma, semicolon, tab or bar that is most frequent
    in the first line outside of quotes. Raises DataError, with the line, for quotes that do not end or are in the
    middle of a field.
    """
    with opened(file, "") as found:
        first = found.readline()
        delimiter = "\t" if Path(file).suffix.lower() in TABS else delimiter_of(file, first)
        rows, begin = csv.reader(itertools.chain([first], found), delimiter=delimiter, strict=True), 1
        while True:
            try:
                row = next(rows, None)
            except csv.Error as err:
                raise DataError(f"{file}, line {begin}: {err} (unbalanced quotes)") from None
            if row is None:
                return
            if row:
                yield begin, row
            begin = rows.line_num + 1


def delimiter_of(file: str | Path, first: str) -> str:
    """The separator of a first line. Raises ConfigError if it is ambiguous."""
    bare = re.sub(r'"[^"]*"', "", first)
    counts = {mark: bare.count(mark) for mark in ",;\t|"}
    most = [mark for mark in counts if counts[mark] == max(counts.values())]
    if len(most) > 1 and counts[","]:
        raise ConfigError(
            f"{file}: cannot tell whether '{most[0]}' or {most[1]!r} separates the columns of the first line; "
            "quote the names that contain one of them"
        )
    return most[0]


def read_header(file: str | Path) -> list[str]:
    """The columns that the first line of a CSV or TSV file names. Raises ConfigError if it names one twice."""
    names = next((fields for _, fields in read_fields(file)), [])
    names = [name.strip() or f"column {number}" for number, name in enumerate(names, 1)]
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ConfigError(f"{file}: its first line names the column '{twice[0]}' twice")
    return names


def read_delimited(file: str | Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """(number of the line, row) of a CSV or TSV file with a header: text without conversion; None where a row ends
    early.

    Raises DataError, with the line, for a row of more fields than the header has names: a comma without quotes would
    shift its values.
    """
    names = read_header(file)
    for number, fields in itertools.islice(read_fields(file), 1, None):
        check_fields(file, number, fields, names)
        yield number, dict(itertools.zip_longest(names, fields))


def check_fields(file: str | Path, number: int, fields: list[str], names: list[str]) -> None:
    """Raises DataError for a row of more fields than there are columns."""
    if len(fields) > len(names):
        raise DataError(
            f"{file}, line {number}: {len(fields)} fields, but the first line names {len(names)} columns; "
            'quote texts that contain a comma: "a, b"'
        )


def check_written(file: str | Path, number: int, fields: list[str]) -> None:
    """Raises DataError for a row that is not in the file's encoding."""
    try:
        check_text("".join(fields))
    except ValueError as err:
        raise DataError(f"{file}, line {number}: {err}; save the file as UTF-8") from None


def stamp(file: str | Path) -> str:
    """A fingerprint to notice that a file has changed: size, time, and content (parts of large files)."""
    path = Path(file)
    facts = path.stat()
    digest = blake2b(f"{facts.st_size}/{facts.st_mtime_ns}".encode(), digest_size=16)
    with path.open("rb") as content:
        if facts.st_size <= SMALL:
            digest.update(content.read())
        else:
            for place in (0, facts.st_size // 2, facts.st_size - BLOCK):
                content.seek(place)
                digest.update(content.read(BLOCK))
    return digest.hexdigest()
