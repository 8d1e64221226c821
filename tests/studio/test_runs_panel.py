"""The panel of runs, in a browser."""

import json
import threading
from pathlib import Path

import pytest

from nextembed.core.files import acquire
from nextembed.studio.snippets import runs_python

from .conftest import served

ALL = ["emu_emoji", "emu_painter", "faster", "mar_demo", "nepa", "omni_emoji", "omni_series", "omni_stamps"]


def test_runs_curves_and_differences(watch) -> None:
    page = watch().page
    rows = page.locator("table.runs tbody tr")
    rows.nth(1).wait_for()
    assert rows.count() == 8 and page.locator(".state.finished").count() >= 2
    page.locator(".nx-plot .scatterlayer .trace").first.wait_for()
    assert page.locator("figure h3").first.text_content() == "Loss"
    page.get_by_role("button", name="emu_painter", exact=True).click()  # was selected as the newest
    page.get_by_text("Choose runs above to see").wait_for()
    page.get_by_role("button", name="faster", exact=True).click()
    page.get_by_role("button", name="nepa", exact=True).click()
    page.get_by_text("What differs").wait_for()
    assert "optim.learning_rate" in page.locator("table.differs").text_content()
    chips = page.locator("figure").first.locator(".nx-chip")
    chips.nth(1).wait_for()
    assert chips.count() == 2  # one curve per run
    page.locator("figure").first.locator(".trace").nth(1).wait_for()
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
    page = watch().page
    page.locator("[aria-pressed=true]").first.wait_for()  # the initially selected run
    page.get_by_role("button", name="mar_demo", exact=True).click()
    page.locator("[data-value=mar_demo][aria-pressed=true]").wait_for()  # the server has processed the selection
    page.get_by_role("tab", name="Samples").click()
    page.get_by_role("button", name="Generate images").click()
    page.get_by_text("16 of 16 images from mar_demo").wait_for()
    page.locator(".image-container img").locator("visible=true").wait_for()
    page.get_by_role("button", name="nepa", exact=True).click()
    page.locator("[data-value=nepa][aria-pressed=true]").wait_for()
    page.get_by_role("tab", name="Samples").click()
    page.get_by_role("button", name="Generate images").click()
    page.get_by_text("does not generate images").wait_for()


def test_rows_sort_by_keyboard(watch) -> None:
    page = watch().page
    head = page.locator("table.runs th button").first
    head.wait_for()
    head.focus()
    page.keyboard.press("Enter")
    assert page.locator("table.runs tbody .name").all_text_contents() == sorted(ALL)
    page.keyboard.press("Enter")
    assert page.locator("table.runs tbody .name").all_text_contents() == sorted(ALL)[::-1]
    row = page.get_by_role("button", name="nepa", exact=True)
    before = row.get_attribute("aria-pressed")
    row.focus()
    page.keyboard.press("Space")
    page.locator(f"[data-value=nepa][aria-pressed={'false' if before == 'true' else 'true'}]").wait_for()


def test_a_run_written_by_another_process(watch, tmp_path: Path) -> None:
    run = tmp_path / "live"
    run.mkdir()
    (run / "config.yaml").write_text("name: live\nobjective: {kind: next_embedding}\ntrain: {max_steps: 100}\n")
    lock = acquire(run / ".lock", "busy")

    def log(step: int) -> None:
        line = {"step": step, "samples_seen": 8 * step, "loss": 1 / step, "images_per_second": 16.0}
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    log(1)
    with served([tmp_path]) as address:
        page = watch(address=address).page
        page.get_by_text("1 of 100").first.wait_for()
        assert page.locator(".state.running").count() > 0
        page.locator("table.runs th button").first.focus()
        for step in (2, 3, 4):
            log(step)
        page.get_by_text("4 of 100").first.wait_for()  # refreshed automatically
        page.keyboard.press("Enter")  # the focus survives the refresh of the table
        page.locator("table.runs th[aria-sort=ascending]").wait_for()
        page.get_by_text("about 4").first.wait_for()
        page.wait_for_function("document.querySelector('.nx-plot')?.data?.[0]?.x.length === 4")
        lock.close()
        page.locator(".state.failed").first.wait_for()
        assert "nothing was saved" in page.locator("td.why").first.text_content()
        assert page.locator("figure").count() >= 1
        page.context.close()


def test_two_users_have_separate_selections(watch) -> None:
    one, other = watch().page, watch().page
    for page in (one, other):
        page.locator("table.runs tbody tr").nth(1).wait_for()
    one.get_by_role("button", name="nepa", exact=True).click()
    one.get_by_text("What differs").wait_for()
    other.wait_for_timeout(1200)  # two refreshes
    assert other.get_by_text("What differs").count() == 0


@pytest.mark.parametrize("dark", [False, True])
def test_no_horizontal_scrolling_on_a_phone(watch, dark: bool) -> None:
    page = watch(viewport={"width": 390, "height": 844}, color_scheme="dark" if dark else "light").page
    page.locator("figure").first.wait_for()
    page.wait_for_function("document.documentElement.scrollWidth <= 390")
    light = page.evaluate("getComputedStyle(document.body).getPropertyValue('--page')").strip()
    assert light == ("#10141a" if dark else "#f6f7f9")


def test_the_python_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = threading.active_count()
    names: dict[str, object] = {}
    exec(compile(runs_python(str(runs / "nepa")), "runs", "exec"), names)
    assert names["curve"] and names["best"] is not None and Path(str(names["page"])).is_file()
    assert " - " in capsys.readouterr().out and threading.active_count() == before
