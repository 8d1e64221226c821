"""Masks: joint crops, reading, folders and Parquet, class lists, invalid input, the resumable stream."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from nextembed.core.types import Loading
from nextembed.data.masks import JointCrop, PairReader, classes_to_segment
from nextembed.data.segmentation import SegmentationData, read_names
from nextembed.data.stream import advance
from nextembed.data.transforms import Unreadable
from nextembed.errors import ConfigError, DataError

CLASSES = ["sky", "tree", "road"]


def pair(seed: int, height: int = 24, width: int = 32) -> tuple[Image.Image, np.ndarray]:
    """An image whose red channel encodes the class of every pixel: 80 x class."""
    rng = np.random.default_rng(seed)
    ids = np.kron(rng.integers(0, 3, (height // 8, width // 8)), np.ones((8, 8), int)).astype(np.uint8)
    pixels = np.stack((ids * 80, rng.integers(0, 256, ids.shape), rng.integers(0, 256, ids.shape)), axis=2)
    return Image.fromarray(pixels.astype(np.uint8)), ids


def folder(
    root: Path, num: int = 12, split: str = "", bad: dict[int, Image.Image | bytes | None] | None = None
) -> Path:
    """images/ and masks/ with `num` pairs; `bad` maps a number to another mask, or None for no mask."""
    images, masks = root / "images" / split, root / "masks" / split
    images.mkdir(parents=True), masks.mkdir(parents=True)
    for i in range(num):
        image, ids = pair(i)
        image.save(images / f"{i:02d}.png")
        mask = (bad or {}).get(i, Image.fromarray(ids))
        if isinstance(mask, bytes):
            (masks / f"{i:02d}.png").write_bytes(mask)
        elif mask is not None:
            mask.save(masks / f"{i:02d}.png")
    return root


def data(source: Path, **settings) -> SegmentationData:
    return SegmentationData(source=str(source), **{"classes": CLASSES, "num_workers": 0, **settings})


def loader(part, size=16, micro=4, **settings):
    return part.train_loader(Loading(micro, **settings), image_size=size, num_channels=3, num_latents=5)


def take(part, num, **settings):
    found = []
    for batch in loader(part, **settings):
        found.append(batch)
        if len(found) == num:
            return found


# -- crops


def test_image_and_mask_stay_together():
    """For any scale, position and flip, the class in the red channel equals the mask, except at class edges."""
    crop = JointCrop(32, (0.5, 2.0), 0.5, max_class_rate=1.0, distort_colours=False)
    shares = []
    for seed in range(40):
        image, ids = pair(seed)
        pixels, labels = crop(image, ids, 1000 + seed)
        assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8
        assert labels.shape == (32, 32) and labels.dtype == torch.int64
        known = labels != 255
        told = (pixels[0].float() / 80).round().long()
        shares.append((told == labels)[known].float().mean().item())
        assert pixels[:, ~known].eq(128).all()
    assert np.mean(shares) > 0.9


def test_crop_is_a_function_of_the_seed_and_flips_half():
    crop, (image, ids) = JointCrop(16, (1.0, 1.0), 0.5, 1.0), pair(0, 24, 24)
    first, second = crop(image, ids, 7), crop(image, ids, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    state = torch.get_rng_state()
    plain = JointCrop(24, (1.0, 1.0), 0.5, 1.0, distort_colours=False)
    flipped = [torch.equal(plain(image, ids, seed)[1], torch.tensor(ids[:, ::-1].copy()).long()) for seed in range(60)]
    assert 15 < sum(flipped) < 45
    assert torch.equal(torch.get_rng_state(), state)


def test_a_crop_of_one_class_is_resampled():
    ids = np.zeros((64, 64), np.uint8)
    ids[:, 32:] = 1
    image = Image.new("RGB", (64, 64))

    def filled(rate):
        crop = JointCrop(16, (4.0, 4.0), 0.0, rate, False)
        return sum(len(crop(image, ids, seed)[1].unique()) == 1 for seed in range(80))

    assert filled(0.75) < filled(1.0) / 2


def test_colour_distortion_does_not_change_the_mask():
    image, ids = pair(3)
    plain = JointCrop(16, (1.0, 1.0), 0.5, 1.0, distort_colours=False)(image, ids, 5)
    jittered = JointCrop(16, (1.0, 1.0), 0.5, 1.0, distort_colours=True)(image, ids, 5)
    assert torch.equal(plain[1], jittered[1]) and not torch.equal(plain[0], jittered[0])


# -- reading


def reader(**settings) -> PairReader:
    return PairReader(num_classes=3, **settings)


def test_palette_and_16_bit_masks_are_ids_not_colours():
    image, ids = pair(1)
    palette = Image.fromarray(ids, mode="P")
    palette.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
    for mask in (palette, Image.fromarray(ids), Image.fromarray(ids.astype(np.uint16))):
        assert np.array_equal(reader().read_pair({"image": image, "mask": mask})[1], ids)


def test_a_jpeg_is_not_a_mask(tmp_path):
    image, ids = pair(0)
    image.save(tmp_path / "image.jpg"), Image.fromarray(ids).save(tmp_path / "mask.jpg")
    with pytest.raises(Unreadable, match="mask: it is a JPEG"):
        reader().read_pair({"image": tmp_path / "image.jpg", "mask": tmp_path / "mask.jpg"})


def test_reduce_labels_ignores_zero_and_shifts():
    image = Image.new("RGB", (4, 1))
    mask = Image.fromarray(np.array([[0, 1, 3, 255]], np.uint8))
    assert reader(reduce_labels=True).read_pair({"image": image, "mask": mask})[1].tolist() == [[255, 0, 2, 255]]
    with pytest.raises(Unreadable, match=r"mask: class 4 is out of range: 3 classes are 1\.\.3"):
        reader(reduce_labels=True).read_pair({"image": image, "mask": Image.fromarray(np.full((1, 4), 4, np.uint8))})


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (Image.new("L", (31, 24)), "its mask is 31x24 pixels, the image 32x24"),
        (Image.new("L", (32, 24), 3), r"mask: class 3 is out of range: 3 classes are 0\.\.2"),
        (Image.new("RGB", (32, 24)), "mask: it is a picture of mode RGB"),
        (b"no image", "mask: not an image file"),
        (None, "it has no mask"),
    ],
)
def test_bad_masks_are_reported(mask, words):
    with pytest.raises(Unreadable, match=words):
        reader().read_pair({"image": pair(0)[0], "mask": mask})


# -- sources


def test_folders_of_every_layout(tmp_path):
    flat = data(folder(tmp_path / "flat"))
    assert len(flat.rows("train")) == 12
    with pytest.raises(ConfigError, match="split 'validation' is not known"):
        flat.rows("validation")
    parts = data(tmp_path / "flat", split="train[:-4]", validation="train[-4:]")
    keys = {role: {row["key"] for row in parts.rows(role)} for role in ("train", "validation")}
    assert (len(keys["train"]), len(keys["validation"])) == (8, 4) and not keys["train"] & keys["validation"]
    inside = folder(folder(tmp_path / "inside", 5, "training"), 3, "val")
    assert [len(data(inside).rows(role)) for role in ("train", "validation")] == [5, 3]
    for split, num in (("train", 4), ("test", 2)):
        folder(tmp_path / "above" / split, num)
    assert [len(data(tmp_path / "above").rows(role)) for role in ("train", "test")] == [4, 2]
    row = data(tmp_path / "above").rows("test")[1]
    assert row["key"] == "test/images/01.png" and row["mask"].name == "01.png"


def test_every_image_of_a_mask_folder_is_used_or_reported(tmp_path):
    source = folder(tmp_path / "d", 4)
    (source / "images" / "00.png").rename(source / "images" / "00")  # recognised by its first bytes
    (source / "masks" / "00.png").rename(source / "masks" / "00")
    (tmp_path / "far").mkdir()
    for kind in ("images", "masks"):
        (tmp_path / "far" / kind).mkdir()
        (source / kind / "01.png").rename(tmp_path / "far" / kind / "a.b.png")
        (source / kind / "linked").symlink_to(tmp_path / "far" / kind)
    (source / "images" / "x.cr2").write_bytes(b"x")
    Image.new("L", (8, 8)).save(source / "masks" / "lone.png")
    part = data(source)
    assert [row["key"] for row in part.rows("train")] == [
        "images/00", "images/02.png", "images/03.png", "images/linked/a.b.png"
    ]  # fmt: skip
    assert all(row["mask"] is not None for row in part.rows("train"))
    found = part.summary("train")
    assert found.used == 4 and list(found.skipped) == ["images/x.cr2"] and found.notes == ("1 masks have no image",)
    with pytest.raises(DataError, match=r"1 of 5 images are unreadable.*images/x.cr2: .cr2"):
        take(part, 1)


def test_images_beside_folders_of_splits_are_an_error(tmp_path):
    source = folder(folder(folder(tmp_path / "d", 3, "train2017"), 2, "val2017"), 2, "extra")
    with pytest.raises(ConfigError, match=r"images/extra is not in a split, although.*data.folders=splits"):
        data(source).rows("train")
    assert [len(data(source, folders="splits").rows(role)) for role in ("train", "validation")] == [3, 2]
    assert len(data(source, folders="classes").rows("train")) == 7


@pytest.mark.parametrize(
    ("split", "names"), [("train[:25%]", "00 01 02"), ("train[90%:]", "11"), ("train[5:7]", "05 06")]
)
def test_a_slice_of_the_masks(tmp_path, split, names):
    rows = data(folder(tmp_path / "d"), split=split).rows("train")
    assert [row["key"] for row in rows] == [f"images/{name}.png" for name in names.split()]


def test_parquet_with_two_image_columns(tmp_path):
    records = {"annotation": [], "image": [], "scene": []}
    for i in range(6):
        image, ids = pair(i)
        records["image"].append(image)
        records["annotation"].append(Image.fromarray(ids))
        records["scene"].append("street")
    features = datasets.Features(
        {"annotation": datasets.Image(), "image": datasets.Image(), "scene": datasets.Value("string")}
    )
    (tmp_path / "pq").mkdir()
    datasets.Dataset.from_dict(records, features=features).to_parquet(tmp_path / "pq" / "train.parquet")
    part = data(tmp_path / "pq")
    samples = part.eval_samples("train", image_size=24, num_channels=3)
    for i in range(6):
        assert torch.equal(samples[i]["label"], torch.from_numpy(pair(i)[1]).long())
        assert samples[i]["pixel_values"].shape == (3, 24, 32)
    with pytest.raises(ConfigError, match=r"data.mask_column: 'anotation' is not known. Did you mean 'annotation'"):
        data(tmp_path / "pq", mask_column="anotation").rows("train")


def test_eval_samples_keep_the_masks_size_and_grey_images_work(tmp_path):
    samples = data(folder(tmp_path)).eval_samples("train", image_size=12, num_channels=1, num_samples=5)
    assert len(samples) == 5 and samples.class_names == CLASSES
    assert samples[0]["pixel_values"].shape == (1, 12, 16) and samples[0]["label"].shape == (24, 32)
    assert samples[0]["pixel_values"].min() >= -1 and samples[0]["pixel_values"].max() <= 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", json.dumps(CLASSES)),
        ("c.json", json.dumps({"1": "tree", "0": "sky", "2": "road"})),
        ("c.csv", "id,name\n0,sky\n1,tree\n2,road\n"),
        ("c.txt", "Idx\tRatio\tName\n1\t0.5\tsky\n2\t0.1\ttree\n3\t0.2\troad\n"),
        ("c.txt", "sky\ntree\nroad\n"),
    ],
)
def test_class_files(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert read_names(str(tmp_path / name)) == CLASSES


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.json", "{", "cannot read"),
        ("c.json", '{"1": "a", "2": "b"}', r"class ids are not 0\.\.1"),
        ("c.json", "[1, 2]", "neither a list of names nor"),
        ("c.csv", "id,name\n0,\n", "a class without a name"),
        ("c.txt", "", "no class at all"),
        (None, "", "cannot read .*nothing.json"),
    ],
)
def test_invalid_class_files(name, text, words, tmp_path):
    path = tmp_path / (name or "nothing.json")
    if name:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words) as err:
        read_names(str(path))
    assert "\n" not in str(err.value)


# -- invalid input


def test_errors_before_training(tmp_path):
    good = folder(tmp_path / "good")
    assert classes_to_segment(data(good)) == CLASSES
    for settings, words in (
        ({"classes": None}, "needs the names of the classes by id"),
        ({"classes": ["sky"]}, "2 to 255 classes, the class list has 1"),
        ({"classes": ["a", "b", "a"]}, "the class list has 'a' twice"),
        ({"classes": ["sky", "tree"]}, "images looked at cannot be used: images/.*: mask: class 2 is out of range"),
    ):
        with pytest.raises(ConfigError, match=words):
            classes_to_segment(data(good, **settings))
    small = folder(tmp_path / "small", 6, bad=dict.fromkeys(range(6), Image.new("L", (9, 9))))
    with pytest.raises(ConfigError, match=r"6 of 6 images looked at .*: its mask is 9x9 pixels, the image 32x24"):
        classes_to_segment(data(small))
    none = folder(tmp_path / "none", 6, bad={2: None})
    with pytest.raises(ConfigError, match=r"1 of 6 images of split 'train' have no mask: images/02.png \(there is no "):
        classes_to_segment(data(none))
    (tmp_path / "alone" / "images").mkdir(parents=True)
    pair(0)[0].save(tmp_path / "alone" / "images" / "a.png")
    with pytest.raises(ConfigError, match=r"as a folder it needs images/ and masks/"):
        data(tmp_path / "alone").rows("train")


def test_a_few_bad_masks_are_skipped_and_listed(tmp_path):
    part = data(folder(tmp_path / "d", bad={3: Image.new("L", (9, 9)), 5: b"text", 7: None}), max_skipped_rate=0.5)
    assert classes_to_segment(part) == CLASSES
    batches = take(part, 6, skipped_path=tmp_path / "skipped.jsonl")
    assert all(batch["labels"].shape == (4, 16, 16) for batch in batches)
    reasons = {row["key"]: row["reason"] for row in map(json.loads, (tmp_path / "skipped.jsonl").open())}
    assert set(reasons) == {"images/03.png", "images/05.png", "images/07.png"}
    assert reasons["images/07.png"] == "there is no masks/07.png"
    with pytest.raises(DataError, match="2 of 12 images are unreadable"):
        strict = data(folder(tmp_path / "e", bad={3: Image.new("L", (9, 9)), 5: b"text"}), max_skipped_rate=0.1)
        take(strict, 12)


def binary(folder: Path, *values: int) -> Path:
    """Masks with the first value in the left half and the last in the right half."""
    for i in range(4):
        pixels = np.full((24, 32), values[0], np.uint8)
        pixels[:, 16:] = values[-1]
        for name, image in (("images", pair(i)[0]), ("masks", Image.fromarray(pixels))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            image.save(folder / name / f"{i}.png")
    return folder


def test_masks_with_one_class_are_an_error(tmp_path):
    two = {"classes": ["background", "lesion"]}
    both = data(binary(tmp_path / "a", 0, 255), **two)
    with pytest.raises(ConfigError, match=r"50% of value 255.*'lesion', set data.mask_values=\{255: 1\}"):
        classes_to_segment(both)
    for name, values, mapped in (("a", (0, 255), {255: 1}), ("b", (0, 128), {128: 1}), ("c", (255, 0), {0: 1, 255: 0})):
        part = data(binary(tmp_path / name, *values), **two, mask_values=mapped)
        assert classes_to_segment(part) == two["classes"]
        ids = part.reader(3).read_pair(part.rows("train")[0])[1]
        assert sorted(np.unique(ids)) == [0, 1] and ids[0, 0] == mapped.get(values[0], values[0])
    with pytest.raises(ConfigError, match="all pixels of the 4 masks looked at are 'background'; none is 'lesion'"):
        classes_to_segment(data(binary(tmp_path / "d", 0, 0), **two))
    with pytest.raises(ConfigError, match="no pixel has a class, but for 100% of value 255"):
        classes_to_segment(data(binary(tmp_path / "e", 255, 255), **two))


# -- the stream


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_batches_do_not_depend_on_workers_ranks_or_micro_batches(tmp_path):
    source = folder(tmp_path)
    one = take(data(source), 4, micro=4)
    two = take(data(source, num_workers=2), 4, micro=4)
    assert all(same(a, b) for a, b in zip(one, two))
    halves = take(data(source), 8, micro=2)
    assert torch.equal(one[0]["labels"], torch.cat([halves[0]["labels"], halves[1]["labels"]]))
    ranks = [take(data(source), 2, micro=2, rank=rank, world_size=2) for rank in range(2)]
    assert torch.equal(one[1]["pixel_values"], torch.cat([ranks[0][1]["pixel_values"], ranks[1][1]["pixel_values"]]))
    assert one[0]["labels"].dtype == torch.int64 and one[0]["latent_mask"].shape == (4, 5)


def test_a_resumed_stream_continues_at_the_next_sample(tmp_path):
    source = folder(tmp_path)
    whole, state = take(data(source), 7), None
    for batch in whole[:3]:
        state = advance(state, batch["position"])
    resumed = take(data(source), 4, start=json.loads(json.dumps(state)))
    assert all(same(a, b) for a, b in zip(whole[3:], resumed))


def test_epochs_crop_the_same_image_differently(tmp_path):
    batches = take(data(folder(tmp_path, 4)), 2)
    by_class = [batch["labels"].flatten(1).float().mean(1).sort().values for batch in batches]
    assert not torch.equal(*by_class)
