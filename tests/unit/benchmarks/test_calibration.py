"""Calibration on synthetic densities with a known answer, and its plot."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import calibration
from calibration import NUM_DRAWS, PositionScores, bin_numbers, calibrate, join, score_positions
from calibration_plot import write_calibration
from nextembed.nn.density import Density
from nextembed.nn.directional import vmf_expected_cosine

COUNT, WIDTH = 1500, 12


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def densities(num_components=3) -> Density:
    """Random directions; kappas from 1 to 100; weights of about 0.6, 0.3, 0.1 in random order."""
    directions = F.normalize(torch.randn(COUNT, num_components, WIDTH, generator=generator(1)), dim=-1)
    kappas = 100 ** torch.rand(COUNT, 1, generator=generator(2)).expand(COUNT, num_components)
    weights = torch.tensor([0.6, 0.3, 0.1])[:num_components].expand(COUNT, -1)
    weights = weights.gather(-1, torch.rand(weights.shape, generator=generator(3)).argsort(-1))
    return Density(directions, kappas, (weights / weights.sum(-1, keepdim=True)).log())


@pytest.fixture(scope="module")
def documents():
    return [f"document {i // 5}" for i in range(COUNT)]


@pytest.fixture(scope="module", params=[1, 3])
def honest(request, documents):
    """Latents sampled from the densities, scaled by three."""
    density = densities(request.param)
    latents = 3 * density.sample(generator(4))
    return density, latents, calibrate(score_positions(density, latents, generator(5)), documents, draws=200)


def test_samples_of_the_densities_are_calibrated(honest):
    density, latents, found = honest
    assert (found.num_positions, found.num_documents, found.dim) == (COUNT, COUNT // 5, WIDTH)
    assert found["calibration_error"] < 2 * found["calibration_error_of_samples"]
    assert found["calibration_error_of_samples"] < 0.03
    assert found["nll"] == pytest.approx(-density.log_prob(latents).mean().item(), rel=1e-5)
    assert found["nll"] == pytest.approx(WIDTH * found["nll_per_dimension"])
    for name, share in (("region_50", 0.5), ("region_90", 0.9)):
        assert abs(found[name] - share) < 4 * math.sqrt(share * (1 - share) / COUNT)
    inside = [b.low - 0.02 <= b.expected <= b.high + 0.02 for b in found.bins]
    assert len(found.bins) == 10 and sum(inside) >= 9
    assert sum(b.count for b in found.bins) == COUNT
    assert [b.expected for b in found.bins] == sorted(b.expected for b in found.bins)
    assert found.bins[-1].degrees < found.bins[0].degrees


@pytest.mark.parametrize(("factor", "sign"), [(5.0, 1), (0.2, -1)])
def test_overconfidence_and_underconfidence_are_distinguished(documents, factor, sign):
    density = densities(1)
    latents = density._replace(kappas=density.kappas / factor).sample(generator(4))
    found = calibrate(score_positions(density, latents, generator()), documents, draws=50)
    kappas = density.kappas.double()
    expected, actual = (vmf_expected_cosine(k, WIDTH).mean().item() for k in (kappas, kappas / factor))
    assert found["expected_cosine"] == pytest.approx(expected, abs=1e-4)
    assert found["cosine"] == pytest.approx(actual, abs=0.03)
    assert found["calibration_error"] == pytest.approx(abs(expected - actual), abs=0.03)
    assert found["calibration_error"] > 5 * found["calibration_error_of_samples"]
    assert sign * (0.9 - found["region_90"]) > 0.05


def test_coverage_is_the_share_of_the_heaviest_components(documents):
    density = densities(3)._replace(kappas=torch.full((COUNT, 3), 1e4))  # every sample stays in its component
    scores = score_positions(density, density.sample(generator()), generator())
    found = calibrate(scores, documents, top=(1, 2, 3, 4), draws=100)
    assert [c.k for c in found.coverage] == [1, 2, 3]  # there is no fourth
    for c, weight in zip(found.coverage, (0.6, 0.9, 1.0)):
        assert c.weight == pytest.approx(weight, abs=1e-5)
        assert abs(c.share - weight) <= 4 * math.sqrt(weight * (1 - weight) / COUNT) + 1e-12
        assert c.low <= c.share <= c.high


def test_ranks_and_regions_of_single_positions():
    axes = torch.eye(4)[:3].expand(3, 3, 4)
    density = Density(axes, torch.full((3, 3), 1e3), torch.tensor([0.1, 0.6, 0.3]).log().expand(3, 3))
    latents = torch.stack((torch.eye(4)[1], torch.eye(4)[0], -torch.eye(4)[2] + 0.1 * torch.eye(4)[0]))
    scores = score_positions(density, latents, generator())
    assert scores.place.tolist() == [0, 2, 2]
    assert scores.above[0] == 0  # the peak of the heaviest component
    assert scores.above[2] == NUM_DRAWS  # where the density is negligible
    assert np.allclose(scores.weights, [[0.6, 0.3, 0.1]] * 3)


def test_joined_batches_equal_the_whole(documents):
    density = densities()
    latents = density.sample(generator())
    whole = score_positions(density, latents, generator(1))
    parts = [score_positions(density.at(s), latents[s], generator(1)) for s in (slice(0, 700), slice(700, None))]
    joined = join(parts)
    for name in ("expected", "cosine", "log_prob", "place", "weights"):
        assert np.allclose(getattr(joined, name), getattr(whole, name), atol=1e-6)
    assert joined.drawn.shape == whole.drawn.shape and joined.dim == WIDTH


def test_axes_before_the_last_are_positions():
    density = Density(*(v[:12].unflatten(0, (3, 4)) for v in densities()))
    scores = score_positions(density, torch.randn(3, 4, WIDTH, generator=generator()), generator())
    assert scores.expected.shape == (12,)


def test_intervals_are_over_documents_not_positions():
    """If all positions of a document have the same error, they count as one."""
    side = np.repeat(np.array([0.2, 0.8] * 10), 50)
    n = len(side)
    zeros = np.zeros(n, int)
    scores = PositionScores(
        np.full(n, 0.5), side, np.zeros(n), zeros, np.ones((n, 1)), np.full((n, NUM_DRAWS), 0.5), zeros, 8
    )
    width = {}
    for name, documents in (("together", np.arange(n) // 50), ("apart", np.arange(n))):
        metric = next(m for m in calibrate(scores, documents).metrics if m.name == "cosine")
        assert metric.low < 0.5 < metric.high
        width[name] = metric.high - metric.low
    assert width["together"] / width["apart"] == pytest.approx(math.sqrt(50), rel=0.2)


def test_equal_values_share_a_bin():
    assert bin_numbers(np.full(7, 0.3), 10).tolist() == [0] * 7
    assert bin_numbers(np.array([0.1, 0.1, 0.1, 0.5, 0.9]), 4).tolist() == [0, 0, 0, 1, 1]
    assert np.bincount(bin_numbers(np.arange(100.0), 10)).tolist() == [10] * 10


def test_mismatched_inputs_are_reported(documents):
    density = densities()
    with pytest.raises(ValueError, match="do not belong together"):
        score_positions(density, torch.zeros(COUNT - 1, WIDTH))
    scores = score_positions(density, density.sample(generator()), generator())
    with pytest.raises(ValueError, match=f"3 documents for {COUNT} positions"):
        calibrate(scores, documents[:3])
    broken = scores._replace(log_prob=np.where(np.arange(COUNT) < 2, np.nan, scores.log_prob))
    with pytest.raises(ValueError, match=f"2 of {COUNT} positions"):
        calibrate(broken, documents)


def test_the_result_is_a_file_and_a_plot(honest, tmp_path):
    found = json.loads(honest[2].save(tmp_path / "calibration.json").read_text())
    assert {m["name"] for m in found["metrics"]} >= {"nll", "calibration_error", "region_90"}
    assert found["bins"][0].keys() >= {"count", "expected", "cosine", "degrees", "expected_degrees"}
    first, second = (write_calibration(found, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first.startswith(b"\x89PNG") and first == second


def test_the_same_seed_gives_the_same_intervals(honest, documents):
    scores = score_positions(honest[0], honest[1], generator(5))
    assert calibrate(scores, documents, draws=200) == honest[2]
    assert calibration.calibrate(scores, documents, draws=0).bins[0].low == honest[2].bins[0].cosine
