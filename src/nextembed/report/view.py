"""A run as plain values, from which pages are made."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..core.answers import Answers
from ..core.code import check_code
from ..core.files import first_line
from ..core.objective import Verdict
from ..core.probe_table import ProbeTable
from ..core.run_folder import Environment, Line, RunFolder
from ..core.scores import ClassScores, SegmentScores
from ..core.verdicts import judge
from ..errors import ConfigError, NextEmbedError
from .settings import Settings, settings_of

T = TypeVar("T")


@dataclass
class RunView:
    """A run as plain values. Missing parts are empty; `missing` says which and why. config, listed: config.yaml and
    environment.json as they are; settings, environment: the checked parts of these. history: lines of metrics.jsonl,
    oldest first.
    """

    dir: Path
    config: dict[str, Any]
    settings: Settings
    history: list[Line] = field(default_factory=list)
    listed: dict[str, object] = field(default_factory=dict)
    environment: Environment = field(default_factory=Environment)
    probes: ProbeTable | None = None
    skipped: list[dict[str, object]] = field(default_factory=list)
    scores: ClassScores | SegmentScores | None = None
    answers: Answers | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.settings.name or self.dir.resolve().name

    @property
    def last(self) -> dict[str, Any]:
        """The last logged line; empty if there is none."""
        return self.history[-1] if self.history else {}

    @property
    def verdict(self) -> Verdict:
        """The verdict on the run, by its curves, probes, scores and answers."""
        return judge(self.config.get("objective"), self.history, self.probes, self.scores, self.answers)

    @property
    def training_seconds(self) -> float:
        """The time of its steps, without probes and checkpoints, from the speed in each logged line."""
        seconds, before = 0.0, 0
        for line in self.history:
            seen, speed = line.get("samples_seen"), line.get("images_per_second")
            if seen is not None and speed:
                seconds, before = seconds + (seen - before) / speed, seen
        return seconds

    def read(self, what: str, reader: Callable[[], T], otherwise: T) -> T:
        """The result of `reader`; for a damaged file `otherwise`, with the reason in `missing`."""
        try:
            return reader()
        except NextEmbedError as err:
            self.missing.append(f"{what} left out: {err}.")
            return otherwise

    def plain(self) -> dict[str, Any]:
        """All of it as JSON values: what `nextembed report --json` prints."""
        found = self.verdict
        return {
            "name": self.name,
            "dir": str(self.dir),
            "config": self.config,
            "environment": self.listed,
            "history": self.history,
            "verdict": {"word": found.word, "sentence": found.sentence},
            "probes": None if self.probes is None else asdict(self.probes),
            "scores": None if self.scores is None else asdict(self.scores),
            "answers": None if self.answers is None else asdict(self.answers),
            "skipped": self.skipped,
            "missing": self.missing,
        }


def read_view(run: RunFolder) -> RunView:
    """Reads all files of a run folder but its model.

    Raises:
        ConfigError: there is no such folder, it holds no run, or its config.yaml is damaged.
        CodeRefused: its config.yaml names Python that was not allowed.
    """
    if not run.dir.is_dir():
        raise ConfigError(f"no such run folder: {run.dir}")
    config = run.values
    check_code({slot: config.get(slot) for slot in ("data", "model", "objective")}, run.dir / "config.yaml")
    if not config and not (run.dir / "metrics.jsonl").is_file():
        raise ConfigError(f"{run.dir} is not a run folder: it has neither config.yaml nor metrics.jsonl")
    view = RunView(run.dir, config, settings_of(config, run.dir))
    view.history = view.read("The curves are", run.history, [])
    if not view.history and not view.missing:
        view.missing.append("There are no curves: the run stopped before its first logging step.")
    view.listed = view.read("The environment is", run.environment_values, {})
    if view.listed:
        view.environment = view.read("The parameters are", run.environment, Environment())
    view.probes = view.read("The probes are", run.probes, None)
    view.scores = view.read("The scores are", run.scores, None)
    view.answers = view.read("The answers are", run.answers, None)
    view.skipped = run.skipped()
    return view


@contextlib.contextmanager
def looking(where: str | Path) -> Iterator[None]:
    """Turns any error while a model runs on data into a ConfigError, because torch reports changed models or settings
    with all kinds of errors."""
    try:
        yield
    except (NextEmbedError, MemoryError):
        raise
    except Exception as err:
        raise ConfigError(f"{where} does not run on its data: {type(err).__name__}: {first_line(err)}") from err
