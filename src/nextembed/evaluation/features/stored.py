"""Files of features, as `embed` writes them: vectors and columns of each row."""

import difflib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.files import check_name, from_json, read_text
from ...core.saved import checked
from ...core.types import AttentionMode
from ...errors import ConfigError, DataError
from .extract import Pooling, Precision
from .parts import METADATA

LIST, BEGUN = "features.json", "features.partial"  # in a folder of feature files: their list; not complete yet
KEYS_COMPARED = 100_000  # for the nearest spelling of a key


class StoredRow(TypedDict, total=False):
    """A row of a file of features, without the vector; files of other programs may lack any of it."""

    row: int
    key: str
    path: str | None
    label: int | None
    label_name: str | None


@dataclass
class Origin:
    """The part of a file's metadata that is read again. All None if another program wrote it."""

    checkpoint: str | None = None
    weights: str | None = None
    weights_digest: str | None = None
    layer: int | None = None
    num_layers: int | None = None
    pooling: Pooling | None = None
    attention: AttentionMode | None = None
    precision: Precision = "float32"
    mean: float | None = None
    std: float | None = None
    background: tuple[int, int, int] | None = None
    data: dict[str, object] | None = None


class Groups:
    """The row groups of a Parquet file, or of several one after the other; for several threads. Raises as
    `pq.ParquetFile`."""

    def __init__(self, files: Sequence[Path]):
        self.files = [pq.ParquetFile(file) for file in files]
        self.places = [(one, group) for one in self.files for group in range(one.num_row_groups)]
        self.lengths = [one.metadata.row_group(group).num_rows for one, group in self.places]
        self.schema_arrow: pa.Schema = self.files[0].schema_arrow
        self._one_reads = threading.Lock()  # pyarrow's reader is not for several threads

    def read(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A row group; all columns if none is named."""
        file, group = self.places[number]
        with self._one_reads:
            return file.read_row_group(group, columns=list(columns) if columns else None)


def files_in(path: Path) -> list[Path]:
    """The file, or those that a folder of `embed --shard-rows` lists. Raises ConfigError."""
    if not path.is_dir():
        return [path]
    if not (path / LIST).is_file():
        hint = "it is not finished: run the same `nextembed embed` again" if (path / BEGUN).is_file() else ""
        raise ConfigError(f"{path} is not a folder of features{f' yet: {hint}' if hint else f': it has no {LIST}'}")
    try:
        found = [path / check_name(one["file"]) for one in from_json(read_text(path / LIST))["files"]]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path / LIST} is damaged: it names no files") from None
    except ConfigError as err:
        raise ConfigError(f"{path / LIST}: {err}") from None
    if lost := [file for file in found if not file.is_file()]:
        raise ConfigError(f"{lost[0]} is missing; {LIST} names it")
    return found


class StoredRows:
    """Rows of a Parquet file, or of a folder of them, by number and by key: all columns but the features. columns:
    their names, without "embedding". origin: from its metadata. Raises ConfigError for a file that is missing or not
    Parquet.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not (self.path.is_file() or self.path.is_dir()):
            raise ConfigError(f"no such features file: {path}")
        files = files_in(self.path)
        try:
            self.file = Groups(files)
        except (pa.ArrowException, OSError) as err:
            raise ConfigError(f"{path} is not a Parquet file: {str(err).splitlines()[0]}") from None
        self.columns = [name for name in self.file.schema_arrow.names if name != "embedding"]
        self.num_rows: int = sum(self.file.lengths)
        try:
            values = from_json((self.file.schema_arrow.metadata or {})[METADATA])
        except (KeyError, ValueError):
            values = {}
        self.origin = checked(Origin, values, self.path)

    def groups(self, columns: Sequence[str] = ()) -> Iterator[tuple[int, pa.Table]]:
        """(number of the first row, table) of each row group."""
        begin = 0
        for number in range(len(self.file.lengths)):
            table = self.file.read(number, columns)
            yield begin, table
            begin += table.num_rows

    def number_of(self, key: str) -> int:
        """The number of the row with a key. Raises ConfigError, with the nearest spelling, if none has."""
        if "key" not in self.columns:
            raise ConfigError(f"{self.path} has no column 'key' to look '{key}' up in")
        seen: list[str] = []
        for begin, table in self.groups(["key"]):
            keys = table.column("key").to_pylist()
            if key in keys:
                return begin + int(keys.index(key))
            seen += keys[: max(0, KEYS_COMPARED - len(seen))]
        near = difflib.get_close_matches(key, [k for k in seen if k is not None], n=1)
        hint = f". Did you mean '{near[0]}'?" if near else f"; keys look like '{seen[0]}'" if seen else ""
        raise ConfigError(f"'{key}' is neither an image file nor a key in {self.path}{hint}")

    def rows(self, numbers: Sequence[int]) -> list[StoredRow]:
        """Everything but the features of some rows, in the order asked for."""
        found: dict[int, StoredRow] = {}
        for begin, group, end in self._bounds():
            if inside := [n for n in numbers if begin <= n < end]:
                table = self.file.read(group, self.columns)
                taken = table.take([n - begin for n in inside]).to_pylist()
                found.update(zip(inside, taken))
        return [found[n] for n in numbers]

    def _bounds(self) -> Iterator[tuple[int, int, int]]:
        """(first row, number, row behind the last) of each row group."""
        begin = 0
        for group, length in enumerate(self.file.lengths):
            end = begin + length
            yield begin, group, end
            begin = end


class FeatureFile(StoredRows):
    """A file that `embed` wrote, or any Parquet file with a fixed-size list column "embedding": searched exactly.

    width: of the features. Raises ConfigError for any other file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(path)
        schema = self.file.schema_arrow
        if "embedding" not in schema.names:
            raise ConfigError(f"{path} has no column 'embedding'; its columns: {', '.join(schema.names)}")
        kind = schema.field("embedding").type
        if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
            raise ConfigError(f"{path}: column 'embedding' should be a fixed-size list of floats, it is {kind}")
        self.width: int = kind.list_size

    def unit_vectors(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[int, Tensor]]:
        """(number of the first row, [n, D] of length 1) of each row group. Raises DataError for features that are not
        finite."""
        for begin, table in self.groups(["embedding"]):
            values = _matrix(table)
            if (wrong := ~torch.isfinite(values).all(1)).any():
                raise DataError(
                    f"{self.path}: the features of row {begin + int(wrong.int().argmax())} are not finite numbers "
                    f"({int(wrong.sum())} of the {len(values)} rows from {begin} on); embed them again"
                )
            yield begin, F.normalize(values.to(dtype), dim=1)

    def vector(self, number: int) -> Tensor:
        """Features [D] of a row."""
        begin, group, _ = next(bounds for bounds in self._bounds() if number < bounds[2])
        return _matrix(self.file.read(group, ["embedding"]).slice(number - begin, 1))[0]

    def gather(self, numbers: Tensor) -> Tensor:
        """Unit vectors [n, D] of some rows, by ascending number."""
        found = [
            bank[numbers[(numbers >= begin) & (numbers < begin + len(bank))] - begin]
            for begin, bank in self.unit_vectors()
        ]
        return torch.cat(found)

    def nearest(self, vector: Tensor, top: int, leave_out: int | None = None) -> tuple[Tensor, Tensor]:
        """Cosines, float64, and numbers of the `top` rows nearest to a vector [D]; of equally near ones the first.

        It reads a row group at a time, so that the file need not fit in memory."""
        unit = F.normalize(vector.double(), dim=0)
        best_cosine, best_row = torch.empty(0, dtype=torch.double), torch.empty(0, dtype=torch.long)
        for begin, bank in self.unit_vectors(torch.double):
            # The rounding of a matrix product depends on the row's position, but equal rows should be equally near.
            cosine = (bank @ unit).round(decimals=12)  # [n]
            if leave_out is not None and begin <= leave_out < begin + len(bank):
                cosine[leave_out - begin] = -2.0
            place = cosine.argsort(descending=True, stable=True)[:top]
            best_cosine = torch.cat((best_cosine, cosine[place]))
            best_row = torch.cat((best_row, place + begin))
            # Sorted by row first, then stably, so that equal ones stay in the order of the file.
            by_row = best_row.argsort()
            best_cosine, best_row = best_cosine[by_row], best_row[by_row]
            keep = best_cosine.argsort(descending=True, stable=True)[:top]
            best_cosine, best_row = best_cosine[keep], best_row[keep]
        kept = best_cosine >= -1.5
        return best_cosine[kept], best_row[kept]


def _matrix(table: pa.Table) -> Tensor:
    """The features of a table, float32 [n, D]."""
    column = table.column("embedding").combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return torch.from_numpy(values).view(len(column), -1)
