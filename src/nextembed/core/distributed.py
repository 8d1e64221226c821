"""The rank of this process, and small collective operations. Everything here also works without a process group (one
rank, world size 1), so callers need no branches. Exchanges run over a CPU (gloo) group, so that they never make the
accelerator wait.
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
    """Joins the process group that `torchrun` or `accelerate launch` set up in the environment, if any.

    device: "cpu", or no accelerator here, uses gloo; else what accelerate finds best.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not is_distributed():
        from accelerate import PartialState

        cpu = device == "cpu" or not torch.accelerator.is_available()
        PartialState(cpu=cpu, backend="gloo") if cpu else PartialState()
        patient_group()  # created while no rank is late
        atexit.register(stop)


def stop() -> None:
    """Leaves the process group. Otherwise its threads outlive the interpreter: one rank in twelve then aborted at exit,
    after its work was done ("terminate called without an active exception")."""
    if is_distributed():
        cpu_group.cache_clear()
        patient_group.cache_clear()
        gc.collect()  # a DDP model that was not collected yet still holds the group
        dist.destroy_process_group()


def restart_may_hang() -> bool:
    """Whether a restart by `torchrun` on several machines may hang: the machines may disagree about which one is first,
    and the ranks then wait at different addresses (seen with torch 2.14, where the machines share one store)."""
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
    """A barrier without a time limit."""
    if world_size() > 1:
        dist.barrier(patient_group())


def broadcast_object(value: T) -> T:
    """Rank 0's picklable value, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=cpu_group())
    return box[0]


def broadcast_tensor(value: torch.Tensor) -> torch.Tensor:
    """Rank 0's tensor, on the CPU. value: on other ranks any tensor of its shape and dtype, on the meta device, too."""
    if world_size() == 1:
        return value
    found = value.cpu().contiguous() if is_main() else torch.empty(value.shape, dtype=value.dtype, device="cpu")
    if found.numel():  # as bytes, because gloo does not know every dtype
        dist.broadcast(found.view(-1).view(torch.uint8), src=0, group=cpu_group())
    return found


def on_main(function: Callable[[], T]) -> T:
    """Calls `function` on rank 0 and returns its result on every rank; an error is raised on every rank, so that none
    waits for a rank that has ended."""
    value: T | None = None
    error: Exception | None = None
    if is_main():
        try:
            value = function()
        except Exception as err:
            error = err
    wait()  # collectives have a time limit, and the work of one rank may take hours
    value, said = broadcast_object((value, _portable(error)))
    if said is not None:
        raise error or said
    return cast(T, value)


def together(function: Callable[[], T]) -> T:
    """Calls `function` on every rank and returns this rank's result once all are done; an error on one is raised on
    all. It may take any time, but must not use collectives, which another rank could miss by raising."""
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
    """An error converted to one of the few classes that survive pickling."""
    if error is None:
        return None
    for kind in (ConfigError, DataError, TrainingError, NextEmbedError):
        if isinstance(error, kind):
            return kind(str(error))
    return TrainingError(f"rank {rank()} failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


@functools.cache
def patient_group() -> Any:
    """The group for waiting without the usual limit of half an hour. A rank that has ended is still noticed at once,
    because its connection is closed."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=30))


@functools.cache
def cpu_group() -> Any:
    """The group for collectives on the CPU; None is the default group."""
    return None if not is_distributed() or dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
