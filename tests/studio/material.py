"""What the studio is tested with: tiny runs, made once for all workers."""

import fcntl
from pathlib import Path

import nextembed
from nextembed import recipes


def make(folder: Path) -> Path:
    """The folder of runs; the worker that comes first makes it, the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".made-by-one").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "runs" / "done").is_file():
            fill(folder / "runs")
            (folder / "runs" / "done").touch()
    return folder / "runs"


def fill(runs: Path) -> None:
    """A NEPA with probes, and another one that differs in a setting."""
    for name, rate in (("nepa", 1e-3), ("faster", 2e-3)):
        config = recipes.load("nepa_demo_tiny").model_copy(update={"name": name, "output_dir": str(runs)})
        config.optim.learning_rate = rate
        config.probe.enabled = name == "nepa"
        nextembed.fit(config)
