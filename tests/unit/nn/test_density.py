"""The density head: initialisation, properties of densities, and correct gradients of mixtures."""

import math

import pytest
import torch
import torch.nn.functional as F

from nextembed.nn.density import MOST_PULL, Density, DensityHead
from nextembed.nn.directional import vmf_expected_cosine, vmf_kappa

WIDTH = 16


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(kind="mixture", width=WIDTH, **settings):
    torch.manual_seed(0)
    return DensityHead(width, kind, **settings)


def two_sided(count=1, kappas=(300.0, 300.0), weights=(0.7, 0.3)) -> Density:
    """Two components along the first two of 8 axes."""
    directions = torch.eye(8)[:2].expand(count, 2, 8)
    return Density(directions, torch.tensor([kappas] * count), torch.tensor([weights] * count).log())


@pytest.mark.parametrize(("kind", "num"), [("von_mises_fisher", 1), ("mixture", 8)])
@pytest.mark.parametrize("width", [2, 16, 512])
def test_initial_density_is_centred_on_the_hidden_state(kind, num, width):
    hidden = rand(2, 3, width)
    density = head(kind, width)(hidden)
    assert density.directions.shape == (2, 3, num, width)
    assert density.kappas.shape == density.log_weights.shape == (2, 3, num)
    assert torch.allclose(torch.linalg.vector_norm(density.directions, dim=-1), torch.ones(2, 3, num), atol=1e-6)
    assert torch.allclose(density.directions[..., 0, :], F.normalize(hidden, dim=-1), atol=1e-6)
    assert torch.allclose(density.log_weights.exp(), torch.full((2, 3, num), 1 / num), atol=1e-6)
    assert torch.allclose(vmf_expected_cosine(density.kappas, width), torch.tensor(0.3).double(), atol=1e-5)


def test_initial_components_differ_but_are_near_the_hidden_state():
    density = head(width=512)(rand(5, 512))
    with_first = (density.directions[:, 1:] @ density.directions[:, 0, :, None])[..., 0]
    assert with_first.min() > 0.8
    pairs = density.directions @ density.directions.mT
    assert pairs.masked_fill(torch.eye(8, dtype=torch.bool), 0).max() < 0.95


def test_one_component_has_the_hidden_state_as_its_prediction():
    hidden = rand(4, WIDTH)
    density = head("von_mises_fisher")(hidden)
    for found in (density.mean(), density.mode(), density.sample(temperature=0)):
        assert torch.allclose(found, F.normalize(hidden, dim=-1), atol=1e-6)
    assert torch.allclose(density.expected_cosine(), torch.full((4,), 0.3), atol=1e-5)
    assert len(list(head("von_mises_fisher").parameters())) == 2  # those of the concentration


@pytest.mark.parametrize("kind", ["von_mises_fisher", "mixture"])
def test_every_parameter_and_the_hidden_state_get_a_gradient(kind):
    model, hidden = head(kind), rand(6, WIDTH).requires_grad_()
    (-model(hidden).log_prob(rand(6, WIDTH, seed=1)).mean()).backward()
    for name, p in model.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, name
    assert hidden.grad.abs().sum() > 0


def test_the_gradient_of_the_hidden_state_is_bounded():
    model, x = head("von_mises_fisher", max_cosine=0.99), F.normalize(rand(3, WIDTH, seed=1), dim=-1)
    for bias, pull in ((1e3, MOST_PULL), (-1e3, None)):
        torch.nn.init.constant_(model.concentration.bias, bias)
        hidden = rand(3, WIDTH).requires_grad_()
        density = model(hidden)
        direction, length = F.normalize(hidden, dim=-1).detach(), hidden.detach().norm(dim=-1, keepdim=True)
        assert torch.equal(density.directions[:, 0], direction)
        density.log_prob(x).sum().backward()
        across = x - (x * direction).sum(-1, keepdim=True) * direction
        own = density.kappas.detach() if pull is None else torch.tensor(pull)
        assert torch.allclose(hidden.grad, own * across / length, rtol=1e-3, atol=1e-5)
    hidden = rand(3, WIDTH).requires_grad_()
    assert torch.autograd.grad(model(hidden).kappas.sum(), hidden, allow_unused=True) == (None,)


@pytest.mark.parametrize("scale", [1e3, -1e3])
def test_the_concentration_stays_within_its_bounds_and_finite(scale):
    model = head("von_mises_fisher", max_cosine=0.9)
    torch.nn.init.constant_(model.concentration.bias, scale)
    density = model(rand(3, WIDTH))
    expected = torch.tensor(0.9 if scale > 0 else 0.01).double()
    assert torch.allclose(vmf_expected_cosine(density.kappas, WIDTH), expected, rtol=1e-3)
    assert density.log_prob(rand(3, WIDTH, seed=1)).isfinite().all()


def test_parameters_can_be_reset():
    hidden, found = rand(3, WIDTH), []
    for scale in (1.0, 3.0):
        model = head()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=scale)
        torch.manual_seed(0)
        model.reset_parameters()
        found.append(model(hidden))
    assert all(torch.equal(a, b) for a, b in zip(*found))
    assert torch.allclose(vmf_expected_cosine(found[0].kappas, WIDTH), torch.tensor(0.3).double(), atol=1e-5)


