"""A small real model in every checkpoint format, and folders of images."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from nextembed.models.nepa.configuration_nepa import ViTNepaConfig
from nextembed.models.nepa.modeling_nepa import ViTNepaForImageClassification, ViTNepaForPreTraining

SIZES = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)


@pytest.fixture(autouse=True)
def hf_cache(tmp_path, monkeypatch):
    """The cache of `datasets` is in the test's own folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """run/ (model, ema, config.yaml), pretraining/, plain/, classifier/: the same weights, except run/ema."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = ViTNepaConfig(image_size=16, patch_size=8, layerscale_value=0.5, **SIZES)
    model, other = ViTNepaForPreTraining(config), ViTNepaForPreTraining(config)
    classifier = ViTNepaForImageClassification(config)
    classifier.vit_nepa.load_state_dict(model.vit_nepa.state_dict())
    model.save_pretrained(folder / "run" / "model")
    other.save_pretrained(folder / "run" / "ema")
    values = {"seed": 0, "data": {"kind": "images", "source": "emoji", "num_workers": 0}}
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(values))
    (folder / "run" / "environment.json").write_text("{}")
    model.save_pretrained(folder / "pretraining")
    model.vit_nepa.save_pretrained(folder / "plain")
    classifier.save_pretrained(folder / "classifier")
    return folder


def write_pictures(folder: Path, count: int, bad: tuple[int, ...] = (), size: int = 20) -> Path:
    """PNG files 000.png ... with smooth colours; the `bad` ones contain text."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        file = folder / f"{i:03d}.png"
        if i in bad:
            file.write_text("this is no image")
        else:
            small = np.random.default_rng(i).integers(0, 256, (3, 3, 3), dtype=np.uint8)
            Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(file)
    return folder


@pytest.fixture
def pictures():
    return write_pictures
