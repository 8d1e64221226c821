"""`nepa_images` chooses its settings from the contents of the folder and the given minutes."""

from pathlib import Path

import pytest
from PIL import Image

from nextembed.cli.train import asked_of
from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError
from nextembed.recipes import load
from nextembed.recipes.sizing import Found, choose, look

CORE, GPU = 2e10, 4e13


@pytest.mark.parametrize(
    ("found", "flops", "minutes", "image_size", "batch_size"),
    [
        (Found(1641, 32, True), CORE, 30.0, 32, 128),  # not larger than the images
        (Found(1641, 600, False), CORE, 0.5, 32, 128),  # no time for larger images
        (Found(100_000, 600, False), GPU, 600.0, 224, 128),
        (Found(40, 600, True), CORE, 30.0, 64, 16),  # a batch contains at most half of the data
        (Found(3, 3000, False), CORE, 30.0, 64, 8),
    ],
)
def test_sizes(found: Found, flops: float, minutes: float, image_size: int, batch_size: int) -> None:
    chosen = choose(found, flops, minutes)
    assert (chosen.image_size, chosen.batch_size) == (image_size, batch_size)
    assert chosen.image_size % chosen.patch_size == 0 and chosen.width % 64 == 0 and chosen.steps >= 20


def test_more_minutes_give_more_steps_or_more_pixels() -> None:
    many = [choose(Found(5000, 400, True), CORE, minutes) for minutes in (1, 3, 10, 30, 100, 300)]
    pixels = [chosen.image_size for chosen in many]
    assert pixels == sorted(pixels) and pixels[0] < pixels[-1]
    same = [choose(Found(5000, 32, True), CORE, minutes).steps for minutes in (1, 3, 10)]
    assert same == sorted(set(same))


def test_a_small_folder_ends_early() -> None:
    chosen = choose(Found(50, 32, True), CORE, 1e5)
    assert chosen.steps * chosen.batch_size <= 800 * 50


def test_settings_depend_on_the_folder(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (90, 70), (i, 9, 9)).save(tmp_path / name / f"{i}.png")
    assert look(ImageData(source=str(tmp_path))) == Found(6, 70, True)
    config = load("nepa_images", data=str(tmp_path), minutes=2.0)
    assert config.data.source == str(tmp_path) and config.train.batch_size == 8
    assert load("nepa_demo", data="elsewhere", minutes=2.0) == load("nepa_demo")


def test_arguments_passed_by_the_command() -> None:
    assert asked_of("nepa_images", ["name=x", "data.source=photos"], 5.0) == {"data": "photos", "minutes": 5.0}
    assert asked_of("nepa_images", [], None) == asked_of("nepa_demo", ["data.source=photos"], None) == {}
    with pytest.raises(ConfigError, match="only the recipe nepa_images takes --minutes"):
        asked_of("nepa_demo", [], 5.0)