def test_it_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        model = DensityHead(WIDTH, "mixture")
    assert model.offsets.weight.is_meta
    assert model.log_range == head().log_range


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "gaussian"}, "von_mises_fisher or mixture"),
        ({"num_components": 1}, "2 or more"),
        ({"max_cosine": 0.2}, "max_cosine 0.2 "),
        ({"max_cosine": 1.0}, "max_cosine 1 "),
    ],
)
def test_wrong_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        DensityHead(WIDTH, **({"kind": "mixture"} | settings))


def test_latents_of_any_length_and_bfloat16_hidden_states():
    density, x = head()(rand(4, WIDTH)), rand(4, WIDTH, seed=1)
    assert torch.allclose(density.log_prob(x), density.log_prob(100 * x), atol=1e-5)
    half = head().bfloat16()(rand(4, WIDTH).bfloat16())
    assert {values.dtype for values in half} == {torch.float32}
    assert torch.allclose(half.log_prob(x.bfloat16()), density.log_prob(x), atol=0.1)


def test_mean_and_expected_cosine_are_those_of_samples():
    count = 5000
    density = two_sided(count, kappas=(20.0, 60.0))
    samples = density.sample(torch.Generator().manual_seed(0))
    assert torch.allclose(samples.mean(0), density.mean_vector()[0], atol=4 / math.sqrt(count))
    scores = (samples * density.mean()).sum(-1)
    assert abs(scores.mean() - density.expected_cosine()[0]) < 4 * scores.std() / math.sqrt(count)
    others = [(samples * F.normalize(density.mean() + 0.3 * rand(8, seed=i), dim=-1)).sum(-1).mean() for i in range(5)]
    assert max(others) < scores.mean()


def test_the_mode_is_where_the_density_is_highest():
    density = two_sided(kappas=(20.0, 2000.0))
    assert torch.equal(density.mode()[0], torch.eye(8)[1])  # lower weight, but far more concentrated
    assert torch.equal(density.sample(temperature=0)[0], torch.eye(8)[0])  # the largest weight
    points = F.normalize(torch.cat((rand(500, 8), density.mean())), dim=-1)
    assert (
        density.log_prob(density.mode())[0]
        > Density(*(v.expand(501, *v.shape[1:]) for v in density)).log_prob(points).max()
    )


def test_positions_can_be_selected():
    density = head()(rand(2, 3, WIDTH))
    mask = torch.tensor([[True, False, True], [False, False, True]])
    x = rand(2, 3, WIDTH, seed=1)
    assert torch.allclose(density.at(mask).log_prob(x[mask]), density.log_prob(x)[mask], atol=1e-6)


def test_the_true_two_sided_density_beats_a_point_and_every_other_weight():
    """Compares mean log densities; targets are near a with probability 0.7 and near b with 0.3."""
    count = 2000
    truth = two_sided(count)
    x = truth.sample(torch.Generator().manual_seed(0))
    best = truth.log_prob(x).mean()
    for weight in (0.5, 0.6, 0.8, 0.9):
        assert two_sided(count, weights=(weight, 1 - weight)).log_prob(x).mean() < best
    mean = truth.mean_vector()
    point = Density(
        F.normalize(mean, dim=-1)[:, None], vmf_kappa(mean.norm(dim=-1, keepdim=True), 8).float(), torch.zeros(count, 1)
    )
    assert best - point.log_prob(x).mean() > 3  # a single direction must cover both


def test_gradients_of_weights_vanish_at_the_true_mixture():
    """The gradient of the mean log density with respect to a weight's logit is (share of targets - weight)."""
    count = 2000
    truth = two_sided(count)
    first = torch.arange(count) < 1400  # exactly 0.7
    x = torch.where(first[:, None], torch.eye(8)[0], torch.eye(8)[1])
    for weight in (0.7, 0.5, 0.95):
        logits = torch.tensor([weight, 1 - weight]).log().requires_grad_()
        log_weights = F.log_softmax(logits, dim=-1).expand(count, 2)
        truth._replace(log_weights=log_weights).log_prob(x).mean().backward()
        assert logits.grad[0].item() == pytest.approx(0.7 - weight, abs=1e-5)


def test_a_trained_mixture_is_better_than_a_single_density():
    """With one context and a free hidden state, 60 steps make the mixture better than the best single density."""
    a, b = F.normalize(rand(2, WIDTH), dim=-1)
    x = F.normalize(torch.where(torch.arange(40)[:, None] < 28, a, b) + 0.05 * rand(40, WIDTH, seed=1), dim=-1)
    model = head(num_components=4)
    hidden = torch.nn.Parameter(rand(1, WIDTH, seed=2))
    optimizer = torch.optim.Adam([hidden, *model.parameters()], lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (-model(hidden.expand(40, WIDTH)).log_prob(x).mean() / WIDTH).backward()
        optimizer.step()
    density = model(hidden.detach().expand(40, WIDTH))
    mean = x.mean(0)
    single = Density(mean[None, None] / mean.norm(), vmf_kappa(mean.norm()[None, None], WIDTH), torch.zeros(1, 1))
    assert density.log_prob(x).mean() > Density(*(v.expand(40, *v.shape[1:]) for v in single)).log_prob(x).mean() + 1
