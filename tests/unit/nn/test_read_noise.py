"""Noise on input latents: exact values from the seeds of the samples."""

import pytest
import torch

from nextembed.core.randomness import drawn_by, normal, seeds_within, uniform
from nextembed.nn.read_noise import LEVEL, NOISE, noised


def test_by_hand() -> None:
    """z + s rms(z) e with s per document, unchanged elsewhere; for packed rows, and a row on its own."""
    torch.manual_seed(0)
    z, seeds = torch.randn(2, 5, 3, requires_grad=True), torch.tensor([7, 9])
    where = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    documents = torch.tensor([[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]])
    with drawn_by(seeds):
        found = noised(z, where, 0.8, documents)
        levels = 0.8 * uniform(2, 3, LEVEL, z.device)
        rows = torch.tensor([0, 0, 0, 1])
        with drawn_by(seeds_within(rows)):
            noise = normal(4, 3, NOISE, z.device)
    expected = z.detach().clone()
    for (row, place), own in zip([(0, 1), (0, 2), (0, 4), (1, 0)], noise, strict=True):
        level = levels[row, documents[row, place]]
        expected[row, place] += level * z[row, place].detach().square().mean().sqrt() * own
    assert torch.allclose(found, expected, atol=1e-6) and levels.min() > 0 and levels.max() < 0.8
    assert levels[0, 1] != levels[0, 2]  # one level per document
    found.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))  # type: ignore[arg-type]
    with drawn_by(seeds[:1]):
        alone = noised(z[:1], where[:1], 0.8, documents[:1])
    assert torch.allclose(alone, found[:1], atol=1e-6)


@pytest.mark.parametrize("most", [0.0, 1.0])
def test_no_noise(most: float) -> None:
    z = torch.randn(1, 2, 3)
    assert noised(z, torch.full((1, 2), most == 0), most) is z
