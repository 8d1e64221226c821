"""Sizes of a run chosen from what is in a source, the speed of the machine and the minutes given."""

import statistics
from typing import NamedTuple

import torch

from ..data.rows import Rows
from ..data.sources import ImageData
from ..training.banner import short_side

SAMPLED = 20  # images whose size is read
SIZES = (32, 48, 64, 96, 128, 160, 224)
FLOPS = {"cpu": 2e10, "mps": 2e12, "cuda": 4e13}  # FLOP/s that small models reach: per core, on an accelerator
EPOCHS = 800  # more repetitions of a small folder do not help


class Found(NamedTuple):
    """Content of a source. num: images, None for a stream. side: median shorter side of a sample, in pixels."""

    num: int | None
    side: int
    labelled: bool


class Chosen(NamedTuple):
    """Sizes of a run."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    batch_size: int
    steps: int


def look(data: ImageData) -> Found:
    """Counts the images, and reads the sizes of some. Raises ConfigError for a source that is not there."""
    rows = data.training_rows()
    if not isinstance(rows, Rows) or not len(rows):
        return Found(None, 224, False)
    step = max(1, len(rows) // SAMPLED)
    sides = [side for i in range(0, len(rows), step) if (side := short_side(rows[i].get("image"))) is not None]
    return Found(len(rows), int(statistics.median(sides)) if sides else 224, bool(data.class_names()))


def speed() -> float:
    """FLOPs a second that this machine reaches, about."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is not None:
        return FLOPS.get(device.type, FLOPS["cuda"])
    return FLOPS["cpu"] * torch.get_num_threads()


def choose(found: Found, flops: float, minutes: float) -> Chosen:
    """The largest images, up to their own size, with which the time is enough to see each many times.

    A model of images in T patches costs 6 x parameters x T FLOPs an image; at least `wanted` images have to be seen.
    """
    budget = flops * 60 * max(0.1, minutes)
    num = found.num or 100_000
    wanted = max(20_000, min(20 * num, 400_000))
    fitting = [size for size in SIZES if size <= max(SIZES[0], found.side)]
    image_size, patch_size, width, layers = fitting[0], fitting[0] // 4, 192, 6
    for size in fitting:
        patch = max(8, size // 14 // 2 * 2)
        while size % patch:
            patch += 1
        wide, deep = (192, 6) if flops < 1e12 else (384, 12)
        if cost(size, patch, wide, deep) * wanted <= budget:
            image_size, patch_size, width, layers = size, patch, wide, deep
    batch = 128 if flops >= 1e12 or image_size <= 64 else 64
    while batch > 8 and batch > num // 2:
        batch //= 2
    seen = budget / cost(image_size, patch_size, width, layers)
    steps = int(min(seen, EPOCHS * num) / batch)
    return Chosen(image_size, patch_size, width, layers, batch, max(20, steps))


def cost(size: int, patch: int, width: int, layers: int) -> float:
    """FLOPs of training on one image."""
    return 6.0 * 12 * layers * width**2 * (size // patch) ** 2
