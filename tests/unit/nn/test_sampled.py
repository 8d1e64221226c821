"""Densities that are defined by their samples: sampled directions and derived quantities."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextembed.core.randomness import drawn_by
from nextembed.nn.generative import Guidance
from nextembed.nn.sampled import SampledHead, scaled

KINDS = ["flow", "energy"]


def head_of(kind: str, width: int = 8) -> SampledHead:
    torch.manual_seed(0)
    head = SampledHead(width, kind, num_blocks=1)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return head


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_seeded_directions_of_any_shape(kind: str) -> None:
    head, hidden = head_of(kind), torch.randn(2, 3, 8)
    density = head(hidden)
    for found in (density.sample(torch.Generator().manual_seed(0)), density.mode(), density.mean()):
        assert found.shape == hidden.shape and torch.allclose(found.norm(dim=-1), torch.ones(2, 3))
    assert torch.equal(density.mode(), head(hidden).mode())
    first, again, other = (density.component(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-3)
    assert density.log_prob(torch.randn(2, 3, 8)).shape == (2, 3)
    assert density.at(torch.tensor([1])).mean().shape == (1, 3, 8)
    assert ((density.expected_cosine() >= 0) & (density.expected_cosine() <= 1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_guided_draws_end_on_the_sphere(kind: str) -> None:
    head, hidden, other = head_of(kind), torch.randn(4, 8), torch.randn(4, 8)
    led = head(hidden).sample(torch.Generator().manual_seed(0), 1.0, Guidance(other, 3.0))
    plain = head(hidden).sample(torch.Generator().manual_seed(0))
    assert torch.allclose(led.norm(dim=-1), torch.ones(4)) and not torch.allclose(led, plain, atol=1e-3)
    assert head(hidden).mode(Guidance(other, 3.0)).shape == (4, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_row_does_not_depend_on_its_batch(kind: str) -> None:
    head, pred, target = head_of(kind), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    mask = torch.rand(3, 5) < 0.6
    seeds = torch.tensor([4, 5, 6])
    with drawn_by(seeds):
        whole = head.distance(pred, target, mask)
        every = head.distance(pred, target, None)
    with drawn_by(seeds[1:2]):
        part = head.distance(pred[1:2], target[1:2], mask[1:2])
    assert torch.allclose(part[0], whole[1], atol=1e-6)
    assert (whole[~mask] == 0).all() and torch.allclose(whole[mask], every[mask], atol=1e-6)
    assert torch.allclose(head.distance(pred, 3 * target, mask).shape and scaled(3 * target), scaled(target))


class Sure(nn.Module):
    """Replaces the network of a flow; it always predicts the given sample."""

    def __init__(self, values: Tensor):
        super().__init__()
        self.values = values

    def forward(self, x: Tensor, hidden: Tensor, time: Tensor | None) -> Tensor:
        return self.values.expand(*x.shape[:-1], -1)


def test_a_deterministic_flow_gives_its_sample() -> None:
    head, goal = head_of("flow"), torch.randn(8)
    head.head.network = Sure(scaled(goal))  # type: ignore[assignment]
    density, direction = head(torch.zeros(2, 8)), F.normalize(goal, dim=-1).expand(2, 8)
    for found in (density.sample(), density.mode(), density.mean()):
        assert torch.allclose(found, direction, atol=1e-4)
    assert torch.allclose(density.expected_cosine(), torch.ones(2), atol=1e-4)
    assert torch.allclose(density.log_prob(direction), torch.zeros(2), atol=1e-3)  # zero error at every time
    # |v - v'|^2 = |x - x'|^2 / (1 - t)^2 at t < 0.9: the bound is - |x - x'|^2 times the mean of 0.9 t / (1 - t)^3
    times = 0.9 * (torch.arange(16) + 0.5) / 16
    expected = -4 * 8 * (0.9 * times / (1 - times) ** 3).mean()
    assert float(density.log_prob(-direction)[0]) == pytest.approx(float(expected), rel=1e-4)


def test_the_expected_cosine_is_that_of_samples_with_their_mean() -> None:
    """Samples of two opposite directions, one three times as likely, have a mean of length 1/2."""
    head = head_of("energy")

    class TwoSided(nn.Module):
        def forward(self, x: Tensor, hidden: Tensor, time: Tensor | None) -> Tensor:
            side = torch.where(x[..., :1] > -0.6745, 1.0, -1.0)  # the lowest quarter of a normal distribution
            return side * torch.tensor([1.0, *[0.0] * 7])

    head.head.network = TwoSided()  # type: ignore[assignment]
    density = head(torch.zeros(400, 8))
    assert float(density.expected_cosine().square().mean().sqrt()) == pytest.approx(0.5, abs=0.06)
    assert float((density.mode()[:, 0] > 0).float().mean()) > 0.9  # the more likely direction, not the mean
