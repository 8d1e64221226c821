"""`nextembed.fit` with the name of a recipe, and the notebook view of a run."""

from pathlib import Path

import pytest

import nextembed
from nextembed.core.probe_table import ProbeTable, Row
from nextembed.errors import ConfigError
from nextembed.recipes import fitting
from nextembed.runs import Run, RunConfig


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"name": "mine", "train": {"max_steps": 3}}, ("mine", 3, 600, "emoji")),
        ({"train.max_steps": 4, "data": {"source": "photos"}}, ("nepa_demo", 4, 600, "photos")),
        ({"data": {"kind": "images", "source": "other"}}, ("nepa_demo", 600, 600, "other")),
    ],
)
def test_a_name_and_overrides(
    overrides: dict, expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:  # nothing is trained
    seen: list[RunConfig] = []
    monkeypatch.setattr(fitting, "train", lambda config, resume: seen.append(config))
    nextembed.fit("nepa_demo", **overrides)
    nextembed.fit(nextembed.recipes.nepa_demo())
    changed, plain = seen
    assert (changed.name, changed.train.max_steps, plain.train.max_steps, changed.data.source) == expected
    assert changed.train.batch_size == plain.train.batch_size == 128


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("nepa_dmo", {}, "Did you mean 'nepa_demo'?"),
        ("nepa_demo", {"train": {"max_stps": 3}}, "train: field 'max_stps' is not known. Did you mean 'max_steps'?"),
        ("nepa_demo", {"trian": 3}, "field 'trian' is not known. Did you mean 'train'?"),
    ],
)
def test_wrong_names(name: str, overrides: dict, words: str) -> None:
    with pytest.raises(ConfigError) as err:
        nextembed.fit(name, **overrides)
    assert words in str(err.value)


def test_the_notebook_view_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1200, "loss": 0.25}\n')
    run = Run(tmp_path, tmp_path)
    assert "<td>step</td><td>1,200</td>" in run._repr_html_() and "<td>loss</td><td>0.25</td>" in run._repr_html_()
    assert "report" not in run._repr_html_().replace(str(tmp_path), "")
    (tmp_path / "report.html").write_text("page")
    assert f'href="{(tmp_path / "report.html").as_uri()}"' in run._repr_html_()
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    assert run.open() == tmp_path / "report.html" and shown == [(tmp_path / "report.html").as_uri()]


def table(trained: float, pixels: float, untrained: float = 0.1) -> ProbeTable:
    rows = [
        Row("linear", weights, 3, "mean", "causal", validation_accuracy=value, accuracy=value)
        for weights, value in (("raw", trained), ("untrained", untrained))
    ]
    return ProbeTable(rows, pixels={"linear": pixels}, pixels_validation={"linear": pixels})


def test_the_short_table_of_probes() -> None:
    assert [str(column.header) for column in table(0.6, 0.5).answer().columns] == [
        "probe", "trained (raw weights)", "untrained", "raw pixels", "feature",
    ]  # fmt: skip
    cells = [list(column.cells) for column in table(0.6, 0.5).answer().columns]
    assert [one[0] for one in cells[:4]] == ["Linear probe", "60.0 %", "10.0 %", "50.0 %"]
