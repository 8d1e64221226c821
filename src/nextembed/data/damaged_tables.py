"""Finds where a Parquet file is damaged, or which one has other columns than the rest."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from ..core.files import first_line
from ..errors import DamagedFile
from .remote import fetched


def find_fault(files: Sequence[str], suspect: str | None = None) -> tuple[str, ValueError] | None:
    """The damaged file, the reason, row group and column; None if all can be read.

    files: of one split, of which the first says what columns there are. suspect: the only one that is looked at.
    """
    for file in files if suspect is None else [suspect]:
        try:
            with parquet.ParquetFile(file) as opened:
                fault = _schema_fault(files[0], opened.schema_arrow) or _group_fault(opened)
        except (OSError, pa.ArrowException) as err:
            fault = first_line(err)
        if fault:
            return file, ValueError(fault)
    return None


def with_rows(files: Sequence[str]) -> list[str]:
    """Parquet files without those that hold no row, as Spark writes for empty partitions; damaged ones stay."""
    return [file for file in files if _num_rows(file) != 0]


def _num_rows(file: str) -> int | None:
    try:
        return int(parquet.read_metadata(file).num_rows)
    except (OSError, pa.ArrowException):
        return None


def _schema_fault(first: str, own: pa.Schema) -> str:
    try:
        wanted = parquet.read_schema(first)
    except (OSError, pa.ArrowException):
        return ""
    name = Path(first).name
    if twice := next((one for one in own.names if own.names.count(one) > 1), None):
        return f"it has two columns '{twice}'"
    if set(own.names) != set(wanted.names):
        return f"its columns are {', '.join(own.names)[:200]}; those of {name} are {', '.join(wanted.names)[:200]}"
    other = next((one for one in own.names if own.field(one).type != wanted.field(one).type), None)
    return (
        (f"column '{other}' is of type {own.field(other).type}, in {name} of type {wanted.field(other).type}")
        if other
        else ""
    )


def _group_fault(file: parquet.ParquetFile) -> str:
    """The first column of a row group (from 0) that cannot be read."""
    for group in range(file.num_row_groups):
        for column in file.schema_arrow.names:
            try:
                file.read_row_group(group, columns=[column])
            except (OSError, pa.ArrowException) as err:
                return f"row group {group}, column '{column}': {first_line(err)}"
    return ""


def cannot_read(file: object, err: Exception, builder: str) -> DamagedFile:
    """Why a file cannot be read completely."""
    return DamagedFile(f"data.source: cannot read '{file}' as {builder}: {reason_in(err)} (repair or remove the file)")


def reason_in(err: Exception) -> str:
    """A reader's message about a file, in one line."""
    return first_line(err.__cause__ or err).removeprefix("Could not open Parquet input source '<Buffer>': ")[:300]


def remote_rows(files: list[str]) -> Iterator[Mapping[str, object]]:
    """The rows of remote Parquet files. Raises DamagedFile for one that cannot be read."""
    for file in files:
        with fetched(file) as local:
            try:
                with parquet.ParquetFile(local) as table:
                    for batch in table.iter_batches(batch_size=64):
                        yield from batch.to_pylist()
            except (OSError, pa.ArrowException) as err:
                raise cannot_read(file, err, "parquet") from err
