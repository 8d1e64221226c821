"""Equal cost: the cost of a step, the number of steps in a budget, and the cost of a run."""

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..core.saved import Count, Number
from ..errors import ConfigError
from ..run import prepare
from ..runs import RunConfig
from ..training.loop import Loop
from ..training.watch import Training, Watcher
from .settings import CompareSettings

WARM_UP, MEASURED = 3, 8  # first steps, which are slower and not measured; and the minimum of measured ones
SHARE = 0.05  # share of the minutes for measuring the cost of a step
LEAST, MOST = 2.0, 20.0  # limits of this time, in seconds


class Reading(NamedTuple):
    """Seconds: cpu of this process and its data workers, wall of the clock."""

    cpu: float
    wall: float


Clock = Callable[[], Reading]


def read_clock() -> Reading:
    """Both clocks now."""
    times = os.times()
    cpu = time.process_time() + times.children_user + times.children_system
    for worker in multiprocessing.active_children():
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(worker.pid).cpu_times()
            cpu += own.user + own.system
    return Reading(cpu, time.monotonic())


class Meter(Watcher):
    """Adds up the cost of training steps, without probes, logs and checkpoints.

    It writes "cpu_seconds" and "wall_seconds" into each logged line, and continues from there after a stop. history:
    logged lines of a resumed run. every: steps between logs, when an accelerator is synchronised.
    """

    def __init__(self, history: Sequence[Mapping[str, Any]] = (), every: int = 1, clock: Clock = read_clock):
        self.history, self.every, self.clock = history, every, clock
        self.spent, self.begun = Reading(0.0, 0.0), Reading(0.0, 0.0)
        self.parameters = (0, 0)

    def started(self, loop: Training) -> None:
        known = [line for line in self.history if line.get("step", 0) <= loop.step and "cpu_seconds" in line]
        if known:
            self.spent = Reading(float(known[-1]["cpu_seconds"]), float(known[-1]["wall_seconds"]))
        backbone, objective = (
            sum(p.numel() for p in part.parameters()) for part in (loop.bare.backbone, loop.bare.objective)
        )
        self.parameters = (backbone, objective)
        self.begun = self.clock()

    def stepped(self, loop: Training) -> None:
        if loop.step % self.every == 0 and torch.accelerator.is_available():
            torch.accelerator.synchronize()
        now = self.clock()
        self.spent = Reading(*(total + b - a for total, a, b in zip(self.spent, self.begun, now)))
        self.begun = now

    def ready(self, loop: Training) -> None:
        self.begun = self.clock()

    def logged(self, loop: Training, line: dict[str, Any]) -> None:
        line |= {"cpu_seconds": self.spent.cpu, "wall_seconds": self.spent.wall}


@dataclass
class Pace:
    """The cost of one optimizer step. cpu, wall: seconds; flops: counted in matrix products, forward and backward;
    batch_size: images of a step; measured: number of steps in the mean."""

    cpu: Number
    wall: Number
    flops: Number
    batch_size: Count
    measured: Count = 0

    def steps(self, settings: CompareSettings, threads: int, on_cpu: bool) -> int:
        """Number of steps in a budget; 0 if it is too small for one."""
        if settings.images_seen is not None:
            return settings.images_seen // self.batch_size
        if settings.flops is not None:
            return int(settings.flops // self.flops)
        seconds = 60 * float(settings.budget_minutes or 0)
        return int(seconds * threads / self.cpu) if on_cpu else int(seconds / self.wall)


class Stopwatch(Watcher):
    """Ends a measuring run after this many counted seconds and at least MEASURED steps."""

    def __init__(self, seconds: float, on_cpu: bool, clock: Clock = read_clock):
        self.seconds, self.on_cpu, self.clock = seconds, on_cpu, clock
        self.begun = self.last = Reading(0.0, 0.0)
        self.steps = 0

    def stepped(self, loop: Training) -> None:
        if not self.on_cpu and loop.step % MEASURED == 0:
            torch.accelerator.synchronize()
        now = self.clock()
        if loop.step <= WARM_UP:
            self.begun = now
            return
        self.last, self.steps = now, loop.step - WARM_UP
        spent = now.cpu - self.begun.cpu if self.on_cpu else now.wall - self.begun.wall
        if spent >= self.seconds and self.steps >= MEASURED:
            loop.max_steps = loop.step


def measure_pace(config: RunConfig, minutes: float | None, clock: Clock = read_clock) -> Pace:
    """Trains a few seconds in a temporary folder. Raises what `fit` raises before its first step."""
    seconds = min(MOST, max(LEAST, 60 * SHARE * minutes)) if minutes else 0.0
    endless: dict[str, object] = {
        "max_steps": 10**6,
        "epochs": None,
        "save_steps": 10**6,
        "probe_steps": None,
        "trackers": [],
    }
    config = config.model_copy(update={"train": config.train.model_copy(update=endless)})
    with tempfile.TemporaryDirectory() as scratch:
        loop = prepare(Path(scratch), config, None).loop
        flops = step_flops(loop)
        watch = Stopwatch(seconds, config.train.on_cpu(), clock)
        loop.watchers[:] = [watch]
        loop.train()
    cpu, wall = (max(1e-9, b - a) / watch.steps for a, b in zip(watch.begun, watch.last))
    return Pace(cpu, wall, flops, config.train.batch_size, watch.steps)


def step_flops(loop: Loop) -> float:
    """FLOPs of the matrix products of one optimizer step, forward and backward."""
    window = loop.window(iter(loop.loader))
    loop.model.train()
    loop.bare.prepare([loop.moved(batch) for batch in window])
    with FlopCounterMode(display=False) as counter:
        output = loop.forward(window[0], 0)
        assert output.loss_sum is not None
        output.loss_sum.sum().backward()
    loop.bare.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()) * loop.num_micro_batches


def checked_steps(name: str, pace: Pace, settings: CompareSettings, threads: int, on_cpu: bool) -> int:
    """Steps of a run. Raises ConfigError for a budget that is too small for one."""
    if steps := pace.steps(settings, threads, on_cpu):
        return steps
    words = settings.budget_in_words(threads, on_cpu)
    if settings.images_seen is not None:
        raise ConfigError(f"{name}: {words} are less than one step of {pace.batch_size}; see train.batch_size")
    if settings.flops is not None:
        raise ConfigError(f"{name}: {words} are less than one step, which takes {pace.flops:.3g}")
    needed = pace.cpu / threads if on_cpu else pace.wall
    raise ConfigError(f"{name}: {words} are too short for one step, which takes {needed:.2g} s; give more --minutes")
