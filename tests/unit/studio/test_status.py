"""The state of a run from its folder (running, finished, stopped or failed), and the time left."""

import json
from pathlib import Path

import pytest

from nextembed.core.files import acquire, is_locked
from nextembed.report.view import read_view
from nextembed.runs import open_run
from nextembed.studio.status import Status, seconds_left, status_of

LINES = [{"step": step, "samples_seen": 10 * step, "loss": 1.0, "images_per_second": 20.0} for step in (2, 4, 6)]


def make(folder: Path, lines: list[dict[str, float]], saved: int | None = None, model: bool = False) -> None:
    folder.mkdir()
    (folder / "config.yaml").write_text("name: mine\ntrain: {max_steps: 10}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / ".lock").touch()
    places = [folder / "checkpoints" / f"step-{saved or 0:06d}"] * (saved is not None) + [folder / "model"] * model
    for place in places:
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")


def status(folder: Path, now: float | None = None) -> Status:
    return status_of(read_view(open_run(folder)), now)


def test_a_locked_run_is_running_and_has_a_time_left(tmp_path: Path) -> None:
    make(tmp_path / "run", LINES)
    with acquire(tmp_path / "run" / ".lock", "busy"):
        found = status(tmp_path / "run", (tmp_path / "run" / "metrics.jsonl").stat().st_mtime)
    assert (found.state, found.step, found.max_steps, found.share) == ("running", 6, 10, 0.6)
    assert found.seconds_left == pytest.approx(2.0) and found.why == "about 2 s left"  # 4 steps of 10, 20 per s


def test_a_locked_run_with_a_model_is_being_evaluated(tmp_path: Path) -> None:
    make(tmp_path / "run", LINES, model=True)
    with acquire(tmp_path / "run" / ".lock", "busy"):
        assert status(tmp_path / "run").why.startswith("trained; probing")


@pytest.mark.parametrize(
    ("saved", "model", "lines", "state", "words"),
    [
        (None, True, LINES, "finished", "trained for 3 s"),
        (6, False, LINES, "stopped", "saved at step 6"),
        (4, False, LINES, "failed", "last saved at step 4"),
        (None, False, LINES, "failed", "nothing was saved"),
        (6, False, [*LINES[:2], {"step": 6, "samples_seen": 60}], "failed", "is not a number"),
    ],
)
def test_ended_runs(tmp_path: Path, saved: int, model: bool, lines: list, state: str, words: str) -> None:
    make(tmp_path / "run", lines, saved, model)
    found = status(tmp_path / "run")
    assert found.state == state and words in found.why and found.seconds_left is None


def test_without_a_lock_the_last_write_time_decides(tmp_path: Path) -> None:
    make(tmp_path / "run", LINES)
    (tmp_path / "run" / ".lock").unlink()
    wrote = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime
    assert status(tmp_path / "run", wrote + 5).state == "running"
    assert status(tmp_path / "run", wrote + 500).state == "failed"


def test_the_time_left_goes_down_between_two_lines() -> None:
    assert seconds_left(LINES, 6, 10) == pytest.approx(2.0)
    assert seconds_left(LINES, 6, 10, quiet=0.5) == pytest.approx(1.5)
    assert seconds_left(LINES, 10, 10, quiet=9.0) == 0.0
    assert seconds_left(LINES[:1], 2, 10) is None and seconds_left(LINES, 6, 0) is None


def test_checking_a_lock_does_not_acquire_it(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    assert not is_locked(file)
    with acquire(file, "busy"):
        assert is_locked(file) and is_locked(file)
    assert not is_locked(file)
    acquire(file, "busy").close()
