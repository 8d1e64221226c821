"""Orders in which latents are read: permutations of their natural (raster) order, by name.

`order[i]` is the natural position of the latent that is read at step i; `inverse(order)[p]` is the step at which
position p is read, so that `x[order][inverse(order)]` is x.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

ORDERS = ("raster", "hilbert", "random", "coarse_to_fine", "time")

MAX_SIDE = 256  # of the grid that scattered coordinates are counted on


def order_of(name: str, where: tuple[int, ...] | Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The permutation of an order.

    Args:
        name: "raster" natural order; "time" by time, natural order within one time; "hilbert" neighbours follow each
            other in the plane, one time after the other; "coarse_to_fine" every prefix is spread over the plane, one
            time after the other (over time where there is nothing else); "random" drawn from `generator`.
        where: the shape of a grid, (time,), (height, width) or (time, height, width); or coordinates [N, 3] of latents
            (time, height, width), which need not fill a grid: then ranks along each axis stand for places.
        generator: of "random".

    Returns:
        int64 [N], on the CPU.

    Raises:
        ValueError: the name is unknown, the shape does not fit, or "random" has no generator.
    """
    if name not in ORDERS:
        raise ValueError(f"no order '{name}'; there are {', '.join(ORDERS)}")
    time, height, width = _cells(where)
    num = len(time)
    if name == "random":
        if generator is None:
            raise ValueError("order 'random' needs a generator")
        return torch.randperm(num, generator=generator)
    if name == "raster":
        return torch.arange(num)
    if name == "time":
        return torch.from_numpy(np.argsort(time, kind="stable"))
    if name == "coarse_to_fine" and not height.any() and not width.any():  # a line in time
        time, height = height, time
    sides = (int(axis.max(initial=0)) + 1 for axis in (height, width))
    step = (_hilbert_steps if name == "hilbert" else _coarse_steps)(*sides)[height, width]
    return torch.from_numpy(np.lexsort((step, time)))


def inverse(order: Tensor) -> Tensor:
    """The inverse of a permutation: the step at which each position is read.

    Args:
        order: int64 [N].

    Returns:
        int64 [N].
    """
    found = torch.empty_like(order)
    found[order] = torch.arange(len(order), device=order.device)
    return found


def hilbert(height: int, width: int) -> Tensor:
    """A Hilbert-like curve over any grid, from a corner; each step goes to one of the four neighbours.

    A block is entered at one corner and left at the next: a long one is cut in two along the way, another in three (up,
    across, down), at even lengths so that each part can be traversed in this way.

    Args:
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        int64 [height * width].

    Source:
        Hilbert (1891); for rectangles the idea of the generalised Hilbert curve ("gilbert", J. Cerveny, 2018). Ours
        begins along the shorter side where only that way has no diagonal step (longer side odd, shorter side even).
    """
    cells = np.arange(height * width).reshape(height, width)
    along_width = width >= height
    if max(height, width) % 2 and min(height, width) % 2 == 0:
        along_width = not along_width
    return torch.from_numpy(_walk(cells.T if along_width else cells).copy())


def _walk(block: np.ndarray) -> np.ndarray:
    """The cells of a block [length, depth] as walked from block[0, 0] to block[-1, 0]; even length or odd depth."""
    length, depth = block.shape
    if depth == 1:
        return block[:, 0]
    if 2 * length > 3 * depth:
        cut = _even_half(length)
        parts = [block[:cut], block[cut:]]
    else:
        cut, up = length // 2, _even_half(depth)
        parts = [block[:cut, :up].T, block[:, up:], block[cut:, :up][::-1, ::-1].T]
    return np.concatenate([_walk(part) for part in parts])


def _even_half(size: int) -> int:
    half = size // 2
    return half + half % 2 if size > 2 else half


def coarse_to_fine(height: int, width: int) -> Tensor:
    """A coarse grid of cells first, then the cells between them, at half the distance and again.

    Every prefix is spread over the plane: cells at distance 2^k come first as a square grid, then as a quincunx (the
    centres of its squares), then as a square grid at half the distance.

    Args:
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        int64 [height * width].

    Source:
        the ranks of ordered dithering (Bayer, 1973): interleaved bits of (x xor y, y), reversed. Ours starts x and y at
        a third of the distance, so that coarse grids do not begin at the border.
    """
    sides = max(height, width, 2)
    num_bits = (sides - 1).bit_length()
    y = (np.arange(height)[:, None] - height // 3) % 2**num_bits
    x = (np.arange(width)[None, :] - width // 3) % 2**num_bits
    rank = np.zeros((height, width), dtype=np.int64)
    for bit in range(num_bits):  # the lowest bit tells the finest cells apart and weighs most
        rank = 4 * rank + 2 * ((x ^ y) >> bit & 1) + (y >> bit & 1)
    return torch.from_numpy(np.argsort(rank, axis=None, kind="stable"))


def _cells(where: tuple[int, ...] | Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time, height and width of each latent, counted from 0 along each axis, int64 [N] each."""
    if isinstance(where, Tensor):
        if where.ndim != 2 or where.shape[1] != 3:
            raise ValueError(f"coordinates are [N, 3]: time, height, width; these are {tuple(where.shape)}")
        return _ranks(where[:, 0]), _ranks(where[:, 1], MAX_SIDE), _ranks(where[:, 2], MAX_SIDE)
    if len(where) not in (1, 2, 3) or min(where) < 1:
        raise ValueError(f"a grid is (time,), (height, width) or (time, height, width); this is {tuple(where)}")
    shape = {1: (*where, 1, 1), 2: (1, *where), 3: where}[len(where)]
    time, height, width = np.indices(shape).reshape(3, -1)
    return time, height, width


def _ranks(values: Tensor, limit: int | None = None) -> np.ndarray:
    """The rank of each value among the different ones, coarsened to at most `limit` ranks."""
    different, ranks = np.unique(values.detach().cpu().numpy(), return_inverse=True)
    if limit is not None and len(different) > limit:
        ranks = ranks * limit // len(different)
    return ranks


@lru_cache(maxsize=64)
def _hilbert_steps(height: int, width: int) -> np.ndarray:
    """At which step of `hilbert` each cell is read, [height, width]."""
    return inverse(hilbert(height, width)).numpy().reshape(height, width)


@lru_cache(maxsize=64)
def _coarse_steps(height: int, width: int) -> np.ndarray:
    """At which step of `coarse_to_fine` each cell is read, [height, width]."""
    return inverse(coarse_to_fine(height, width)).numpy().reshape(height, width)
