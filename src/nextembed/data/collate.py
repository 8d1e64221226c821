"""Pixels and labels of some samples to the Batch a model takes, with the objective's random draws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..core.types import Batch, Objective
from .augment import Augment
from .draws import signed
from .transforms import normalize

Draw = Callable[[Batch, torch.Generator], Batch]


@dataclass(frozen=True)
class Collate:
    """Makes a Batch: normalised pixels, labels, latent_mask (all True), position, seeds, and whatever `draw` adds.

    num_latents: T, begin token counted. draw: `Objective.draw`, called once a sample on a batch of one, with
    a generator seeded by the sample, so masks depend on neither batch size nor ranks nor workers. augment: changes the
    cropped pixels of one sample, seeded in the same way.
    """

    mean: float
    std: float
    num_latents: int
    draw: Draw | None = None
    augment: Augment | None = None

    def __call__(self, pixels: Tensor, labels: Sequence[int], position: Tensor, seeds: Sequence[int]) -> Batch:
        """pixels [B, C, H, W] in 0..255, uint8 or float32. position [B, P], int64. seeds: one a sample."""
        if self.augment is not None:
            pixels = torch.stack([self.augment(image, seed) for image, seed in zip(pixels, seeds)])
        batch: Batch = {
            "pixel_values": normalize(pixels, self.mean, self.std),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "latent_mask": torch.ones(len(pixels), self.num_latents, dtype=torch.bool),
            "position": position,
            "seeds": signed(seeds),
        }
        # The base class draws nothing; a call a sample would only cost time.
        if self.draw is None or getattr(self.draw, "__func__", None) is Objective.draw:
            return batch
        drawn = [self._draw_one(batch, row, seed) for row, seed in enumerate(seeds)]
        return cast(Batch, {name: torch.cat([one[name] for one in drawn]) for name in drawn[0]})

    def _draw_one(self, batch: Batch, row: int, seed: int) -> dict[str, Any]:
        one = cast(Batch, {name: cast(Tensor, value)[row : row + 1] for name, value in batch.items()})
        # The crop uses `seed` too, but through another generator; the two streams are unrelated.
        generator = torch.Generator().manual_seed(seed % 2**63)
        assert self.draw is not None
        return dict(self.draw(one, generator))
