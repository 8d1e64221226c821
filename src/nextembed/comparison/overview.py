"""Progress of a comparison: a live table on a terminal, lines elsewhere."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..core.console import PlainConsole
from ..core.terminal import plain
from .jobs import Job
from .pool import State
from .scores import load_scores

WORDS = {
    "pace": "measuring a step",
    "trial": "trying settings",
    "run": "training",
    "untrained": "probing",
    "scratch": "training with labels",
    "existing": "scoring",
}


class Overview:
    """Receives changes from `Pool`."""

    def __init__(self, console: PlainConsole | None = None):
        self.console = console or PlainConsole(stderr=True)
        self.states: dict[str, State] = {}
        self.total = self.finished = 0
        self.live: Live | None = None
        self.looked = 0.0

    @contextmanager
    def of(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Shows these jobs while the block runs."""
        self.total, self.finished, self.states = len(jobs), sum(job.result.is_file() for job in jobs), {}
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, transient=True, auto_refresh=False) as self.live:
            yield
        self.live = None

    def say(self, text: str) -> None:
        self.console.print(Text(plain(text)), soft_wrap=True)

    def changed(self, state: State) -> None:
        job = state.job
        name = f"{job.row}, seed {job.seed}" if job.do in ("run", "scratch", "untrained") else job.row
        if state.state == "runs":
            self.states[job.folder] = state
            if self.live is None:
                self.say(f"{WORDS[job.do]}: {name}")
            return
        self.states.pop(job.folder, None)
        self.finished += 1
        took = time.monotonic() - state.begun
        self.say(f"done: {name}{found(job)}  ({took:.0f} s, {self.finished} of {self.total})")

    def tick(self) -> None:
        if self.live is None or time.monotonic() - self.looked < 1:
            return
        self.looked = time.monotonic()
        table = Table(box=None, pad_edge=False)
        for title in ("", "seed", "now", "step", "loss", "images/s", "minutes"):
            table.add_column(title, justify="left" if title in ("", "now") else "right")
        for state in self.states.values():
            line, job = state.progress() if state.job.do != "pace" else {}, state.job
            numbers = [f"{line[name]:,.4g}" if name in line else "" for name in ("step", "loss", "images_per_second")]
            minutes = f"{(self.looked - state.begun) / 60:.1f}"
            table.add_row(plain(job.row), str(job.seed), WORDS[job.do], *numbers, minutes)
        self.live.update(Group(Text(f"{self.finished} of {self.total} done"), table), refresh=True)


def found(job: Job) -> str:
    """The scores of a finished job in a few words."""
    if job.do == "pace":
        return ""
    scores = load_scores(job.result)[0]
    if scores.failed:
        return f": failed, {plain(scores.failed)}"
    shares = [f"{name} {100 * scores.values[name]:.1f} %" for name in ("linear", "knn") if name in scores.values]
    return ": " + ", ".join([*shares, *([scores.verdict] if scores.verdict else [])])
