"""Whether a run is running, and its remaining time, from its folder alone, which another process writes."""

import contextlib
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from ..core.files import is_locked
from ..core.run_folder import Line
from ..report.page import duration
from ..report.view import RunView

State = Literal["running", "finished", "stopped", "failed"]
RECENT = 60.0  # a run without a lock that wrote within these seconds counts as running
LINES = 8  # lines of the log for measuring the pace


@dataclass(frozen=True)
class Status:
    """state: of the run. step, max_steps: progress; 0 if unknown. seconds_left: None if unknown. why: a short
    sentence."""

    state: State
    step: int
    max_steps: int
    seconds_left: float | None
    why: str

    @property
    def share(self) -> float:
        """How much of the run is done, in [0, 1]."""
        return min(1.0, self.step / self.max_steps) if self.max_steps else 0.0


def status_of(view: RunView, now: float | None = None) -> Status:
    """The status of a run. now: seconds since the epoch; None is the clock."""
    folder, last = view.dir, view.last
    step, total = int(last.get("step", 0)), view.settings.train.max_steps or 0
    quiet = (time.time() if now is None else now) - written(folder)
    trained = (folder / "model" / "config.json").is_file()
    if running(folder, quiet, trained):
        if trained:
            return Status("running", step, total, None, "trained; probing and writing the report")
        left = seconds_left(view.history, step, total, quiet)
        why = f"about {duration(left)} left" if left is not None else "starting" if not step else "training"
        return Status("running", step, total, left, why)
    if trained:
        whole = "" if (folder / "report.html").is_file() else "; its report was not written"
        return Status("finished", step, total, None, f"trained for {duration(view.training_seconds)}{whole}")
    saved = last_checkpoint(folder)
    if step and "loss" not in last:
        return Status("failed", step, total, None, f"the loss of step {step:,} is not a number")
    if saved is not None and saved >= step:
        return Status("stopped", step, total, None, f"saved at step {saved:,}; --resume continues")
    where = f"last saved at step {saved:,}" if saved is not None else "nothing was saved"
    return Status("failed", step, total, None, f"it ended at step {step:,} without saving ({where})")


def running(folder: Path, quiet: float, trained: bool) -> bool:
    """Whether a process holds the run. quiet: seconds since something was written."""
    lock = folder / ".lock"
    return is_locked(lock) if lock.is_file() else not trained and quiet < RECENT


def written(folder: Path) -> float:
    """When the run last wrote a line, or its settings; 0 where nothing is there."""
    times = [0.0]
    for name in ("metrics.jsonl", "config.yaml"):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


def last_checkpoint(folder: Path) -> int | None:
    """The step of the newest checkpoint that is whole."""
    steps = [
        int(file.parent.name.removeprefix("step-"))
        for file in (folder / "checkpoints").glob("step-*/config.json")
        if file.parent.name.removeprefix("step-").isdecimal()
    ]
    return max(steps, default=None)


def seconds_left(history: list[Line], step: int, total: int, quiet: float = 0.0) -> float | None:
    """By the pace of the last lines; None before there is any. quiet: seconds since the last line."""
    if not total or len(history) < 2:
        return None
    seconds = steps = 0.0
    for before, line in pairwise(history[-LINES - 1 :]):
        seen, speed = line.get("samples_seen", 0) - before.get("samples_seen", 0), line.get("images_per_second")
        if speed and seen > 0:
            seconds, steps = seconds + seen / speed, steps + line.get("step", 0) - before.get("step", 0)
    if steps <= 0:
        return None
    return max(0.0, (total - step) * seconds / steps - min(max(quiet, 0.0), seconds))
