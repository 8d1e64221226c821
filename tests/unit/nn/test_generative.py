"""Generative heads: losses derived by hand, and samples that follow the distribution of the training data."""

import math

import pytest
import torch
from torch import Tensor, nn

from nextembed.nn.generative import (
    DiffusionHead,
    EnergyHead,
    FlowHead,
    GenerativeHead,
    Guidance,
    drawn,
    energy_score,
)

HEADS = ["flow", "sample", "diffusion", "energy"]


def head_of(kind: str, hidden_size: int = 4, num_values: int = 2, width: int = 64) -> GenerativeHead:
    torch.manual_seed(0)
    if kind == "diffusion":
        return DiffusionHead(hidden_size, num_values, width, 2)
    if kind == "energy":
        return EnergyHead(hidden_size, num_values, width, 2, draws=8, num_noise=8)
    predicts = "sample" if kind == "sample" else "velocity"
    return FlowHead(hidden_size, num_values, width, 2, predicts=predicts)  # type: ignore[arg-type]


class Fixed(nn.Module):
    """Replaces a network; it returns constant values."""

    def __init__(self, values: Tensor):
        super().__init__()
        self.values = values

    def forward(self, x: Tensor, hidden: Tensor, time: Tensor | None) -> Tensor:
        return self.values.expand(*x.shape[:-1], -1)


def test_the_velocity_of_a_straight_line_by_hand() -> None:
    head = head_of("flow")
    assert isinstance(head, FlowHead)
    head.network = Fixed(torch.tensor([1.0, 0.0]))  # type: ignore[assignment]
    target, noise = torch.tensor([[2.0, 3.0]]), torch.tensor([[[0.5, 1.0], [2.0, 3.0]]])
    # x - e = (1.5, 2) and (0, 0); minus (1, 0): (0.25 + 4) / 2 and (1 + 0) / 2
    errors = head.errors(torch.zeros(1, 4), target, noise, torch.tensor([[0.1, 0.7]]))
    assert torch.allclose(errors, torch.tensor([[2.125, 0.5]]))
    loss = head.loss(torch.zeros(1, 4), target, torch.cat((noise, torch.zeros(1, 2, 1)), -1))
    assert torch.allclose(loss, torch.tensor([(2.125 + 0.5) / 2]))


def test_a_predicted_sample_defines_the_velocity() -> None:
    head = head_of("sample")
    assert isinstance(head, FlowHead)
    goal = torch.tensor([2.0, -1.0])
    head.network = Fixed(goal)  # type: ignore[assignment]
    noise, time = torch.tensor([[[0.5, 1.0]]]), torch.tensor([[0.5]])
    assert head.errors(torch.zeros(1, 4), goal[None], noise, time) == 0
    # half-way: x_t = (1.5, 2); (goal - x_t) / 0.5 = (1, -6); x - e = (2, 2): (1 + 64) / 2
    assert head.errors(torch.zeros(1, 4), torch.tensor([[2.5, 3.0]]), noise, time) == pytest.approx(32.5)
    found = head.sample(torch.zeros(3, 4), torch.Generator().manual_seed(0))
    assert torch.allclose(found, goal.expand(3, 2), atol=1e-5)  # every line ends there
    assert torch.allclose(head.mean(torch.zeros(3, 4)), goal.expand(3, 2), atol=1e-5)


def test_the_energy_score_by_hand() -> None:
    samples, target = torch.tensor([[[0.0, 0.0], [6.0, 8.0]]]), torch.tensor([[3.0, 4.0]])
    # |x - g| = 5 and 5; |g - g'| = 10: (2 * 5 - 10) / sqrt(2)
    assert float(energy_score(samples, target)) == pytest.approx(0.0, abs=1e-5)
    alike = torch.zeros(1, 2, 2)
    assert float(energy_score(alike, target)) == pytest.approx(10 / math.sqrt(2), abs=1e-4)


def test_diffusion_predicts_the_noise() -> None:
    head = head_of("diffusion")
    assert isinstance(head, DiffusionHead)
    head.network = Fixed(torch.zeros(2))  # type: ignore[assignment]
    noise = torch.tensor([[[3.0, 4.0, 0.0], [1.0, 1.0, 0.3]]])
    assert torch.allclose(head.loss(torch.zeros(1, 4), torch.ones(1, 2), noise), torch.tensor([(12.5 + 1.0) / 2]))


