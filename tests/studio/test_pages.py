"""All panels: the copied Python code runs, they fit a phone, and a run is trained by another process meanwhile."""

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import served, until

PANELS = {
    "Runs": ("", "nepa"),
    "Explore": ("Model", "nepa"),
    "Map and search": ("Features", "features.parquet"),
    "Compare": ("Comparison", "compare-x"),
    "Talk and paint": ("Model", "emu_emoji"),
    "Any to any": ("Model", "omni_emoji"),
}

LAST = {
    "Runs": "figure .trace",
    "Explore": "text=Nearest patches in the run's data",
    "Map and search": "text=Drag over the map",
    "Compare": "text=makes a comparison",
    "Talk and paint": "text=The prompt as the model sees it",
    "Any to any": "text=Candidates, one per line",
}  # what each panel ends with

PAST = """() => [...document.querySelectorAll('button, input, textarea, select')].filter(one => {
    const box = one.getBoundingClientRect();
    const inner = one.closest('.nx, .modebar, .visually-hidden, .overflow-dropdown');
    return one.checkVisibility() && box.width > 1 && !inner && (box.right > 391 || box.left < -1);
}).map(one => one.outerHTML.slice(0, 120))"""  # elements that a user could not reach


@pytest.mark.parametrize("panel", PANELS)
def test_the_copied_python_code_runs(
    watch, runs: Path, panel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(permissions=["clipboard-read", "clipboard-write"])
    page = seen.page
    label, name = PANELS[panel]
    if panel == "Runs":
        page.get_by_role("button", name="emu_painter", exact=True).click()
        page.get_by_role("button", name=name, exact=True).click()
    else:
        seen.tab(panel)
        seen.choose(label, name)
    seen.python(str(runs / name))
    page.evaluate("navigator.clipboard.writeText('')")  # what another test copied
    page.get_by_role("button", name="Copy", exact=False).locator("visible=true").last.click()
    page.wait_for_function("navigator.clipboard.readText()")  # is not empty
    text = page.evaluate("navigator.clipboard.readText()")
    assert str(runs / name) in text
    assert "import nextembed" in text or "from nextembed" in text
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(text, panel, "exec"), names)  # with the selected paths
    assert {"curve", "inside", "near", "found", "answer", "scores"} & names.keys()


@pytest.mark.parametrize("dark", [False, True])
def test_every_panel_fits_a_phone(watch, dark: bool) -> None:
    seen = watch(viewport={"width": 390, "height": 844}, color_scheme="dark" if dark else "light")
    for panel in PANELS:
        seen.tab(panel)
        seen.page.locator(LAST[panel]).locator("visible=true").first.wait_for()
        seen.page.wait_for_function(f"document.documentElement.scrollWidth <= 390 && !({PAST})().length")


def test_a_run_trained_by_a_real_process(watch, tmp_path: Path) -> None:
    train = [sys.executable, "-c", "from nextembed_cli import main; main()", "train", "nepa_demo_tiny", "name=live",
             f"output_dir={tmp_path}", "train.max_steps=60", "train.log_steps=1", "probe.enabled=false"]  # fmt: skip
    (tmp_path / "empty").mkdir()
    with served([tmp_path]) as address:
        page = watch(address=address).page
        page.get_by_text("No runs here yet").wait_for()
        with subprocess.Popen(train, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            until((tmp_path / "live" / "metrics.jsonl").is_file, 300)  # the process first imports
            page.get_by_role("button", name="live", exact=True).click()
            page.locator("figure h3", has_text="Loss").wait_for()
            assert running.wait(300) == 0
        page.locator(".state.finished").first.wait_for()
        page.get_by_text("60 of 60").first.wait_for()
        page.context.close()
