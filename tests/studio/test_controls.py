"""Controls of the panels in a browser: heads, zoom, outliers, guidance, seed, drawing, video input and output."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nextembed

from .conftest import Watched, expect, served


def images_of(page, selector: str) -> list[str]:
    return page.locator(selector).evaluate_all("all => all.map(one => one.src)")


def test_attention_of_one_head_differs_from_that_of_all(watch) -> None:
    seen = watch("Explore")
    page = seen.page
    seen.choose("Model", "nepa")
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_text("all heads;").first.wait_for()
    seen.ended()  # else its head may still replace the one that is entered
    before = images_of(page, ".large img")
    page.get_by_label("number input for Head").fill("1")
    page.get_by_text("head 1;").first.wait_for()
    after = images_of(page, ".large img")
    assert len(before) == len(after) and before != after


def test_the_map_zooms_and_lists_outliers(watch) -> None:
    seen = watch("Map and search")
    page = seen.page
    page.get_by_role("button", name="Show the map").click()
    page.locator(".nx-map .point").first.wait_for()
    seen.ended()
    width = """() => {
        const range = document.querySelector(".nx-map .js-plotly-plot")?._fullLayout?.xaxis.range;
        return range ? range[1] - range[0] : Infinity;
    }"""
    before = page.evaluate(width)
    box = page.locator(".nx-map .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -300)
    page.wait_for_function(f"before => ({width})() < 0.95 * before", arg=before)
    page.get_by_role("button", name="Outliers").click()
    page.get_by_text("Outliers, by mean cosine").wait_for()
    expect(page.locator(".tiles img").first).to_have_attribute("alt", re.compile(r"\.png$"))


def pixels_at(page, address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.request.get(address).body())).convert("RGB"))


def painted(seen: Watched, seed: int, guidance: float) -> str:
    """The source of the generated image, after the work on it has ended."""
    page = seen.page
    old = page.locator(".nx-painted img").first
    before = old.get_attribute("src") if old.count() else None
    page.get_by_label("Seed", exact=True).locator("visible=true").fill(str(seed))
    page.get_by_label("number input for Guidance").locator("visible=true").fill(str(guidance))
    page.get_by_label("number input for Guidance").locator("visible=true").blur()
    page.get_by_role("button", name="Paint", exact=True).click()
    page.wait_for_function(
        "before => { const one = document.querySelector('.nx-painted img'); return one && one.src !== before; }",
        arg=before,
    )
    seen.ended()
    return page.locator(".nx-painted img").first.get_attribute("src")


def test_seed_and_guidance_change_the_generated_image(watch) -> None:
    seen = watch("Talk and paint")
    seen.choose("Model", "emu_painter")
    page = seen.page
    page.get_by_role("tab", name="Paint", exact=True).click()
    page.get_by_label("number input for Denoising steps").fill("3")
    page.get_by_label("Image prompt").fill("a red apple")
    images = {how: pixels_at(page, painted(seen, *how)) for how in ((1, 3.0), (2, 3.0), (1, 9.0))}
    first, other, guided = images.values()
    assert not np.array_equal(first, other) and not np.array_equal(first, guided)


def test_a_drawing_is_used_as_input(watch) -> None:
    seen = watch("Any to any")
    page = seen.page
    seen.choose("Model", "omni_emoji")
    seen.choose("Output", "image")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("enter text, draw, record or upload").first.wait_for()
    page.get_by_role("button", name="Drawing").click()
    page.get_by_role("button", name="Brush").first.click()
    canvas = page.locator("canvas").locator("visible=true").first
    canvas.wait_for()
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 50, middle[1] + 30, steps=6)
    page.mouse.up()
    expect(page.get_by_role("button", name="Undo", exact=True)).to_be_enabled()  # there is a line
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("uncertainty").first.wait_for()


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Omni for text and video, and a video of six frames."""
    folder = tmp_path_factory.mktemp("films")
    torch.manual_seed(0)
    parts = nextembed.OmniParts(
        modalities={"text": {}, "video": {"image_size": 16, "patch_size": 8, "tube_size": 2, "num_frames": 4}},
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, max_length=128,
    )  # fmt: skip
    parts.build().save_pretrained(folder / "moving")
    parts.processor().save_pretrained(folder / "moving")
    frames = [Image.new("RGB", (20, 20), (40 * i, 0, 200)) for i in range(6)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:], duration=100)
    return folder


def test_video_input_and_output(watch, films: Path) -> None:
    with served([films]) as address:
        seen = watch("Any to any", address=address)
        page = seen.page
        seen.choose("Model", "moving")
        seen.upload("Images, sounds, videos, series (.csv)", films / "film.gif")
        seen.choose("Output", "video")
        page.get_by_role("button", name="Generate", exact=True).click()
        page.get_by_text("Video, sample 1").locator("visible=true").wait_for()
        page.wait_for_function("[...document.querySelectorAll('img')].some(one => one.src.includes('.gif'))")
        page.context.close()
