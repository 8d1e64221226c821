import io
import os
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from nextembed.core.code import allow_code
from nextembed.core.config import DATA
from nextembed.core.objective import ViewSettings
from nextembed.core.types import Loading
from nextembed.data.sources import ImageData
from nextembed.data.stored import StreamedRows
from nextembed.data.transforms import Unreadable
from nextembed.errors import ConfigError, DataError

SIZES = {"image_size": 16, "num_channels": 3}


def loader(data, **options):
    data = data.model_copy(update={"num_workers": 0})
    return data.train_loader(Loading(4, **options), **SIZES, num_latents=5)


def first(data, **options):
    return next(iter(loader(data, **options)))


def keys(data, split="train"):
    return [row["key"] for row in data.rows(split)]


def test_emoji_sample_has_splits_and_classes():
    data = ImageData(source="emoji")
    sizes = {split: len(data.rows(split)) for split in ("train", "validation", "test")}
    assert sizes["train"] > 1500 and sum(sizes.values()) == 1892
    names = data.class_names()
    assert len(names) == 9 and names == sorted(names) and "flags" in names
    assert first(data)["pixel_values"].shape == (4, 3, 16, 16)
    samples = data.eval_samples("test", **SIZES, num_samples=20)
    assert samples.class_names == names and all(0 <= samples[i]["label"] < 9 for i in range(20))
    assert len(ImageData(source="emoji", split="train[:100]").rows("train")) == 100
    flags = ImageData(source="emoji", where={"group": ["flags", "objects"]}).rows("train")
    assert {row["label"] for row in flags} == {names.index("flags"), names.index("objects")}


def test_flat_folder_has_no_labels(tmp_path, make_images):
    data = ImageData(source=str(make_images(tmp_path / "a", 5)))
    assert keys(data) == [f"{i:03d}.png" for i in range(5)]
    assert first(data)["labels"].tolist() == [-100] * 4 and data.class_names() == []


def test_file_names_of_images_are_not_splits(tmp_path, make_images):
    folder = make_images(tmp_path / "a", 3)
    for old, new in zip(sorted(folder.iterdir()), ("test_1.png", "val-2.PNG", "train.png")):
        old.rename(folder / new)
    assert len(keys(ImageData(source=str(folder)))) == 3


def test_class_folders_give_labels(tmp_path, make_images):
    make_images(tmp_path / "a" / "cat", 3)
    make_images(tmp_path / "a" / "dog", 2)
    data = ImageData(source=str(tmp_path / "a"))
    assert data.class_names() == ["cat", "dog"]
    assert {row["key"]: row["label"] for row in data.rows("train")}["dog/001.png"] == 1


def test_split_folders(tmp_path, make_images):
    for split, count in (("train", 4), ("val", 2)):
        make_images(tmp_path / "a" / split / "cat", count)
        make_images(tmp_path / "a" / split / "dog", count)
    data = ImageData(source=str(tmp_path / "a"))
    assert len(data.rows("train")) == 8 and len(data.rows("validation")) == 4
    assert data.class_names() == ["cat", "dog"]
    with pytest.raises(ConfigError, match=r"split 'test' is not known.*Allowed: train, validation"):
        data.rows("test")


def test_parquet_file_and_folder(tmp_path, make_parquet):
    make_parquet(tmp_path / "d" / "train-00000-of-00002.parquet", 6, label=[0, 1, 2] * 2)
    make_parquet(tmp_path / "d" / "train-00001-of-00002.parquet", 4, label=[3] * 4)
    make_parquet(tmp_path / "d" / "test.parquet", 3, label=[0, 1, 3])
    folder = ImageData(source=str(tmp_path / "d"), split="train[:-3]", validation="train[-3:]")
    assert [len(folder.rows(s)) for s in ("train", "validation", "test")] == [7, 3, 3]
    assert [row["label"] for row in folder.rows("validation")] == [3, 3, 3] and folder.class_names() == list("0123")
    one = ImageData(source=str(tmp_path / "d" / "test.parquet"))
    assert len(one.rows("train")) == 3
    shards = ImageData(source=str(tmp_path / "d" / "train-*.parquet"))
    assert len(shards.rows("train")) == 10
    percent = ImageData(source=str(tmp_path / "d"), split="train[:50%]")
    assert len(percent.rows("train")) == 5


