"""Emoji images in varied styles, with their names as classes."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import nextembed.toys.kinds  # noqa: F401
from nextembed.core.config import DATA
from nextembed.core.types import Loading
from nextembed.data.labels import classes_to_learn
from nextembed.errors import ConfigError
from nextembed.toys.emoji_documents import EmojiDocuments, name_of

SIZES = {"image_size": 32, "num_channels": 3, "num_latents": 17}


def names(**settings):
    return DATA.parse({"kind": "emoji_names", "versions": 3, **settings})


def test_each_emoji_has_several_versions_with_its_name():
    part, emoji = names(), EmojiDocuments().rows("train")
    rows, called = part.rows("train"), part.class_names()
    assert len(rows) == 3 * len(emoji) and classes_to_learn(part) == called == sorted(called)
    for at in (0, 7, 500):
        versions = [rows[3 * at + i] for i in range(3)]
        assert {called[row["label"]] for row in versions} == {name_of(emoji[at])}
        assert not np.array_equal(versions[0]["image"], versions[1]["image"])
        assert np.array_equal(rows[3 * at]["image"], names().rows("train")[3 * at]["image"])
    assert rows.labels() == [rows[i]["label"] for i in range(12)] + rows.labels()[12:]
    assert len({rows[i]["key"] for i in range(30)}) == 30
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_validation_and_test_are_other_versions_of_the_same_emoji():
    part = names()
    whole = {split: part.rows(split) for split in ("train", "validation", "test")}
    assert len(whole["validation"]) == len(whole["test"]) == len(part.class_names())
    first = [whole[split][0]["image"] for split in whole]
    assert not any(np.array_equal(a, b) for a, b in pairwise(first))
    assert whole["train"][0]["label"] == whole["test"][0]["label"]


def test_without_augmentation_it_is_the_original_image():
    still = names(max_shift=0, max_scale=0, restyle_rate=0, versions=1)
    plain = EmojiDocuments()
    picture = plain.picture(plain.rows("train")[5], None)["value"]
    assert torch.equal(torch.from_numpy(still.rows("train")[5]["image"]).permute(2, 0, 1), picture)


def test_batches_and_a_source_without_the_columns_of_the_sample(tmp_path):
    batch = next(iter(names().train_loader(Loading(4), **SIZES)))
    assert batch["pixel_values"].shape == (4, 3, 32, 32) and len(batch["labels"]) == 4
    (tmp_path / "train.csv").write_text("image,name\na.png,cat\n")
    with pytest.raises(ConfigError, match="no column 'tags'"):
        names(source=str(tmp_path)).rows("train")
