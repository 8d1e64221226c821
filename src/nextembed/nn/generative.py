"""Small networks that sample the next target, given a hidden state: flow matching, diffusion, and the energy score.
They work on each position alone, without attention. Shapes: N positions, D width of a hidden state, V values of a
target, of mean 0 and variance about 1; K noise draws a target in training.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .diffusion import add_noise, clean_estimate, diffusion_target

NUM_FREQUENCIES = 32  # of a time, which is in [0, 1]
MOST_FREQUENT = 1000.0  # periods in that time
NEAREST = 0.05  # smallest 1 - t of a flow, where an error of the target counts (1 / NEAREST)^2 times
FIRST_TIME = 0.98  # start of diffusion, where a thousandth of the signal is left, which a network cannot see

Predicts = Literal["velocity", "sample"]


@dataclass(frozen=True)
class Shared:
    """The same `num` samples of noise, with a fixed seed, for each position: rows are positions x num."""

    num: int


Generators = torch.Generator | Sequence[torch.Generator | None] | Shared | None


class Guidance(NamedTuple):
    """Guidance of samples: u + scale (c - u). hidden [N, D]: hidden states without the condition, for u; scale: 1 is no
    guidance. Source: classifier-free guidance (arXiv 2207.12598)."""

    hidden: Tensor
    scale: float


class GenerativeHead(Protocol):
    """Samples targets [N, V] from hidden states [N, D]."""

    draws: int
    num_noise: int

    def loss(self, hidden: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        """The loss at each position.

        Args:
            hidden: [N, D].
            target: [N, V].
            noise: [N, draws, num_noise], standard normal numbers.

        Returns:
            [N].
        """

    def sample(
        self,
        hidden: Tensor,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        guidance: Guidance | None = None,
        num_steps: int | None = None,
    ) -> Tensor:
        """Samples one target per position.

        Args:
            hidden: [N, D].
            generator: of the noise; None is the default one.
            temperature: scales the noise.
            guidance: what to lead samples away from.
            num_steps: steps of the sampler; None takes the head's.

        Returns:
            float32 [N, V].
        """


class ConditionedMlp(nn.Module):
    """Values [..., V], conditioned on a hidden state [..., D] and possibly a time [...] -> values [..., out].

    Residual blocks whose norms are scaled and shifted by the condition and whose updates are gated by it; the gates
    start at zero (adaLN-zero), and with a time so does the output. Source: MAR's head (arXiv 2406.11838), after DiT
    (arXiv 2212.09748).
    """

    def __init__(self, num_values: int, out: int, hidden_size: int, width: int, num_blocks: int, timed: bool):
        super().__init__()
        self.enter, self.condition = nn.Linear(num_values, width), nn.Linear(hidden_size, width)
        self.time: nn.Module | None = None
        if timed:
            self.time = nn.Sequential(nn.Linear(2 * NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(num_blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(num_blocks)
        )
        self.last_modulation, self.leave = nn.Linear(width, 2 * width), nn.Linear(width, out)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start: also for a model that first sets all of its linear layers alike."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        zero = [*self.modulation, self.last_modulation, *([] if self.time is None else [self.leave])]
        for linear in cast(list[nn.Linear], zero):
            nn.init.zeros_(linear.weight)

    def forward(self, x: Tensor, hidden: Tensor, time: Tensor | None) -> Tensor:
        condition = self.condition(hidden)
        if self.time is not None and time is not None:
            powers = torch.linspace(0, 1, NUM_FREQUENCIES, device=x.device)
            angles = time[..., None].float() * (2 * torch.pi * MOST_FREQUENT**powers)
            condition = condition + self.time(torch.cat((angles.sin(), angles.cos()), -1).to(condition.dtype))
        condition = F.silu(condition)
        x = self.enter(x.to(self.enter.weight.dtype))
        for modulation, block in zip(self.modulation, self.blocks, strict=True):
            scale, shift, gate = modulation(condition).chunk(3, -1)
            x = x + gate * block(_norm(x) * (1 + scale) + shift)
        scale, shift = self.last_modulation(condition).chunk(2, -1)
        return cast(Tensor, self.leave(_norm(x) * (1 + scale) + shift))


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


class FlowHead(nn.Module):
    """Flow matching: noise e becomes a target x on straight lines x_t = (1 - t) e + t x.

        loss = mean over K draws of |x - e - v(x_t, t, h)|^2 / V,   t uniform in [0, 1]
        draw: x from e by dx / dt = v(x, t, h), from t = 0 to 1

    Source: flow matching (arXiv 2210.02747) and rectified flow (arXiv 2209.03003), as a head for each token.

    predicts: what the network gives: the "velocity" v, or the "sample" x, of which v = (x - x_t) / (1 - t); the latter
        where targets fill few of many dimensions (arXiv 2511.13720), with 1 - t at least 0.05 in training, as there.
    num_steps: of a draw; heun: whether each looks ahead (arXiv 2206.00364), which doubles its cost, else Euler's.
    """

    def __init__(
        self,
        hidden_size: int,
        num_values: int,
        width: int,
        num_blocks: int = 3,
        draws: int = 4,
        num_steps: int = 20,
        predicts: Predicts = "velocity",
        heun: bool = False,
    ):
        super().__init__()
        self.draws, self.num_noise, self.num_values = draws, num_values + 1, num_values
        self.num_steps, self.predicts, self.heun = num_steps, predicts, heun
        self.network = ConditionedMlp(num_values, num_values, hidden_size, width, num_blocks, True)

    def reset_parameters(self) -> None:
        self.network.reset_parameters()

    def velocity(self, x: Tensor, hidden: Tensor, time: Tensor, nearest: float = 0.0) -> Tensor:
        """The velocity of the flow.

        Args:
            x: [..., V].
            hidden: [..., D].
            time: [...], in [0, 1].
            nearest: smallest 1 - t that is divided by.

        Returns:
            [..., V].
        """
        found = self.network(x, hidden, time).float()
        if self.predicts == "velocity":
            return found
        return (found - x) / (1 - time).clamp(min=max(nearest, 1e-6))[..., None]

    def loss(self, hidden: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        noise, time = noise[..., :-1], torch.special.ndtr(noise[..., -1])  # the last number gives the time
        return self.errors(hidden, target, noise, time).mean(-1)

    def errors(self, hidden: Tensor, target: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Mean squared error of the velocity.

        Args:
            hidden: [N, D].
            target: [N, V].
            noise: [N, K, V].
            time: [N, K].

        Returns:
            [N, K].
        """
        # --8<-- [start:flow]
        target, times = target.float()[:, None], time[..., None]
        x = (1 - times) * noise + times * target
        many = hidden[:, None].expand(-1, noise.shape[1], -1)
        return (target - noise - self.velocity(x, many, time, NEAREST)).square().mean(-1)
        # --8<-- [end:flow]

    def mean(self, hidden: Tensor) -> Tensor:
        """The mean of what may follow: at t = 0 the velocity is that mean minus the noise. Averaged over two opposite
        samples of noise.

        Args:
            hidden: [N, D].

        Returns:
            [N, V].
        """
        noise = torch.randn(self.num_values, generator=torch.Generator().manual_seed(0)).to(hidden.device)
        starts = torch.stack((noise, -noise)).expand(len(hidden), 2, -1)
        time = torch.zeros(starts.shape[:-1], device=hidden.device)
        return (starts + self.velocity(starts, hidden[:, None].expand(-1, 2, -1), time)).mean(1)

    def sample(
        self,
        hidden: Tensor,
        generator: Generators = None,
        temperature: float = 1.0,
        guidance: Guidance | None = None,
        num_steps: int | None = None,
    ) -> Tensor:
        x = temperature * drawn(len(hidden), self.num_values, generator, hidden.device)

        def move(x: Tensor, hidden: Tensor, time: float) -> Tensor:
            return self.velocity(x, hidden, torch.full(x.shape[:-1], time, device=x.device))

        follow, num = guided(move, hidden, guidance), num_steps or self.num_steps
        for step in range(num):
            time, length = step / num, 1 / num
            first = follow(x, time)
            ahead = x + length * first
            # At the end, a velocity derived from a sample is undefined, so the last step is Euler's.
            if self.heun and step + 1 < num:
                ahead = x + length * (first + follow(ahead, time + length)) / 2
            x = ahead
        return x


