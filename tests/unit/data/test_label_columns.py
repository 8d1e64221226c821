"""Labels of every column type, with blanks, near-duplicates and missing values; and columns that are not labels."""

import datetime
import io
import json
import tarfile
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nextembed import ImageData
from nextembed.data.labels import classes_to_learn
from nextembed.data.transforms import Unreadable
from nextembed.errors import ConfigError, DataError

CAFE = "caf\u00e9"
NO = -100


def png(number: int) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, 0, 0)).save(made, "png")
    return made.getvalue()


def table(folder, labels, kind=None, **settings) -> ImageData:
    images = [{"bytes": png(i), "path": None} for i in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": pa.array(labels, kind)}), folder / "train.parquet")
    return ImageData(source=str(folder / "train.parquet"), **settings)


def archive(folder, labels, ending="cls") -> ImageData:
    with tarfile.open(folder / "train.tar", "w") as tar:
        for number, label in enumerate(labels):
            for name, data in ((f"{number}.png", png(number)), (f"{number}.{ending}", label.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return ImageData(source=str(folder / "train.tar"))


def pictures(folder, count=6):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder


def labels(data: ImageData) -> tuple[list[int], list[str]]:
    return data.rows("train").labels(), data.class_names()


@pytest.mark.parametrize(
    ("values", "kind", "ids", "names"),
    [
        (["1", "01", "1 ", " 1", "1\n"], None, [1, 0, 1, 1, 1], ["01", "1"]),
        ([CAFE, unicodedata.normalize("NFD", CAFE), "tea"], None, [0, 0, 1], [CAFE, "tea"]),
        (["a", "  ", "b", None, ""], None, [0, NO, 1, NO, NO], ["a", "b"]),
        (["nan", "None", "NA"], None, [2, 1, 0], ["NA", "None", "nan"]),  # these are ordinary texts
        ([b"cat", b"dog", None], None, [0, 1, NO], ["cat", "dog"]),
        ([1.0, 2.0, float("nan"), float("inf"), None], None, [0, 1, NO, NO, NO], ["1", "2"]),
        ([0.5, 1.0], None, [0, 1], ["0.5", "1"]),
        ([1e300, 2e300], None, [0, 1], ["1e+300", "2e+300"]),
        ([True, None, False], None, [1, NO, 0], ["False", "True"]),
        ([-1, 7, 300], None, [NO, 0, 1], ["7", "300"]),
        ([2**63 + 5, 2**63 + 6], pa.uint64(), [0, 1], ["9223372036854775813", "9223372036854775814"]),
        ([datetime.date(2024, 1, 2), datetime.date(2024, 1, 1)], None, [1, 0], ["2024-01-01", "2024-01-02"]),
    ],
)
def test_every_type_of_column(tmp_path, values, kind, ids, names):
    assert labels(table(tmp_path, values, kind)) == (ids, names)


def test_near_duplicate_labels_are_noted(tmp_path):
    assert "one class: ' cat', 'cat ', 'cat'" in " ".join(
        table(tmp_path, ["cat", " cat", "cat ", "dog"]).summary("train").lines()
    )
    seen = " ".join(table(tmp_path, ["cat", "cat\u200b", "dog"]).summary("train").lines())
    assert r"stay separate: cat, 'cat\u200b'" in seen
    assert "stay separate: Cat, cat" in " ".join(table(tmp_path, ["Cat", "cat", "dog"]).summary("train").lines())


@pytest.mark.parametrize("values", [["a", "b"], [[1], [2, 3]], [{"x": 1}, {"x": 2}]])
def test_lists_and_structs_are_not_classes(tmp_path, values):
    data = table(tmp_path, [[value] if isinstance(value, str) else value for value in values])
    assert "'label' contains lists or fields" in " ".join(data.summary("train").lines())
    with pytest.raises(ConfigError, match=r"needs labels.*'label' contains lists or fields"):
        classes_to_learn(data)
    if values == ["a", "b"]:
        assert labels(data.model_copy(update={"label_column": "label"})) == ([0, 1], ["a", "b"])


def test_bytes_that_are_not_text_are_rejected(tmp_path):
    with pytest.raises(ConfigError, match=r"'label' contains bytes that are not text"):
        table(tmp_path, [b"\xff\xfe", b"a"]).rows("train")


@pytest.mark.parametrize("values", [[f"photo {i}" for i in range(30)], [i * 0.37 for i in range(30)]])
def test_ids_and_measurements_are_not_classes(tmp_path, values):
    data = table(tmp_path, [*values, values[0]])
    assert "the labels have 30 distinct values in 31 rows" in " ".join(data.summary("train").lines())
    with pytest.raises(
        ConfigError, match=r"30 distinct values in 31 rows, which looks like an id or a measurement.*data.label_column"
    ):
        classes_to_learn(data)
    one_each = table(tmp_path, [f"class {i % 30}" for i in range(60)], labels_per_class=1)
    assert len(classes_to_learn(one_each)) == 30


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["007", "7", "07"], ["007", "07", "7"]),
        (["1", "cat", "2.5"], ["1", "2.5", "cat"]),
        (["10", "9", "10\n"], ["9", "10"]),
        (["5", "", "6"], ["5", "6"]),
        (["NA", "true", "True"], ["NA", "True", "true"]),
    ],
)
def test_label_files_and_archives(tmp_path, values, names):
    """Labels in metadata.csv, in a label file and in the .cls files of an archive are read as they are written."""
    expected = [None if not value else value.strip() for value in values]
    found, classes = labels(archive(tmp_path, values))
    assert [None if one == NO else classes[one] for one in found] == expected
    assert classes == names
    rows = "".join(f"{i}.png,{value.strip()}\n" for i, value in enumerate(values))
    folder = pictures(tmp_path / "pictures", len(values))
    (folder / "metadata.csv").write_text("file_name,label\n" + rows)
    for streaming in (False, True):
        rows_found = ImageData(source=str(folder), streaming=streaming).rows("train")
        read = rows_found.read(0, 0, 0, 1) if streaming else rows_found
        assert sorted(str(row.get("label_name")) for row in read) == sorted(map(str, expected))
    (folder / "metadata.csv").rename(folder / "labels.csv")
    found, classes = labels(ImageData(source=str(folder), label_file=str(folder / "labels.csv")))
    assert [None if one == NO else classes[one] for one in found] == expected


