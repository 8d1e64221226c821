"""Stronger augmentation of the cropped image, for fine-tuning: RandAugment and random erasing."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ..errors import MissingExtra


class Augment:
    """Changes one cropped image; the same image and seed give the same result.

    size: pixels a side. rand_augment: (magnitude, standard deviation) of RandAugment, two operations per image, as
    timm's "rand-m9-mstd0.5-inc1". erase_rate: share of images in which a rectangle (2 to 33 % of the area) becomes
    mid-grey, which is 0 after normalisation. Raises MissingExtra if RandAugment is asked for and timm is not installed.
    Source: RandAugment (arXiv 1909.13719), random erasing (arXiv 1708.04896).
    """

    def __init__(self, size: int, rand_augment: tuple[float, float] | None, erase_rate: float):
        self.operations: Any = None
        if rand_augment is not None:
            try:
                from timm.data.auto_augment import rand_augment_transform
            except ImportError:
                raise MissingExtra("timm", "finetune") from None
            magnitude, deviation = rand_augment
            limits = {"translate_const": int(size * 0.45), "img_mean": (128, 128, 128)}
            self.operations = rand_augment_transform(f"rand-m{magnitude:g}-mstd{deviation:g}-inc1", limits)
        self.erase = v2.RandomErasing(p=erase_rate, value=128.0) if erase_rate > 0 else None

    def __call__(self, pixels: Tensor, seed: int) -> Tensor:
        """pixels [C, S, S] in 0..255, uint8 or whole float32, C 1 or 3; the result has the same type and shape."""
        with _seeded(seed):
            if self.operations is not None:
                pixels = self._apply(pixels)
            return pixels if self.erase is None else self.erase(pixels)

    def _apply(self, pixels: Tensor) -> Tensor:
        # Operations work on colours; a grey image is one whose three channels are equal, before and after.
        array = pixels.byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
        changed = self.operations(Image.fromarray(np.ascontiguousarray(array)))
        if len(pixels) == 1:
            changed = changed.convert("L")
        out = torch.from_numpy(np.array(changed)).to(pixels.dtype)
        return out[None] if out.ndim == 2 else out.permute(2, 0, 1)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds Python's, numpy's and torch's generators inside the block; afterwards they are as before."""
    before, numpy_before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed % 2**63)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)
