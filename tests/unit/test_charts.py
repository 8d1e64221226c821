"""Curves stay readable with one or two points, constant values and gaps; hovering shows the values."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nextembed.core.run_folder import DataCounts, Environment, Parameters
from nextembed.report.axes import step_limits, tick, value_limits
from nextembed.report.charts import render_charts
from nextembed.report.page import duration, head
from nextembed.report.settings import Settings
from nextembed.report.view import RunView


@pytest.mark.parametrize(
    ("values", "limits", "percent", "expected"),
    [
        ([2.0], (None, None), False, (1.8, 2.2)),
        ([-0.5, -0.5], (None, None), False, (-0.55, -0.45)),
        ([0.0], (None, None), False, (-1.0, 1.0)),
        ([0.0, 0.0], (None, None), True, (0.0, 0.05)),
        ([1.0, 1.0], (0, None), True, (0, 1.0)),
        ([0.2, 0.7], (None, None), True, (0.17, 0.73)),
        ([1.0, 3.0], (0, None), False, (0, 3.12)),
        ([0.0], (0, None), False, (0.0, 1.0)),
        ([0.5, 0.9], (0, 1.02), False, (0, 1.02)),
        ([-0.1, 0.9], (0, 1.02), False, (-0.1, 1.02)),
        ([1e-12, 1e-12], (None, None), False, (9e-13, 1.1e-12)),
        ([-1e50, 1e50], (None, None), False, (-1.12e50, 1.12e50)),
    ],
)
def test_the_value_axis_covers_all_values_and_is_never_empty(values, limits, percent, expected) -> None:
    low, high = value_limits(values, limits, percent)
    assert (low, high) == pytest.approx(expected)
    assert low <= min(values) and max(values) <= high and low < high


def test_a_single_step_is_centred() -> None:
    assert step_limits([7.0]) == (6.0, 8.0)
    assert step_limits([0.0, 100.0]) == (-1.0, 101.0)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.00025, "0.00025"), (6e-5, "6e−5"), (-0.5, "−0.5"), (12000, "12000"), (0.30000000000000004, "0.3")],
)
def test_numbers_beside_an_axis_are_short(value: float, words: str) -> None:
    assert tick(value) == words


def labels(svg: str) -> list[str]:
    """Axis labels, without the hover labels."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", re.sub(r'<g class="at">.*?</g>', "", svg, flags=re.DOTALL))


def test_a_run_of_one_logged_line_has_one_tick_at_its_step() -> None:
    html = render_charts([{"step": 2, "loss": 1.5, "grad_norm": float("nan"), "copy_win": 1.0}])
    assert "Gradient norm" not in html  # its value is NaN
    loss, copy = html.split("</figure>")[:2]
    assert labels(loss)[:2] == ["2", "optimizer steps"] and "100 %" in labels(copy)
    assert loss.count('class="at"') == 1 and ">step 2 <tspan" in loss


def test_hovering_shows_the_values_of_that_step() -> None:
    history = [{"step": s, "cos_next": 0.5 + s / 1000, "cos_current": 0.4} for s in (1, 10, 20)]
    history[1].pop("cos_current")
    html = render_charts(history)
    card = next(part for part in html.split("</figure>") if "Cosine of the prediction" in part)
    found = re.findall(r"<text[^>]*>step (\d+)((?: <tspan.*?</tspan>)+)", card)
    said = {step: re.findall(r'class="(s\d)">([^<]+)', words) for step, words in found}
    assert said == {
        "1": [("s1", "0.501"), ("s2", "0.4")],
        "10": [("s1", "0.51")],
        "20": [("s1", "0.52"), ("s2", "0.4")],
    }


def test_long_runs_have_few_hover_points_and_keep_the_last_step() -> None:
    html = render_charts([{"step": s, "loss": 1 / s} for s in range(1, 5001)])
    assert 40 < html.count('class="at"') <= 60 and ">step 5,000 <" in html


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0.4 s"), (42.2, "42 s"), (192, "3 min 12 s"), (300, "5 min"), (18_400, "5 h 7 min"), (183_600, "2 d 3 h")],
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_header_gives_start_duration_and_data() -> None:
    environment = Environment(
        Parameters(1_000, 2_710_000), [], datetime(2026, 11, 3, 9, 5, tzinfo=UTC), DataCounts(1641, 94, 157, 9)
    )
    history = [{"step": 5, "samples_seen": 160, "images_per_second": 16.0},
               {"step": 10, "samples_seen": 320, "images_per_second": 8.0}]  # fmt: skip
    view = RunView(Path("run"), {}, Settings(), history, environment=environment, skipped=[{"key": "a"}])
    html = head(view, "", "", [])
    assert "Started 3 November 2026, 09:05 UTC, trained for 30 s" in html
    for value, name in (
        ("1,641", "training images, 9 classes"),
        ("10", "optimizer steps"),
        ("320", "training samples seen"),
        ("2.71 M", "parameters, 1,000 trained"),
        ("1", "skipped files or rows"),
    ):
        assert f"<div><b>{value}</b><span>{name}</span></div>" in html
