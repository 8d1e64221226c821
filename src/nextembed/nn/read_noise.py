"""Noise on latents that a model reads in training, so that it tolerates its own imperfect samples.

Shapes: B rows, T positions, D latent width.
"""

import torch
from torch import Tensor

from ..core.randomness import drawn_by, normal, seeds_within, uniform

LEVEL, NOISE = 51, 52  # streams of random numbers


def noised(z: Tensor, where: Tensor, most: float, documents: Tensor | None = None) -> Tensor:
    """Latents with Gaussian noise.

        z + s |z| / sqrt(D) e, e standard normal, s uniform in [0, most], of each document; the model is not told s

    Args:
        z: [B, T, D].
        where: bool [B, T]: latents that get noise.
        most: largest standard deviation, in units of a latent's root mean square; 0 leaves z as it is.
        documents: int64 [B, T], of packed rows; None: a row is one document.

    Source: NextStep-1 (arXiv 2508.10711), which perturbs the visual tokens that it reads. Ours is relative to each
    latent, since latents are learned here, and draws by the seeds of `core.randomness.drawn_by`.
    """
    if most == 0 or not bool(where.any()):
        return z
    ids = torch.zeros_like(where, dtype=torch.int64) if documents is None else documents
    levels = most * uniform(len(z), int(ids.max()) + 1, LEVEL, z.device).gather(1, ids)[where]
    rows = where.nonzero()[:, 0].contiguous()
    with drawn_by(seeds_within(rows)):
        noise = normal(len(rows), z.shape[-1], NOISE, z.device)
    old = z[where]
    size = old.detach().float().square().mean(-1, keepdim=True).sqrt()
    new = old + (levels[:, None] * size * noise).to(z.dtype)
    return z.masked_scatter(where[..., None], new)
