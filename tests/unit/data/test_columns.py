"""Columns are chosen once per source, by name before type; rows without a value in them are skipped and reported."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nextembed.core.config import DATA
from nextembed.data import kinds  # noqa: F401
from nextembed.data.sources import ImageData


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def pairs(source, **settings):
    part = DATA.parse({"kind": "pairs", "source": str(source), "max_skipped_rate": 1.0, **settings})
    found = part.documents("train")
    return [s["value"] for d in found for s in d["segments"] if s["kind"] == "text"], found.skipped.reasons


ROWS = [
    {"image": "0.png", "text": "zero", "title": "other words"},
    {"image": "1.png", "text": None, "title": "other words"},
    {"image": "2.png", "title": "other words"},
    {"image": "3.png", "text": "three", "title": "other words"},
]
WANTED = (["zero", "three"], {"1": "it has no 'text'", "2": "it has no 'text'"})


@pytest.mark.parametrize("streaming", [False, True])
def test_json_lines(folder, streaming):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert pairs(folder / "train.jsonl", streaming=streaming)[0] == WANTED[0]
    assert list(pairs(folder / "train.jsonl", streaming=streaming)[1].values()) == list(WANTED[1].values())


def test_json_list(folder):
    (folder / "train.json").write_text(json.dumps(ROWS))
    assert pairs(folder / "train.json") == WANTED


def test_parquet(folder):
    rows = [{"image": None, "text": None, "title": None} | row for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    assert pairs(folder / "train.parquet") == WANTED


def test_csv(folder):
    lines = [f"{row['image']},{row.get('text') or ''},other words\n" for row in ROWS]
    (folder / "train.csv").write_text("image,text,title\n" + "".join(lines))
    assert pairs(folder / "train.csv") == (WANTED[0], {"1": "'text' is empty", "2": "'text' is empty"})


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_a_column_without_any_value_is_ignored(folder, suffix):
    rows = [{"image": f"{n}.png", "text": None, "caption": f"picture {n}"} for n in range(4)]
    file = folder / f"train.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    assert pairs(file) == ([f"picture {n}" for n in range(4)], {})


def test_a_row_without_an_image(folder):
    rows = [ROWS[0], {"image": None, "text": "x", "file": "1.png"}, ROWS[3]]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pairs(folder / "train.jsonl") == (["zero", "three"], {"1": "no file"})


@pytest.mark.parametrize("name", ["image", "img", "picture", "jpg"])
@pytest.mark.parametrize("before", ["id", "thumbnail"])
def test_images_by_name_before_type(folder, name, before):
    stored = [{"bytes": (folder / f"{n}.png").read_bytes(), "path": None} for n in range(4)]
    first = {"id": [b"x"] * 4, "thumbnail": stored}[before]
    pq.write_table(pa.table({before: first, name: stored}), folder / "a.parquet")
    assert ImageData(source=str(folder / "a.parquet")).rows("train").to_row.columns.image == name


def test_images_by_type_if_no_name_matches(folder):
    stored = [{"bytes": (folder / f"{n}.png").read_bytes(), "path": None} for n in range(4)]
    pq.write_table(pa.table({"id": [b"x"] * 4, "scan": stored}), folder / "a.parquet")
    assert ImageData(source=str(folder / "a.parquet")).rows("train").to_row.columns.image == "scan"


def test_a_replaced_parquet_file_is_read_again(folder):
    file = folder / "a.parquet"
    for text in ("one", "two"):
        pq.write_table(pa.table({"text": [text], "image": ["0.png"]}), file)
        os.utime(file, (1_700_000_000, 1_700_000_000))
        assert pairs(file)[0] == [text]


def test_unused_image_columns_are_noted(folder):
    images = [{"bytes": (folder / f"{i}.png").read_bytes(), "path": None} for i in range(4)]
    pq.write_table(pa.table({"thumbnail": images, "photo": images, "checksum": [b"0"] * 4}), folder / "train.parquet")
    data = ImageData(source=str(folder / "train.parquet"))
    assert data.summary("train").notes == (
        "images are read from column 'thumbnail', not from photo (data.image_column=photo)",
    )
    assert ImageData(source=data.source, image_column="photo").summary("train").notes == ()