def test_a_stream_with_ids_followed_by_names(tmp_path):
    data = archive(tmp_path, ["1"] * 120 + ["cat"]).model_copy(update={"streaming": True})
    with pytest.raises(DataError, match=r"train.tar.*120.cls contains 'cat', but earlier samples have numbers"):
        list(data.rows("train").read(0, 0, 0, 1))


def test_unused_labels_in_json_of_archives_are_noted(tmp_path):
    data = archive(tmp_path, [json.dumps({"label": "cat"})] * 3, "json")
    assert "'label' in the .json files is not read" in " ".join(data.summary("train").lines())


def test_mixed_types_in_metadata_are_one_line(tmp_path):
    folder = pictures(tmp_path / "pictures", 3)
    rows = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate([1, "cat", 2.5])]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"metadata.jsonl.*label.* changed from number to string") as caught:
        ImageData(source=str(folder)).rows("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_files_missing_from_the_metadata_are_counted(tmp_path, ending):
    folder = pictures(tmp_path / "pictures", 6)
    text = (
        "file_name,label\n1.png,a\n2.png,b\n"
        if ending == "csv"
        else '{"file_name": "1.png", "label": "a"}\n{"file_name": "2.png", "label": "b"}\n'
    )
    (folder / f"metadata.{ending}").write_text(text)
    found = ImageData(source=str(folder)).summary("train")
    assert found.used == 2
    assert "4 files are left out, because the metadata do not name them (first: 0.png)" in found.notes


def test_metadata_cannot_refer_to_files_outside(tmp_path):
    folder = pictures(tmp_path / "pictures", 2)
    (tmp_path / "secret.png").write_bytes(png(9))
    (folder / "metadata.csv").write_text(f"file_name,label\n0.png,a\n../secret.png,b\n{tmp_path}/secret.png,b\n")
    images = [row["image"] for row in ImageData(source=str(folder)).rows("train")]
    assert [isinstance(image, Unreadable) for image in images] == [False, True, True]
    (folder / "metadata.csv").write_text("name,label\n0.png,a\n")
    with pytest.raises(ConfigError, match=r"metadata.csv has no column 'file_name'"):
        ImageData(source=str(folder)).rows("train")
