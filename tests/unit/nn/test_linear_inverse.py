"""Values from directions of latents: exact without noise, the most likely ones with noise."""

import pytest
import torch
import torch.nn.functional as F

from nextembed.nn.linear_inverse import LinearInverse, ValueStatistics

WIDTH = 16


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(num, size, seed=0):
    """Correlated values with mean 3, like the pixels of a patch."""
    return 3 + rand(num, 1, seed=seed) + 0.1 * rand(num, size, seed=seed + 1)


def inverse(size, values=None, noise=1e-4, bias=0.5, length=None):
    weight, bias = rand(WIDTH, size, seed=5), bias * rand(WIDTH, seed=6)
    statistics = ValueStatistics(size)
    z = None
    if values is not None:
        statistics.measure(values)
        z = values @ weight.T + bias
        length = z.norm(dim=-1).mean()
    return LinearInverse(weight, bias, statistics, torch.tensor(1.0) if length is None else length, noise), z


@pytest.mark.parametrize("size", [1, 3, 8])
def test_values_of_few_dimensions_are_recovered_from_directions(size):
    """For latents of very different lengths, which the bias determines."""
    values = rand(50, size) * torch.logspace(-2, 0.5, 50)[:, None]
    way_back, z = inverse(size, values)
    assert torch.allclose(way_back(5 * F.normalize(z, dim=-1)), values, rtol=0.05, atol=0.05)


def test_full_rank_latents_are_assumed_to_have_the_mean_length():
    values = rand(400, 40)
    way_back, z = inverse(40, values)
    same = F.normalize(z, dim=-1) * z.norm(dim=-1).mean()
    found = way_back(z) @ rand(WIDTH, 40, seed=5).T + 0.5 * rand(WIDTH, seed=6)
    assert torch.allclose(found, same, atol=0.02)  # different values with the same latents


def test_value_statistics_reduce_the_error_of_noisy_latents():
    values = correlated(2000, 24)
    way_back, z = inverse(24, values, noise=0.3)
    blank = ValueStatistics(24)
    without = LinearInverse(rand(WIDTH, 24, seed=5), 0.5 * rand(WIDTH, seed=6), blank, z.norm(dim=-1).mean(), 0.3)
    noisy = z + 0.5 * z.norm(dim=-1).mean() / WIDTH**0.5 * rand(*z.shape, seed=9)
    with_it, other = ((f(noisy) - values).square().mean() for f in (way_back, without))
    assert with_it < 0.5 * other
    assert with_it < 1.5 * values.var(0).mean()


def test_uninformative_predictions_give_about_the_mean():
    values = correlated(500, 12)
    way_back, z = inverse(12, values, noise=1e6)
    assert torch.allclose(way_back(z), values.mean(0).expand(500, -1), atol=0.05)


def test_large_patches_use_variances_only():
    statistics = ValueStatistics(12, most=10)
    assert statistics.covariance.shape == (12,)
    statistics.measure(correlated(100, 12) * torch.linspace(0.0, 2.0, 12))
    assert statistics.covariance.min() > 0  # a value that is constant so far may still vary
    weight = rand(WIDTH, 12)
    found = LinearInverse(weight, torch.zeros(WIDTH), statistics, torch.tensor(2.0), 0.1)(rand(3, WIDTH))
    assert found.shape == (3, 12) and found.isfinite().all()


def test_too_few_values_leave_statistics_unchanged():
    statistics = ValueStatistics(4)
    statistics.measure(rand(1, 4))
    assert torch.equal(statistics.covariance, torch.eye(4)) and not statistics.mean.any()
