"""Shards contain the files of a source unchanged, with labels and splits, and are the same after any interruption."""

import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nextembed.core.config import DATA
from nextembed.data import kinds  # noqa: F401  # makes the kinds known
from nextembed.data.rows import rows_in_order
from nextembed.data.shard_index import read_index
from nextembed.data.shard_rows import part_of
from nextembed.data.sharding import shard
from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError, DamagedFile, DataError


def read(data: ImageData, split: str = "train") -> list[tuple[bytes, int]]:
    """The file content and the label of each row."""
    found = []
    for _, row in rows_in_order(data.rows(split)):
        image = row["image"]
        found.append((Path(image).read_bytes() if isinstance(image, Path) else image, row["label"]))
    return found


def small(**settings) -> dict:
    """Settings for shards of a few rows."""
    return {"shard_size": 0.01, **settings}


@pytest.fixture
def classes(tmp_path, encode, make_picture) -> Path:
    """Folders of splits and classes; the test split lacks one class, and two files are broken."""
    folder = tmp_path / "photos"
    for split, names, count in (("train", ("cat", "dog", "emu"), 5), ("test", ("cat", "emu"), 3)):
        for name in names:
            for number in range(count):
                file = folder / split / name / f"{name}.{number} é.{'jpg' if number % 2 else 'png'}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(
                    encode(
                        make_picture(30, 40, seed=10 * len(name) + ord(name[0]) + number),
                        "JPEG" if number % 2 else "PNG",
                    )
                )
    (folder / "train" / "dog" / "broken.png").write_bytes(b"this is no picture")
    (folder / "train" / "emu" / "empty.jpg").write_bytes(b"")
    return folder


