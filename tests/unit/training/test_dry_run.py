"""A dry run decodes only the images of its first step, however many fit into memory."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from nextembed import recipes
from nextembed.core.config import apply_overrides
from nextembed.recipes.stage_times import stage_seconds
from nextembed.run import dry_run

NUM = 300


@pytest.fixture
def decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes a folder of images and records which are decoded."""
    rng, names = np.random.default_rng(0), []
    for number in range(NUM):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    load = ImageFile.ImageFile.load

    def counted(image: ImageFile.ImageFile) -> object:
        if isinstance(image.fp, io.BytesIO):
            names.append(str(id(image)))
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    return names


def settings(tmp_path: Path, *more: str):
    words = [f"data.source={tmp_path}/photos", f"output_dir={tmp_path}/runs", "train.device=cpu", "data.num_workers=0"]
    return apply_overrides(recipes.load("nepa_demo_tiny"), [*words, "train.batch_size=8", *more])


@pytest.mark.parametrize("cache", ["auto", "on"])
def test_only_the_first_batch_is_decoded(tmp_path, decoded, capsys, cache):
    dry_run(settings(tmp_path, f"data.cache={cache}"))
    assert f"{NUM} images for training" in capsys.readouterr().out
    assert 8 <= len(decoded) < 60
    assert not (tmp_path / "runs").exists()


def test_measuring_a_stage_decodes_only_its_batches(tmp_path, decoded):
    seconds = next(iter(stage_seconds([settings(tmp_path, "data.cache=on")])))
    assert seconds is not None and 8 <= len(decoded) < 60
