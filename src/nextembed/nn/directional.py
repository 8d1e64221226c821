"""Distributions of directions on the unit sphere: von Mises-Fisher and mixtures of it, as pure functions.

Shapes: D width (2 or more), K components. Directions and x have unit length. kappa >= 0 is the concentration: 0 is the
uniform distribution; far above D almost everything lies around the direction. Densities are relative to the uniform one
unless `relative` is False: 0 means "no better than chance" at every width, so figures of different widths are
comparable. Sums along D are in float32 at least and what depends on kappa alone is in float64, whatever the inputs are;
so a log density is accurate to about kappa x 1e-7 for float32 inputs.
"""

import math
from fractions import Fraction
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

LARGE_ORDER = 24  # Bessel functions are expanded at this order or above, and stepped down from there
NO_FLOAT64 = {"mps"}  # devices
NUM_TERMS = 10  # of the expansion; at order 24 the first omitted one is below 3e-15


def vmf_log_normalizer(kappa: Tensor, dim: int, relative: bool = True) -> Tensor:
    """log Z of the density exp(kappa cos - log Z) on the sphere in `dim` dimensions, float64, any shape.

    kappa: 0 to 1e6 (tested). relative: density with respect to the uniform one, else to surface area. Its derivative
    is `vmf_expected_cosine`. Source: log of 0F1(dim / 2; kappa^2 / 4), by the uniform expansion of Bessel functions
    (Abramowitz and Stegun 9.7.7), of which ours takes the logarithm term by term.
    """
    value: Tensor = _LogNormalizer.apply(wide(kappa), dim)
    return value if relative else value + log_sphere_area(dim)


def log_sphere_area(dim: int) -> float:
    """Log of the surface area of the unit sphere in `dim` dimensions; minus it is the uniform log density."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def vmf_expected_cosine(kappa: Tensor, dim: int) -> Tensor:
    """Mean cosine between a sample and its direction, A(kappa) in [0, 1), float64: I_{dim/2} / I_{dim/2-1}."""
    return _ExpectedCosine.apply(wide(kappa), dim)


@torch.no_grad()
def vmf_kappa(cosine: Tensor, dim: int) -> Tensor:
    """The concentration whose expected cosine is `cosine`, float64; no gradient. Inverse of `vmf_expected_cosine`.

    Raises ValueError outside [0, 1). Source: Banerjee et al. 2005 (JMLR 6), equation 4.4, then Newton steps.
    """
    cosine = wide(cosine)
    if not ((cosine >= 0) & (cosine < 1)).all():
        raise ValueError("an expected cosine is at least 0 and below 1")
    kappa = cosine * (dim - cosine.square()) / (1 - cosine.square())
    for _ in range(6):
        found, slope = _expected_cosine_and_slope(kappa, dim)
        kappa = (kappa - (found - cosine) / slope.clamp(min=1e-300)).clamp(min=0)
    return kappa


def vmf_log_prob(direction: Tensor, kappa: Tensor, x: Tensor, relative: bool = True) -> Tensor:
    """Log density at x [..., D] of directions [..., D] with kappa [...], in nats, [...]."""
    return _component_log_prob(direction, kappa, x, relative).to(at_least_float32(x).dtype)


def mixture_log_prob(
    directions: Tensor, kappas: Tensor, log_weights: Tensor, x: Tensor, relative: bool = True
) -> Tensor:
    """Log density at x [..., D] of components [..., K, D] with kappas and log weights [..., K], in nats, [...]."""
    components = _component_log_prob(directions, kappas, x[..., None, :], relative)
    return torch.logsumexp(components + wide(log_weights), dim=-1).to(at_least_float32(x).dtype)


@torch.no_grad()
def vmf_sample(
    direction: Tensor, kappa: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0
) -> Tensor:
    """One sample for each direction [..., D] with kappa [...]: unit vectors [..., D].

    temperature divides kappa; at 0 the sample is the direction itself. generator: on any device; drawn from there.
    Raises ValueError for a temperature below 0 or infinite. Source: Wood 1994 (Communications in Statistics 23), with
    beta numbers by Ulrich 1984 (Applied Statistics 33); in three dimensions the exact inverse.
    """
    _check_temperature(temperature)
    direction = at_least_float32(direction)
    if temperature == 0:
        return direction.clone()
    kappa = (wide(kappa).expand(direction.shape[:-1]) / temperature).clamp(max=1e15)  # so that b stays above 0
    short = _one_minus_cosine(kappa, direction.shape[-1], generator).to(direction.dtype)[..., None]
    noise = _random(torch.randn, direction.shape, direction, generator)
    for _ in range(2):  # twice: what is left along the direction after rounding shows where the noise is parallel to it
        noise = F.normalize(noise - (noise * direction).sum(-1, keepdim=True) * direction, dim=-1)
    return F.normalize((1 - short) * direction + (short * (2 - short)).sqrt() * noise, dim=-1)


@torch.no_grad()
def mixture_sample(
    directions: Tensor,
    kappas: Tensor,
    log_weights: Tensor,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """One sample of each mixture [..., K, D], [..., K], [..., K]: unit vectors [..., D].

    temperature divides kappas and log weights; at 0 the sample is the direction of the heaviest component.
    Raises ValueError for a temperature below 0 or infinite.
    """
    index = mixture_choice(log_weights, generator, temperature)
    return vmf_sample(take(directions, index), kappas.gather(-1, index)[..., 0], generator, temperature)


def mixture_choice(log_weights: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
    """A component of each mixture [..., K], drawn by weight: its number [..., 1]. temperature: see `mixture_sample`."""
    _check_temperature(temperature)
    chosen = wide(log_weights)
    if temperature > 0:  # Gumbel's trick: the greatest is drawn with its weight
        uniform = _random(torch.rand, chosen.shape, chosen, generator).clamp(min=1e-300)
        chosen = chosen / temperature - torch.log(-torch.log(uniform))
    return chosen.argmax(-1, keepdim=True)


def take(directions: Tensor, index: Tensor) -> Tensor:
    """The component that index [..., 1] names, of directions [..., K, D]: [..., D]."""
    return directions.gather(-2, index[..., None].expand(*index.shape, directions.shape[-1]))[..., 0, :]


def cosines(directions: Tensor, x: Tensor) -> Tensor:
    """Dot products along the last axis, in float32 at least; autocast would make bfloat16 of them."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.linalg.vecdot(at_least_float32(directions), at_least_float32(x))


