"""von Mises-Fisher distributions against closed forms, scipy's Bessel functions and samples."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln, ive

import nextembed
from nextembed.nn import directional as d

DIMS = [2, 3, 4, 7, 49, 50, 51, 64, 128, 1000, 4096]  # below 50 the expansion is extended by recurrence


def double(x) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def units(*shape, seed=0, dtype=torch.float32):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


@pytest.mark.parametrize("dim", DIMS)
def test_normalizer_and_mean_cosine_agree_with_scipy(dim):
    v = dim / 2 - 1
    for kappa in (1e-3, 0.1, 1.0, 20.0, 300.0, 1e4, 1e6):
        scaled, above = ive(v, kappa), ive(v + 1, kappa)
        if scaled < 1e-250:  # scipy underflows
            continue
        expected = gammaln(v + 1) + v * math.log(2 / kappa) + math.log(scaled) + kappa
        assert d.vmf_log_normalizer(double(kappa), dim).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert d.vmf_expected_cosine(double(kappa), dim).item() == pytest.approx(above / scaled, rel=1e-9)


def test_three_dimensions_have_a_closed_form():
    kappa = torch.logspace(-3, 6, 200, dtype=torch.float64)
    log_sinh_ratio = kappa + torch.log(-torch.expm1(-2 * kappa) / 2) - kappa.log()
    assert torch.allclose(d.vmf_log_normalizer(kappa, 3), log_sinh_ratio, rtol=1e-9, atol=1e-12)
    surface = math.log(4 * math.pi) + log_sinh_ratio
    assert torch.allclose(d.vmf_log_normalizer(kappa, 3, relative=False), surface, rtol=1e-12)
    kappa = kappa[kappa > 0.1]  # coth - 1 / kappa is inaccurate below
    assert torch.allclose(d.vmf_expected_cosine(kappa, 3), 1 / torch.tanh(kappa) - 1 / kappa, rtol=1e-11)


@settings(max_examples=30)
@given(st.integers(2, 4096), st.floats(-3, 6))
def test_bounds_and_recurrence_hold_everywhere(dim, log_kappa):
    """Values at dim and dim + 2 come from different expansions, but satisfy the recurrence of Bessel functions."""
    kappa = 10**log_kappa
    now, above = (d.vmf_expected_cosine(double(kappa), n).item() for n in (dim, dim + 2))
    assert now == pytest.approx(1 / (dim / kappa + above), rel=1e-12)
    v = dim / 2 - 1
    assert kappa / (v + 1 + math.hypot(v + 1, kappa)) <= now * (1 + 1e-12)  # Amos 1974
    assert now <= kappa / (v + 0.5 + math.hypot(v + 0.5, kappa)) * (1 + 1e-12)
    logs = [d.vmf_log_normalizer(double(kappa), n).item() for n in (dim, dim + 2)]
    assert logs[0] - logs[1] == pytest.approx(math.log1p(kappa * above / dim), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("dim", DIMS)
def test_small_kappa_agrees_with_the_series(dim):
    kappa = double([0.0, 1e-6, 1e-3])
    series = kappa**2 / (2 * dim) - kappa**4 / (4 * dim**2 * (dim + 2))
    assert torch.allclose(d.vmf_log_normalizer(kappa, dim), series, rtol=1e-9, atol=1e-17)
    assert torch.allclose(d.vmf_expected_cosine(kappa, dim), kappa / dim, rtol=1e-6)


@pytest.mark.parametrize("dim", DIMS)
def test_gradients_agree_with_finite_differences(dim):
    for kappa in (0.01, 1.0, 30.0, 2000.0):
        k = double([kappa]).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: d.vmf_log_normalizer(x, dim), k, eps=1e-4 * kappa, atol=1e-6)
        assert torch.autograd.gradcheck(lambda x: d.vmf_expected_cosine(x, dim), k, eps=1e-4 * kappa, atol=1e-7)
        first = torch.autograd.grad(d.vmf_log_normalizer(k, dim), k, create_graph=True)[0]
        second = torch.autograd.grad(first, k)[0]
        step = 1e-3 * kappa
        sides = [d.vmf_expected_cosine(double(kappa + sign * step), dim).item() for sign in (-1, 1)]
        assert second.item() == pytest.approx((sides[1] - sides[0]) / (2 * step), rel=1e-4)


def test_float32_gradients_are_finite_for_extreme_kappas():
    kappa = torch.tensor([0.0, 1e-3, 1e6], requires_grad=True)
    for dim in (2, 3, 128, 4096):
        grad = torch.autograd.grad(d.vmf_log_normalizer(kappa, dim).sum(), kappa)[0]
        assert grad.dtype == torch.float32
        assert torch.allclose(grad, d.vmf_expected_cosine(kappa.detach(), dim).float())
        assert grad.isfinite().all()


@settings(max_examples=30)
@given(st.integers(2, 4096), st.floats(0, 0.9999))
def test_kappa_inverts_the_mean_cosine(dim, cosine):
    kappa = d.vmf_kappa(double(cosine), dim)
    assert d.vmf_expected_cosine(kappa, dim).item() == pytest.approx(cosine, abs=1e-12)


@pytest.mark.parametrize("cosine", [-0.1, 1.0, math.nan])
def test_impossible_cosines(cosine):
    with pytest.raises(ValueError, match="below 1"):
        d.vmf_kappa(torch.tensor([0.5, cosine]), 8)


def test_one_dimension_is_an_error():
    with pytest.raises(ValueError, match="2 dimensions or more, not 1"):
        d.vmf_log_normalizer(torch.ones(2), 1)


@pytest.mark.parametrize("dim", [2, 3, 6])
@pytest.mark.parametrize("kappa", [0.5, 8.0])
def test_densities_integrate_to_one(dim, kappa):
    """Integrates over the angle to the direction, weighted by the area of the sphere at that angle."""
    angle = torch.linspace(0, math.pi, 20001, dtype=torch.float64)
    x = torch.zeros(len(angle), dim, dtype=torch.float64)
    x[:, 0], x[:, 1] = angle.cos(), angle.sin()
    direction = F.one_hot(torch.tensor(0), dim).double().expand_as(x)
    ring = angle.sin() ** (dim - 2) * math.exp(d.log_sphere_area(dim - 1) if dim > 2 else math.log(2))
    k = torch.full_like(angle, kappa)
    density = d.vmf_log_prob(direction, k, x, relative=False).exp()
    assert torch.trapezoid(density * ring, angle).item() == pytest.approx(1, abs=1e-6)
    relative = d.vmf_log_prob(direction, k, x)
    uniform = -d.log_sphere_area(dim)
    assert torch.allclose(relative + uniform, density.log())


def test_no_concentration_is_the_uniform_density():
    x, direction = units(5, 64), units(5, 64, seed=1)
    assert d.vmf_log_prob(direction, torch.zeros(5), x).abs().max() == 0


def test_a_mixture_is_the_weighted_sum_of_its_components():
    x, directions = units(2, 3, 16), units(2, 3, 4, 16, seed=1)
    kappas = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(2)) * 50
    log_weights = torch.log_softmax(kappas.flip(-1) / 20, -1)
    parts = [
        d.vmf_log_prob(directions[..., k, :], kappas[..., k], x).exp() * log_weights[..., k].exp() for k in range(4)
    ]
    found = d.mixture_log_prob(directions, kappas, log_weights, x)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.stack(parts).sum(0).log(), atol=1e-4)
    alone = d.mixture_log_prob(directions[..., :1, :], kappas[..., :1], torch.zeros(2, 3, 1), x, relative=False)
    assert torch.allclose(alone, d.vmf_log_prob(directions[..., 0, :], kappas[..., 0], x, relative=False), atol=1e-5)


def test_far_from_every_component_the_log_density_stays_finite():
    directions = F.normalize(torch.ones(1, 2, 512), dim=-1)
    x = -directions[:, 0]
    kappas = torch.full((1, 2), 1e5, requires_grad=True)
    value = d.mixture_log_prob(directions, kappas, torch.log(torch.tensor([[0.5, 0.5]])), x)
    value.sum().backward()
    assert value.item() == pytest.approx(-1e5 - d.vmf_log_normalizer(double(1e5), 512).item(), rel=1e-6)
    assert kappas.grad.isfinite().all()


def test_autocast_has_no_effect():
    x, direction, kappa = units(4, 64), units(4, 64, seed=1), torch.full((4,), 500.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = d.vmf_log_prob(direction, kappa, x)
    assert torch.equal(inside, d.vmf_log_prob(direction, kappa, x))


@pytest.mark.parametrize("dim", [2, 3, 4, 17, 128])
@pytest.mark.parametrize("kappa", [0.0, 0.3, 5.0, 200.0, 1e5])
def test_samples_have_the_moments_of_the_distribution(dim, kappa):
    count = 4000
    direction = units(dim, seed=dim).expand(count, dim)
    samples = d.vmf_sample(direction, torch.full((count,), kappa), torch.Generator().manual_seed(0))
    assert torch.allclose(torch.linalg.vector_norm(samples, dim=-1), torch.ones(count), atol=1e-6)
    mean, variance = d._expected_cosine_and_slope(double(kappa), dim)
    # 1 - cosine computed from the distance, which is accurate for close samples
    short = (samples - direction).double().square().sum(-1) / 2
    error = math.sqrt(variance.item() / count)
    assert abs(short.mean().item() - (1 - mean.item())) < 4 * error + 1e-7
    assert short.var().item() == pytest.approx(variance.item(), rel=0.25)
    # rotationally symmetric around the direction
    side = F.normalize(units(dim, seed=99) - (units(dim, seed=99) @ direction[0]) * direction[0], dim=-1)
    across = samples @ side
    assert abs(across.mean()) < 4 * across.std() / math.sqrt(count)
    assert across.square().mean().item() == pytest.approx((1 - variance.item() - mean.item() ** 2) / (dim - 1), rel=0.2)


@pytest.mark.parametrize("dim", [3, 4])
def test_cosines_of_samples_follow_their_distribution(dim):
    """Kolmogorov-Smirnov test against the density integrated over the angle."""
    count, kappa = 4000, 3.0
    grid = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    density = torch.exp(kappa * grid) * (1 - grid.square()).clamp(min=0) ** ((dim - 3) / 2)
    below = torch.cat((double([0.0]), torch.cumulative_trapezoid(density, grid)))
    direction = units(dim, dtype=torch.float64).expand(count, dim)
    found = (d.vmf_sample(direction, torch.full((count,), kappa), torch.Generator().manual_seed(1)) * direction).sum(-1)
    expected = (below / below[-1])[((found.sort().values + 1) * 2000).round().long().clamp(0, 4000)]
    steps = torch.arange(count, dtype=torch.float64) / count
    assert (expected - steps).abs().max() < 1.63 / math.sqrt(count)  # 1 % critical value


def test_temperature_divides_kappa():
    direction, kappa = units(3000, 8), torch.full((3000,), 2.0)
    warm = d.vmf_sample(direction, kappa, torch.Generator().manual_seed(0), temperature=0.25)
    same = d.vmf_sample(direction, kappa * 4, torch.Generator().manual_seed(0))
    assert torch.equal(warm, same)
    assert torch.equal(d.vmf_sample(direction, kappa, temperature=0), direction)
    nearly = d.vmf_sample(direction, kappa, torch.Generator().manual_seed(0), temperature=1e-300)
    assert torch.allclose(nearly, direction, atol=1e-5)


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_invalid_temperatures(temperature):
    with pytest.raises(ValueError, match="temperature"):
        d.vmf_sample(units(2, 4), torch.ones(2), temperature=temperature)
    with pytest.raises(ValueError, match="temperature"):
        d.mixture_sample(units(2, 3, 4), torch.ones(2, 3), torch.zeros(2, 3), temperature=temperature)


def test_a_nan_concentration_does_not_hang():
    assert d.vmf_sample(units(2, 8), torch.tensor([math.nan, 1.0]))[0].isnan().all()


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.7), (0.5, 0.49 / (0.49 + 0.09)), (0.0, 1.0)])
def test_mixture_samples_come_from_components_by_weight(temperature, share):
    count = 4000
    directions = torch.eye(8)[:2].expand(count, 2, 8)
    log_weights = torch.tensor([0.7, 0.3]).log().expand(count, 2)
    generator = torch.Generator().manual_seed(0)
    samples = d.mixture_sample(directions, torch.full((count, 2), 200.0), log_weights, generator, temperature)
    first = (samples[:, 0] > samples[:, 1]).float().mean().item()
    assert abs(first - share) <= 4 * math.sqrt(share * (1 - share) / count)


def test_the_same_generator_gives_the_same_sample():
    draws = [
        d.mixture_sample(units(5, 3, 6), torch.ones(5, 3), torch.zeros(5, 3), torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_device_without_float64_computes_in_float32(monkeypatch):
    """mps has no float64: log densities are then accurate to about kappa x 1e-7."""
    from nextembed.nn import directional
    from nextembed.nn.density import DensityHead

    torch.manual_seed(0)
    head, hidden, x = DensityHead(16, "mixture", 3), torch.randn(5, 16), torch.randn(5, 16)
    exact = head(hidden).log_prob(x)
    monkeypatch.setattr(directional, "NO_FLOAT64", {"cpu"})
    seen = []
    monkeypatch.setattr(torch.Tensor, "double", lambda self: seen.append(self) or self)
    density = head(hidden)
    torch.testing.assert_close(density.log_prob(x), exact, rtol=1e-4, atol=1e-4)
    for found in (density.mean(), density.mode(), density.sample(), density.component(), density.expected_cosine()):
        assert found.dtype == torch.float32 and found.isfinite().all()
    assert not seen


def test_float64_conversions_happen_on_the_cpu():
    """Some accelerators lack float64, where `.double().cpu()` fails but `.cpu().double()` works."""
    source = Path(nextembed.__file__).parent
    late = re.compile(r"(double\(\)|to\(torch\.float64\)|float64\))(\.\w+\(\))*\.cpu\(\)")
    assert [file.name for file in source.rglob("*.py") if late.search(file.read_text(encoding="utf-8"))] == []
