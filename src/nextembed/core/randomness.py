"""Random numbers that depend on the sample only, not on its batch, rank or worker. Random operations of a network in
training (stochastic depth, augmented positions) are then the same however a batch is divided.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_SEEDS: ContextVar[Tensor | None] = ContextVar("seeds_of_samples", default=None)

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # SplitMix64's constants as int64
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


@contextmanager
def drawn_by(seeds: Tensor | None) -> Iterator[None]:
    """Inside the block, `uniform` uses these seeds, int64 [B], one per sample. None uses torch's default generator."""
    token = _SEEDS.set(seeds)
    try:
        yield
    finally:
        _SEEDS.reset(token)


def uniform(num_samples: int, num: int, stream: int, device: torch.device) -> Tensor:
    """Numbers in [0, 1), float32 [B, num], of each sample.

    Args:
        num_samples: B.
        num: how many numbers a sample needs.
        stream: number of the sequence; each use has its own.
        device: of the result. The numbers are the same on every device.

    Source: SplitMix64 (Steele, Lea and Flood 2014) of (seed, stream, place). Ours takes the upper 24 bits.
    """
    seeds = _SEEDS.get()
    if seeds is None or len(seeds) != num_samples:  # e.g. a model in training mode that somebody else calls
        return torch.rand(num_samples, num, device=device)
    draw = _opaque if torch.compiler.is_compiling() else _uniform
    return draw(seeds.to(device), num, stream)


def normal(num_samples: int, num: int, stream: int, device: torch.device) -> Tensor:
    """Standard normal numbers, float32 [B, num], of each sample; arguments as of `uniform`.

    On a CPU they come from one generator per sample, which is fifty times as fast there; elsewhere from uniform numbers
    by Box and Muller (1958). So CPU and other devices differ.
    """
    seeds = _SEEDS.get()
    if device.type == "cpu" and seeds is not None and len(seeds) == num_samples:
        own = _mixed(_mixed(seeds.cpu()) + torch.tensor(stream << 20) * GOLDEN).tolist()
        rows = [torch.randn(num, generator=torch.Generator().manual_seed(seed)) for seed in own]
        return torch.stack(rows) if rows else torch.zeros(0, num)
    radius, angle = uniform(num_samples, 2 * num, stream, device).chunk(2, dim=1)
    return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * torch.pi * angle)


def seeds_within(rows: Tensor) -> Tensor | None:
    """Seeds of parts of samples, such as the images of packed rows.

    rows [N], int64: the sample of each part, in ascending order. Returns [N]; None if samples have no seeds.
    """
    seeds = _SEEDS.get()
    if seeds is None:
        return None
    place = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
    return _mixed(seeds.to(rows.device)[rows] + (place + 1) * GOLDEN)


def _uniform(seeds: Tensor, num: int, stream: int) -> Tensor:
    places = torch.arange(1, num + 1, device=seeds.device) + (stream << 20)
    bits = _mixed(_mixed(seeds[:, None]) + places * GOLDEN)
    return (bits >> 40 & (1 << 24) - 1).float() * 2.0**-24


@torch.library.custom_op("nextembed::uniform", mutates_args=())
def _opaque(seeds: Tensor, num: int, stream: int) -> Tensor:
    """The same as an opaque operation for the compiler, which would otherwise fold the constants into one above 64
    bits."""
    return _uniform(seeds, num, stream)


@_opaque.register_fake
def _(seeds: Tensor, num: int, stream: int) -> Tensor:
    return seeds.new_empty(len(seeds), num, dtype=torch.float32)


def _mixed(x: Tensor) -> Tensor:
    """Int64 arithmetic wraps around; shifts fill with zeros."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * FIRST
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * SECOND
    return x ^ (x >> 31 & (1 << 33) - 1)
