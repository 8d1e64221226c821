"""Dependencies: causality, orders, targets, and rotary positions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from nextembed.models.nepa import NepaModel
from nextembed.nn.positions import patch_coordinates, rotary_tables, rotate

PATCHES = 9
seeds = st.integers(0, 2**31)
few = settings(max_examples=15, deadline=None, derandomize=True)


def build(**fields):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 24, "patch_size": 8}
    model = NepaModel(**(sizes | {"layerscale_value": 1.0} | fields)).build().eval()
    with torch.no_grad():  # with the initial scale of 0.02, positions barely interact
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return model


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request):
    made = build()
    made.set_attn_implementation(request.param)
    return made


def images(seed):
    return torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def change_patch(pixels, patch):
    changed = pixels.clone()
    row, column = divmod(patch, 3)
    changed[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1.0
    return changed


@few
@given(patch=st.integers(0, PATCHES - 1), seed=seeds)
def test_a_patch_affects_only_later_positions(model, patch, seed):
    x = images(seed)
    with torch.no_grad():
        one, two = (model(v, output_hidden_states=True) for v in (x, change_patch(x, patch)))
    position = 1 + patch  # the begin token is first
    for before, after in zip(one.hidden_states, two.hidden_states, strict=True):
        assert torch.allclose(before[:, :position], after[:, :position], atol=1e-5)
    assert ((one.last_hidden_state - two.last_hidden_state)[:, position:].abs().amax(-1) > 1e-4).all()


@few
@given(patch=st.integers(0, PATCHES - 1), seed=seeds)
def test_with_full_attention_a_patch_affects_everything(model, patch, seed):
    x = images(seed)
    with torch.no_grad():
        one, two = (model(v, is_causal=False).last_hidden_state for v in (x, change_patch(x, patch)))
    assert ((one - two).abs().amax(-1) > 1e-5).all()


def test_gradients_are_causal(model):
    latents = model.embed({"pixel_values": images(0)})
    z = latents.z.detach().requires_grad_()
    for t in (0, 4, PATCHES):
        hidden = model.encode(latents._replace(z=z), "causal").last
        (gradient,) = torch.autograd.grad(hidden[:, t].sin().sum(), z)
        assert gradient[:, t + 1 :].abs().sum() == 0
        assert (gradient[:, : t + 1].abs().amax(-1) > 0).all()


def test_no_gradient_into_targets(model):
    """Latents get gradients only as inputs of predictions; the last one is only a target."""
    x = images(0).requires_grad_()
    model(x).loss.backward()
    assert x.grad[:, :, 16:, 16:].abs().sum() == 0
    assert x.grad[:, :, :8, :8].abs().sum() > 0


# -- orders


@few
@given(order=st.permutations(range(1 + PATCHES)), seed=seeds)
def test_full_attention_is_independent_of_the_order(model, order, seed):
    latents = model.embed({"pixel_values": images(seed)})
    order = torch.tensor(order).expand(len(latents.z), -1)
    with torch.no_grad():
        plain, ordered = (model.encode(one, "full", output_layers=True) for one in (latents, latents.take(order)))
    for one, two in zip(plain.layers, ordered.layers, strict=True):
        assert torch.allclose(one.gather(1, order[..., None].expand_as(one)), two, atol=1e-5)


@few
@given(order=st.permutations(range(1 + PATCHES)), step=st.integers(0, PATCHES), seed=seeds)
def test_causality_follows_the_order(model, order, step, seed):
    latents = model.embed({"pixel_values": images(seed)})
    changed = latents.z.clone()
    changed[:, order[step]] += torch.linspace(-1, 1, 32)  # not a constant, which layer norm would remove
    index = torch.tensor(order).expand(len(changed), -1)
    with torch.no_grad():
        one, two = (model.encode(part.take(index), "causal").last for part in (latents, latents._replace(z=changed)))
    moved = (one - two).abs().amax(-1)  # in reading order
    assert (moved[:, :step] < 1e-5).all() and (moved[:, step:] > 1e-6).all()


# -- rotary positions


def test_begin_token_is_not_rotated(model):
    coordinates = model.embed({"pixel_values": images(0)}).coordinates[0]
    cos, sin = rotary_tables(coordinates, 8)
    x = torch.randn(1 + PATCHES, 8)
    assert torch.equal(rotate(x, cos, sin)[0], x[0])
    assert torch.equal(coordinates[1:], patch_coordinates(3, 3))


points = st.lists(st.floats(-2, 2), min_size=2, max_size=2)


@few
@given(where=points, seed=seeds)
def test_rotation_keeps_length_and_has_an_inverse(where, seed):
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
    cos, sin = rotary_tables(torch.tensor([where]), 16)
    turned = rotate(x, cos, sin)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-4)
    assert torch.allclose(rotate(turned, cos, -sin), x, atol=1e-4)


@few
@given(a=points, b=points, shift=points, seed=seeds)
def test_only_relative_positions_matter(a, b, shift, seed):
    q, k = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    a, b, shift = (torch.tensor([v]) for v in (a, b, shift))

    def score(at, of):
        return rotate(q, *rotary_tables(at, 16)) @ rotate(k, *rotary_tables(of, 16)).T

    assert torch.allclose(score(a, b), score(a + shift, b + shift), atol=1e-3)  # angles are float32


def test_gradients_of_the_rotation_are_correct():
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    cos, sin = (t.double() for t in rotary_tables(torch.randn(3, 2), 8))
    assert gradcheck(lambda v: rotate(v, cos, sin), (x,))
    assert gradgradcheck(lambda v: rotate(v, cos, sin), (x,))
    assert gradgradcheck(lambda v: rotate(v, cos, sin).sin(), (x,))