@pytest.mark.parametrize("form", ["tar", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_folders_keep_bytes_labels_and_splits(classes, tmp_path, form, streaming) -> None:
    done = shard(classes, tmp_path / "shards", **small(format=form))
    made, source = ImageData(source=str(tmp_path / "shards"), streaming=streaming), ImageData(source=str(classes))
    assert made.class_names() == source.class_names() == ["cat", "dog", "emu"]
    broken = {b"", b"this is no picture"}
    for split in ("train", "test"):
        expected = [row for row in read(source, split) if row[0] not in broken]
        assert read(made, split) == expected and len(expected) == {"train": 15, "test": 6}[split]
    assert [(one["split"], Path(one["key"]).name, one["reason"]) for one in done.skipped] == [
        ("train", "broken.png", "not an image file of a known format"),
        ("train", "empty.jpg", "empty file"),
    ]
    lines = (tmp_path / "shards" / "rows.skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == done.skipped
    train = done.shards.splits["train"]
    assert len(train.shards) > 2 and (train.rows, train.skipped) == (15, 2)
    assert sum(sum(one.labels.values()) for one in train.shards) == 15
    assert train.bytes == sum((tmp_path / "shards" / one.file).stat().st_size for one in train.shards)


def test_archives_follow_the_webdataset_layout(classes, tmp_path) -> None:
    done = shard(classes, tmp_path / "shards")
    (one,) = done.shards.splits["train"].shards
    with tarfile.open(tmp_path / "shards" / one.file) as archive:
        names = archive.getnames()
        assert names[:4] == ["000000000_cat_0.png", "000000000_cat_0.cls", "000000001_cat_1.jpg", "000000001_cat_1.cls"]
        member = archive.extractfile("000000001_cat_1.cls")
        assert member is not None and member.read() == b"0"
    assert done.shards.splits["train"].kinds == ["cls", "jpg", "png"]


def test_the_index_lists_classes_without_training_rows(classes, tmp_path) -> None:
    """`.cls` files contain ids only; names of classes without rows come from the index."""
    shutil.rmtree(classes / "train" / "dog")
    (classes / "train" / "dog").mkdir()
    (classes / "train" / "dog" / "broken.png").write_bytes(b"this is no picture")
    shard(classes, tmp_path / "shards")
    assert ImageData(source=str(tmp_path / "shards")).class_names() == ["cat", "dog", "emu"]
    assert {label for _, label in read(ImageData(source=str(tmp_path / "shards")))} == {0, 2}


def test_tables_keep_their_other_columns(make_parquet, tmp_path) -> None:
    file = make_parquet(
        tmp_path / "in" / "a.parquet", 6, species=list("babcab"), caption=[f"no. {n}" for n in range(6)]
    )
    part = part_of(str(file), None).model_copy(update={"label_column": "species"})
    shard(part, tmp_path / "shards", **small(shard_size=0.0005))
    made = ImageData(source=str(tmp_path / "shards"), where={"caption": ["no. 1", "no. 3"]})
    assert [row["label"] for row in made.rows("train")] == [0, 2]
    assert made.class_names() == ["a", "b", "c"]
    assert len(list((tmp_path / "shards").glob("train-*.parquet"))) > 1
    records = DATA.parse({"kind": "records", "source": str(tmp_path / "shards"), "pieces": {"caption": "text"}})
    assert [doc["segments"][0]["value"] for doc in records.documents("train")] == [f"no. {n}" for n in range(6)]
    shard(part, tmp_path / "tars", **small(format="tar"))
    assert read(ImageData(source=str(tmp_path / "tars"))) == read(part)


def plain(value):
    return value.tolist() if isinstance(value, torch.Tensor) else value


def values(documents) -> list[list]:
    return [[(one["kind"], plain(one["value"])) for one in document["segments"]] for document in documents]


@pytest.mark.parametrize("prefix", ["", "images"])
def test_json_lines_embed_the_files_they_refer_to(tmp_path, encode, make_picture, prefix) -> None:
    folder = tmp_path / "docs"
    (folder / prefix).mkdir(parents=True)
    rows = []
    for number in range(7):
        (folder / prefix / f"{number}.png").write_bytes(encode(make_picture(9, 9, seed=number)))
        rows.append(
            {"segments": [{"text": f"see {number}.png"}, {"image": f"{number}.png", "loss": False}, {"text": "ok"}]}
        )
    rows[3]["segments"][1]["image"] = "gone.png"
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "no json\n")
    settings = {"kind": "interleaved", "images_from": prefix, "max_skipped_rate": 1.0}
    part = DATA.parse({"source": str(folder / "train.jsonl"), **settings})
    done = shard(part, tmp_path / "shards", **small(shard_size=0.001))
    assert [(one["row"], one["reason"]) for one in done.skipped] == [
        ("3", "no such file"),
        ("7", "not JSON: Expecting value: line 1 column 1 (char 0)"),
    ]
    assert done.shards.format == "jsonl" and len(done.shards.splits["train"].shards) > 1
    shutil.rmtree(folder / prefix if prefix else folder)
    made = DATA.parse({"source": str(tmp_path / "shards"), **settings})
    again = values(made.documents("train"))
    assert [doc[0][1] for doc in again] == [f"see {number}.png" for number in (0, 1, 2, 4, 5, 6)]
    assert all(doc[1][0] == "image" and len(doc[1][1]) == 3 for doc in again)


def test_tables_embed_the_files_they_refer_to(tmp_path, encode, make_picture) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(encode(make_picture(9, 9, seed=number)))
    pq.write_table(pa.table({"picture": ["0.png", "1.png", "gone.png"], "caption": list("abc")}), folder / "t.parquet")
    settings = {"kind": "records", "pieces": {"picture": "image", "caption": "text"}, "layouts": {"picture caption": 1}}
    part = DATA.parse({"source": str(folder / "t.parquet"), "max_skipped_rate": 1.0, **settings})
    done = shard(part, tmp_path / "shards")
    expected = values(part.documents("train"))
    assert [one["reason"] for one in done.skipped] == ["no such file"]
    shutil.rmtree(folder)
    assert values(DATA.parse({"source": str(tmp_path / "shards"), **settings}).documents("train")) == expected
    found = DATA.parse({"kind": "records", "source": str(tmp_path / "shards")})
    found.rows("train")
    assert {name: piece.kind for name, piece in found.pieces_known().items()} == {"picture": "image", "caption": "text"}


def test_masks_stay_with_their_images(tmp_path, encode, make_picture) -> None:
    for number in range(4):
        for name, mode in (("images", "RGB"), ("masks", "L")):
            (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name / f"{number}.png").write_bytes(encode(make_picture(9, 9, seed=number, mode=mode)))
    settings = {"kind": "segmentation", "classes": [str(n) for n in range(256)]}
    part = DATA.parse({"source": str(tmp_path / "in"), **settings})
    shard(part, tmp_path / "shards", **small(shard_size=0.0005))
    rows = DATA.parse({"source": str(tmp_path / "shards"), **settings}).rows("train")
    for row, number in zip(rows, range(4), strict=True):
        for name in ("image", "mask"):
            assert row[name] == (tmp_path / "in" / f"{name}s" / f"{number}.png").read_bytes()


class Stop(Exception):
    pass


def stop_at(rows: int):
    def report(done: int, total: int | None) -> None:
        if done >= rows:
            raise Stop

    return report


@pytest.mark.parametrize(
    ("form", "streaming", "shuffle"), [("tar", False, 3), ("parquet", True, None), ("tar", True, None)]
)
def test_interrupted_and_resumed_sharding_is_identical(classes, tmp_path, form, streaming, shuffle) -> None:
    part = part_of(str(classes), None).model_copy(update={"streaming": streaming})
    settings = small(format=form, shuffle=shuffle, shard_size=0.01)
    whole = shard(part, tmp_path / "whole", **settings)
    assert whole.num_resumed == 0 and len(whole.shards.splits["train"].shards) >= 3
    resumed = 0
    for rows in (4, 8, 12, 16, 20):
        with pytest.raises(Stop):
            shard(part, tmp_path / "parts", **settings, report=stop_at(rows))
        with pytest.raises(ConfigError, match=r"not finished \(index.partial is there\): run the same"):
            ImageData(source=str(tmp_path / "parts")).rows("train")
        with (tmp_path / "parts" / "index.partial").open("a") as file:
            file.write('{"split": "tr')  # a partial line, as after a crash
    done = shard(part, tmp_path / "parts", **settings)
    resumed = done.num_resumed
    assert resumed >= 2
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "parts").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


def test_a_seed_shuffles_all_rows(classes, tmp_path) -> None:
    orders = []
    for seed in (0, 1):
        shard(classes, tmp_path / f"{seed}", **small(shuffle=seed))
        orders.append(read(ImageData(source=str(tmp_path / f"{seed}"))))
    plain = [row for row in read(ImageData(source=str(classes))) if len(row[0]) > 20]
    assert orders[0] != orders[1] != plain != orders[0]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(plain)


def test_only_one_split(classes, tmp_path) -> None:
    done = shard(classes, tmp_path / "shards", splits=["test"])
    assert list(done.shards.splits) == ["test"]


def test_errors_are_one_line(classes, tmp_path) -> None:
    part = part_of(str(classes), None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="mine exists; name a new folder"):
        shard(part, tmp_path / "mine")
    shard(part, tmp_path / "shards")
    with pytest.raises(ConfigError, match="already contains shards"):
        shard(part, tmp_path / "shards")
    with pytest.raises(Stop):
        shard(part, tmp_path / "begun", **small(), report=stop_at(3))
    with pytest.raises(ConfigError, match=r"started with other settings \(shard_size 0.01, now 1.0\)"):
        shard(part, tmp_path / "begun", **small(shard_size=1))
    with pytest.raises(ConfigError, match="needs streaming=false"):
        shard(part.model_copy(update={"streaming": True}), tmp_path / "stream", **small(shuffle=0))
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"no")
    with pytest.raises(
        DataError, match=r"none of the 1 rows can be read: .*a.png: not an image file of a known format"
    ):
        shard(part_of(str(bad), None), tmp_path / "nothing")


