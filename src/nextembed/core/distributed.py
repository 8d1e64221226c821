"""Ranks: who am I, and small exchanges between all of them.

Everything here works without a process group too (one rank, world size 1), so no caller needs a branch. Exchanges run
over a CPU (gloo) group, so that they never make the accelerator wait.
"""

import atexit
import functools
import gc
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from ..errors import ConfigError, DataError, NextEmbedError, TrainingError

T = TypeVar("T")


def start(device: str = "auto") -> None:
    """Joins the process group that `torchrun` or `accelerate launch` describes in the environment, if there is one.

    device: "cpu", or no accelerator here, uses gloo; else what accelerate finds best.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not is_distributed():
        from accelerate import PartialState

        cpu = device == "cpu" or not torch.accelerator.is_available()
        PartialState(cpu=cpu, backend="gloo") if cpu else PartialState()
        patient_group()  # made while no rank is late
        atexit.register(stop)


def stop() -> None:
    """Leaves the process group. Its threads would else outlive the interpreter: one rank in twelve then aborted at the
    very end, with all work done ("terminate called without an active exception")."""
    if is_distributed():
        cpu_group.cache_clear()
        patient_group.cache_clear()
        gc.collect()  # a DDP model that is garbage still holds the group
        dist.destroy_process_group()


def restart_may_hang() -> bool:
    """Whether a restart by `torchrun` on several machines may wait for ever: its machines may each call another one the
    first, and its ranks then meet at different places (seen with torch 2.14, where the machines share one store)."""
    several = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    return several and restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """True on the one rank that prints and writes files."""
    return rank() == 0


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Elementwise sum of a CPU tensor over all ranks; every rank gets it. No gradient."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values, group=cpu_group())
    return values


def gather_objects(value: T) -> list[T]:
    """The picklable values of all ranks, by rank; every rank gets the list."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size()
    dist.all_gather_object(values, value, group=cpu_group())
    return values


def wait() -> None:
    """Comes back when every rank is here, however long one of them takes."""
    if world_size() > 1:
        dist.barrier(patient_group())


def broadcast_object(value: T) -> T:
    """Rank 0's picklable value, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=cpu_group())
    return box[0]


def on_main(function: Callable[[], T]) -> T:
    """What `function` gives on rank 0, on every rank; and what it raises is raised on every rank, so that none waits
    for ever for one that has ended."""
    value: T | None = None
    error: Exception | None = None
    if is_main():
        try:
            value = function()
        except Exception as err:
            error = err
    wait()  # an exchange has a time limit, and what one rank does may take hours
    value, said = broadcast_object((value, _portable(error)))
    if said is not None:
        raise error or said
    return cast(T, value)


def together(function: Callable[[], T]) -> T:
    """What `function` gives on this rank, once all ranks are done with it; what it raises on one of them is raised on
    all. It may take any time, and exchange nothing that another rank could miss by raising."""
    value: T | None = None
    error: Exception | None = None
    try:
        value = function()
    except Exception as err:
        error = err
    wait()
    found = [said for said in gather_objects(_portable(error)) if said is not None]
    if found:
        raise error or found[0]
    return cast(T, value)


def _portable(error: Exception | None) -> Exception | None:
    """An error as one of the few kinds that come whole through pickle."""
    if error is None:
        return None
    for kind in (ConfigError, DataError, TrainingError, NextEmbedError):
        if isinstance(error, kind):
            return kind(str(error))
    return TrainingError(f"rank {rank()} failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


@functools.cache
def patient_group() -> Any:
    """The group in which ranks wait for each other without the usual limit of half an hour. One that has ended is
    noticed at once all the same: its connection is closed."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=30))


@functools.cache
def cpu_group() -> Any:
    """The group that exchanges go over; None: the only one."""
    return None if not is_distributed() or dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
