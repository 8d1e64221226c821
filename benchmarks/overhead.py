"""Share of a run's time that diagnostics, logs, probes and checkpoints take.

    python benchmarks/overhead.py --out benchmarks/results/overhead.json

Trains recipes for a few steps and measures the median cost of each of these; the share is that cost divided by the cost
of the training steps between two of them in the full recipe. Times are CPU seconds of the process, which exclude
waiting for the disk. Diagnostics: a step with diagnostics minus the median step without. The quick probes during
training are included; the final probe sweep, which is part of the evaluation, is not.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from nextembed import fit, recipes
from nextembed.training.loop import Loop
from nextembed.training.watch import OnlineProbe

SETTINGS: dict[str, dict[str, Any]] = {"nepa_demo": {"probe": {"enabled": False}}, "omni_emoji": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    found: dict[str, Any] = {
        "command": f"python benchmarks/overhead.py --steps {args.steps} --out {args.out}",
        "machine": f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        "recipes": {},
    }
    for name in SETTINGS:
        found["recipes"][name] = shares(name, args.steps)
        print(name, json.dumps(found["recipes"][name], indent=1), flush=True)
    Path(args.out).write_text(json.dumps(found, indent=1) + "\n")


def shares(name: str, steps: int) -> dict[str, Any]:
    """CPU milliseconds of each part, and percentage of the training steps of the full recipe."""
    whole = recipes.load(name).train
    every = {"log": whole.log_steps, "diagnostics": whole.log_steps, "checkpoint": whole.save_steps}
    if whole.probe_steps:
        every["probe"] = whole.probe_steps
    train = {"max_steps": steps, "log_steps": 10, "save_steps": steps // 3}
    if whole.probe_steps:
        train["probe_steps"] = steps // 3
    spent: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, timed(spent), contextlib.chdir(folder):
        fit(name, train=train, **SETTINGS[name])
    plain, watched = spent.pop("step"), spent.pop("watched")
    step = statistics.median(plain)
    spent["diagnostics"] = [one - step for one in watched]
    found: dict[str, Any] = {"step_ms": 1e3 * step}
    for part, times in spent.items():
        cost = statistics.median(times[1:] or times)  # the first call includes one-time loading
        found[part] = {"ms": 1e3 * cost, "every": every[part], "percent": 100 * cost / every[part] / step}
    found["percent"] = sum(found[part]["percent"] for part in spent)
    return rounded(found)


def rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    return round(found, 3) if isinstance(found, float) else found


@contextlib.contextmanager
def timed(spent: dict[str, list[float]]) -> Iterator[None]:
    """Records the CPU seconds of each call of the parts of training while the block runs."""
    methods = [(Loop, "log", "log"), (Loop, "save", "checkpoint"), (OnlineProbe, "__call__", "probe")]
    own = {(kind, name): getattr(kind, name) for kind, name, _ in methods} | {(Loop, "update"): Loop.update}
    gradients = Loop.gradients

    def timer(method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = method(*args, **kwargs)
            spent[part].append(time.process_time() - start)
            return result

        return run

    def step(self: Loop, *args: Any) -> Any:
        part = "watched" if self.bare.objective.diagnose else "step"
        return timer(gradients, part)(self, *args)

    def update(self: Loop) -> None:  # added to the step whose gradients were computed last
        start = time.process_time()
        own[Loop, "update"](self)
        part = "watched" if self.bare.objective.diagnose else "step"
        spent[part][-1] += time.process_time() - start

    try:
        for kind, name, part in methods:
            setattr(kind, name, timer(own[kind, name], part))
        Loop.gradients, Loop.update = step, update  # type: ignore[method-assign, assignment]
        yield
    finally:
        for (kind, name), method in own.items():
            setattr(kind, name, method)
        Loop.gradients = gradients  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
