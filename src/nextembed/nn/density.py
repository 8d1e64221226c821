"""The next latent as a density on the unit sphere: a small network on hidden states, and its output."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .directional import (
    at_least_float32,
    mixture_choice,
    mixture_log_prob,
    mixture_sample,
    take,
    vmf_expected_cosine,
    vmf_kappa,
)

FIRST_COSINE = 0.3  # the mean cosine that an untrained head expects
MIN_COSINE = 0.01  # smallest concentration
MOST_PULL = 20.0  # bound of the gradient of a direction: e^3, the scale at which softmaxes over cosines start
SPREAD = 0.5  # initial distance of components from the hidden state, relative to its length: about 27 degrees


class Density(NamedTuple):
    """A mixture of von Mises-Fisher distributions at each position; K = 1 is a single one.

    directions [..., K, D]: of unit length; kappas, log_weights [..., K]: concentrations; weights that sum to 1.
    """

    directions: Tensor
    kappas: Tensor
    log_weights: Tensor

    def at(self, index: Tensor | slice | int | tuple[Tensor | slice | int | None, ...]) -> "Density":
        """The densities of some positions.

        Args:
            index: what a tensor [...] can be indexed with.

        Returns:
            The density at these positions.
        """
        return Density(*(values[index] for values in self))

    def log_prob(self, x: Tensor, relative: bool = True) -> Tensor:
        """Log density at a direction, in nats.

        Args:
            x: [..., D], of any length.
            relative: whether the log of the uniform density is subtracted.

        Returns:
            [...].
        """
        return mixture_log_prob(*self, F.normalize(at_least_float32(x), dim=-1), relative)

    def mean_vector(self) -> Tensor:
        """Mean of the distribution, [..., D]: inside the sphere; its length is the mean cosine with its direction."""
        lengths = self.log_weights.exp() * vmf_expected_cosine(self.kappas, self.directions.shape[-1]).to(
            self.log_weights.dtype
        )
        return (lengths[..., None] * self.directions).sum(-2)

    def mean(self) -> Tensor:
        """The direction of the mean, [..., D]: the one with the greatest expected cosine with the next latent."""
        return F.normalize(self.mean_vector(), dim=-1)

    def expected_cosine(self) -> Tensor:
        """Expected cosine of `mean()` with the next latent, in [0, 1), [...]."""
        return torch.linalg.vector_norm(self.mean_vector(), dim=-1)

    def mode(self) -> Tensor:
        """The component's direction at which the density is highest, [..., D]; it need not be the heaviest one's."""
        components = (self.directions[..., None, :, :], self.kappas[..., None, :], self.log_weights[..., None, :])
        highest = mixture_log_prob(*components, self.directions).argmax(-1, keepdim=True)  # [..., 1]
        return take(self.directions, highest)

    def sample(self, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draws one direction per position.

        Args:
            generator: of the noise; None is the default one.
            temperature: divides concentrations and log weights; 0 gives the direction of the heaviest component.

        Returns:
            [..., D], of unit length.

        Raises:
            ValueError: the temperature is negative or infinite.
        """
        return mixture_sample(*self, generator, temperature)

    def component(self, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draws one component per position by weight and gives its direction, without the noise around it. In D
        dimensions nearly all of that noise is outside of what a patch of few values can be.

        Args:
            generator: of the choice; None is the default one.
            temperature: divides log weights.

        Returns:
            [..., D], of unit length.
        """
        return take(self.directions, mixture_choice(self.log_weights, generator, temperature))


class DensityHead(nn.Module):
    """Hidden states [..., D] -> `Density` of the next latent's direction.

    kind: "von_mises_fisher" (one component: the direction of the hidden state itself) or "mixture" of num_components,
    each a linear map away from it; the first starts as the hidden state. So the hidden state can carry information
    about the weights without turning the directions. max_cosine: largest mean cosine that a component may expect.
    Patches of few values fill few of D dimensions, where a likelihood without a limit grows for ever. The gradient is
    not quite the likelihood's. That of a direction grows with its concentration, here to some hundreds, and exceeds
    that of the weights by far, which is at most 1: what the context says about which of several things comes was not
    learned (docs/LOG.md). So a direction pulls with a concentration of 20 at most, and concentrations are read from the
    hidden state without training it. (For a like reason Seitzer et al., arXiv 2203.09168, weigh Gaussian likelihoods.)
    It starts with equal weights and a mean cosine of 0.3 for every component, whatever the hidden state. Raises
    ValueError for an unknown kind, too few components, and a max_cosine that leaves no room for that start.
    """

    def __init__(
        self,
        hidden_size: int,
        kind: Literal["von_mises_fisher", "mixture"] = "von_mises_fisher",
        num_components: int = 8,
        max_cosine: float = 0.95,
    ):
        super().__init__()
        if kind not in ("von_mises_fisher", "mixture"):
            raise ValueError(f"density {kind!r} should be von_mises_fisher or mixture")
        if kind == "mixture" and num_components < 2:
            raise ValueError(f"num_components {num_components}: a mixture needs 2 or more")
        if not FIRST_COSINE < max_cosine < 1:
            raise ValueError(f"max_cosine {max_cosine:g} should be between {FIRST_COSINE}, the start, and 1")
        cosines = torch.tensor((MIN_COSINE, FIRST_COSINE, max_cosine), device="cpu")  # not on "meta"
        low, start, high = vmf_kappa(cosines, hidden_size).tolist()
        self.num_components = num_components if kind == "mixture" else 1
        self.log_range = (math.log(low), math.log(high))
        self.first_log_kappa = math.log(start)
        self.concentration = nn.Linear(hidden_size, self.num_components)
        self.offsets = self.weights = None
        if self.num_components > 1:
            self.offsets = nn.Linear(hidden_size, self.num_components * hidden_size)
            self.weights = nn.Linear(hidden_size, self.num_components)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial weights; to be called again by models that initialise all linear layers."""
        low, high = self.log_range
        share = (self.first_log_kappa - low) / (high - low)
        nn.init.zeros_(self.concentration.weight)
        nn.init.constant_(self.concentration.bias, math.log(share / (1 - share)) * (high - low) / 4)
        if self.offsets is not None and self.weights is not None:
            nn.init.normal_(self.offsets.weight, std=SPREAD / math.sqrt(self.offsets.in_features))
            nn.init.zeros_(self.offsets.weight[: self.offsets.in_features])
            for values in (self.offsets.bias, self.weights.weight, self.weights.bias):
                nn.init.zeros_(values)

    def forward(self, hidden: Tensor) -> Density:
        # --8<-- [start:head]
        directions = hidden[..., None, :]  # [..., 1, D]
        log_weights = at_least_float32(hidden.new_zeros(*hidden.shape[:-1], 1))
        if self.offsets is not None and self.weights is not None:
            directions = directions + self.offsets(hidden).unflatten(-1, (-1, hidden.shape[-1]))
            log_weights = F.log_softmax(at_least_float32(self.weights(hidden)), dim=-1)
        low, high = self.log_range
        # a sigmoid of slope about 1 between the bounds; clamping would have no gradient outside
        sureness = at_least_float32(self.concentration(hidden.detach()))
        kappas = (low + (high - low) * torch.sigmoid(4 / (high - low) * sureness)).exp()
        directions = F.normalize(at_least_float32(directions), dim=-1)
        pull = (MOST_PULL / kappas.detach()).clamp(max=1)[..., None]
        return Density(directions.detach() + pull * (directions - directions.detach()), kappas, log_weights)
        # --8<-- [end:head]

    def distance(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Minus the log density of the latents that followed, in nats.

        Args:
            pred: hidden states [B, T, D].
            target: latents [B, T, D].
            mask: bool [B, T]; None takes all.

        Returns:
            [B, T], 0 where masked out.
        """
        if mask is None:
            return -self(pred).log_prob(target)
        found = -self(pred[mask]).log_prob(target[mask])
        return found.new_zeros(mask.shape).masked_scatter(mask, found)
