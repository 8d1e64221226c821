"""Makes a run fit into memory: smaller micro batches, which give the same steps, and recomputed activations."""

import math
import os
from collections.abc import Callable
from typing import Literal

import torch

from ..core.config import apply_overrides
from ..core.objective import PretrainingModel, ViewSettings
from ..core.sizes import in_bytes, memory
from ..core.types import LayeredConfig
from ..errors import ConfigError
from ..runs import RunConfig
from ..training.settings import TrainConfig
from .step import trace_step

FEW = 8  # smallest micro batch before activations are recomputed: fewer samples leave a device idle
STATE = 16  # bytes per parameter trained with AdamW: weight, gradient, two averages
MUCH = 1000  # bytes per number between two layers: several times the actual need
SURE = 0.25  # share of the memory: if the generous estimate stays below, nothing is traced

RESERVE = 0.2  # share of a device's memory that is usable: errors of the estimate, the driver, fragmentation

Peak = Callable[[int], int | None]
Verdict = Literal["fits", "tight", "does not fit"]


def judge(peak: int, room: int) -> Verdict:
    """Whether a step that needs this many bytes fits into a device's memory."""
    if peak <= (1 - RESERVE) * room:
        return "fits"
    return "tight" if peak <= room else "does not fit"


def fit_to_memory(
    config: RunConfig, model: PretrainingModel, length: int | None, ranks: int, num_classes: int
) -> tuple[TrainConfig, str]:
    """Settings of training with which a step fits into this device's memory, and the changes as text. Only settings
    that are null are chosen. Micro batches are not divided if the loss depends on them.

    Args:
        config: the run.
        model: built.
        length: latents of a sample or row, None if unknown.
        ranks: that train together; on a CPU they share its memory.
        num_classes: of a classifier.
    """
    train = config.train
    device = "cpu" if train.on_cpu() or train.device == "mps" else "cuda"
    room = memory(device) // (int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device == "cpu" else 1)
    generous = generous_bytes(model, length, train.micro_batch(ranks), config)
    if generous < SURE * room or math.isinf(generous):
        return train, ""
    may_divide = train.micro_batch_size is None and not model.inexact()
    try:
        with torch.random.fork_rng(devices=[]):
            whole = trace_step(config, ranks, num_classes).peak
            if judge(whole, room) == "fits" or not (may_divide or train.gradient_checkpointing is None):
                return train, ""
            changes = chosen(config, ranks, num_classes, room, whole, may_divide)
    except ConfigError:  # a step that cannot be traced may still fit
        return train, ""
    now, there = in_bytes(whole), in_bytes(room)
    if changes is None:
        return train, f"Memory:  a step needs about {now} of {there}; `nextembed plan` suggests changes"
    made = apply_overrides(config, changes).train
    what = []
    if made.micro_batch_size != train.micro_batch_size:
        micro = made.micro_batch(ranks)
        what.append(f"{train.batch_size // (micro * ranks)} micro batches of {micro} (same result)")
    if made.gradient_checkpointing:
        what.append("gradient checkpointing (train.gradient_checkpointing)")
    return made, f"Memory:  a whole step would need about {now} of {there}, so it uses {' and '.join(what)}"


def generous_bytes(model: PretrainingModel, length: int | None, micro: int, config: RunConfig) -> float:
    """An upper bound of a step's memory; infinite for models with other parts than one transformer (visual
    decoders)."""
    sizes = model.backbone.config
    if not isinstance(sizes, LayeredConfig) or length is None:
        return math.inf
    views = config.objective.views
    num = views.num_global + views.num_local if isinstance(views, ViewSettings) else views
    state = STATE * sum(param.numel() for param in model.parameters())
    return state + MUCH * float(micro * num * length * sizes.hidden_size * sizes.num_hidden_layers)


def chosen(
    config: RunConfig, ranks: int, num_classes: int, room: int, whole: int, may_divide: bool
) -> list[str] | None:
    """The changes with which a step fits, as overrides; None if nothing helps. whole: bytes of the step as it is."""
    best: tuple[int, list[str]] | None = None
    recompute = ["train.gradient_checkpointing=true"]
    for extra in ([], recompute) if config.train.gradient_checkpointing is None else ([],):

        def peak(size: int, extra: list[str] = extra) -> int | None:
            changes = [*extra, f"train.micro_batch_size={size}"]
            try:
                return trace_step(apply_overrides(config, changes), ranks, num_classes).peak
            except ConfigError:  # batch norms need two
                return None

        now = config.train.micro_batch(ranks)
        most = peak(now) if extra else whole
        if most is None:
            continue
        if judge(most, room) == "fits":
            return extra
        found = largest_that_fits(peak, now, config.train.batch_size // ranks, most, room) if may_divide else None
        if found is None or judge(found[1], room) == "does not fit":
            continue
        if best is None or found[0] > best[0]:
            best = found[0], [*extra, f"train.micro_batch_size={found[0]}"]
        if best[0] >= FEW:
            break
    return None if best is None else best[1]


def smaller_sizes(share: int, now: int) -> list[int]:
    """The sizes of micro batches below `now` of which several make up a rank's share of a batch, smallest first."""
    low = [size for size in range(1, math.isqrt(share) + 1) if share % size == 0]
    return sorted(size for size in {*low, *(share // size for size in low)} if size < now)


def largest_that_fits(peak: Peak, now: int, share: int, whole: int, room: int) -> tuple[int, int] | None:
    """The largest micro batch below `now` that fits, and its bytes; else the smallest that can be; None without one.

    Args:
        peak: bytes of a step with micro batches of that size; None where it cannot be.
        now: size of micro batches so far.
        share: samples of a step and rank.
        whole: bytes with `now`.
        room: of the device.
    """
    sizes = smaller_sizes(share, now)
    low = peak(sizes[0]) if sizes else None
    if low is None and len(sizes) > 1 and (low := peak(sizes[1])) is not None:
        sizes = sizes[1:]
    if low is None:
        return None
    # The peak grows evenly with the batch: where it would meet the room is traced, and smaller ones if need be.
    slope = (whole - low) / (now - sizes[0])
    for size in reversed([size for size in sizes if judge(int(low + slope * (size - sizes[0])), room) == "fits"]):
        needs = low if size == sizes[0] else peak(size)
        if needs is not None and judge(needs, room) == "fits":
            return size, needs
    return sizes[0], low
