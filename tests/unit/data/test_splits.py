"""Splits and classes are recognised by names of files and folders, consistently for every source."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nextembed.core.types import Loading
from nextembed.data.grouping import by_folders, by_names
from nextembed.data.listing import File, listed
from nextembed.data.naming import Part, parse_split, split_of
from nextembed.data.origins import Rules, find_origin, find_table
from nextembed.data.pairs import TextData
from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError, DataError, MissingSplit

NAMES = {
    "train": "train training Train TRAIN train2017 train_images trainset train1 mnist_train.parquet trainImages trainA "
    "train-00000-of-00004.parquet captions_train2014.json train.tar.gz images_train imagesTr my-train-v2.csv trainval "
    "wiki.train.raw.txt v1.0-train.parquet trn",
    "validation": "val valid validation dev val2017 VAL valset mnist-val.parquet dev-clean instances_val2017.json "
    "minival wiki.valid.raw.txt part.1.val.parquet development",
    "test": "test testing Test test2015 test_images mnist_test.parquet testset eval holdout t_test test-dev imagesTs "
    "foo.test.parquet v1.0_test-00000-of-00001.parquet held-out hold_out.jsonl",
}


@pytest.mark.parametrize("split", NAMES)
def test_common_split_names(split):
    assert {split_of(name) for name in NAMES[split].split()} == {split}


NO_SPLITS = (
    "cat contest latest testament device developer invalid 0000.parquet attest valley trainers v1.0.parquet out old-out"
)


@pytest.mark.parametrize("name", NO_SPLITS.split())
def test_names_that_are_not_splits(name):
    assert split_of(name) is None


@pytest.mark.parametrize("name", ["train_test.csv", "train-val.parquet", "test_train"])
def test_names_of_two_splits_are_an_error(name):
    with pytest.raises(ConfigError, match=name):
        split_of(name)


@pytest.mark.parametrize(
    ("expression", "numbers"),
    [
        ("train", range(200)),
        ("train[:10%]", range(20)),
        ("train[90%:]", range(180, 200)),
        ("train[-10%:]", range(180, 200)),
        ("train[5:20]", range(5, 20)),
        ("train[:-5]", range(195)),
        ("train[25%:50%]", range(50, 100)),
        ("train.clean[1%:5]", range(2, 5)),
    ],
)
def test_parts_of_a_split(expression, numbers):
    assert parse_split(expression)[1].of(200) == numbers


@pytest.mark.parametrize("part", [Part("", "201"), Part("-201", ""), Part("101%", ""), Part("", "-101%")])
def test_a_slice_beyond_the_rows_is_an_error(part):
    with pytest.raises(ConfigError, match="exceeds the 200 rows"):
        part.of(200)


def splits(source: Path, **rules) -> dict[str, list[str]]:
    origin = find_origin(str(source), Rules(**rules))
    return {split: sorted(Path(file).name for file in files) for split, files in (origin.files or {}).items()}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ("mnist_train mnist_test", {"train": ["mnist_train"], "test": ["mnist_test"]}),
        ("0000 test", {"train": ["0000"], "test": ["test"]}),
        ("a b", {"train": ["a", "b"]}),
        ("default/train/0 default/test/1", {"train": ["0"], "test": ["1"]}),
        ("test", {"test": ["test"]}),
        ("TrainSet valSet", {"train": ["TrainSet"], "validation": ["valSet"]}),
    ],
)
def test_tables_by_split(tmp_path, make_parquet, files, found):
    for name in files.split():
        make_parquet(tmp_path / "d" / f"{name}.parquet", 2)
    expected = {split: [f"{name}.parquet" for name in names] for split, names in found.items()}
    assert splits(tmp_path / "d") == expected
    if "train" not in found:
        with pytest.raises(MissingSplit, match="Allowed: test"):
            ImageData(source=str(tmp_path / "d")).rows("train")


def test_a_table_that_matches_no_split_is_an_error(tmp_path, make_parquet):
    for name in ("train", "test", "extra"):
        make_parquet(tmp_path / "d" / f"{name}.parquet", 2)
    source = str(tmp_path / "d")
    with pytest.raises(ConfigError, match=r"'extra.parquet'.*data.folders=splits"):
        ImageData(source=source).rows("train")
    assert len(ImageData(source=source, split="extra").rows("train")) == 2
    assert len(ImageData(source=source, folders="splits").rows("train")) == 2
    assert len(ImageData(source=source, folders="classes").rows("train")) == 6
    left = find_origin(source, Rules(folders="splits")).left_out
    assert [file.name for file in left] == ["extra.parquet"]


def test_a_single_file_is_used_whatever_its_name(tmp_path, make_parquet):
    path = make_parquet(tmp_path / "mnist_test.parquet", 3)
    assert len(ImageData(source=str(path)).rows("train")) == 3
    make_parquet(tmp_path / "mnist_train.parquet", 2)
    both = ImageData(source=str(tmp_path / "*.parquet"))
    assert [len(both.rows(split)) for split in ("train", "test")] == [2, 3]


def make(folder: Path, make_images, names: str, count: int = 2) -> str:
    for name in names.split():
        make_images(folder / name, count)
    return str(folder)


def labels(source: str, **settings) -> tuple[int, list[str], set[int]]:
    data = ImageData(source=source, **settings)
    rows = list(data.rows("train"))
    return len(rows), data.class_names(), {row.get("label", -100) for row in rows}


@pytest.mark.parametrize(
    ("folders", "number", "classes"),
    [
        ("cat/day1 cat/day2 dog/day1", 6, ["cat", "dog"]),
        ("train/cat/a/b train/dog test/cat/x test/dog", 4, ["cat", "dog"]),
        ("images/cat images/dog", 4, ["cat", "dog"]),
        ("images/train2017 images/val2017", 2, []),
        ("cat/train cat/test dog/train dog/test", 4, ["cat", "dog"]),
        ("__other__ cat _x", 6, ["__other__", "_x", "cat"]),
        ("2019", 2, []),
        ("1.0 v2.final", 4, ["1.0", "v2.final"]),
    ],
)
def test_the_top_folder_is_the_class(tmp_path, make_images, folders, number, classes):
    got = labels(make(tmp_path / "d", make_images, folders))
    assert got[:2] == (number, classes) and got[2] == (set(range(len(classes))) or {-100})


@pytest.mark.parametrize("folders", ["train car bus", "test cat", "valid invalid", "train train_station bus"])
def test_a_class_named_like_a_split_is_an_error(tmp_path, make_images, folders):
    source = make(tmp_path / "d", make_images, folders)
    with pytest.raises(ConfigError, match=r"splits or classes.*data.folders=classes") as caught:
        ImageData(source=source).rows("train")
    assert "\n" not in str(caught.value)
    assert labels(source, folders="classes")[:2] == (2 * len(folders.split()), sorted(folders.split()))


def test_other_folders_are_left_out_with_folders_splits(tmp_path, make_images):
    source = make(tmp_path / "d", make_images, "train/a train/b extra")
    assert labels(source, folders="splits")[:2] == (4, ["a", "b"])
    left = find_origin(source, Rules(folders="splits")).left_out
    assert [(file.name, file.reason) for file in left] == [
        (f"extra/00{i}.png", "it is not in the folder of a split") for i in range(2)
    ]


def test_class_folder_setting(tmp_path, make_images):
    source = make(tmp_path / "d", make_images, "a/x a/y b/x")
    assert labels(source, class_folder="last")[1] == ["x", "y"]
    assert labels(source, class_folder="none")[1] == []


def test_classes_above_and_below_splits_are_an_error(tmp_path, make_images):
    source = make(tmp_path / "d", make_images, "v1/train/cat v1/train/dog v2/train/cat v2/val/cat")
    with pytest.raises(ConfigError, match=r"'v1', 'v2' above the splits, or 'cat', 'dog' below"):
        labels(source)
    assert labels(source, class_folder="last")[:2] == (6, ["cat", "dog"])
    assert labels(source, class_folder="top")[:2] == (6, ["v1", "v2"])


@pytest.mark.parametrize("folders", ["cat/train dog/train cat/test", "data/train/cat data/train/dog old/test/cat"])
def test_classes_on_one_side_of_splits_are_unambiguous(tmp_path, make_images, folders):
    assert labels(make(tmp_path / "d", make_images, folders))[:2] == (4, ["cat", "dog"])


def test_a_class_in_two_unicode_forms_is_one(tmp_path, make_images):
    source = make(tmp_path / "d", make_images, "train/caf\u00e9 train/cafe\u0301 train/dog")
    assert labels(source) == (6, ["caf\u00e9", "dog"], {0, 1})


def test_an_image_in_no_class_folder_has_no_label(tmp_path, make_images):
    source = make(tmp_path / "d", make_images, "a b/deep/er .")
    assert labels(source) == (6, ["a", "b"], {0, 1, -100})


def test_several_kinds_of_files_are_an_error(tmp_path, make_images, make_parquet):
    make(tmp_path / "d", make_images, "a b")
    (tmp_path / "d" / "old.tar").write_bytes(b"x" * 512)
    with pytest.raises(ConfigError, match=r"4 images and 1 .tar archive \(old.tar\).*data.format=images"):
        find_origin(str(tmp_path / "d"))
    assert labels(str(tmp_path / "d"), format="images")[:2] == (4, ["a", "b"])
    assert find_origin(str(tmp_path / "d"), Rules(format="images")).beside == {".tar": 1}
    with pytest.raises(ConfigError, match=r"has no parquet"):
        find_origin(str(tmp_path / "d"), Rules(format="parquet"))


def test_json_lines_by_split_and_other_files(tmp_path):
    for name in ("captions_train2014.jsonl", "captions_val2014.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / "config.json").write_text("{}")
    origin = find_table(str(tmp_path))
    assert set(origin.files) == {"train", "validation"} and origin.beside == {".json": 1, ".txt": 1}
    assert [row["text"] for row in TextData(source=str(tmp_path)).rows("validation")] == ["captions_val2014.jsonl"]
    (tmp_path / "more.csv").write_text("text\na\n")
    with pytest.raises(ConfigError, match=r"\.jsonl files.*\.csv file"):
        find_table(str(tmp_path))


def test_trainval_beside_train_is_an_error(tmp_path, make_parquet):
    for name in ("trainval", "test"):
        make_parquet(tmp_path / "d" / f"{name}.parquet", 2)
    assert set(splits(tmp_path / "d")) == {"train", "test"}
    make_parquet(tmp_path / "d" / "train.parquet", 2)
    with pytest.raises(ConfigError, match="'trainval' repeats the rows"):
        splits(tmp_path / "d")


@pytest.mark.parametrize(
    ("split", "first", "number"), [("train[:10%]", 0, 1), ("train[90%:]", 9, 1), ("train[5:8]", 5, 3)]
)
def test_slices_are_the_same_for_every_source(tmp_path, make_parquet, make_images, split, first, number):
    make_parquet(tmp_path / "one.parquet", 10, where=["train"] * 10, number=list(range(10)))
    table = ImageData(source=str(tmp_path / "one.parquet"), split=split, label_column="number")
    by_column = table.model_copy(update={"split_column": "where"})
    for data in (table, by_column):
        assert [row["label"] for row in data.rows("train")] == list(range(first, first + number))
    make_images(tmp_path / "d", 10)
    assert [row["key"] for row in ImageData(source=str(tmp_path / "d"), split=split).rows("train")] == [
        f"{i:03d}.png" for i in range(first, first + number)
    ]
    rows = [{"text": f"row {i}"} for i in range(10)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n\n")
    (tmp_path / "a.txt").write_text("\n".join(row["text"] for row in rows) + "\n\n")
    (tmp_path / "a.csv").write_text("text\n" + "\n".join(row["text"] for row in rows) + "\n")
    for name in ("a.json", "a.jsonl", "a.txt", "a.csv"):
        documents = TextData(source=str(tmp_path / name), split=split).rows("train")
        assert [row["text"] for row in documents] == [f"row {i}" for i in range(first, first + number)], name


def test_every_file_is_listed_with_its_reason(tmp_path, make_images, make_picture, encode):
    make_images(tmp_path / "d" / "cat", 1)
    d = tmp_path / "d"
    for name, format in (
        ("cat/x.avif", "AVIF"),
        ("cat/no_ending", "JPEG"),
        ("cat/strange.dat", "WEBP"),
        ("b.JPE", "JPEG"),
    ):
        (d / name).write_bytes(encode(make_picture(), format))
    (d / "cat" / "y.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (d / "cat" / "z.cr2").write_bytes(b"II*\0")
    (d / "notes").write_text("text")
    (d / ".DS_Store").write_text("x")
    make_images(d / ".hidden", 1)
    (d / "gone.png").symlink_to("/nowhere.png")
    (d / "loop").symlink_to(d)
    (tmp_path / "far").mkdir()
    make_images(tmp_path / "far", 1)
    (d / "linked").symlink_to(tmp_path / "far")
    reasons = {file.name: file.reason for file in listed(d) if file.kind == "image"}
    used = {name for name, reason in reasons.items() if not reason}
    assert used == {"cat/000.png", "cat/x.avif", "cat/no_ending", "cat/strange.dat", "b.JPE", "linked/000.png"}
    assert "pillow-heif" in reasons["cat/y.heic"] and ".cr2" in reasons["cat/z.cr2"]
    assert "data.hidden=true" in reasons[".hidden/000.png"] and reasons["gone.png"] == "a broken link"
    assert {file.name for file in listed(d) if file.kind == "other"} == {"notes", "loop"}
    assert len(ImageData(source=str(d)).rows("train")) == 6
    assert len(ImageData(source=str(d), hidden=True).rows("train")) == 7


def test_names_that_are_not_utf8(tmp_path, make_picture, encode):
    name = b"caf\xe9.png"
    with open(bytes(tmp_path) + b"/" + name, "wb") as file:
        file.write(encode(make_picture(8, 8)))
    data = ImageData(source=str(tmp_path))
    (row,) = data.rows("train")
    assert row["key"] == "caf\\udce9.png" and data.reader(3).read(row["image"]).shape == (3, 8, 8)


def skips(part, tmp_path, **loading) -> list[tuple[str, str]]:
    """The contents of skipped.jsonl after the loader is created."""
    path = tmp_path / "skipped.jsonl"
    part.train_loader(Loading(2, skipped_path=path, **loading), image_size=8, num_channels=3, num_latents=5)
    return [(row["key"], row["reason"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.fixture(autouse=True)
def without_heic(monkeypatch):
    """Simulates that the extra is not installed; test_heic tests with it."""
    monkeypatch.setattr("nextembed.data.listing.find_spec", lambda name: None)


@pytest.fixture
def heic(tmp_path, make_images):
    """19 images of two classes, and one that cannot be read."""
    make_images(tmp_path / "d" / "cat", 10)
    make_images(tmp_path / "d" / "dog", 9)
    (tmp_path / "d" / "dog" / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "d" / "about.txt").write_text("text")
    return tmp_path / "d"


def test_a_summary_lists_used_and_unused_files(heic, make_images):
    found = ImageData(source=str(heic)).summary("train")
    assert (found.used, found.total, dict(found.classes)) == (19, 20, {"cat": 10, "dog": 9})
    assert list(found.skipped) == ["dog/x.heic"] and found.beside == {".txt": 1} and found.splits == ("train",)
    text = "\n".join(found.lines())
    assert "19 images, split train, 2 classes: cat, dog" in text and "1 files are not used: 1 x HEIC" in text
    part = ImageData(source=str(heic), split="train[:50%]").summary("train")
    assert part.used == 10 and part.split == "train[:50%]"
    make_images(heic, 2)
    assert ImageData(source=str(heic)).summary("train").unlabelled == 2


def test_files_that_cannot_be_used_count_as_unreadable(heic, tmp_path):
    data = ImageData(source=str(heic), num_workers=0, max_skipped_rate=0.05)
    (entry,) = skips(data, tmp_path)
    assert entry[0] == "dog/x.heic" and "pillow-heif" in entry[1]
    assert skips(data, tmp_path) == [entry]  # a resumed run lists it once
    with pytest.raises(DataError, match=r"1 of 20 images are unreadable.*dog/x.heic: HEIC"):
        skips(data.model_copy(update={"max_skipped_rate": 0.01}), tmp_path)


def test_only_one_rank_writes_unusable_files(heic, tmp_path):
    data = ImageData(source=str(heic), num_workers=0, max_skipped_rate=0.05)
    for rank in (1, 0):
        path = tmp_path / "skipped.jsonl"
        loading = Loading(2, rank=rank, world_size=2, skipped_path=path)
        data.train_loader(loading, image_size=8, num_channels=3, num_latents=5)
        assert path.exists() == (rank == 0)
    assert len(path.read_text().splitlines()) == 1


def test_a_folder_of_only_unreadable_files_is_a_one_line_error(tmp_path):
    for name in ("a.heic", "b.cr2"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"no images that can be used: a.heic \(HEIC"):
        ImageData(source=str(tmp_path)).rows("train")


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "names", "ids"),
    [
        ([0.0, 1.0, NAN, 1.0], ["0", "1"], [0, 1, -100, 1]),
        ([5.0, None, 7.0, -1.0], ["5", "7"], [0, -100, 1, -100]),
        (["a", "", None, "nan"], ["a", "nan"], [0, -100, -100, 1]),
        ([[3], [4], [], [3]], ["3", "4"], [0, 1, -100, 0]),
        ([True, False, None, True], ["False", "True"], [1, 0, -100, 1]),
    ],
)
def test_labels_with_gaps(tmp_path, make_picture, encode, values, names, ids):
    images = [{"bytes": encode(make_picture(8, 8, seed=i)), "path": None} for i in range(4)]
    pq.write_table(pa.table({"image": images, "label": values}), tmp_path / "a.parquet")
    data = ImageData(source=str(tmp_path / "a.parquet"), label_column="label")
    assert [row["label"] for row in data.rows("train")] == ids and data.class_names() == names


def test_several_labels_per_image_are_not_classes(tmp_path, make_picture, encode):
    images = [{"bytes": encode(make_picture(8, 8)), "path": None}] * 2
    pq.write_table(pa.table({"image": images, "labels": [[1, 2], [3]]}), tmp_path / "a.parquet")
    assert ImageData(source=str(tmp_path / "a.parquet")).class_names() == []
    with pytest.raises(ConfigError, match="'labels' has several values per image"):
        ImageData(source=str(tmp_path / "a.parquet"), label_column="labels").rows("train")


# -- names without separators between words


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["mnisttrain.parquet", "mnisttest.parquet"], {"train": 1, "test": 1}),
        (["digitstrain.csv", "digitsval.csv", "digitstest.csv"], {"train": 1, "validation": 1, "test": 1}),
        (["MNISTtrain.jsonl", "MNISTtest.jsonl"], {"train": 1, "test": 1}),
        (["contest.parquet", "latest.parquet"], {"train": 2}),  # ordinary words
        (["interval.parquet", "retrain.parquet"], {"train": 2}),
        (["amnisttrain.parquet", "bmnisttest.parquet"], {"train": 2}),
    ],
)
def test_splits_without_separators_are_recognised_together(names: list[str], wanted: dict[str, int]) -> None:
    groups, unclear, left_out = by_names([File(name, name, "parquet") for name in names], None)
    assert {split: len(files) for split, files in groups.items()} == wanted and not unclear and not left_out


def test_folders_without_separators_are_splits_too() -> None:
    files = [File(f"{split}/{name}/1.png", f"{split}{name}", "image")
             for split in ("mnisttrain", "mnisttest") for name in ("7", "8")]  # fmt: skip
    groups, classes, _ = by_folders(files, None, None)
    assert {split: len(found) for split, found in groups.items()} == {"train": 2, "test": 2}
    assert set(classes.values()) == {"7", "8"}
    alone, classes, _ = by_folders([file for file in files if "train" in file.name], "classes", None)
    assert list(alone) == ["train"]