@pytest.mark.parametrize("kind", HEADS)
def test_samples_depend_on_seed_and_guidance(kind: str) -> None:
    head = head_of(kind)
    with torch.no_grad():
        for parameter in head.parameters():  # type: ignore[attr-defined]
            parameter.add_(0.1 * torch.randn_like(parameter))
    hidden, other = torch.randn(5, 4), torch.randn(5, 4)

    def draw(seed: int, scale: float | None = None, of: Tensor = hidden) -> Tensor:
        away = None if scale is None else Guidance(other, scale)
        return head.sample(of, torch.Generator().manual_seed(seed), 1.0, away, 3).detach()

    assert torch.equal(draw(1), draw(1)) and not torch.allclose(draw(1), draw(2), atol=1e-3)
    assert torch.equal(draw(1, 1.0), draw(1))
    assert torch.allclose(draw(1, 0.0), draw(1, of=other), atol=1e-5)  # unconditional
    assert not torch.allclose(draw(1, 3.0), draw(1), atol=1e-3)


def test_guidance_extrapolates_linearly() -> None:
    head = head_of("energy")
    hidden, other = torch.randn(5, 4), torch.randn(5, 4)
    one, two, led = (
        head.sample(h, torch.Generator().manual_seed(0), 1.0, away)
        for h, away in ((hidden, None), (other, None), (hidden, Guidance(other, 2.5)))
    )
    assert torch.allclose(led, two + 2.5 * (one - two), atol=1e-4)


def test_a_constant_velocity_is_integrated_exactly_in_any_number_of_steps() -> None:
    for heun in (False, True):
        head = FlowHead(4, 2, 8, 1, heun=heun)
        head.network = Fixed(torch.tensor([1.0, -2.0]))  # type: ignore[assignment]
        for steps in (1, 7):
            found = head.sample(torch.zeros(6, 4), torch.Generator().manual_seed(3), 0.5, None, steps)
            start = 0.5 * drawn(6, 2, torch.Generator().manual_seed(3), torch.device("cpu"))
            assert torch.allclose(found, start + torch.tensor([1.0, -2.0]), atol=1e-5)


def test_heun_is_more_accurate_than_euler_on_a_rotating_flow() -> None:
    class Turning(nn.Module):
        def forward(self, x: Tensor, hidden: Tensor, time: Tensor) -> Tensor:
            return torch.stack((-x[..., 1], x[..., 0]), -1)

    errors = []
    start = drawn(50, 2, torch.Generator().manual_seed(0), torch.device("cpu"))
    turned = torch.tensor([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
    for heun in (False, True):
        head = FlowHead(4, 2, 8, 1, heun=heun)
        head.network = Turning()  # type: ignore[assignment]
        found = head.sample(torch.zeros(50, 4), torch.Generator().manual_seed(0), num_steps=20)
        errors.append(float((found - start @ turned.T).norm(dim=-1).mean()))
    assert errors[1] < errors[0] / 5


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'|, 0 for equal distributions. Source: Szekely and Rizzo 2004."""
    return 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()


def permutation_test(x: Tensor, y: Tensor, num: int = 150) -> float:
    """The p-value: the share of random splits of both sets that are at least as far apart as x and y."""
    own, both = energy_distance(x, y), torch.cat((x, y))
    distances = torch.cdist(both, both)
    generator, least, n = torch.Generator().manual_seed(0), 0, len(x)
    for _ in range(num):
        order = torch.randperm(len(both), generator=generator)
        d = distances[order][:, order]
        least += int(2 * d[:n, n:].mean() - d[:n, :n].mean() - d[n:, n:].mean() >= own)
    return (1 + least) / (1 + num)


def points(which: Tensor, generator: torch.Generator) -> Tensor:
    """Condition 0: one of three points, the first twice as often; condition 1: a point on a ring."""
    num = len(which)
    corners = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [-1.0, -1.2]])
    chosen = corners[torch.multinomial(torch.tensor([0.5, 0.25, 0.25]), num, True, generator=generator)]
    angle = 2 * math.pi * torch.rand(num, generator=generator)
    ring = 1.4 * torch.stack((angle.cos(), angle.sin()), -1)
    found = torch.where(which[:, None] == 0, chosen, ring)
    return found + 0.1 * torch.randn(num, 2, generator=generator)


@pytest.mark.parametrize("kind", HEADS)
def test_samples_follow_the_training_distribution(kind: str) -> None:
    """A two-sample test of samples against new data, for points and for a ring, whose mean is its centre."""
    head = head_of(kind, width=32)
    generator = torch.Generator().manual_seed(1)
    conditions = torch.eye(4)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)  # type: ignore[attr-defined]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 250)
    for _ in range(250):
        which = torch.randint(0, 2, (64,), generator=generator)
        noise = torch.randn(64, head.draws, head.num_noise, generator=generator)
        head.loss(conditions[which], points(which, generator), noise).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    for condition in (0, 1):
        which = torch.full((80,), condition)
        true = points(which, generator)
        with torch.no_grad():
            found = head.sample(conditions[which], torch.Generator().manual_seed(5))
        assert permutation_test(found, true) > 0.01
        assert permutation_test(true.mean(0).expand(80, 2), true) < 0.01  # a point estimate
