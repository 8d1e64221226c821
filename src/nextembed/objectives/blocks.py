"""Blocks of patches to predict, and a context of constant size, which the JEPAs draw for each sample.

Shapes: R rows and C columns of patches, M blocks, K patches of context.
"""

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..core.config import Config
from ..errors import ConfigError

NUM_TRIES = 20


class BlockSettings(Config):
    """Blocks of patches, and how many of the others are seen.

    Attributes:
        num_blocks: M, the number of blocks.
        scale: share of the patches that a block takes.
        aspect: aspect ratio of a block, height by width. Share and aspect ratio are drawn independently for each block.
        context_rate: share of the patches that are context: a fixed number, at least min_context, drawn at random from
            those outside all blocks.
        min_context: minimum number of context patches.
    """

    num_blocks: int = Field(4, ge=1, le=64)
    scale: tuple[float, float] = (0.15, 0.2)
    aspect: tuple[float, float] = (0.75, 1.5)
    context_rate: float = Field(0.3, gt=0, lt=1)
    min_context: int = Field(4, ge=1, le=10**6)

    @model_validator(mode="after")
    def _ranges(self) -> "BlockSettings":
        if not 0 < self.scale[0] <= self.scale[1] < 1:
            raise ValueError(f"scale {list(self.scale)} should be [smallest, largest], between 0 and 1")
        if not 0.01 <= self.aspect[0] <= self.aspect[1] <= 100:
            raise ValueError(f"aspect {list(self.aspect)} should be [smallest, largest], in [0.01, 100]")
        return self

    def num_context(self, num_patches: int) -> int:
        """K."""
        return max(self.min_context, round(self.context_rate * num_patches))

    def largest(self, num_patches: int) -> int:
        """No block has more patches than this."""
        area = self.scale[1] * num_patches
        height = max(1, round(math.sqrt(area * self.aspect[1])))
        return max(height, math.floor(area + height / 2))  # the width is rounded, for any height up to this

    def check(self, num_patches: int, kind: str) -> None:
        """Raises ConfigError if the context does not fit next to a block."""
        block, context = self.largest(num_patches), self.num_context(num_patches)
        if block + context > num_patches:
            raise ConfigError(
                f"objective {kind}: {num_patches} patches are too few for a block of up to {block} and a context of "
                f"{context}; make model.patch_size smaller, or the blocks"
            )

    def draw(self, rows: int, columns: int, generator: torch.Generator, within: Tensor | None = None
             ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Context, bool [R * C], with exactly K patches, and blocks, bool [M, R * C].

        within: bool [R * C], limits the context; None is everywhere. Blocks that leave too few patches are drawn again;
        in the last attempt all lie where the first one does, and the context is anywhere else.
        """
        num = self.num_context(rows * columns)
        for _ in range(NUM_TRIES):
            blocks = torch.stack([
                block(rows, columns, self.scale, self.aspect, generator) for _ in range(self.num_blocks)
            ])  # fmt: skip
            free = ~blocks.any(0) if within is None else ~blocks.any(0) & within
            if int(free.sum()) >= num:
                break
        else:
            blocks = blocks[:1].expand(self.num_blocks, -1)
            free = ~blocks[0]
        places = free.nonzero()[:, 0]
        chosen = places[torch.randperm(len(places), generator=generator)[:num]]
        return torch.zeros_like(free).scatter(0, chosen, True), blocks


def block(
    rows: int, columns: int, scale: tuple[float, float], aspect: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """One block, bool [R * C]: area and aspect ratio uniform and independent, anywhere on the grid."""
    area, ratio = (
        low + float(torch.rand((), generator=generator)) * (high - low)
        for low, high in ((scale[0] * rows * columns, scale[1] * rows * columns), aspect)
    )
    high = max(1, min(rows, round(math.sqrt(area * ratio))))
    wide = max(1, min(columns, round(area / high)))
    top = int(torch.randint(rows - high + 1, (), generator=generator))
    side = int(torch.randint(columns - wide + 1, (), generator=generator))
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[top : top + high, side : side + wide] = True
    return mask.flatten()


def places(mask: Tensor, length: int) -> Tensor:
    """Indices of the latents of a mask's patches [..., P], ascending, int64 [..., length]: patch p is latent p + 1;
    padded with 0, the begin latent."""
    num = mask.shape[-1]
    numbered = torch.where(mask, torch.arange(1, num + 1), num + 1).sort(-1).values[..., :length]
    return torch.where(numbered > num, 0, numbered)
