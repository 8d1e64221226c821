"""Equal budgets: which time is counted, and how many steps a budget allows."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nextembed.comparison.budget import WARM_UP, Meter, Pace, Reading, Stopwatch, checked_steps
from nextembed.comparison.settings import CompareSettings
from nextembed.core.config import validated
from nextembed.errors import ConfigError

PACE = Pace(cpu=0.5, wall=0.4, flops=1e9, batch_size=100)


class FakeClock:
    """A clock that advances only when `pass_by` is called."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def __call__(self) -> Reading:
        return Reading(self.cpu, self.wall)

    def pass_by(self, cpu: float, wall: float) -> None:
        self.cpu, self.wall = self.cpu + cpu, self.wall + wall


def fake_loop(step: int = 0) -> Any:
    part = torch.nn.Linear(2, 3, bias=False)
    return SimpleNamespace(step=step, max_steps=100, bare=SimpleNamespace(backbone=part, objective=part))


def test_only_steps_are_counted() -> None:
    clock, loop = FakeClock(), fake_loop()
    clock.pass_by(50, 90)  # opening the data
    meter = Meter(clock=clock)
    meter.started(loop)
    for _ in range(3):
        clock.pass_by(2, 3)  # a step
        loop.step += 1
        meter.stepped(loop)
        clock.pass_by(7, 11)  # a probe and a checkpoint
        meter.ready(loop)
    line: dict[str, Any] = {}
    meter.logged(loop, line)
    assert line == {"cpu_seconds": 6.0, "wall_seconds": 9.0}
    assert meter.parameters == (6, 6)


def test_time_up_to_the_last_checkpoint_is_counted_and_lost_steps_are_not() -> None:
    history = [{"step": 5, "cpu_seconds": 10.0, "wall_seconds": 20.0},
               {"step": 9, "cpu_seconds": 18.0, "wall_seconds": 36.0}]  # fmt: skip
    clock, loop = FakeClock(), fake_loop(step=5)  # resumed from the checkpoint of step 5
    meter = Meter(history, clock=clock)
    meter.started(loop)
    clock.pass_by(2, 4)
    meter.stepped(loop)
    assert meter.spent == Reading(12.0, 24.0)


def test_a_busy_machine_gives_the_same_number_of_steps() -> None:
    settings = CompareSettings(minutes=1)
    busy = Pace(cpu=0.5, wall=4.0, flops=1e9, batch_size=100)  # longer wall time per step, same CPU time
    assert PACE.steps(settings, 2, on_cpu=True) == busy.steps(settings, 2, on_cpu=True) == 240  # 60 s x 2 / 0.5
    assert PACE.steps(settings, 2, on_cpu=False) == 150  # 60 s / 0.4


def test_images_and_flops() -> None:
    assert PACE.steps(CompareSettings(images_seen=1050), 1, True) == 10
    assert PACE.steps(CompareSettings(flops=5.5e9), 1, True) == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (CompareSettings(minutes=0.001), "too short for one step, which takes 0.25 s"),
        (CompareSettings(images_seen=99), "99 images are less than one step of 100"),
        (CompareSettings(flops=9e8), "9e[+]08 FLOPs are less than one step, which takes 1e[+]09"),
    ],
)
def test_a_budget_below_one_step(settings: CompareSettings, words: str) -> None:
    with pytest.raises(ConfigError, match=f"mae: .*{words}"):
        checked_steps("mae", PACE, settings, 2, True)


def test_only_one_kind_of_budget_is_allowed() -> None:
    with pytest.raises(ConfigError, match="give one of minutes, images_seen and flops"):
        validated(CompareSettings, {"minutes": 1, "flops": 1e9})
    assert CompareSettings().budget_minutes == 10
    assert CompareSettings(images_seen=10).budget_minutes is None


@pytest.mark.parametrize(("on_cpu", "expected"), [(True, WARM_UP + 20), (False, WARM_UP + 10)])
def test_measuring_stops_by_the_counted_time(on_cpu: bool, expected: int, monkeypatch) -> None:
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    clock, loop = FakeClock(), fake_loop()
    watch = Stopwatch(10.0, on_cpu, clock)
    while loop.step < loop.max_steps:
        clock.pass_by(0.5, 1.0)
        loop.step += 1
        watch.stepped(loop)
    assert loop.step == expected
    assert watch.steps == expected - WARM_UP