def _component_log_prob(direction: Tensor, kappa: Tensor, x: Tensor, relative: bool) -> Tensor:
    kappa = wide(kappa)
    return kappa * wide(cosines(direction, x)) - vmf_log_normalizer(kappa, x.shape[-1], relative)


def wide(x: Tensor) -> Tensor:
    """x in float64; in float32 on a device without float64 (mps), where log densities are accurate to about kappa x
    1e-7."""
    return x.to(torch.float32 if x.device.type in NO_FLOAT64 else torch.float64)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def _check_temperature(temperature: float) -> None:
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature {temperature} should be 0 or more, and finite")


def _random(draw, shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random numbers with dtype and device of `like`, drawn on the generator's device."""
    device = like.device if generator is None else generator.device
    return draw(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def _one_minus_cosine(kappa: Tensor, dim: int, generator: torch.Generator | None) -> Tensor:
    """1 - cosine of a sample with its direction, in [0, 2], float64; accurate for cosines near 1."""
    if dim == 3:  # the cosine has density exp(kappa cos) itself
        uniform = _random(torch.rand, kappa.shape, kappa, generator)
        tiny = kappa.clamp(min=1e-12)
        return (-torch.log1p(uniform * torch.expm1(-2 * tiny)) / tiny).clamp(0, 2)
    flat, rest = kappa.flatten(), torch.arange(kappa.numel(), device=kappa.device)
    result = torch.empty_like(flat)
    while len(rest):
        k = flat[rest]
        b = (dim - 1) / (2 * k + torch.sqrt(4 * k.square() + (dim - 1) ** 2))
        # Z of a symmetric beta distribution, (dim - 1) / 2 twice: the first of `dim` coordinates, from its radius and
        # angle among the first two. In two dimensions the radius is 1.
        u, angle, level = _random(torch.rand, torch.Size((3, len(rest))), k, generator)
        radius = torch.sqrt(-torch.expm1(2 / (dim - 2) * u.log())) if dim > 2 else torch.ones_like(u)
        z = (1 + radius * torch.cos(2 * math.pi * angle)) / 2
        short = 2 * b * z / (1 - (1 - b) * z)
        gap = 2 * b / (1 + b)  # 1 - m, and 1 - m^2 = gap (2 - gap)
        # Wood's test: k w + (dim - 1) log(1 - m w) at w = 1 - short, less its value at w = m
        there = k * (gap - short) + (dim - 1) * torch.log((gap + (1 - gap) * short) / (gap * (2 - gap)))
        done = ~(there < level.log())  # nan ends the loop, too, and is returned as nan
        result[rest[done]] = short[done]
        rest = rest[~done]
    return result.view(kappa.shape).clamp(0, 2)


class _LogNormalizer(Function):
    """Its gradient is the expected cosine, so nothing of the expansion is saved for the backward pass."""

    @staticmethod
    def forward(ctx, kappa: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.dim = dim
        return _log_and_ratio(kappa, dim)[0]

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * _ExpectedCosine.apply(ctx.saved_tensors[0], ctx.dim), None


class _ExpectedCosine(Function):
    @staticmethod
    def forward(ctx, kappa: Tensor, dim: int) -> Tensor:
        value, slope = _expected_cosine_and_slope(kappa, dim)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.saved_tensors[0], None


def _expected_cosine_and_slope(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """A(kappa) and its derivative 1 - A^2 - (dim - 1) A / kappa, the variance of the cosine."""
    ratio = _log_and_ratio(kappa, dim)[1]
    value = kappa * ratio
    return value, (1 - value.square() - (dim - 1) * ratio).clamp(min=0)


def _log_and_ratio(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """log F and A / kappa for F = Gamma(v + 1) (2 / kappa)^v I_v(kappa), v = dim / 2 - 1; kappa in float64.

    Both are smooth at kappa = 0, where they are 0 and 1 / dim, and accurate near it. The expansion holds for large
    orders v. For small ones it is made at v + m and stepped down by I_{v-1} = (2 v / kappa) I_v + I_{v+1}, which adds
    positive numbers only and so loses no accuracy.
    """
    if dim < 2:
        raise ValueError(f"a sphere of directions needs 2 dimensions or more, not {dim}")
    v = dim / 2 - 1
    steps = max(0, math.ceil(LARGE_ORDER - v))
    order = v + steps
    square = kappa.square()
    radius = torch.hypot(kappa, torch.full_like(kappa, order))
    t = order / radius
    terms, slope, at_one = torch.zeros_like(t), torch.zeros_like(t), 0.0  # Horner's scheme
    for n, c in reversed(list(enumerate(_expansion(order)))):
        terms, slope, at_one = terms * t + c, slope * t + n * c, at_one + c
    excess = square / (order * (order + radius))  # sqrt(1 + (kappa / order)^2) - 1
    log = order * (excess - torch.log1p(excess / 2)) - torch.log1p(excess) / 2 + (terms - at_one)
    ratio = 1 / (order + radius) - (0.5 + slope) / radius.square()
    for i in range(steps):
        now = 2 * (order - i)
        log = log + torch.log1p(square * ratio / now)
        ratio = 1 / (now + square * ratio)
    return log, ratio


@lru_cache(maxsize=64)
def _expansion(order: float) -> list[float]:
    """Coefficients of t^n in log of the sum of U_k(t) / order^k; at t = 1 they sum to minus Stirling's series."""
    found = [0.0] * (3 * NUM_TERMS + 1)
    for k, polynomial in enumerate(_log_debye()):
        for n, c in polynomial.items():
            found[n] += float(c) / order**k
    return found


@lru_cache(maxsize=1)
def _log_debye() -> list[dict[int, Fraction]]:
    """Polynomials L_k(t), by power, with sum of L_k / v^k = log of the sum of U_k / v^k, k = 0 ... NUM_TERMS.

    U_k as in Abramowitz and Stegun 9.3.10; k L_k = k U_k - sum over 0 < j < k of j L_j U_{k-j}.
    """
    u: list[dict[int, Fraction]] = [{0: Fraction(1)}]
    for _ in range(NUM_TERMS):
        new: dict[int, Fraction] = {}
        for n, c in u[-1].items():
            new[n + 1] = new.get(n + 1, Fraction(0)) + c * (Fraction(n, 2) + Fraction(1, 8 * (n + 1)))
            new[n + 3] = new.get(n + 3, Fraction(0)) - c * (Fraction(n, 2) + Fraction(5, 8 * (n + 3)))
        u.append(new)
    logs: list[dict[int, Fraction]] = [{}]
    for k in range(1, NUM_TERMS + 1):
        log = {n: k * c for n, c in u[k].items()}
        for j in range(1, k):
            for (n, c), (m, d) in ((x, y) for x in logs[j].items() for y in u[k - j].items()):
                log[n + m] = log.get(n + m, Fraction(0)) - j * c * d
        logs.append({n: c / k for n, c in log.items()})
    return logs
