"""Images and pairs in tar and zip archives: all kinds of files, read in place."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from nextembed.core.config import DATA
from nextembed.data.archives import Member, read_member, refer, samples, tar_members
from nextembed.data.origins import find_origin
from nextembed.data.record import Folder
from nextembed.data.sources import ImageData
from nextembed.data.tar_tables import notes_of_archives
from nextembed.data.transforms import Unreadable
from nextembed.errors import ConfigError, DataError


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def pictures(make_picture, encode):
    return {format: encode(make_picture(8, 8, seed=1), format) for format in ("JPEG", "PNG")}


def texts(path: Path, **settings) -> list[str]:
    values = {"kind": "pairs", "source": str(path), "max_skipped_rate": 1.0, **settings}
    documents = DATA.parse(values).documents("train")
    return sorted(part["value"] for one in documents for part in one["segments"] if part["kind"] == "text")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ("1.jpg 1.txt 2.png 2.txt", ["1", "2"]),
        ("1.jpg 1.txt 2.jpg 3.jpg 3.txt", ["1", "3"]),
        ("1.JPG 1.TXT 2.PNG 2.txt", ["1", "2"]),
        ("1.jpg 2.jpg 1.txt 2.txt", ["1", "2"]),
        ("a.b.jpg a.b.txt c.d.jpg c.d.txt e.jpg e.txt", ["a.b", "c.d", "e"]),
        ("x/1.jpeg x/1.caption y/1.webp y/1.caption", ["x/1", "y/1"]),
        ("._1.jpg 1.jpg 1.txt .hidden.txt", ["1"]),
    ],
)
def test_mixed_kinds_in_archives(tmp_path, pictures, names, wanted, streaming):
    files = {}
    for name in names.split():
        text = name.lower().endswith(("txt", "caption"))
        data = pictures["PNG" if name.lower().endswith("png") else "JPEG"]
        files[name] = name.rpartition(".")[0].encode() if text else data
    assert texts(tar(tmp_path / "a.tar", files), streaming=streaming, num_workers=0) == wanted


def test_kinds_may_contain_dots():
    class_maps = samples([*(member(f"{i}.seg.png") for i in range(4)), *(member(f"{i}.img.jpg") for i in range(4))])
    assert set(class_maps) == set("0123") and set(class_maps["0"]) == {"seg.png", "img.jpg"}
    with pytest.raises(ValueError, match=r"two members are 'a.jpg'"):
        samples([member("a.jpg"), member("a.JPG")])


def member(name: str) -> Member:
    return Member(name, f"ref {name}")


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [("1 0 1", ["0", "1"], [1, 0, 1]), ("dog cat dog", ["cat", "dog"], [1, 0, 1]), ("7 x 7", ["7", "x"], [0, 1, 0])],
)
def test_class_files_hold_ids_or_names(tmp_path, pictures, values, names, labels):
    files = {}
    for number, value in enumerate(values.split()):
        files |= {f"{number}.png": pictures["PNG"], f"{number}.cls": f"{value}\n".encode()}
    data = ImageData(source=str(tar(tmp_path / "train.tar", files)))
    assert [row["label"] for _, row in data.rows("train").in_order()] == labels
    assert data.class_names() == names


@pytest.mark.parametrize("streaming", [False, True])
def test_an_archive_without_samples_is_empty(tmp_path, streaming):
    with pytest.raises(ConfigError, match="its archives have no files"):
        ImageData(source=str(tar(tmp_path / "train.tar", {})), streaming=streaming).rows("train")


def test_unused_images_of_a_sample_are_noted(tmp_path, pictures):
    files = {f"{i}.{side}.png": pictures["PNG"] for i in range(3) for side in ("left", "right")}
    data = ImageData(source=str(tar(tmp_path / "train.tar", files)))
    assert data.summary("train").notes == (
        "images are read from column 'left.png', not from right.png (data.image_column=right.png)",
    )
    assert ImageData(source=data.source, image_column="right.png").summary("train").notes == ()
    mixed = {"1.png": pictures["PNG"], "2.jpg": pictures["JPEG"]}
    assert ImageData(source=str(tar(tmp_path / "mixed.tar", mixed))).summary("train").notes == ()


@pytest.mark.parametrize("streaming", [False, True])
def test_class_folders_in_a_tar(tmp_path, pictures, streaming):
    names = ["cat/1.jpg", "cat/day/2.jpg", "dog/1.png"]
    tar(tmp_path / "a.tar", {name: pictures["PNG" if "png" in name else "JPEG"] for name in names})
    data = ImageData(source=str(tmp_path / "a.tar"), streaming=streaming)
    rows = [row for _, row in data.rows("train").in_order()]
    assert data.class_names() == ["cat", "dog"] and [row["label"] for row in rows] == [0, 0, 1]
    assert all(data.reader(3).read(row["image"]).shape == (3, 8, 8) for row in rows)


@pytest.mark.parametrize("names", ["cat/1.png cat/2.png dog/1.png", "train/cat/1.png train/cat/2.png train/dog/1.png"])
def test_a_zip_is_read_like_a_folder(tmp_path, pictures, names):
    files = {name: pictures["PNG"] for name in names.split()}
    path = packed(tmp_path / "d.zip", files | {"__MACOSX/cat/._1.png": b"x", "read.me": b"x", "cat/x.cr2": b"x"}
                  if "train" not in names else files)  # fmt: skip
    data = ImageData(source=str(path))
    rows = list(data.rows("train"))
    assert [row["key"] for row in rows] == [f"d.zip/{name}" for name in names.split()]
    assert data.class_names() == ["cat", "dog"] and [row["label"] for row in rows] == [0, 0, 1]
    assert all(data.reader(3).read(row["image"]).shape == (3, 8, 8) for row in rows)
    origin = find_origin(str(path))
    if "train" not in names:
        assert origin.beside == {".me": 1} and [file.name for file in origin.left_out] == ["cat/x.cr2"]
        assert list(data.summary("train").skipped) == ["cat/x.cr2"]


def test_zips_by_split(tmp_path, pictures):
    for split, count in (("train2017", 3), ("val2017", 2)):
        packed(tmp_path / f"{split}.zip", {f"{split}/{i}.png": pictures["PNG"] for i in range(count)})
    data = ImageData(source=str(tmp_path))
    assert [len(data.rows(split)) for split in ("train", "validation")] == [3, 2] and data.class_names() == []


def test_damaged_archives_are_one_line(tmp_path, pictures):
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    with pytest.raises(ConfigError, match=r"cannot read '.*a.zip' as zip"):
        ImageData(source=str(tmp_path / "a.zip")).rows("train")
    path = tar(tmp_path / "a.tar", {f"{i}.jpg": pictures["JPEG"] for i in range(9)})
    path.write_bytes(path.read_bytes()[: 5 * 1024])
    with pytest.raises(DataError, match=r"cannot read '.*a.tar' as webdataset: the file is truncated within member"):
        ImageData(source=str(path)).rows("train")


def test_rows_cannot_name_members_outside(tmp_path, pictures, make_parquet):
    secret = packed(tmp_path / "secret.zip", {"a.png": pictures["PNG"]})
    inside = tmp_path / "d"
    inside.mkdir()
    ref = refer(str(secret), "a.png")
    assert read_member(ref) == pictures["PNG"]
    for value in (ref, "tar-member:0:5:3:/etc/passwd", f"tar-member:0:9:{len(str(secret))}:{secret}/x", "zip-member:x"):
        with pytest.raises(Unreadable):
            Folder(inside).read(value)
    with pytest.raises(Unreadable):
        Folder(None).read(ref)


def test_members_are_read_in_place(tmp_path, pictures):
    path = tar(tmp_path / "a:b.tar", {"x:1.jpg": pictures["JPEG"], "y.png": pictures["PNG"]})
    assert [read_member(one.ref) for one in tar_members(str(path))] == [pictures["JPEG"], pictures["PNG"]]


def test_another_split_in_a_tar_is_never_used_for_training(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    names = {
        f"{split}/{kind}/{i}.png": pictures["PNG"] for split in ("train", "test") for kind in "ab" for i in range(2)
    }
    path = tar(tmp_path / "photos.tar", names)
    with pytest.raises(ConfigError, match=r"photos.tar has the folder 'test', which names a split; pack each split"):
        ImageData(source=str(path)).rows("train")
    assert len(ImageData(source=str(path), folders="classes").rows("train")) == 8
    one = tar(tmp_path / "train.tar", {name: data for name, data in names.items() if name.startswith("train/")})
    assert len(ImageData(source=str(one)).rows("train")) == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_members_without_an_extension_are_read_by_content_or_noted(tmp_path, pictures, streaming):
    files = {"cat/1": pictures["JPEG"], "cat/2.png": pictures["PNG"], "dog/3": pictures["PNG"], "README": b"hello",
             ".hidden": b"x", "__MACOSX/x": b"x"}  # fmt: skip
    data = ImageData(source=str(tar(tmp_path / "a.tar", files)), streaming=streaming)
    found = data.summary("train")
    assert found.used == (None if streaming else 3) and data.class_names() == ["cat", "dog"]
    left = [note for note in found.notes if "left out" in note]
    assert left == (
        [] if streaming else ["1 file is left out, because no extension says what they contain (first: README)"]
    )


def test_folders_that_are_not_classes_are_noted(tmp_path, pictures):
    files = {"cat/1.jpg": pictures["JPEG"], "cat/1.npy": b"x", "dog/2.jpg": pictures["JPEG"], "dog/2.xyz": b"y"}
    origin = find_origin(str(tar(tmp_path / "a.tar", files)))
    (note,) = notes_of_archives(origin)
    assert note == "the folders in the archives are not used as classes, because they also contain other files (.npy)"
