"""Parts of attention that Hugging Face lacks: explicit attention with its weights, and queries and keys with norm and
rotary positions."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .linear import is_eager_cpu, is_plain, weight_gradients
from .positions import rotate


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = False,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Explicit attention, the only implementation that returns its weights: output [B, T, H, d], weights [B, H, T, S].

    query [B, H, T, d], key and value [B, H, S, d]; causal means that query t sees keys up to t + S - T.
    """
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    if is_causal:
        num_queries, num_keys = scores.shape[-2:]
        seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(~seen.tril(num_keys - num_queries), float("-inf"))
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def query_key_value(
    x: Tensor, linears: Sequence[nn.Linear], norms: Sequence[Any], rotary: tuple[Tensor, Tensor], fuse: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, projected, normed and rotated, and values, projected; each [B, T, H, d].

    x [B, T, D]. linears: query, key, value, each D -> H d. norms: of queries and of keys, over d. rotary: cos and sin
    [T, 1, d] or [B, T, 1, d] as for `rotate`. fuse: whether the d numbers of queries and keys may be permuted, in the
    same way for both, which attention does not see (a cache does). With plain layers on a CPU in float32 or float64
    this allows an implementation with a third of the passes over memory; it has no second derivative. The compiler
    fuses the plain implementation itself.
    """
    if fuse and _can_fuse(x, linears, norms):
        return _fused_query_key_value(x, linears, norms[0].eps, rotary)
    head_dim = rotary[0].shape[-1]
    query, key, value = (linear(x).unflatten(-1, (-1, head_dim)) for linear in linears)
    query, key = (norm(part).to(value.dtype) for norm, part in zip(norms, (query, key), strict=True))
    return rotate(query, *rotary), rotate(key, *rotary), value


def _can_fuse(x: Tensor, linears: Sequence[nn.Linear], norms: Sequence[Any]) -> bool:
    return (
        is_eager_cpu(x)
        and all(is_plain(linear, nn.Linear) for linear in linears)
        and len({linear.bias is None for linear in linears}) == 1
        and all(is_plain(norm, nn.LayerNorm) and norm.weight is None for norm in norms)
        and norms[0].eps == norms[1].eps
    )


def _fused_query_key_value(
    x: Tensor, linears: Sequence[nn.Linear], eps: float, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    cos, sin = rotary
    half = cos.shape[-1] // 2
    turn = torch.complex(cos[..., :half], sin[..., :half]).unsqueeze(-3)  # [..., T, 1, 1, d / 2]
    params = [linear.weight for linear in linears] + [linear.bias for linear in linears]
    return _FusedQueryKeyValue.apply(x, turn, eps, *params)


def _joined(half: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Weights (or biases) of queries, keys and values as of one layer. Those of queries and keys are changed: the mean
    of each head is taken off, so that LayerNorm has only to divide by a length; the halves that `rotate` pairs are
    interleaved, so that a pair is one complex number."""
    joined = query.new_empty(3 * len(query), *query.shape[1:])
    parts = joined.view(3, -1, half, 2, *query.shape[1:])  # [3, H, d / 2, 2, ...]
    for part, target in zip((query, key), parts[:2], strict=True):
        heads = part.unflatten(0, (-1, 2, half)).transpose(1, 2)
        torch.sub(heads, heads.mean((1, 2), keepdim=True), out=target)
    joined[2 * len(query) :] = value
    return joined


def _parted(half: int, grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the three parts from that of `_joined`, which is linear: its transpose."""
    parts = torch.empty_like(grad).chunk(3)
    for part, heads in zip(parts[:2], grad.unflatten(0, (3, -1, half, 2)), strict=False):
        torch.sub(heads, heads.mean((1, 2), keepdim=True), out=part.unflatten(0, (-1, 2, half)).transpose(1, 2))
    return *parts[:2], grad.chunk(3)[2]


class _FusedQueryKeyValue(torch.autograd.Function):
    """One matrix product; queries and keys are then scaled to length sqrt(d) and rotated in place. Saved for the
    backward pass: what attention saves anyway, and one number for each head."""

    @staticmethod
    def forward(ctx, x: Tensor, turn: Tensor, eps: float, *params: Tensor):
        half = turn.shape[-1]
        weight, bias = _joined(half, *params[:3]), None if params[3] is None else _joined(half, *params[3:])
        qkv = F.linear(x, weight, bias).view(*x.shape[:-1], 3, -1, 2 * half)
        qk = qkv[..., :2, :, :]
        scale = torch.linalg.vecdot(qk, qk).div_(2 * half).add_(eps).rsqrt_()[..., None]
        qk.mul_(scale)
        _as_complex(qk).mul_(turn)
        ctx.save_for_backward(x, turn, qk, scale, *params)
        return qkv.unbind(-3)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        x, turn, qk, scale, *params = ctx.saved_tensors
        grad = torch.stack(grads, dim=-3)  # [B, T, 3, H, d], a new tensor, so it can be overwritten
        grad_qk = grad[..., :2, :, :]
        along = torch.linalg.vecdot(grad_qk, qk).div_(-qk.shape[-1])[..., None]  # a change of length has no effect
        grad_qk.addcmul_(qk, along).mul_(scale)
        _as_complex(grad_qk).mul_(turn.conj())
        half, grad = turn.shape[-1], grad.flatten(-3)
        grad_x = grad @ _joined(half, *params[:3])
        if not any(ctx.needs_input_grad[3:]):
            return grad_x, *[None] * 8
        weight, bias = weight_gradients(x, grad)
        biases = [None] * 3 if params[3] is None else _parted(half, bias)
        return grad_x, None, None, *_parted(half, weight), *biases


def _as_complex(x: Tensor) -> Tensor:
    """x [..., d] seen as complex numbers [..., d / 2] of neighbours."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))
