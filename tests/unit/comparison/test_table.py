"""The table of a comparison: values computed by hand from made-up scores."""

import csv
import io
import json

import pytest

from nextembed.comparison.page import page
from nextembed.comparison.scores import Point, RunScores, load_scores, save_scores
from nextembed.comparison.table import Comparison, row_of, rows_of
from nextembed.errors import ConfigError

RUNS = [
    RunScores("untrained", 0, "baseline", {"linear": 0.3}),
    RunScores("nepa", 0, values={"linear": 0.5, "parameters_backbone": 2e6}, verdict="learning"),
    RunScores("nepa", 1, values={"linear": 0.6}, verdict="learning"),
    RunScores("nepa", 2, values={"linear": 0.7, "finetune_1": 0.25}, verdict="collapsed"),
    RunScores("mae", 0, values={"linear": 0.9}, verdict="learning", curve=[Point(1000, 6.0, 9.0, 0.4, 0.3)]),
]


def made() -> Comparison:
    return Comparison("demo", "5 minutes", rows_of(RUNS), RUNS, notes=["a <note>"], settings={"threads": 1})


def test_mean_and_standard_deviation_by_hand() -> None:
    row = row_of("nepa", RUNS[1:4])
    assert row.cells["linear"].mean == pytest.approx(0.6)
    assert row.cells["linear"].sd == pytest.approx(0.1)  # sqrt((0.01 + 0 + 0.01) / 2)
    assert row.cells["linear"].num == 3
    assert row.cells["finetune_1"].sd is None, "a single run has no spread"
    assert row.verdict == "learning 2, collapsed 1"


def test_baselines_come_last() -> None:
    assert [row.name for row in rows_of(RUNS)] == ["nepa", "mae", "untrained"]


def test_markdown_and_csv_agree() -> None:
    found = made()
    assert "| nepa | 60.0 ± 10.0 | 25.0 | 2.00 M | learning 2, collapsed 1 |" in found.markdown()
    assert "- a <note>" in found.markdown()
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(found.csv()))}
    assert float(rows["nepa"]["linear"]) == pytest.approx(0.6)
    assert float(rows["nepa"]["linear_sd"]) == pytest.approx(0.1)
    assert rows["mae"]["linear_sd"] == ""


def test_the_data_frame_has_means_and_deviations() -> None:
    table = made().table
    assert table.loc["nepa", "linear"] == pytest.approx(0.6)
    assert table.loc["nepa", "linear_sd"] == pytest.approx(0.1)
    assert table.loc["untrained", "runs"] == 1


def test_saved_and_loaded(tmp_path) -> None:
    found = made()
    found.save(tmp_path)
    assert Comparison.load(tmp_path / "comparison.json") == found
    save_scores(tmp_path / "scores.json", RUNS)
    assert load_scores(tmp_path / "scores.json") == RUNS


def test_an_error_names_the_damaged_file(tmp_path) -> None:
    made().save(tmp_path)
    file = tmp_path / "comparison.json"
    values = json.loads(file.read_text())
    values["rows"][0]["cells"]["linear"]["mean"] = "much"
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"comparison\.json: rows\.0\.cells\.linear\.mean should be"):
        Comparison.load(file)


def test_the_page_has_every_row_and_no_external_resources() -> None:
    text = page(made())
    for words in ("nepa", "mae", "untrained", "60.0 ± 10.0", "a &lt;note&gt;", "<svg"):
        assert words in text
    assert "http" not in text and "src=" not in text


def test_terminal_and_notebook_show_the_rows() -> None:
    assert "60.0 ± 10.0" in str(made())
    assert "<td>60.0 ± 10.0</td>" in made()._repr_html_()


def test_a_row_that_is_not_above_a_baseline_is_marked():
    """Means of the linear probe are compared; a baseline without a linear probe is ignored."""
    runs = [
        RunScores("nepa", 0, values={"linear": 0.5}, verdict="learning"),
        RunScores("nepa", 1, values={"linear": 0.7}, verdict="learning"),
        RunScores("mae", 0, values={"linear": 0.9}, verdict="learning"),
        RunScores("cpc", 0, values={"linear": 0.1}, verdict="collapsed"),
        RunScores("untrained", 0, kind="baseline", values={"linear": 0.3}),
        RunScores("raw pixels", 0, kind="baseline", values={"linear": 0.6}),
        RunScores("from scratch", 0, kind="baseline", values={"finetune_1": 0.99}),
    ]
    found = {row.name: row.verdict for row in rows_of(runs)}
    assert found["nepa"] == "learning, not above raw pixels" and found["mae"] == "learning"
    assert found["cpc"] == "collapsed, not above untrained and raw pixels" and found["untrained"] == ""
