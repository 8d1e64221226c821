"""The list of runs and the details of selected ones; all content of folders is escaped."""

from pathlib import Path

import pytest

from nextembed.studio.folders import Folders
from nextembed.studio.models import Models
from nextembed.studio.reading import Reader
from nextembed.studio.runs_page import details, log, probes, table

EVIL = "<img src=x onerror=alert(1)>"


def reader(tmp_path: Path) -> Reader:
    for name, line in (("good", '{"step": 3, "loss": 0.5}'), ("bad", '{"step": 3, "loss": "high"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"name: {name}\ntrain: {{max_steps: 5}}\nnote: '{EVIL}'\n")
        (tmp_path / name / "metrics.jsonl").write_text(line + "\n")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.yaml").write_text("a: [\n")
    (tmp_path / "damaged" / "metrics.jsonl").write_text("")
    return Reader(Folders([tmp_path]))


def test_rows_states_and_unreadable_runs(tmp_path: Path) -> None:
    found = reader(tmp_path)
    views, broken = found.views()
    assert set(views) == {"good", "bad"} and list(broken) == ["damaged"]
    shown = table(views, found.states(views), ["good"], broken)
    assert shown.count("<tr class=") == 2 and 'aria-pressed="true"' in shown and "3 of 5" in shown
    assert "Left out: damaged" in shown
    own = {"good": views["good"], "bad": views["bad"]}
    text = details(own, found.states(own)) + log(own) + probes(own)
    assert EVIL not in text and "What differs" in text and "metrics.jsonl, line 1" in text
    assert 'href="studio/report?run=good"' in text


def test_a_view_is_reloaded_after_a_new_line(tmp_path: Path) -> None:
    found = reader(tmp_path)
    before = found.view("good")
    assert found.view("good") is before
    with (tmp_path / "good" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 0.25}\n{"step": 5, "lo')  # a partly written last line
    assert found.view("good").last == {"step": 4, "loss": 0.25}


def test_models_are_evicted_by_last_use() -> None:
    kept, loaded = Models(2), []

    def load(name: str) -> str:
        return kept.get(name, lambda: loaded.append(name) or name.upper(), name)

    assert [load(name) for name in ("a", "b", "a", "c", "a", "b")] == ["A", "B", "A", "C", "A", "B"]
    assert loaded == ["a", "b", "c", "b"] and kept.names() == ["a", "b"]
    assert kept.unload() == ["a", "b"] and kept.names() == []
    with pytest.raises(ZeroDivisionError):
        kept.get("d", lambda: 1 / 0, "d")
    assert kept.names() == []
