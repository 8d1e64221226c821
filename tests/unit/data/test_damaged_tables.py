"""Errors name a damaged or mismatched Parquet file with its row group and column."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from nextembed.data.pairs import TextData
from nextembed.errors import DataError, MissingSplit


def written(file: Path, table: pa.Table | None = None) -> Path:
    usual = {"text": [f"{i:05d}" * 20 for i in range(300)], "n": list(range(300))}
    parquet.write_table(pa.table(usual) if table is None else table, file, row_group_size=100, use_dictionary=False)
    return file


def other_columns(file: Path) -> None:
    written(file, pa.table({"text": ["a"], "m": [1]}))


def other_type(file: Path) -> None:
    written(file, pa.table({"text": ["a", "b"], "n": ["c", "d"]}))


def twice_a_column(file: Path) -> None:
    written(file, pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["text", "n", "n"]))


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-900])


def broken_page(file: Path) -> None:
    with parquet.ParquetFile(file) as opened:
        place = opened.metadata.row_group(1).column(0).data_page_offset
    data = bytearray(file.read_bytes())
    data[place + 60 : place + 300] = b"\xff" * 240
    file.write_bytes(data)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_columns, "its columns are text, m; those of a.parquet are text, n"),
        (other_type, "column 'n' is of type string, in a.parquet of type int64"),
        (twice_a_column, "it has two columns 'n'"),
        (cut_off, "footer"),
        (broken_page, "row group 1, column 'text': "),
        (emptied, "b.parquet' as parquet: "),
    ],
)
def test_file_row_group_and_column(tmp_path, damage, words, streaming):
    written(tmp_path / "a.parquet")
    damage(written(tmp_path / "b.parquet"))
    with pytest.raises(DataError) as error:
        list(TextData(source=str(tmp_path), streaming=streaming).documents("train"))
    said = str(error.value)
    assert words in said and str(tmp_path / "b.parquet") in said and "\n" not in said and len(said) < 500


@pytest.mark.parametrize("streaming", [False, True])
def test_files_without_rows(tmp_path, streaming):
    none = pa.table({"text": pa.array([], pa.string()), "n": pa.array([], pa.int64())})
    written(tmp_path / "part-0.parquet", none)
    with pytest.raises(MissingSplit, match="it has no rows"):
        list(TextData(source=str(tmp_path), streaming=streaming).documents("train"))
    written(tmp_path / "part-1.parquet")
    assert len(list(TextData(source=str(tmp_path), streaming=streaming).documents("train"))) == 300
