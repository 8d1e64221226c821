"""Emu's regression head as a flow: the next visual latent is sampled, whereas a linear head gives the mean of all
possible ones.

Shapes: N positions, D width of a latent and of the language model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.randomness import normal
from ..errors import ConfigError
from .generative import FlowHead, Guidance

NOISE = 50  # stream of random numbers
WIDEST = 1024  # size of the network
LEAST = 0.1  # smallest spread of a channel, relative to the root mean square of all


class LatentSampling(NamedTuple):
    """How latents are sampled. temperature: scales the noise; guidance: away from the empty prompt, 1 is off."""

    temperature: float = 1.0
    guidance: float = 1.0


class LatentFlow(nn.Module):
    """Hidden states [..., D] -> the next latent [..., D], of a flow over standardised latents.

    center, spread [D]: of the latents that training began with (`measure`); measured: whether they are known. Source:
    `FlowHead`, which predicts the latent; instead of Emu's linear head (arXiv 2307.05222).
    """

    center: Tensor
    spread: Tensor
    measured: Tensor

    def __init__(self, hidden_size: int):
        super().__init__()
        self.flow = FlowHead(hidden_size, hidden_size, min(hidden_size, WIDEST), predicts="sample")
        self.register_buffer("center", torch.zeros(hidden_size))
        self.register_buffer("spread", torch.ones(hidden_size))
        self.register_buffer("measured", torch.tensor(False))

    def forward(self, hidden: Tensor) -> Tensor:
        """The mean of what may come."""
        found = self.flow.mean(hidden.reshape(-1, hidden.shape[-1]))
        return self._latents(found, hidden)

    def loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Of latents [N, D] that came after hidden states [N, D], [N]. Noise is drawn by the seeds of `drawn_by`."""
        draws, num = self.flow.draws, self.flow.num_noise
        noise = normal(len(hidden), draws * num, NOISE, hidden.device).view(len(hidden), draws, num)
        return self.flow.loss(hidden, (target.float() - self.center.float()) / self.spread.float(), noise)

    def sample(self, hidden: Tensor, generators: Sequence[torch.Generator | None], sampling: LatentSampling) -> Tensor:
        """Sampled latents, with one generator per row. With guidance the second half of `hidden` [rows, 1, D] belongs
        to the empty prompt, and both halves get the same latents."""
        flat, guidance = hidden[:, 0], None
        if sampling.guidance != 1:
            flat, without = flat.chunk(2)
            guidance = Guidance(without, sampling.guidance)
        found = self.flow.sample(flat, generators, sampling.temperature, guidance)
        return self._latents(found if guidance is None else torch.cat((found, found)), hidden)

    def _latents(self, found: Tensor, hidden: Tensor) -> Tensor:
        return (found * self.spread + self.center).view(hidden.shape).to(hidden.dtype)

    @torch.no_grad()
    def measure(self, latents: Tensor) -> bool:
        """Measures mean and spread of each channel of latents [..., D] over all ranks, each of which has to call it.
        Returns whether there were any latents."""
        flat = latents.detach().cpu().double().flatten(0, -2)  # not every accelerator has float64
        number = torch.full_like(self.center, len(flat), dtype=flat.dtype, device="cpu")
        number, first, second = distributed.sum_over_ranks(torch.stack([number, flat.sum(0), flat.square().sum(0)]))
        if number[0] == 0:
            return False
        mean = first / number
        spread = (second / number - mean.square()).clamp(min=0).sqrt()
        self.center.copy_(mean)
        # Latents of a new encoder are almost all alike; rounding errors must not be amplified.
        self.spread.copy_(spread.clamp(min=LEAST * (second / number).mean().sqrt() + 1e-8))
        self.measured.fill_(True)
        return True


def row_generators(seed: int | Sequence[int] | None, rows: int) -> list[torch.Generator | None]:
    """Generators on the CPU, one per row, so that rows are independent: from one seed for all or one each; None uses
    torch's default generator. Raises ConfigError for another number of seeds."""
    if seed is None:
        return [None] * rows
    seeds = [seed] * rows if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise ConfigError(f"{len(seeds)} seeds for {rows} images: give one seed, or one for each")
    return [torch.Generator().manual_seed(s) for s in seeds]
