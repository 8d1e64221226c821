"""A small complete comparison: trained, interrupted and resumed, killed, and of existing runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nextembed import recipes
from nextembed.cli import main
from nextembed.comparison.compare import compare
from nextembed.comparison.table import Comparison
from nextembed.core.config import apply_overrides, to_yaml
from nextembed.errors import ConfigError
from nextembed.training.loop import Loop

SETTINGS = {"images_seen": 40, "seeds": 2, "jobs": 0, "finetune_steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A config.yaml with 8 images per step."""
    file = tmp_path_factory.mktemp("base") / "small.yaml"
    config = apply_overrides(recipes.load("nepa_demo_tiny"), ["train.device=cpu", "train.trackers=[]"])
    file.write_text(to_yaml(config))
    return str(file)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Comparison:
    return compare(base, ["nepa", "simsiam"], tmp_path_factory.mktemp("whole"), SETTINGS)


def test_every_row_has_its_scores(whole) -> None:
    rows = {row.name: row for row in whole.rows}
    assert list(rows) == ["nepa", "simsiam", "untrained", "raw pixels", "from scratch"]
    for name in ("nepa", "simsiam"):
        cells = rows[name].cells
        assert {"linear", "knn", "finetune_1", "finetune_10", "images_per_second", "wall_minutes"} <= set(cells)
        assert cells["images_seen"].mean == 40 and cells["linear"].num == 2
        assert 0 <= cells["linear"].mean <= 1 and cells["linear"].sd is not None
        assert rows[name].verdict
    assert rows["simsiam"].cells["parameters_objective"].mean > 0
    assert rows["nepa"].cells["parameters_backbone"] == rows["simsiam"].cells["parameters_backbone"]
    assert set(rows["untrained"].cells) >= {"linear", "knn"} and rows["raw pixels"].num == 1
    assert {"finetune_1", "finetune_10", "finetune_100"} <= set(rows["from scratch"].cells)


def test_equal_budget(whole) -> None:
    trained = [run for run in whole.runs if run.row in ("nepa", "simsiam", "from scratch")]
    assert {run.values["images_seen"] for run in trained} == {40} and {run.steps for run in trained} == {5}
    assert all(run.curve for run in trained if run.kind == "objective")


def test_files_are_in_its_folder(whole) -> None:
    folder = Path(whole.folder)
    assert Comparison.load(folder / "comparison.json").rows == whole.rows
    assert "nepa" in (folder / "comparison.md").read_text() and "nepa" in (folder / "comparison.csv").read_text()
    assert "<svg" in (folder / "comparison.html").read_text()
    assert (folder / "nepa" / "seed-0" / "run" / "report.html").is_file()
    assert not (folder / "nepa" / "seed-0" / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_an_interrupted_comparison_ends_with_the_same_scores(base, whole, tmp_path, monkeypatch) -> None:
    class Killed(BaseException):
        pass

    # while measuring a step, during fine-tuning, during training, and after it
    stops = [("train", 1), ("update", 30), ("update", 4), ("save_folders", 2)]  # number of successful calls
    for method, last in stops:
        own, calls = getattr(Loop, method), []

        def killed(self, *args, own=own, calls=calls, last=last):
            calls.append(1)
            if len(calls) > last:
                raise Killed
            return own(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Loop, method, killed)
            with pytest.raises(Killed):
                compare(base, ["nepa", "simsiam"], tmp_path, SETTINGS)
    found = compare(base, ["nepa", "simsiam"], tmp_path, SETTINGS)
    timed = {"images_per_second", "wall_minutes", "cpu_minutes"}
    for ours, theirs in zip(found.runs, whole.runs, strict=True):
        assert {n: v for n, v in ours.values.items() if n not in timed} == {
            n: v for n, v in theirs.values.items() if n not in timed
        }
        assert ours.verdict == theirs.verdict


def test_finished_runs_are_not_repeated(base, whole, monkeypatch) -> None:
    folder = Path(whole.folder)
    file = folder / "nepa" / "seed-0" / "scores.json"
    before = file.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "train", lambda *_: pytest.fail("nothing is left to train"))
        assert compare(base, ["nepa", "simsiam"], folder, SETTINGS).rows == whole.rows
    assert file.stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"other settings \(images_seen\)"):
        compare(base, ["nepa"], folder, SETTINGS | {"images_seen": 80})


def test_existing_runs(whole, tmp_path, capsys) -> None:
    runs = [str(Path(whole.folder) / name / f"seed-{seed}" / "run") for name in ("nepa", "simsiam") for seed in (0, 1)]
    words = ["compare", *runs, "--folder", str(tmp_path / "out"), "--jobs", "0", "--finetune-steps", "0"]
    assert main(words) == 0
    found = Comparison.load(tmp_path / "out" / "comparison.json")
    assert {row.name: row.num for row in found.rows} == {"nepa/seed-0/run": 2, "simsiam/seed-0/run": 2}
    first = next(row for row in whole.rows if row.name == "nepa")
    assert found.rows[0].cells["linear"] == first.cells["linear"]


def test_each_objective_has_the_same_trials(base, tmp_path) -> None:
    given = {"images_seen": 32, "seeds": 1, "jobs": 0, "finetune_steps": 0, "tune": 2}
    found = compare(base, ["nepa", "mae"], tmp_path, given)
    tried = {name: [run for run in found.trials if run.row == name] for name in ("nepa", "mae")}
    for name, own in tried.items():
        assert [run.tuned["learning_rate"] for run in own] == [1.0, 3.0]
        best = max(own, key=lambda run: run.values["linear"])
        run = next(run for run in found.runs if run.row == name)
        assert run.tuned == best.tuned
        assert {run.steps for run in own} == {1}
    assert any("2 trials of each objective, of 25%" in note for note in found.notes)


def test_a_tokenizer_is_part_of_the_budget(base, tmp_path) -> None:
    given = {"images_seen": 64, "seeds": 1, "jobs": 0, "finetune_steps": 0}
    found = compare(base, ["var"], tmp_path, given)
    run = next(run for run in found.runs if run.row == "var")
    assert run.values["images_seen"] == 64 and run.steps == 6, "two of 8 steps are for the tokenizer"
    assert run.curve[0].images > 16
    assert (tmp_path / "var" / "seed-0" / "tokenizer" / "metrics.jsonl").is_file()


@pytest.mark.slow
def test_a_killed_process_is_resumed(base, tmp_path) -> None:
    out = tmp_path / "out"
    words = ["-c", "from nextembed.cli import main; raise SystemExit(main())", "compare", base, "--objectives", "nepa",
             "--images-seen", "2000", "--seeds", "1", "--finetune-steps", "0", "--folder", str(out)]  # fmt: skip
    whole = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, start_new_session=True)
    run = out / "nepa" / "seed-0" / "run"
    log = run / "metrics.jsonl"
    for _ in range(3000):
        if any((run / "checkpoints").glob("step-*/*")) and log.is_file() and "\n" in log.read_text():
            break
        assert whole.poll() is None, whole.stderr and whole.stderr.read().decode()[-2000:]
        time.sleep(0.1)
    os.killpg(whole.pid, signal.SIGKILL)
    whole.wait()
    before = json.loads(log.read_text().splitlines()[0])
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(log.read_text().splitlines()[0]) == before, "it started again"
    found = Comparison.load(out / "comparison.json")
    assert found.runs[0].values["images_seen"] == 2000
    assert found.runs[0].values["peak_memory"] > 1e7