def test_text_labels_become_sorted_ids(tmp_path, make_parquet):
    path = make_parquet(tmp_path / "a.parquet", 4, category=["pear", "apple", "fig", "apple"])
    data = ImageData(source=str(path))
    assert data.class_names() == ["apple", "fig", "pear"]
    assert [row["label"] for row in data.rows("train")] == [2, 0, 1, 0]
    some = ImageData(source=str(path), where={"category": ["fig", "pear"]})
    assert [row["label"] for row in some.rows("train")] == [2, 1]  # ids do not depend on the filter


def tar(path, count, start=0, encode=None, make_picture=None):
    with tarfile.open(path, "w") as file:
        for i in range(start, start + count):
            for name, data in ((f"{i:04d}.png", encode(make_picture(8, 8, seed=i))), (f"{i:04d}.cls", b"%d" % (i % 3))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset(tmp_path, encode, make_picture, streaming):
    for shard in range(2):
        tar(tmp_path / f"shard-{shard}.tar", 5, 5 * shard, encode, make_picture)
    data = ImageData(source=str(tmp_path / "shard-*.tar"), streaming=streaming)
    rows = data.rows("train")
    rows = list(rows.read(0, 0, 0, 1)) if streaming else list(rows)
    assert sorted(row["key"] for row in rows) == [f"shard-{i // 5}.tar/{i:04d}" for i in range(10)]
    assert sorted(row["label"] for row in rows) == sorted(i % 3 for i in range(10))
    assert first(data)["pixel_values"].shape == (4, 3, 16, 16)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kinds", ["jpg jpg jpg jpg jpg png JPG gif", "jpg png webp gif"])
def test_webdataset_of_several_kinds_of_files(tmp_path, encode, make_picture, streaming, kinds):
    formats = {"jpg": "JPEG", "JPG": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF"}
    with tarfile.open(tmp_path / "mixed.tar", "w") as file:
        for i, kind in enumerate(kinds.split()):
            image = encode(make_picture(8, 8, seed=i), formats[kind])
            for name, data in ((kind, image), ("cls", b"%d" % (i % 3)), ("json", b'{"a": 1}')):
                info = tarfile.TarInfo(f"{i:04d}.{name}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    data = ImageData(source=str(tmp_path / "mixed.tar"), streaming=streaming)
    rows = data.rows("train")
    rows = list(rows.read(0, 0, 0, 1)) if streaming else list(rows)
    assert sorted(row["label"] for row in rows) == sorted(i % 3 for i in range(len(kinds.split())))
    assert all(data.reader(3).read(row["image"]).shape == (3, 8, 8) for row in rows)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["junk.tar", "junk.parquet"])
def test_a_one_line_error_names_a_broken_file(tmp_path, capfd, streaming, name):
    (tmp_path / name).write_bytes(b"this is neither")
    text = message(lambda: first(ImageData(source=str(tmp_path / name), streaming=streaming)))
    assert f"cannot read '{tmp_path / name}'" in text
    assert not capfd.readouterr().err


@pytest.mark.parametrize("streaming", [False, True])
def test_names_may_look_like_glob_patterns(tmp_path, make_images, make_parquet, encode, make_picture, streaming):
    folder = tmp_path / "photos [2020] ?"
    make_images(folder / "images", 3)
    make_parquet(folder / "rows [1].parquet", 3)
    tar(folder / "rows [1].tar", 3, 0, encode, make_picture)
    for source in (folder / "images", folder / "rows [1].parquet", folder / "rows [1].tar"):
        rows = ImageData(source=str(source), streaming=streaming).rows("train")
        assert len(list(rows.read(0, 0, 0, 1) if streaming else rows)) == 3


def test_archive_members_stay_inside(tmp_path, encode, make_picture):
    with tarfile.open(tmp_path / "evil.tar", "w") as file:
        data = encode(make_picture(8, 8))
        for name in ("../../escaped.png", "fine.png"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    before = {p for p in tmp_path.rglob("*") if "hf_cache" not in p.parts}
    first(ImageData(source=str(tmp_path / "evil.tar")))
    assert {p for p in tmp_path.rglob("*") if "hf_cache" not in p.parts} == before
    assert not (tmp_path.parent / "escaped.png").exists()


def test_rows_cannot_refer_to_files_outside(tmp_path, make_images, encode, make_picture):
    (tmp_path / "secret.png").write_bytes(encode(make_picture()))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "near.png").write_bytes(encode(make_picture()))
    paths = ["../secret.png", str(tmp_path / "secret.png"), "near.png", "sub/../near.png"]
    table = {"image": [{"bytes": None, "path": path} for path in paths]}
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    datasets.Dataset.from_dict(table, features).to_parquet(str(tmp_path / "d" / "train.parquet"))
    images = [row["image"] for row in ImageData(source=str(tmp_path / "d")).rows("train")]
    assert ["outside the data folder" in str(image) for image in images] == [True, True, False, False]
    assert [isinstance(image, Unreadable) for image in images] == [True, True, False, False]


def test_streaming_readers_divide_the_rows(tmp_path, make_parquet):
    for i, count in enumerate((3, 7, 2)):
        make_parquet(tmp_path / "d" / f"train-{i}.parquet", count, number=list(range(10 * i, 10 * i + count)))
    data = ImageData(source=str(tmp_path / "d"), streaming=True, shuffle_buffer=4, label_column="number")
    rows = data.rows("train")
    assert isinstance(rows, StreamedRows)
    everything = sorted(row["label"] for row in rows.read(0, 0, 0, 1))
    assert len(everything) == 12
    for num_readers in (2, 3, 5):  # with 3 shards, readers split by shard, by shard, by row
        parts = [[row["label"] for row in rows.read(0, 1, reader, num_readers)] for reader in range(num_readers)]
        assert sorted(label for part in parts for label in part) == everything and all(parts)
    orders = [[row["label"] for row in rows.read(0, epoch, 0, 1)] for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert [row["label"] for row in rows.read(1, 0, 0, 1)] != orders[0]
    named = {row["key"]: row["label"] for row in rows.read(0, 0, 0, 1)}
    assert len(named) == 12 and named["train-1.parquet:6"] == 16  # the key is where a row is stored, in every epoch
    assert named == {row["key"]: row["label"] for reader in (0, 1) for row in rows.read(0, 1, reader, 2)}


def test_streaming_filters(tmp_path, make_parquet):
    path = make_parquet(tmp_path / "a.parquet", 6, vendor=["a", "b"] * 3, label=list(range(6)))
    data = ImageData(source=str(path), streaming=True, where={"vendor": "b"})
    assert sorted(row["label"] for row in data.rows("train").read(0, 0, 0, 1)) == [1, 3, 5]


def test_image_columns_of_other_kinds(tmp_path, encode, make_picture):
    pictures = [encode(make_picture(8, 8, seed=i)) for i in range(3)]
    datasets.Dataset.from_dict({"text": ["a"] * 3, "jpg": pictures}).to_parquet(str(tmp_path / "raw.parquet"))
    assert first(ImageData(source=str(tmp_path / "raw.parquet")))["pixel_values"].shape == (4, 3, 16, 16)


def message(function):
    with pytest.raises((ConfigError, DataError)) as caught:
        function()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_errors_are_one_line(tmp_path, make_images, make_parquet, monkeypatch):
    make_images(tmp_path / "Photos", 2)
    path = make_parquet(tmp_path / "a.parquet", 3, kind=["x", "y", "y"])
    monkeypatch.chdir(tmp_path)

    def rows(source, split="train", **settings):
        return message(lambda: ImageData(source=str(source), **settings).rows(split))

    assert "Photos'?" in rows(tmp_path / "photos")
    assert "Photos'?" in rows("./Photoss")
    assert "no such file or folder" in rows(tmp_path / "Photos " / "more")
    assert "no file fits" in rows(tmp_path / "*.parquets")
    assert "no such file or folder: /nowhere/at/all" in rows("/nowhere/at/all")
    (tmp_path / "empty").mkdir()
    assert "empty is empty" in rows(tmp_path / "empty")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("hello")
    assert "notes" in rows(tmp_path / "notes") and "has no images" in rows(tmp_path / "notes")
    assert "should name .parquet or .tar" in rows(tmp_path / "notes" / "a.txt")
    assert "Did you mean 'train'?" in message(lambda: ImageData(source=str(path), split="trian").rows("train"))
    assert "not understood" in message(lambda: ImageData(source=str(path), split="train[5").rows("train"))
    assert rows(path, image_column="imag") == (
        "data.image_column: 'imag' is not known. Did you mean 'image'? Allowed: image, kind."
    )
    assert "data.label_column: 'kin' is not known. Did you mean 'kind'?" in rows(path, label_column="kin")
    said = rows(path, image_column="kind")
    assert said.startswith("data.image_column: 'kind' contains Value(") and said.endswith(", not images")
    assert "data.where: column 'kid' is not known" in rows(path, where={"kid": "x"})
    assert "no row has kind = z; it is one of: x, y" in rows(path, where={"kind": "z"})
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(str(tmp_path / "t.parquet"))
    assert "none of the columns" in rows(tmp_path / "t.parquet") and "text" in rows(tmp_path / "t.parquet")
    (tmp_path / "junk.parquet").write_bytes(b"this is not parquet")
    assert "cannot read" in rows(tmp_path / "junk.parquet")
    assert "needs streaming=false" in message(
        lambda: ImageData(source=str(path), split="train[:2]", streaming=True).rows("train")
    )
    assert "streaming=false" in message(
        lambda: ImageData(source=str(path), streaming=True).eval_samples("train", **SIZES)
    )
    assert "not 4" in message(lambda: ImageData(source="emoji").reader(4))
    assert "empty" in message(lambda: first(ImageData(source=str(path), split="train[:0]")))


def test_hub_ids_go_to_load_dataset(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        raise FileNotFoundError("Dataset 'me/things' doesn't exist\non the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("nextembed.data.loading.unreachable", lambda: None)
    text = message(lambda: ImageData(source="me/things", subset="small", split="train[:5]").rows("train"))
    assert "me/things" in text and "hub" in text
    assert asked == [(("me/things",), {"split": "train[:5]", "streaming": False, "name": "small"})]


def test_probe_samples_are_not_augmented(tmp_path, make_images):
    data = ImageData(source=str(make_images(tmp_path / "a", 6, size=16)))
    samples = data.eval_samples("train", **SIZES)
    assert len(samples) == 6
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "a" / "002.png"))).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(samples[2]["pixel_values"], expected, atol=1e-6)
    assert samples[2]["key"] == "002.png" and samples[2]["label"] == -100
    some = data.eval_samples("train", **SIZES, num_samples=3, seed=1)
    again = data.eval_samples("train", **SIZES, num_samples=3, seed=1)
    assert [s["key"] for s in some] == [s["key"] for s in again] and len({s["key"] for s in some}) == 3


def test_probe_samples_of_a_stream(tmp_path, make_parquet):
    path = make_parquet(tmp_path / "a.parquet", 9, label=list(range(9)))
    data = ImageData(source=str(path), streaming=True)
    samples = data.eval_samples("train", **SIZES, num_samples=4)
    labels = [samples[i]["label"] for i in range(len(samples))]
    assert len(set(labels)) == 4 and samples[0]["pixel_values"].shape == (3, 16, 16)


def test_probe_samples_replace_unreadable_images(tmp_path, make_images):
    folder = make_images(tmp_path / "a", 4, bad=(1,))
    samples = ImageData(source=str(folder), max_skipped_rate=0.5).eval_samples("train", **SIZES)
    assert samples[1]["key"] != "001.png" and samples[1]["label"] == -100 and list(samples.log.reasons) == ["001.png"]
    with pytest.raises(DataError, match="1 of 4"):
        ImageData(source=str(folder)).eval_samples("train", **SIZES)[1]


def test_dirty_folder_trains_or_stops(tmp_path, make_images):
    folder = make_images(tmp_path / "a", 20, bad=(3, 4))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.JPG").write_text("not a picture")
    path = tmp_path / "skipped.jsonl"
    for cache in ("auto", "off"):
        data = ImageData(source=str(folder), max_skipped_rate=0.2, cache=cache)
        batches = iter(loader(data, skipped_path=path))
        assert all(next(batches)["pixel_values"].shape == (4, 3, 16, 16) for _ in range(12))
        assert len(path.read_text().splitlines()) == 4
    assert {"empty.jpg", "text.JPG"} <= {line.split('"')[3] for line in path.read_text().splitlines()}
    with pytest.raises(DataError, match=r"of 22 images are unreadable .*\.png: not an image"):
        batches = iter(loader(ImageData(source=str(folder), cache="off")))
        for _ in range(12):
            next(batches)


USER = """
from pathlib import Path

from nextembed.data.images import ImagePart
from nextembed.errors import ConfigError


class MyImages(ImagePart):
    folder: str

    def rows(self, split):
        if split != "train":
            raise MissingSplit(f"there is no {split} split")
        return [{"image": path, "label": 1} for path in sorted(Path(self.folder).glob("*.png"))]

    def class_names(self):
        return ["no", "yes"]
"""


def test_a_custom_source(tmp_path, make_images):
    (tmp_path / "mine.py").write_text(USER)
    make_images(tmp_path / "a", 5)
    allow_code(tmp_path / "mine.py")
    data = DATA.parse({"kind": f"{tmp_path / 'mine.py'}:MyImages", "folder": str(tmp_path / "a"), "num_workers": 0})
    batch = first(data)
    assert batch["labels"].tolist() == [1] * 4 and batch["pixel_values"].shape == (4, 3, 16, 16)
    samples = data.eval_samples("train", **SIZES)
    assert len(samples) == 5 and samples.class_names == ["no", "yes"] and samples[3]["key"] == "3"


@pytest.mark.parametrize("cache", ["on", "off"])
def test_several_views_per_image(tmp_path, make_parquet, cache):
    source = str(make_parquet(tmp_path / "a.parquet", 12, label=list(range(12))))
    data = ImageData(source=source, cache=cache, flip_rate=0, num_workers=0)

    def batch(views, micro=4, number=0):
        batches = iter(data.train_loader(Loading(micro, seed=2), **SIZES, num_latents=5, views=views))
        return [next(batches) for _ in range(number + 1)][number]

    two = batch(2)
    assert two["global_views"].shape == (4, 2, 3, 16, 16) and "local_views" not in two
    assert torch.equal(two["global_views"][:, 0], two["pixel_values"])
    assert (two["pixel_values"] - batch(1)["pixel_values"]).abs().max() < 0.05 and "global_views" not in batch(1)
    assert not torch.equal(two["global_views"][:, 0], two["global_views"][:, 1])
    many = batch(ViewSettings(num_global=1, num_local=3, local_size=6, local_scale=(0.1, 0.2)))
    assert many["global_views"].shape == (4, 1, 3, 16, 16) and many["local_views"].shape == (4, 3, 3, 6, 6)
    halves = [batch(2, 2, number) for number in range(2)]
    assert torch.equal(two["global_views"], torch.cat([half["global_views"] for half in halves]))
    streamed = data.model_copy(update={"streaming": True}).train_loader(Loading(4), **SIZES, num_latents=5, views=2)
    assert next(iter(streamed))["global_views"].shape == (4, 2, 3, 16, 16)


@pytest.mark.skipif("NEXTEMBED_DATA" not in os.environ, reason="NEXTEMBED_DATA is not set")
def test_fashion_mnist():
    source = os.path.join(os.environ["NEXTEMBED_DATA"], "fashion_mnist")
    data = ImageData(source=source, split="train[:200]", validation="train[-5000:]")
    assert len(data.rows("validation")) == 5000 and len(data.class_names()) == 10
    batch = next(iter(data.train_loader(Loading(8), image_size=28, num_channels=1, num_latents=17)))
    assert batch["pixel_values"].shape == (8, 1, 28, 28) and batch["labels"].max() < 10
