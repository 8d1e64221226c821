"""Eager attention, and fused computation of queries, keys and values."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from nextembed.nn import attention
from nextembed.nn.attention import eager_attention, query_key_value
from nextembed.nn.positions import rotary_tables


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
def test_equals_torch(is_causal, with_mask):
    query, key, value = (torch.randn(2, 3, 6, 8) for _ in range(3))
    mask = torch.randn(2, 1, 6, 6) if with_mask else None
    out, weights = eager_attention(nn.Identity(), query, key, value, mask, scaling=0.2, is_causal=is_causal)
    full = torch.zeros(6, 6) if mask is None else mask
    if is_causal:
        full = full + torch.full((6, 6), float("-inf")).triu(1)
    expected = F.scaled_dot_product_attention(query, key, value, full, scale=0.2)
    assert torch.allclose(out, expected.transpose(1, 2), atol=1e-6)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 6), atol=1e-6)


def test_later_queries_see_all_earlier_keys():
    query, key, value = (torch.randn(1, 2, 7, 4) for _ in range(3))
    whole, _ = eager_attention(nn.Identity(), query, key, value, None, scaling=0.5, is_causal=True)
    last, _ = eager_attention(nn.Identity(), query[:, :, 5:], key, value, None, scaling=0.5, is_causal=True)
    assert torch.allclose(last, whole[:, 5:], atol=1e-6)


def test_dropout_in_training_mode_only():
    query, key, value = (torch.randn(1, 2, 7, 4) for _ in range(3))

    def run(module):
        return eager_attention(module, query, key, value, None, scaling=0.5, dropout=0.5)[1]

    assert (run(nn.Identity().train()) == 0).any() and not (run(nn.Identity().eval()) == 0).any()


class Heads(nn.Module):
    """The inputs of `query_key_value`: three projections to 2 heads of width 8, norms, and positions."""

    def __init__(self, bias=True, norm=None, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.linears = nn.ModuleList([nn.Linear(12, 16, bias=bias, dtype=dtype) for _ in range(3)])
        self.norms = nn.ModuleList([(norm or self.unlearned)() for _ in range(2)])
        cos, sin = rotary_tables(torch.rand(5, 2), 8)
        self.rotary = cos[:, None].to(dtype), sin[:, None].to(dtype)
        self.x = torch.randn(3, 5, 12, dtype=dtype, requires_grad=True)

    @staticmethod
    def unlearned():
        return nn.LayerNorm(8, 1e-12, elementwise_affine=False)

    def forward(self, fuse=True):
        return query_key_value(self.x, self.linears, self.norms, self.rotary, fuse)

    def attend(self, fuse):
        """The attention output, followed by the gradients of x and of all weights."""
        query, key, value = (t.transpose(1, 2) for t in self(fuse))
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        upstream = torch.arange(context.numel(), dtype=context.dtype).view_as(context).sin()
        return [context, *torch.autograd.grad(context, [self.x, *self.parameters()], upstream)]


def is_fused(query):
    return type(query.grad_fn).__name__.startswith("_FusedQueryKeyValue")


@pytest.mark.parametrize("bias", [True, False])
def test_fused_heads_give_the_same_attention(bias):
    heads = Heads(bias)
    assert is_fused(heads()[0]) and not is_fused(heads(fuse=False)[0])
    for one, two in zip(heads.attend(True), heads.attend(False), strict=True):
        assert (one - two).abs().max() <= 2e-6 * max(1.0, two.abs().max())


def test_fused_heads_only_permute_the_dimensions_of_a_head():
    heads = Heads()
    (query, key, value), plain = heads(), heads(fuse=False)
    for one, two in zip((query, key), plain[:2], strict=True):
        assert torch.allclose(one.unflatten(-1, (4, 2)).mT.flatten(-2), two, atol=1e-5)
    assert torch.allclose(value, plain[2], atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_fused_heads_have_the_right_gradients(bias):
    heads = Heads(bias, dtype=torch.float64)

    def run(x, *weights):
        values = dict(zip(dict(heads.named_parameters()), weights, strict=True))
        heads.x = x
        return torch.func.functional_call(heads, values)

    assert is_fused(heads()[0])
    assert gradcheck(run, (heads.x, *heads.parameters()))


def test_fused_heads_reject_second_derivatives():
    heads = Heads()
    (grad,) = torch.autograd.grad(heads()[0].sin().sum(), heads.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("case", ["no norm", "learned norm", "wrapped", "hook", "one bias", "bfloat16", "autocast"])
def test_unsupported_cases_are_not_fused(case):
    heads = Heads(
        norm={"no norm": nn.Identity, "learned norm": lambda: nn.LayerNorm(8)}.get(case),
        dtype=torch.bfloat16 if case == "bfloat16" else torch.float32,
    )
    calls = []
    if case == "wrapped":
        heads.linears[1] = type("Adapted", (nn.Linear,), {})(12, 16)
    if case == "hook":
        heads.linears[0].register_forward_hook(lambda *_: calls.append(1))
    if case == "one bias":
        heads.linears[2].bias = None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "autocast"):
        query, key, value = heads()
    assert not is_fused(query) and query.shape == key.shape == value.shape == (3, 5, 2, 8)
    assert query.dtype == key.dtype == value.dtype
    assert bool(calls) is (case == "hook")
    query.float().sin().sum().backward()
    assert heads.x.grad.isfinite().all() and heads.x.grad.abs().max() > 0


def test_the_compiler_uses_the_unfused_path(monkeypatch):
    monkeypatch.setattr(attention, "_fused_query_key_value", lambda *_: pytest.fail("fused"))
    heads = Heads()
    expected = heads(fuse=False)
    for one, two in zip(torch.compile(heads, fullgraph=True, backend="eager")(), expected, strict=True):
        assert torch.allclose(one, two, atol=1e-6)