def test_a_folder_of_images_and_rows_is_ambiguous(classes, tmp_path) -> None:
    (classes / "captions.jsonl").write_text('{"image": "a.png", "text": "a"}\n')
    with pytest.raises(ConfigError, match=r"contains images and rows \(text\); choose one with --kind images, or"):
        part_of(str(classes), None)


def test_incomplete_copies_are_detected(classes, tmp_path) -> None:
    done = shard(classes, tmp_path / "shards", **small())
    file = tmp_path / "shards" / done.shards.splits["train"].shards[1].file
    whole = file.read_bytes()
    file.write_bytes(whole[:-512])
    with pytest.raises(DamagedFile, match=r"train-000001.tar has [\d,]+ bytes, not the [\d,]+ that index.json says"):
        ImageData(source=str(tmp_path / "shards")).rows("train")
    file.unlink()
    with pytest.raises(DamagedFile, match=r"train-000001.tar is missing; index.json names it"):
        ImageData(source=str(tmp_path / "shards")).rows("train")
    file.write_bytes(whole)
    assert read_index(tmp_path / "shards") == done.shards
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    (tmp_path / "shards" / "index.json").write_text(json.dumps({**index, "nextembed_shards": 2}))
    with pytest.raises(ConfigError, match="of a later version of nextembed"):
        ImageData(source=str(tmp_path / "shards")).rows("train")
