"""Losses against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from nextembed.nn import losses


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_next_embedding_follows_the_paper():
    h, z = rand(3, 5, 8), rand(3, 5, 8, seed=1)
    loss_sum, count = losses.next_embedding(h, z)
    expected = -(F.normalize(h[:, :-1], dim=-1) * F.normalize(z[:, 1:], dim=-1)).sum(-1).mean()
    assert count == 12
    assert loss_sum / count == pytest.approx(expected.item(), abs=1e-6)


def test_next_embedding_is_minus_one_for_a_perfect_prediction_of_any_length():
    z = rand(2, 4, 8)
    pred = torch.cat((3.0 * z[:, 1:], z[:, :1]), dim=1)
    loss_sum, count = losses.next_embedding(pred, z)
    assert loss_sum / count == pytest.approx(-1.0, abs=1e-6)


def test_next_embedding_keeps_gradients_out_of_targets():
    h, z = rand(2, 4, 8).requires_grad_(), rand(2, 4, 8, seed=1).requires_grad_()
    losses.next_embedding(h, z)[0].backward()
    assert z.grad is None
    assert h.grad[:, :-1].abs().sum() > 0
    assert h.grad[:, -1].abs().sum() == 0  # the last position predicts nothing


def test_masked_targets_are_excluded():
    h, z = rand(2, 5, 8), rand(2, 5, 8, seed=1)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    loss_sum, count = losses.next_embedding(h, z, mask)
    first, _ = losses.next_embedding(h[:1], z[:1])
    second, _ = losses.next_embedding(h[1:, :3], z[1:, :3])
    assert count == 6
    assert loss_sum.item() == pytest.approx((first + second).item(), abs=1e-5)


@pytest.mark.parametrize(("shape", "steps"), [((2, 1, 4), 1), ((2, 3, 4), 3)])
def test_too_few_positions(shape, steps):
    with pytest.raises(ValueError, match="too few"):
        losses.shifted(torch.zeros(shape), torch.zeros(shape), steps)


def test_different_shapes():
    with pytest.raises(ValueError, match="different shapes"):
        losses.next_embedding(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))


def test_info_nce_closed_forms():
    z = torch.eye(4)[None]  # four orthogonal targets
    perfect = losses.info_nce(z, z, temperature=0.5)
    assert perfect == pytest.approx(math.log(1 + 3 * math.exp(-2)), abs=1e-6)
    nothing = losses.info_nce(torch.zeros(1, 4, 4), z)
    assert nothing == pytest.approx(math.log(4), abs=1e-6)


def test_info_nce_ignores_masked_candidates():
    pred, z = rand(2, 5, 8), rand(2, 5, 8, seed=1)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[:, 3:] = False
    assert torch.allclose(losses.info_nce(pred, z, mask)[:, :3], losses.info_nce(pred[:, :3], z[:, :3]), atol=1e-6)


def test_distances_are_zero_for_equal_inputs_and_follow_their_definition():
    a, b = rand(2, 3, 8), rand(2, 3, 8, seed=1)
    assert losses.mse(a, a).abs().max() == 0
    assert losses.smooth_l1(a, a).abs().max() == 0
    assert torch.allclose(losses.mse(a, b), ((a - b) ** 2).mean(-1))
    assert torch.allclose(losses.smooth_l1(a, a + 5), torch.full((2, 3), 4.5), atol=1e-5)  # |5| - 0.5, the linear part


def test_sigreg_of_a_point_is_the_integral_in_closed_form():
    # all samples at the origin: phi_N = 1, so the integrand is (1 - exp(-t^2/2))^2 exp(-t^2)
    directions = rand(6, 32)
    value = losses.sigreg(torch.zeros(10, 6), directions, knots=2001, limit=10.0)
    sqrt_pi = math.sqrt(math.pi)
    exact = sqrt_pi - 2 * sqrt_pi / math.sqrt(1.5) + sqrt_pi / math.sqrt(2)
    assert value.item() == pytest.approx(exact, rel=1e-4)


def test_sigreg_is_small_for_gaussian_samples_and_does_not_grow_with_their_number():
    directions = rand(8, 64, seed=3)
    few, many = losses.sigreg(rand(1024, 8), directions), losses.sigreg(rand(8192, 8), directions)
    collapsed = losses.sigreg(0.01 * rand(1024, 8), directions)
    assert few < 0.01 and many < few and collapsed > 20 * few


def test_sigreg_of_sets_is_the_sigreg_of_each_set():
    x, directions = rand(3, 20, 8), rand(8, 16, seed=1)
    each = torch.stack([losses.sigreg(one, directions) for one in x])
    assert torch.allclose(losses.sigreg(x, directions), each, atol=1e-6)


def test_half_precision_is_accumulated_in_float32():
    h, z = rand(4, 9, 32), rand(4, 9, 32, seed=1)
    loss_sum, _ = losses.next_embedding(h.bfloat16(), z.bfloat16())
    assert loss_sum.dtype == torch.float32
    assert loss_sum.item() == pytest.approx(losses.next_embedding(h, z)[0].item(), abs=0.05)
