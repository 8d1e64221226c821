"""How long training waits for its data: a trace of the demo, step by step.

    python benchmarks/loading_trace.py --figure docs/assets/loading_trace.png

Trains the recipe nepa_demo for --steps steps with 0, 1 and 2 workers, on the bundled emoji (kept in memory, as the
recipe has it) and on a folder of 500-px JPEGs that are read from disk each time (data.cache=off). Measured from
outside, by an iterator around the loader's: waiting is the time in which the loop asks for a batch, computing all the
rest of the step. Both are given on the clock and, since other programs slow down the clock, in CPU time of the training
process, which for 0 workers includes decoding. The first batch, for which the data is opened and workers are started,
is given by itself; the first two steps are left out.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_loading import make_jpegs
from nextembed import fit
from nextembed.core.types import Batch
from nextembed.data.stream import TrainLoader

RESULT = Path(__file__).parent / "results" / "loading_trace.json"
WORKERS = (0, 1, 2)
NUM_JPEGS = 200
FIRST = 2  # steps that are left out: torch sets itself up
WAITING, COMPUTING, INK, SOFT, LINE = "#d1495b", "#2f6fde", "#222222", "#666666", "#dddddd"


class Moment(NamedTuple):
    clock: float
    cpu: float


def now() -> Moment:
    return Moment(time.perf_counter(), time.process_time())


@contextlib.contextmanager
def traced(times: list[tuple[Moment, Moment]]) -> Iterator[None]:
    """Records when each batch is asked for and when it is there, of loaders that are started in the block."""
    plain = TrainLoader.__iter__

    def traced_iter(self: TrainLoader) -> Iterator[Batch]:
        batches = plain(self)
        while True:
            asked = now()
            batch = next(batches)
            times.append((asked, now()))
            yield batch

    TrainLoader.__iter__ = traced_iter  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainLoader.__iter__ = plain  # type: ignore[method-assign]


def trace(data: dict[str, Any], steps: int) -> dict[str, Any]:
    """Milliseconds of waiting and computing of each step, and the share of waiting in %."""
    times: list[tuple[Moment, Moment]] = []
    train = {"max_steps": steps, "save_steps": steps}
    quiet = contextlib.redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), quiet, traced(times):
        fit("nepa_demo", train=train, probe={"enabled": False}, data=data)
    first = times[0][1].clock - times[0][0].clock
    found: dict[str, Any] = {"first_batch_ms": round(1e3 * first, 2)}
    for unit in Moment._fields:
        waiting, computing = [], []
        for (asked, there), (following, _) in zip(times[FIRST:], times[FIRST + 1 :]):
            waiting.append(1e3 * (getattr(there, unit) - getattr(asked, unit)))
            computing.append(1e3 * (getattr(following, unit) - getattr(there, unit)))
        found[unit] = summary(waiting, computing)
    return found


def summary(waiting: list[float], computing: list[float]) -> dict[str, Any]:
    shares = [100 * wait / (wait + compute) for wait, compute in zip(waiting, computing)]
    return {
        "median_waiting_ms": round(statistics.median(waiting), 3),
        "median_computing_ms": round(statistics.median(computing), 1),
        "median_share_percent": round(statistics.median(shares), 3),
        "highest_share_percent": round(max(shares), 3),
        "share_of_all_percent": round(100 * sum(waiting) / sum(waiting + computing), 3),
        "waiting_ms": [round(value, 3) for value in waiting],
        "computing_ms": [round(value, 2) for value in computing],
    }


def traces(steps: int, source: str) -> Iterator[dict[str, Any]]:
    """Traces of the emoji and of a folder of JPEGs, by number of workers."""
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(make_jpegs(source, NUM_JPEGS, 500, 4.0)):
            (Path(folder) / f"{number:04}.jpg").write_bytes(data)
        jpegs = {"source": folder, "cache": "off"}
        for name, data in (("emoji", {}), ("500-px JPEGs", jpegs)):
            for workers in WORKERS:
                row = {"data": name, "num_workers": workers} | trace(data | {"num_workers": workers}, steps)
                clock, cpu = row["clock"], row["cpu"]
                print(
                    f"{name:>12}, {workers} workers: waits {clock['median_waiting_ms']:.1f} ms of "
                    f"{clock['median_computing_ms']:.0f}; share {clock['median_share_percent']:.2f} %, highest "
                    f"{clock['highest_share_percent']:.2f} %; of CPU time {cpu['median_share_percent']:.2f} %",
                    flush=True,
                )
                yield row


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Waiting on top of computing, step by step; a row of panels for each data set."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 4.6), dpi=100, facecolor="white", layout="constrained")
    grid = figure.subplots(2, len(WORKERS), sharex=True, sharey="row")
    for axes, row in zip(grid.flat, rows):
        one = row["clock"]
        steps = range(FIRST + 1, FIRST + 1 + len(one["waiting_ms"]))
        axes.bar(steps, one["computing_ms"], width=1, color=COMPUTING, alpha=0.55, label="computing")
        axes.bar(steps, one["waiting_ms"], width=1, bottom=one["computing_ms"], color=WAITING, label="waiting")
        workers = f"{row['num_workers']} worker{'' if row['num_workers'] == 1 else 's'}"
        share = f"waits {one['median_share_percent']:.1f} %"
        axes.set_title(f"{row['data']}, {workers}: {share}", fontsize=8, color=INK, loc="left")
        axes.tick_params(labelsize=8, length=0, colors=SOFT)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        for name, spine in axes.spines.items():
            spine.set(visible=name == "bottom", edgecolor=LINE)
    for axes in grid[-1]:
        axes.set_xlabel("training step", fontsize=8.5, color=SOFT)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in grid[:, 0]:
        axes.set_ylabel("ms on the clock", fontsize=8.5, color=SOFT)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=2, fontsize=8, frameon=False, labelcolor=INK)
    figure.savefig(file, format="png", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="emoji", help="images that are enlarged to JPEGs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="of each trace (default: %(default)s)")
    parser.add_argument("--figure", type=Path, help="PNG with the traces")
    parser.add_argument("--plot-only", action="store_true", help="draw the figure from the result file")
    args = parser.parse_args()
    if not args.plot_only:
        torch.set_num_threads(1)
        result = {
            "command": shlex.join(["python", "benchmarks/loading_trace.py", *sys.argv[1:]]),
            "machine": f"{platform.platform()}, {os.cpu_count()} cores, 1 thread, torch {torch.__version__}",
            "load_average": os.getloadavg()[0],
        }
        rows: list[dict[str, Any]] = []
        for row in traces(args.steps, args.source):
            rows.append(row)
            RESULT.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")
    if args.figure:
        plot(json.loads(RESULT.read_text())["rows"], args.figure)


if __name__ == "__main__":
    main()
