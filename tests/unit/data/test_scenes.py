"""Emoji scenes: reproducible, with disjoint splits, masks that match the pixels, and occlusion."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextembed.core.types import Loading
from nextembed.errors import ConfigError
from nextembed.toys.scenes import EmojiScenes

LARGE = Path(__file__).parents[4] / "shared" / "data"  # a larger set, if available


def scenes(**settings) -> EmojiScenes:
    return EmojiScenes(**{"scene_size": 48, "num_scenes": 30, "num_validation": 20, "num_test": 20, **settings})


def test_a_scene_depends_only_on_seed_split_and_number():
    first, second = scenes().rows("train"), scenes(num_scenes=500).rows("train")
    for index in (0, 7, 29):
        assert np.array_equal(first[index]["image"], second[index]["image"])
        assert np.array_equal(first[index]["mask"], second[index]["mask"])
    assert first[7]["key"] == "train scene 7"
    assert not np.array_equal(first[7]["image"], scenes(scene_seed=1).rows("train")[7]["image"])
    assert not np.array_equal(first[7]["image"], scenes().rows("test")[7]["image"])
    with pytest.raises(IndexError):
        first[30]


def test_scene_0_is_unchanged_since_the_first_version():
    """Keeps results of benchmarks comparable."""
    mask = scenes().rows("train")[0]["mask"]
    assert hashlib.sha256(mask.tobytes()).hexdigest()[:16] == "63206ec8695666cd"


def test_masks_contain_groups_and_background():
    part = scenes(num_scenes=60)
    names = part.class_names()
    assert names[0] == "background" and len(names) == 10 and "flags" in names
    rows = part.rows("train")
    masks = np.stack([rows[i]["mask"] for i in range(60)])
    assert masks.dtype == np.uint8 and set(np.unique(masks)) == set(range(10))
    assert 0.4 < (masks == 0).mean() < 0.95


def test_on_a_plain_background_the_mask_covers_differing_pixels():
    rows, outside, inside = scenes().rows("train"), [], []
    for index in range(30):
        image, mask = rows[index]["image"].astype(int), rows[index]["mask"]
        if not (mask == 0).any():
            continue
        values, counts = np.unique(image[mask == 0].reshape(-1, 3), axis=0, return_counts=True)
        plain = values[counts.argmax()]
        differs = np.abs(image - plain).sum(-1) > 24
        outside.append(differs[mask == 0].mean())
        inside.append(differs[mask > 0].mean() if (mask > 0).any() else 1.0)
    assert np.mean(outside) < 0.08  # anti-aliased edges
    assert np.mean(inside) > 0.9  # parts of an emoji may have the colour of the background


def test_the_mask_shows_the_top_emoji():
    """If all emoji are in one place, the mask shows the last one where it is opaque."""
    part = scenes(max_emoji=5, emoji_scale=(1.9, 1.9), max_turn=0)
    rows = part.rows("train")
    both = sum(len(np.unique(rows[i]["mask"])) > 2 for i in range(30))
    assert both > 3  # emoji below show through holes and beyond the edges of the top one
    for i in range(30):
        assert rows[i]["mask"].max() <= 9


def test_no_emoji_is_in_two_splits():
    emoji = {role: scenes().rows(role).emoji for role in ("train", "validation", "test")}
    pictures = {role: {row["image"] for row in (rows[i] for i in range(len(rows)))} for role, rows in emoji.items()}
    assert not pictures["train"] & pictures["validation"] and not pictures["train"] & pictures["test"]
    assert not pictures["validation"] & pictures["test"]


@pytest.fixture
def photographs(tmp_path):
    for i in range(40):
        Image.effect_noise((60, 40), 60).convert("RGB").save(tmp_path / f"{i:02d}.png")
    return tmp_path


def test_backgrounds_without_splits_are_divided(photographs):
    part = scenes(backgrounds=str(photographs))
    numbers = [set(part.backdrops(role)[1]) for role in ("train", "validation", "test")]
    assert all(numbers) and set.union(*numbers) == set(range(40)) and sum(map(len, numbers)) == 40
    assert len(numbers[0]) > 20
    images = [part.rows("train")[i]["image"] for i in range(4)]
    assert np.mean([image.std() for image in images]) > 10
    with pytest.raises(ConfigError, match="no such file or folder"):
        scenes(backgrounds=str(photographs / "nothing")).rows("train")


def test_backgrounds_with_splits_keep_them(tmp_path):
    for split, num in (("train", 4), ("validation", 12)):
        (tmp_path / split).mkdir()
        for i in range(num):
            Image.new("RGB", (50, 50), (i, 0, 0)).save(tmp_path / split / f"{i}.png")
    part = scenes(backgrounds=str(tmp_path))
    assert part.backdrops("train")[1] == [0, 1, 2, 3]
    validation, test = (set(part.backdrops(role)[1]) for role in ("validation", "test"))
    assert validation and test and not validation & test and validation | test == set(range(12))


def test_an_unreadable_background_is_replaced(photographs):
    (photographs / "00.png").write_bytes(b"text")
    rows = scenes(backgrounds=str(photographs)).rows("train")
    assert all(rows[i]["image"].shape == (48, 48, 3) for i in range(30))


def test_scenes_train_and_evaluate():
    part = scenes()
    loader = part.train_loader(Loading(4), image_size=48, num_channels=3, num_latents=2)
    batch = next(iter(loader))
    assert batch["pixel_values"].shape == (4, 3, 48, 48) and batch["labels"].shape == (4, 48, 48)
    samples = part.eval_samples("validation", image_size=48, num_channels=3)
    rows = part.rows("validation")
    assert torch.equal(samples[3]["label"], torch.from_numpy(rows[3]["mask"]).long())
    pixels = torch.from_numpy(rows[3]["image"].copy()).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(samples[3]["pixel_values"], pixels, atol=1e-5, rtol=0)


@pytest.mark.skipif(not (LARGE / "emoji").is_dir(), reason="the larger sets are not available")
def test_the_larger_sets():
    part = scenes(emoji=str(LARGE / "emoji"), backgrounds=str(LARGE / "stamps"))
    assert part.class_names() == scenes().class_names()
    numbers = [set(part.backdrops(role)[1]) for role in ("validation", "test")]
    assert all(numbers) and not numbers[0] & numbers[1]
    assert part.rows("test")[0]["image"].shape == (48, 48, 3)
