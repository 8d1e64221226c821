"""The panel of runs, in a browser."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nextembed.core.files import acquire
from nextembed.report import view
from nextembed.studio.folders import Folders
from nextembed.studio.panels import runs as panel
from nextembed.studio.reading import Reader
from nextembed.studio.snippets import runs_python

from .conftest import Watched, expect, served

ALL = ["emu_emoji", "emu_painter", "faster", "mar_demo", "nepa", "omni_emoji", "omni_series", "omni_stamps"]


def test_runs_curves_and_differences(watch) -> None:
    page = watch().page
    expect(page.locator("table.runs tbody tr")).to_have_count(8)
    page.locator(".state.finished").nth(1).wait_for()
    page.locator(".nx-plot .scatterlayer .trace").first.wait_for()
    expect(page.locator("figure h3").first).to_have_text("Loss")
    page.get_by_role("button", name="emu_painter", exact=True).click()  # was selected as the newest
    page.get_by_text("Choose runs above to see").wait_for()
    page.get_by_role("button", name="faster", exact=True).click()
    page.get_by_role("button", name="nepa", exact=True).click()
    page.get_by_text("What differs").wait_for()
    expect(page.locator("table.differs")).to_contain_text("optim.learning_rate")
    expect(page.locator("figure").first.locator(".nx-chip")).to_have_count(2)  # one curve per run
    expect(page.locator("figure").first.locator(".scatterlayer .trace")).to_have_count(2)
    page.get_by_role("tab", name="Probes").click()
    page.locator("td.cell.best").first.wait_for()
    page.get_by_role("tab", name="Log and data").click()
    page.get_by_role("heading", name="Log").first.wait_for()


def test_the_report_is_served_and_framed(watch) -> None:
    page = watch().page
    page.get_by_role("tab", name="Report").click()
    frame = page.frame_locator("iframe")
    frame.get_by_text("Written by").wait_for()


def test_samples_of_a_run_that_generates_and_of_one_that_does_not(watch) -> None:
    seen = watch()
    page = seen.page
    seen.select("mar_demo")
    page.get_by_role("tab", name="Samples").click()
    page.get_by_role("button", name="Generate images").click()
    page.get_by_text("16 of 16 images from mar_demo").wait_for()
    page.locator(".image-container img").locator("visible=true").wait_for()
    seen.ended()
    seen.select("nepa")
    page.get_by_role("button", name="Generate images").click()
    page.get_by_text("does not generate images").wait_for()


def test_rows_sort_by_keyboard(watch) -> None:
    page = watch().page
    head = page.locator("table.runs th button").first
    head.wait_for()
    head.focus()
    page.keyboard.press("Enter")
    expect(page.locator("table.runs tbody .name")).to_have_text(sorted(ALL))
    page.keyboard.press("Enter")
    expect(page.locator("table.runs tbody .name")).to_have_text(sorted(ALL)[::-1])
    row = page.get_by_role("button", name="nepa", exact=True)
    expect(row).to_have_attribute("aria-pressed", "false")
    row.focus()
    page.keyboard.press("Space")
    expect(row).to_have_attribute("aria-pressed", "true")


def a_run(folder: Path) -> Path:
    """A run of 100 steps that has not logged anything yet."""
    run = folder / "live"
    run.mkdir()
    (run / "config.yaml").write_text("name: live\nobjective: {kind: next_embedding}\ntrain: {max_steps: 100}\n")
    return run


def log(run: Path, step: int) -> None:
    line = {"step": step, "samples_seen": 8 * step, "loss": 1 / step, "images_per_second": 16.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def test_a_run_written_by_another_process(watch, tmp_path: Path) -> None:
    run = a_run(tmp_path)
    lock = acquire(run / ".lock", "busy")
    log(run, 1)
    with served([tmp_path]) as address:
        page = watch(address=address).page
        page.get_by_text("1 of 100").first.wait_for()
        page.locator(".state.running").first.wait_for()
        page.locator("table.runs th button").first.focus()
        for step in (2, 3, 4):
            log(run, step)
        page.get_by_text("4 of 100").first.wait_for()  # refreshed automatically
        page.keyboard.press("Enter")  # the focus survives the refresh of the table
        page.locator("table.runs th[aria-sort=ascending]").wait_for()
        page.get_by_text("about 4").first.wait_for()
        page.wait_for_function("document.querySelector('.nx-plot')?.data?.[0]?.x.length === 4")
        lock.close()
        page.locator(".state.failed").first.wait_for()
        expect(page.locator("td.why").first).to_contain_text("nothing was saved")
        page.locator("figure").first.wait_for()
        page.context.close()


def test_a_click_counts_although_the_table_changes_meanwhile(watch, tmp_path: Path) -> None:
    run = a_run(tmp_path)
    log(run, 1)
    with served([tmp_path]) as address:
        page = watch(address=address).page
        row = page.get_by_role("button", name="live", exact=True)
        row.hover()
        page.mouse.down()
        later(page, run, 2)
        page.mouse.up()
        expect(row).to_have_attribute("aria-pressed", "false")
        row.focus()
        page.keyboard.down("Space")
        later(page, run, 3)
        page.keyboard.up("Space")
        expect(row).to_have_attribute("aria-pressed", "true")
        page.context.close()


def later(page, run: Path, step: int) -> None:
    """A step is logged and read, but nothing that is pressed may be replaced by what is drawn then."""
    log(run, step)
    page.wait_for_timeout(1500)  # two refreshes
    expect(page.get_by_text(f"{step} of 100")).to_have_count(0)


def test_the_first_selection_never_replaces_a_later_one(watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(shared: object, first: Callable[[object], list[str]] = panel.first_choice) -> list[str]:
        time.sleep(1.5)  # three refreshes
        return first(shared)

    monkeypatch.setattr(panel, "first_choice", slow)
    page = watch().page
    page.get_by_role("button", name="nepa", exact=True).click()
    for name in ("emu_painter", "nepa"):  # the run that was written last, and the chosen one
        expect(page.locator(f"[data-value={name}]")).to_have_attribute("aria-pressed", "true")
    page.get_by_text("What differs").wait_for()


def test_curves_that_had_to_wait_never_replace_later_ones(browser, studio: str) -> None:
    seen, asked = Watched(browser, studio), list[object]()
    page = seen.page
    page.route("**/studio/plotly.js", lambda route: asked.append(route))
    with page.expect_request("**/studio/plotly.js"):
        seen.open()
    page.get_by_role("button", name="emu_painter", exact=True).click()  # was selected as the newest
    page.get_by_text("Choose runs above to see").wait_for()
    asked[0].continue_()
    page.wait_for_function("window.Plotly")
    page.wait_for_timeout(500)  # the curves of the run that is no longer selected must not come
    expect(page.locator("figure")).to_have_count(0)
    page.context.close()
    assert seen.wrong == []


def test_two_users_have_separate_selections(watch) -> None:
    one, other = watch().page, watch().page
    for page in (one, other):
        page.locator("table.runs tbody tr").nth(1).wait_for()
    one.get_by_role("button", name="nepa", exact=True).click()
    one.get_by_text("What differs").wait_for()
    other.wait_for_timeout(1200)  # two refreshes, which must not bring what the other user selected
    expect(other.get_by_text("What differs")).to_have_count(0)


@pytest.mark.parametrize("dark", [False, True])
def test_no_horizontal_scrolling_on_a_phone(watch, dark: bool) -> None:
    page = watch(viewport={"width": 390, "height": 844}, color_scheme="dark" if dark else "light").page
    page.locator("figure").first.wait_for()
    page.wait_for_function("document.documentElement.scrollWidth <= 390")
    colour = "getComputedStyle(document.body).getPropertyValue('--page').trim()"
    page.wait_for_function(f"{colour} === '{'#10141a' if dark else '#f6f7f9'}'")


def test_a_verdict_is_reached_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[object] = []

    def judge(*about: object, real: Callable[..., object] = view.judge) -> object:
        judged.append(about)
        return real(*about)

    monkeypatch.setattr(view, "judge", judge)
    reader = Reader(Folders([runs]))
    words = [reader.view("emu_emoji").verdict.word for _ in range(3)]  # as a page that is refreshed
    assert len(judged) == 1 and len(set(words)) == 1


def test_the_python_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = threading.active_count()
    names: dict[str, object] = {}
    exec(compile(runs_python(str(runs / "nepa")), "runs", "exec"), names)
    assert names["curve"] and names["best"] is not None and Path(str(names["page"])).is_file()
    assert " - " in capsys.readouterr().out and threading.active_count() == before
