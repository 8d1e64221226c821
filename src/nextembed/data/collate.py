"""Pixels and labels of some samples to the Batch a model takes, with the objective's random draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..core.types import Batch
from .augment import Augment
from .draws import Draw, drawn_for, signed, view_seed
from .transforms import normalize

Label = int | Tensor  # a class, or a mask of classes [H, W]


@dataclass(frozen=True)
class Collate:
    """Makes a Batch: normalised pixels, labels, latent_mask (all True), position, seeds, and the tensors of `draw`.
    num_latents: T, with the begin token. draw: see `core.objective.ObjectiveSettings.draw`. augment: changes the
    cropped pixels of one sample, seeded in the same way. num_global: of several crops, the first so many are
    `global_views`, the others `local_views`; None: there is one.
    """

    mean: float
    std: float
    num_latents: int
    draw: Draw | None = None
    augment: Augment | None = None
    num_global: int | None = None

    def __call__(
        self, crops: Sequence[Tensor], labels: Sequence[Label], position: Tensor, seeds: Sequence[int]
    ) -> Batch:
        """crops: of each view, [B, C, H, W] in 0..255, uint8 or float32. position [B, P], int64. seeds: of samples."""
        views = [self._finished(pixels, [view_seed(seed, view) for seed in seeds]) for view, pixels in enumerate(crops)]
        pixels = views[0]
        batch: Batch = {
            "pixel_values": pixels,
            "labels": _together(labels),
            "latent_mask": torch.ones(len(pixels), self.num_latents, dtype=torch.bool),
            "position": position,
            "seeds": signed(seeds),
        }
        if self.num_global is not None:
            batch["global_views"] = torch.stack(views[: self.num_global], 1)
            if len(views) > self.num_global:
                batch["local_views"] = torch.stack(views[self.num_global :], 1)
        if self.draw is None:
            return batch
        tensors = cast(dict[str, Tensor], batch)
        rows = [{name: value[row] for name, value in tensors.items()} for row in range(len(pixels))]
        drawn = [drawn_for(self.draw, row, seed) for row, seed in zip(rows, seeds)]
        return cast(Batch, {**batch, **{name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}})

    def _finished(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        if self.augment is not None:
            pixels = torch.stack([self.augment(image, seed) for image, seed in zip(pixels, seeds)])
        return normalize(pixels, self.mean, self.std)


def _together(labels: Sequence[Label]) -> Tensor:
    masks = [label for label in labels if isinstance(label, Tensor)]
    return torch.stack(masks) if masks else torch.tensor(labels, dtype=torch.int64)
