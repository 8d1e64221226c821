"""Explore, Map, Compare, Talk and Any to any in a browser with tiny models."""

from pathlib import Path

import pytest
from PIL import Image

from nextembed.studio import snippets


def choose(page, name: str) -> None:
    page.get_by_label("Model", exact=True).locator("visible=true").click()
    page.get_by_role("option", name=name, exact=True).locator("visible=true").click()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Valid and invalid uploads by name."""
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")  # few bytes, but too many pixels
    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    return {path.stem: str(path) for path in tmp_path.iterdir()}


def test_explore_an_image_patch_by_patch(watch, files: dict[str, str]) -> None:
    page = watch("Explore").page
    choose(page, "nepa")
    page.get_by_role("button", name="Load", exact=True).click()
    patches = page.locator(".patches button")
    patches.first.wait_for()
    page.get_by_text("attention").first.wait_for()
    patches.nth(1).click()
    page.get_by_text("Patch 1 of").wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("Patch 0 of").wait_for()
    layer, before = page.get_by_label("number input for Layer"), page.locator(".large img").nth(3).get_attribute("src")
    layer.fill("2")
    page.get_by_text("of features, layer 2").wait_for()
    assert page.locator(".large img").nth(3).get_attribute("src") != before
    page.get_by_role("button", name="Rollout").click()
    for number in ("5", "2"):
        page.get_by_label("number input for Given patches").fill(number)
        page.get_by_label("number input for Given patches").press("Enter")
        page.get_by_label("number input for Given patches").blur()
        page.get_by_text(f"{number} of 9 patches are given").wait_for()
    page.get_by_role("button", name="Nearest patches").click()
    page.get_by_role("button", name="Find", exact=True).click()
    page.get_by_text("Nearest among").wait_for()
    page.locator("input[type=file]").locator("visible=true").or_(
        page.locator("input[type=file]")
    ).first.set_input_files(files["good"])
    page.wait_for_timeout(500)
    page.get_by_text("surprise").first.wait_for()


@pytest.mark.parametrize(
    ("name", "words"), [("broken", "cannot be read"), ("bomb", "cannot be read"), ("page", "Invalid file type")]
)
def test_a_bad_upload_is_a_one_line_error(watch, files: dict[str, str], name: str, words: str) -> None:
    page = watch("Explore").page
    choose(page, "nepa")
    page.locator("input[type=file]").first.set_input_files(files[name])
    page.get_by_text(words).first.wait_for()


def test_explore_of_an_omni_notes_what_is_missing(watch, files: dict[str, str]) -> None:
    page = watch("Explore").page
    choose(page, "omni_emoji")
    page.locator("input[type=file]").first.set_input_files(files["good"])
    page.get_by_text("For an Omni, attention maps").wait_for()
    choose(page, "emu_emoji")
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_text("not a model of next-embedding prediction").first.wait_for()


def test_map_choose_search_and_save(watch, files: dict[str, str]) -> None:
    page = watch("Map and search").page
    page.get_by_role("button", name="Show the map").click()
    page.locator(".nx-map .point").first.wait_for()
    assert page.locator(".nx-map .point").count() == 13
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
    assert {"00.png", "same.png"} <= set(page.locator(".tiles img").evaluate_all("all => all.map(one => one.alt)"))
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
    assert rows.all_text_contents() == ["nepa", "mae"]
    title.click()
    assert rows.all_text_contents() == ["mae", "nepa"]
    page.locator(".nx-plot .trace").locator("visible=true").first.wait_for()


def test_talk_with_an_image_and_see_the_prompt(watch, files: dict[str, str]) -> None:
    page = watch("Talk and paint").page
    choose(page, "emu_emoji")
    page.locator("input[type=file]").first.set_input_files(files["good"])
    page.locator(".thumbnail-item img").first.wait_for()  # the upload has arrived
    page.get_by_placeholder("Write a question").fill("What is this?")
    page.keyboard.press("Enter")
    page.locator(".bot.message, [data-testid=bot]").first.wait_for()
    page.get_by_role("button", name="The prompt as the model sees it").click()
    seen = page.locator("textarea").filter(visible=True).last
    page.wait_for_function("[...document.querySelectorAll('textarea')].some(one => one.value.includes('positions'))")
    assert seen.count() == 1
    page.get_by_role("tab", name="Paint", exact=True).click()
    page.get_by_label("Image prompt").fill("a red apple")
    page.get_by_role("button", name="Paint", exact=True).click()
    page.get_by_text("cannot generate images").first.wait_for()


def test_any_to_any(watch) -> None:
    page = watch("Any to any").page
    choose(page, "omni_emoji")
    page.get_by_label("Text", exact=True).fill("a red apple:")
    page.get_by_label("Output", exact=True).click()
    page.get_by_role("option", name="image", exact=True).locator("visible=true").click()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("uncertainty").wait_for()
    page.get_by_label("Candidates").fill("fire.\nred apple.")
    page.get_by_role("button", name="Score", exact=True).click()
    page.get_by_text("Probability among these").wait_for()
    assert page.locator(".bars .bar").count() == 2
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
