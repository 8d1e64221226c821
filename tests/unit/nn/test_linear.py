"""LayerScale folded into a linear layer; in-place activations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from nextembed.nn.linear import activated_linear, fast_for_few_rows, scaled_linear


class Wrapped(nn.Module):
    """A linear layer wrapped as by LoRA: its output plus a low-rank update."""

    def __init__(self, linear):
        super().__init__()
        self.base, self.down, self.up = linear, nn.Linear(6, 2, bias=False), nn.Linear(2, 4, bias=False)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_folded_scale_equals_unfolded(bias, wrapped):
    torch.manual_seed(0)
    linear = nn.Linear(6, 4, bias=bias)
    linear = Wrapped(linear) if wrapped else linear
    x, scale = torch.randn(3, 5, 6, requires_grad=True), torch.randn(4, requires_grad=True)
    inputs = [x, scale, *linear.parameters()]
    folded, plain = scaled_linear(linear, x, scale), linear(x) * scale
    assert torch.allclose(folded, plain, atol=1e-6)
    upstream = torch.randn_like(plain)
    for one, two in zip(
        torch.autograd.grad(folded, inputs, upstream), torch.autograd.grad(plain, inputs, upstream), strict=True
    ):
        assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("way", ["plain", "wrapped", "no scale", "bfloat16"])
def test_residual_is_added(way):
    torch.manual_seed(0)
    linear, x, residual, scale = nn.Linear(6, 4), torch.randn(3, 6), torch.randn(3, 4), torch.randn(4)
    inputs = [x, residual, scale]
    if way == "bfloat16":
        linear, inputs = linear.bfloat16(), [t.bfloat16() for t in inputs]
    linear = Wrapped(linear) if way == "wrapped" else linear
    x, residual, scale = (t.requires_grad_() for t in inputs)
    out = scaled_linear(linear, x, None if way == "no scale" else scale, residual)
    expected = residual + linear(x) * (1 if way == "no scale" else scale)
    atol = 0.05 if way == "bfloat16" else 1e-6
    assert torch.allclose(out, expected, atol=atol)
    for one, two in zip(
        *(torch.autograd.grad(value.sin().sum(), (x, residual)) for value in (out, expected)), strict=True
    ):
        assert torch.allclose(one, two, atol=2 * atol)


def test_without_scale_it_is_the_linear_layer():
    linear, x = nn.Linear(6, 4), torch.randn(3, 6)
    assert torch.equal(scaled_linear(linear, x, None), linear(x))


def test_hooks_of_the_linear_layer_are_called():
    x, scale = torch.randn(3, 6, requires_grad=True), torch.randn(4)
    for register in ("register_forward_pre_hook", "register_forward_hook", "register_full_backward_hook"):
        linear, calls = nn.Linear(6, 4), []
        getattr(linear, register)(lambda *_, calls=calls: calls.append(1))
        out = scaled_linear(linear, x, scale)
        assert torch.allclose(out, F.linear(x, linear.weight, linear.bias) * scale, atol=1e-6)
        out.sum().backward()
        assert calls == [1], register


@pytest.mark.parametrize("frozen", [[], ["weight"], ["bias"], ["scale"], ["residual"], ["weight", "bias", "scale"]])
def test_only_trained_inputs_get_gradients(frozen):
    inputs = {"x": torch.randn(3, 6), "weight": torch.randn(4, 6), "bias": torch.randn(4), "scale": torch.randn(4)}
    inputs["residual"] = torch.randn(3, 4)
    inputs = {name: value.double().requires_grad_(name not in frozen) for name, value in inputs.items()}
    linear = nn.Linear(6, 4)
    del linear.weight, linear.bias

    def run(x, weight, bias, scale, residual):
        linear.weight, linear.bias = weight, bias
        return scaled_linear(linear, x, scale, residual)

    assert gradcheck(run, tuple(inputs.values()))
    run(*inputs.values()).sum().backward()
    assert [name for name, value in inputs.items() if value.grad is None] == frozen


def test_scaled_weights_are_not_kept_for_the_backward_pass():
    linear, x, scale = nn.Linear(6, 4), torch.randn(3, 6), torch.randn(4, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        scaled_linear(linear, x, scale)
    assert set(kept) == {t.data_ptr() for t in (x, linear.weight, linear.bias, scale)}


@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh()], ids=str)
def test_activations_overwrite_only_unobservable_inputs(activation):
    torch.manual_seed(0)
    linear, x, seen = nn.Linear(6, 4), torch.randn(3, 6), []
    expected, between = activation(linear(x)), linear(x).detach()
    assert torch.equal(activated_linear(linear, activation, x), expected)
    with torch.no_grad():
        assert torch.allclose(activated_linear(linear, activation, x), expected, atol=1e-6)
        linear.register_forward_hook(lambda _, __, out: seen.append(out))
        assert torch.allclose(activated_linear(linear, activation, x), expected, atol=1e-6)
    assert torch.equal(seen[0], between)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 6), (6,), (1, 1, 6), (2, 6), (2, 1, 6), (3, 6), (4, 6), (2, 5, 6), (0, 6)])
def test_few_rows_give_the_same(shape, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(6, 4, bias=bias), torch.randn(shape)
    with torch.no_grad():
        wanted = linear(x)
        with fast_for_few_rows([linear]):
            found = linear(x)
    assert found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-6)


def test_few_rows_leave_layers_as_they_were():
    hooked, plain, other = nn.Linear(6, 4), nn.Linear(6, 4), Wrapped(nn.Linear(6, 4)).double()
    calls = []
    hooked.register_forward_hook(lambda *_: calls.append(1))
    model, x = nn.ModuleList([hooked, plain, other]), torch.randn(1, 6)
    with torch.no_grad(), pytest.raises(RuntimeError), fast_for_few_rows(model.modules()):
        assert "forward" not in vars(hooked) and "forward" in vars(plain)
        with fast_for_few_rows(model.modules()):  # of another thread, for example
            assert torch.allclose(plain(x), F.linear(x, plain.weight, plain.bias), atol=1e-6)
        hooked(x)
        other(x.double())
        other(x)  # of another type: the usual error
    assert calls == [1] and not any("forward" in vars(module) for module in model.modules())
