"""Explore, Map, Compare, Talk and Any to any in a browser with tiny models."""

import re
from pathlib import Path

import pytest
from PIL import Image

from nextembed.studio import snippets
from nextembed.studio.working import MODEL

from .conftest import Watched, expect


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Valid and invalid uploads by name."""
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")  # few bytes, but too many pixels
    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    return {path.stem: str(path) for path in tmp_path.iterdir()}


def test_explore_an_image_patch_by_patch(watch, files: dict[str, str]) -> None:
    page = loaded(watch).page
    page.get_by_text("attention").first.wait_for()
    page.locator(".patches button").nth(1).click()
    page.get_by_text("Patch 1 of").wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("Patch 0 of").wait_for()
    alike = page.locator(".large img").nth(3)
    before = alike.get_attribute("src")
    page.get_by_label("number input for Layer").fill("2")
    page.get_by_text("of features, layer 2").wait_for()
    expect(alike).not_to_have_attribute("src", before)
    page.get_by_role("button", name="Rollout").click()
    for number in ("5", "2"):
        give(page, number)
        page.get_by_text(f"{number} of 9 patches are given").wait_for()
    page.get_by_role("button", name="Nearest patches").click()
    page.get_by_role("button", name="Find", exact=True).click()
    page.get_by_text("Nearest among").wait_for()
    image = page.locator(".patches img")
    before = image.get_attribute("src")
    page.locator("input[type=file]").locator("visible=true").or_(
        page.locator("input[type=file]")
    ).first.set_input_files(files["good"])
    expect(image).not_to_have_attribute("src", before)
    page.get_by_text("surprise").first.wait_for()


def loaded(watch) -> Watched:
    """The panel of Explore with an image of the run's data."""
    seen = watch("Explore")
    seen.choose("Model", "nepa")
    seen.page.get_by_role("button", name="Load", exact=True).click()
    seen.page.locator(".patches button").first.wait_for()
    seen.ended()
    return seen


def give(page, number: str) -> None:
    """Enters the number of patches that the rollout starts from."""
    box = page.get_by_label("number input for Given patches")
    box.fill(number)
    box.press("Enter")
    box.blur()


def test_the_last_of_several_quick_choices_is_shown(watch) -> None:
    page = loaded(watch).page
    page.locator(".patches button").first.click()
    page.get_by_text("Patch 0 of").wait_for()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.get_by_text("Patch 4 of").wait_for()
    page.get_by_role("button", name="Rollout").click()
    with MODEL:  # so that the first number is still worked on when the second one comes
        give(page, "5")
        give(page, "2")
    page.get_by_text("2 of 9 patches are given").wait_for()


@pytest.mark.parametrize(
    ("name", "words"), [("broken", "cannot be read"), ("bomb", "cannot be read"), ("page", "Invalid file type")]
)
def test_a_bad_upload_is_a_one_line_error(watch, files: dict[str, str], name: str, words: str) -> None:
    seen = watch("Explore")
    seen.choose("Model", "nepa")
    page = seen.page
    page.locator("input[type=file]").first.set_input_files(files[name])
    page.get_by_text(words).first.wait_for()


def test_explore_of_an_omni_notes_what_is_missing(watch, files: dict[str, str]) -> None:
    seen = watch("Explore")
    seen.choose("Model", "omni_emoji")
    page = seen.page
    page.locator("input[type=file]").first.set_input_files(files["good"])
    page.get_by_text("For an Omni, attention maps").wait_for()
    seen.choose("Model", "emu_emoji")
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_text("not a model of next-embedding prediction").first.wait_for()


def test_map_choose_search_and_save(watch, files: dict[str, str]) -> None:
    seen = watch("Map and search")
    page = seen.page
    page.get_by_role("button", name="Show the map").click()
    expect(page.locator(".nx-map .point")).to_have_count(13)
    seen.ended()
    box = page.locator(".nx-map .nsewdrag").bounding_box()
    corners = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99), (0.01, 0.02)]
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()
    page.get_by_text("images selected").wait_for()
    page.locator(".tiles img").first.wait_for()
    page.get_by_role("button", name="Near-duplicates").click()
    page.get_by_text("Pairs above").wait_for()
    for name in ("00.png", "same.png"):
        page.locator(f".tiles img[alt='{name}']").first.wait_for()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export this list as CSV").click()
    assert Path(saved.value.path()).read_text().startswith("row,key,path,label,label_name\n")
    page.locator("input[type=file]").first.set_input_files(files["good"])
    page.get_by_text("Nearest to the uploaded image").wait_for()
    page.locator(".tiles button").first.click()
    page.get_by_text("Nearest to 1").or_(page.get_by_text("Nearest to 0")).first.wait_for()
    page.get_by_label("Search by text").fill("red")
    page.get_by_label("Search by text").press("Enter")
    page.get_by_text("does not read text").first.wait_for()


def test_compare_sorts(watch) -> None:
    page = watch("Compare").page
    page.get_by_role("button", name="Show", exact=True).click()
    title = page.locator("table.runs-like th button", has_text="linear")
    title.click()
    rows = page.locator("table.runs-like tbody tr td:first-child")
    expect(rows).to_have_text(["nepa", "mae"])
    title.click()
    expect(rows).to_have_text(["mae", "nepa"])
    page.locator(".nx-plot .trace").locator("visible=true").first.wait_for()


def test_talk_with_an_image_and_see_the_prompt(watch, files: dict[str, str]) -> None:
    shown = watch("Talk and paint")
    shown.choose("Model", "emu_emoji")
    page = shown.page
    page.locator("input[type=file]").first.set_input_files(files["good"])
    page.locator(".thumbnail-item img").first.wait_for()  # the upload has arrived
    page.get_by_placeholder("Write a question").fill("What is this?")
    page.keyboard.press("Enter")
    page.locator(".bot.message, [data-testid=bot]").first.wait_for()
    page.get_by_role("button", name="The prompt as the model sees it").click()
    expect(page.locator("textarea").filter(visible=True).last).to_have_value(re.compile("positions"))
    shown.ended()
    page.get_by_role("tab", name="Paint", exact=True).click()
    page.get_by_label("Image prompt").fill("a red apple")
    page.get_by_role("button", name="Paint", exact=True).click()
    page.get_by_text("cannot generate images").first.wait_for()


def test_any_to_any(watch) -> None:
    seen = watch("Any to any")
    seen.choose("Model", "omni_emoji")
    page = seen.page
    page.get_by_label("Text", exact=True).fill("a red apple:")
    seen.choose("Output", "image")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("uncertainty").wait_for()
    page.get_by_label("Candidates").fill("fire.\nred apple.")
    page.get_by_role("button", name="Score", exact=True).click()
    page.get_by_text("Probability among these").wait_for()
    expect(page.locator(".bars .bar")).to_have_count(2)
    page.get_by_role("button", name="Unload models").click()
    page.get_by_text("Unloaded").first.wait_for()


@pytest.mark.parametrize(
    ("snippet", "place"),
    [
        (snippets.explore_python, "nepa"),
        (snippets.map_python, "features.parquet"),
        (snippets.compare_python, "compare-x"),
        (snippets.talk_python, "emu_emoji"),
        (snippets.omni_python, "omni_emoji"),
    ],
)
def test_the_python_of_each_panel_runs(runs: Path, snippet, place: str, capsys: pytest.CaptureFixture) -> None:
    names: dict[str, object] = {}
    exec(compile(snippet(str(runs / place)), place, "exec"), names)
    assert {"inside", "near", "found", "answer", "scores"} & names.keys()