class DiffusionHead(nn.Module):
    """Diffusion as MAR has it: the noise e is predicted from sqrt(a) x + sqrt(1 - a) e.

        a(t) = cos^2(t pi / 2),  loss = mean over K draws of |e - network(x_t, t, h)|^2 / V,   t uniform in [0, 1]

    Source: MAR (arXiv 2406.11838), its diffusion loss, with the schedule of arXiv 2102.09672. Ours has a continuous
    time, and draws by ancestral sampling from t = 0.98, where 0.1 % of the signal is left, in `num_steps` equal steps.
    """

    def __init__(
        self, hidden_size: int, num_values: int, width: int, num_blocks: int = 3, draws: int = 4, num_steps: int = 50
    ):
        super().__init__()
        self.draws, self.num_noise, self.num_values, self.num_steps = draws, num_values + 1, num_values, num_steps
        self.network = ConditionedMlp(num_values, num_values, hidden_size, width, num_blocks, True)

    def loss(self, hidden: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        noise, time = noise[..., :-1], torch.special.ndtr(noise[..., -1])
        clean = target.float()[:, None].expand_as(noise).flatten(0, 1)
        signal, flat = _signal(time).flatten(), noise.flatten(0, 1)
        noisy = add_noise(clean, flat, signal).view_as(noise)
        found = self.network(noisy, hidden[:, None].expand(-1, noise.shape[1], -1), time).float()
        wanted = diffusion_target(clean, flat, signal, "epsilon").view_as(noise)
        return (wanted - found).square().mean((-1, -2))

    def sample(
        self,
        hidden: Tensor,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        guidance: Guidance | None = None,
        num_steps: int | None = None,
    ) -> Tensor:
        num, device = len(hidden), hidden.device

        def noise_in(x: Tensor, hidden: Tensor, time: float) -> Tensor:
            return cast(Tensor, self.network(x, hidden, torch.full(x.shape[:-1], time, device=device))).float()

        follow = guided(noise_in, hidden, guidance)
        x = drawn(num, self.num_values, generator, device)
        times = torch.linspace(FIRST_TIME, 0, (num_steps or self.num_steps) + 1)
        for now, then in pairwise(times):
            signal, left = (_signal(t).to(device).expand(num) for t in (now, then))
            found = follow(x, float(now))
            clean = clean_estimate(found, x, signal, "epsilon")
            new = ((1 - left) / (1 - signal) * (1 - signal / left)).clamp(min=0)  # variance of what is added
            x = left.sqrt()[:, None] * clean + (1 - left - new).clamp(min=0).sqrt()[:, None] * found
            x = x + temperature * new.sqrt()[:, None] * drawn(num, self.num_values, generator, device)
        return x


def _signal(time: Tensor) -> Tensor:
    """The share of variance that is signal, cos^2(t pi / 2)."""
    return torch.cos(time * (math.pi / 2)).square()


class EnergyHead(nn.Module):
    """The energy score: one pass from noise to a target, no steps.

        g_k = network(noise_k, h)
        loss = (2 mean_k |x - g_k| - mean_(j != k) |g_j - g_k|) / sqrt(V)

    Its mean over x is least for g drawn as x is, and for no other distribution (a strictly proper score).
    Source: Gneiting and Raftery 2007 (JASA), section 4.3; as a head for each token EAR (arXiv 2505.07812). Ours takes
    the exponent 1 and divides by the root of the number of values.

    draws: at least 2. num_noise: numbers that a draw starts from.
    """

    def __init__(
        self, hidden_size: int, num_values: int, width: int, num_blocks: int = 3, draws: int = 4, num_noise: int = 32
    ):
        super().__init__()
        if draws < 2:
            raise ValueError(f"draws {draws}: the energy score needs 2 or more")
        self.draws, self.num_noise, self.num_values = draws, num_noise, num_values
        self.network = ConditionedMlp(num_noise, num_values, hidden_size, width, num_blocks, False)

    def reset_parameters(self) -> None:
        self.network.reset_parameters()

    def loss(self, hidden: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        found = self.network(noise, hidden[:, None].expand(-1, noise.shape[1], -1), None).float()
        return energy_score(found, target.float())

    def sample(
        self,
        hidden: Tensor,
        generator: Generators = None,
        temperature: float = 1.0,
        guidance: Guidance | None = None,
        num_steps: int | None = None,
    ) -> Tensor:
        noise = temperature * drawn(len(hidden), self.num_noise, generator, hidden.device)
        return guided(lambda x, h, _: self.network(x, h, None).float(), hidden, guidance)(noise, 0.0)


def energy_score(found: Tensor, target: Tensor) -> Tensor:
    """Energy score of samples; see `EnergyHead`.

    Args:
        found: samples [N, K, V].
        target: what followed, [N, V].

    Returns:
        [N].
    """
    # --8<-- [start:energy]
    num = found.shape[1]
    between = _length(found[:, :, None] - found[:, None]).sum((1, 2)) / (num * (num - 1))
    return (2 * _length(target[:, None] - found).mean(1) - between) / math.sqrt(target.shape[-1])
    # --8<-- [end:energy]


def _length(x: Tensor) -> Tensor:
    """The norm, with a gradient of 0 at 0."""
    return (x.square().sum(-1) + 1e-12).sqrt()


def guided(
    network: Callable[[Tensor, Tensor, float], Tensor], hidden: Tensor, guidance: Guidance | None
) -> Callable[[Tensor, float], Tensor]:
    """A network under its condition, led away from another condition if guidance is given.

    Args:
        network: a function of (x, hidden, time).
        hidden: the condition [N, D].
        guidance: the other condition and the scale; None gives the network itself.

    Returns:
        A function of (x, time).
    """
    if guidance is None or guidance.scale == 1:
        return lambda x, time: network(x, hidden, time)
    both = torch.cat((hidden, guidance.hidden))

    def follow(x: Tensor, time: float) -> Tensor:
        with_it, without = network(torch.cat((x, x)), both, time).chunk(2)
        return without + guidance.scale * (with_it - without)

    return follow


def drawn(num: int, size: int, generator: Generators, device: torch.device) -> Tensor:
    """Standard normal numbers, the same on every device.

    Args:
        num: rows.
        size: numbers per row.
        generator: one for all rows or one per row; `Shared` repeats rows; None is the default one.
        device: where they are put.

    Returns:
        float32 [num, size].
    """
    if isinstance(generator, Shared):
        rows = torch.randn(generator.num, size, generator=torch.Generator().manual_seed(0))
        return rows.to(device).repeat(num // generator.num, 1)
    if isinstance(generator, Sequence):
        return torch.cat([drawn(1, size, one, device) for one in generator])
    where = device if generator is None else generator.device
    return torch.randn(num, size, generator=generator, device=where).to(device)
