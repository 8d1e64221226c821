"""The next latent as a distribution that is known by its samples: a flow, or a network trained by the energy score.

Shapes: B rows, T positions, D latent width.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.randomness import normal
from .density import DensityHead
from .directional import at_least_float32
from .generative import EnergyHead, FlowHead, Generators, Guidance, Shared

NOISE = 48  # stream of random numbers
NUM_DRAWS = 16  # samples for a score, a mode or an expected cosine
LAST_TIME = 0.9  # last time of a flow's score, whose weight grows without bound towards the end


class SampledDensity:
    """The next latent's direction at each position; see `SampledHead`. hidden [..., D]."""

    def __init__(self, head: FlowHead | EnergyHead, hidden: Tensor):
        self.head, self.hidden = head, hidden

    def at(self, index: Tensor) -> "SampledDensity":
        """The densities of some positions.

        Args:
            index: as of a tensor [...].

        Returns:
            The density at these positions.
        """
        return SampledDensity(self.head, self.hidden[index])

    def sample(
        self,
        generator: Generators = None,
        temperature: float = 1.0,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Draws one direction per position.

        Args:
            generator: of the noise; None is the default one.
            temperature: scales the noise.
            guidance: what to lead the sample away from; the result is projected back to the sphere.

        Returns:
            [..., D], of unit length.
        """
        found = self.head.sample(self.hidden.reshape(-1, self.hidden.shape[-1]), generator, temperature, guidance)
        return F.normalize(found, dim=-1).view(self.hidden.shape)

    component = sample  # a sample is one of the answers already

    def several(self, num: int, guidance: Guidance | None = None, shared: bool = False) -> Tensor:
        """Several samples per position, drawn with a fixed seed.

        Args:
            num: samples per position.
            guidance: what to lead the samples away from.
            shared: whether all positions use the same noise.

        Returns:
            [..., num, D].
        """
        many = SampledDensity(self.head, self.hidden[..., None, :].expand(*self.hidden.shape[:-1], num, -1))
        if guidance is not None:
            guidance = guidance._replace(hidden=guidance.hidden.repeat_interleave(num, 0))
        return many.sample(Shared(num) if shared else torch.Generator().manual_seed(0), 1.0, guidance)

    def mode(self, guidance: Guidance | None = None) -> Tensor:
        """The one of 16 samples (fixed seed) that the others are nearest to: a possible answer, not a mean.

        Args:
            guidance: what to lead the samples away from.

        Returns:
            [..., D], of unit length.
        """
        draws = self.several(NUM_DRAWS, guidance, shared=True)  # independent of how positions are batched
        inner = (draws @ draws.mT).sum(-1).argmax(-1)[..., None, None]
        return draws.gather(-2, inner.expand(*inner.shape[:-1], draws.shape[-1]))[..., 0, :]

    def mean(self) -> Tensor:
        """The direction of the mean, [..., D]: of a flow from one pass, else of 16 draws."""
        if isinstance(self.head, FlowHead):
            flat = self.hidden.reshape(-1, self.hidden.shape[-1])
            return F.normalize(self.head.mean(flat), dim=-1).view(self.hidden.shape)
        return F.normalize(self.several(NUM_DRAWS).mean(-2), dim=-1)

    def expected_cosine(self) -> Tensor:
        """Expected cosine of the mean's direction with the next latent, in [0, 1], [...]: the root of the mean cosine
        between pairs of 16 samples."""
        draws = self.several(NUM_DRAWS)
        between = (draws.sum(-2).square().sum(-1) - NUM_DRAWS) / (NUM_DRAWS * (NUM_DRAWS - 1))
        return between.clamp(min=0, max=1).sqrt()

    def log_prob(self, x: Tensor) -> Tensor:
        """A substitute for the log density, up to a constant: higher is more likely.

        A flow: its bound in nats, - integral of t / (1 - t) |v - v'|^2 dt up to t = 0.9, over 16 fixed samples (in the
        weights of arXiv 2107.00630; the exact change of variables would cost D backward passes per step). Energy: minus
        the energy score over 16 fixed samples, a proper score but not a density.

        Args:
            x: directions [..., D], of any length.

        Returns:
            [...].
        """
        width = x.shape[-1]
        target, hidden = scaled(x).reshape(-1, width), self.hidden.expand_as(x).reshape(-1, width)
        if isinstance(self.head, EnergyHead):
            noise = self._fixed(self.head.num_noise, x.device)
            return -self.head.loss(hidden, target, noise.expand(len(hidden), -1, -1)).view(x.shape[:-1])
        noise = self._fixed(width, x.device).expand(len(hidden), -1, -1)
        time = LAST_TIME * (torch.arange(NUM_DRAWS, device=x.device) + 0.5) / NUM_DRAWS
        errors = self.head.errors(hidden, target, noise, time.expand(len(hidden), -1))
        return -(width * LAST_TIME * errors * time / (1 - time)).mean(-1).view(x.shape[:-1])

    def _fixed(self, num: int, device: torch.device) -> Tensor:
        return torch.randn(1, NUM_DRAWS, num, generator=torch.Generator().manual_seed(0)).to(device)


def scaled(x: Tensor) -> Tensor:
    """Directions scaled to a variance of about 1 per dimension: on the sphere of radius sqrt(D).

    Args:
        x: [..., D].

    Returns:
        [..., D].
    """
    return F.normalize(at_least_float32(x), dim=-1) * math.sqrt(x.shape[-1])


class SampledHead(nn.Module):
    """Hidden states [..., D] -> `SampledDensity` of the next latent's direction, as wide as they are.

    kind: "flow" predicts the sample, since latents of a few values fill few of D dimensions, and takes 20 steps per
    sample; "energy" takes one pass. num_blocks: of the network. draws: samples of noise per target in training. Source:
    `FlowHead`, `EnergyHead`; on a sphere of fixed radius as SphereAR (arXiv 2509.24335).
    """

    def __init__(self, hidden_size: int, kind: Literal["flow", "energy"], num_blocks: int = 3, draws: int = 4):
        super().__init__()
        sizes = (hidden_size, hidden_size, hidden_size, num_blocks, draws)
        self.head = FlowHead(*sizes, predicts="sample") if kind == "flow" else EnergyHead(*sizes)

    def reset_parameters(self) -> None:
        """The start: also for a model that first sets all of its linear layers alike."""
        self.head.reset_parameters()

    def forward(self, hidden: Tensor) -> SampledDensity:
        return SampledDensity(self.head, hidden)

    def distance(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """The head's loss against the latents that followed; noise is drawn for each row.

        Args:
            pred: hidden states [B, T, D].
            target: latents [B, T, D].
            mask: bool [B, T]; None takes all.

        Returns:
            [B, T], 0 where masked out.
        """
        size = self.head.draws * self.head.num_noise
        noise = normal(len(pred), pred.shape[1] * size, NOISE, pred.device).view(*pred.shape[:2], self.head.draws, -1)
        chosen = torch.ones_like(pred[..., 0], dtype=torch.bool) if mask is None else mask
        found = self.head.loss(pred[chosen], scaled(target[chosen]), noise[chosen])
        return found.new_zeros(chosen.shape).masked_scatter(chosen, found)


AnyDensityHead = DensityHead | SampledHead


def density_head(kind: str, hidden_size: int, num_components: int, max_cosine: float) -> AnyDensityHead | None:
    """The head for a kind of density.

    Args:
        kind: a value of `model.density`.
        hidden_size: D.
        num_components: of a mixture.
        max_cosine: highest mean cosine that a component may expect.

    Returns:
        The module; None for "none".
    """
    match kind:
        case "none":
            return None
        case "flow" | "energy":
            return SampledHead(hidden_size, kind)  # type: ignore[arg-type]
        case "mixture":
            return DensityHead(hidden_size, "mixture", num_components, max_cosine)
        case _:
            return DensityHead(hidden_size, "von_mises_fisher", 1, max_cosine)
