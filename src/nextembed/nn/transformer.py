"""The transformer that NEPA and Omni share: pre-norm layers with rotary positions. Parameter names are NEPA's official
ones, so checkpoints of both load as they are.

Shapes: B samples, T latents, D hidden_size, H heads, d head width, L layers.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..core.randomness import uniform
from .attention import eager_attention, query_key_value
from .documents import DOCUMENTS
from .linear import MANY_ROWS, activated_linear, in_parts, scaled_linear

PATHS = 1  # the stream of stochastic depth


class TransformerSettings(Protocol):
    """The part of a model's configuration that layers read; see `ViTNepaConfig` for the meaning."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    use_gated_mlp: bool
    hidden_act: str
    qkv_bias: bool
    qk_norm: bool
    qk_norm_affine: bool
    qk_norm_bias: bool
    is_causal: bool
    layer_norm_eps: float
    layerscale_value: float | int | None
    drop_path_prob: float | int
    hidden_dropout_prob: float | int
    attention_probs_dropout_prob: float | int
    _attn_implementation: str


class SelfAttention(nn.Module):
    """Queries and keys with norm and rotary positions, values, and any attention function of transformers."""

    def __init__(self, config: TransformerSettings, layer_idx: int):
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"num_attention_heads {config.num_attention_heads} does not divide hidden_size {config.hidden_size}"
            )
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = config.is_causal
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.q_norm, self.k_norm = self.head_norm(config), self.head_norm(config)

    def head_norm(self, config: TransformerSettings) -> nn.Module:
        """The norm of queries or keys, over a head's width."""
        if not config.qk_norm:
            return nn.Identity()
        return nn.LayerNorm(self.head_dim, config.layer_norm_eps, config.qk_norm_affine, config.qk_norm_bias)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: object = None,
        is_causal: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Context [B, T, D] and, of eager attention, its weights [B, H, T, S]. See `masks` for what else comes."""
        linears, norms = (self.query, self.key, self.value), (self.q_norm, self.k_norm)
        heads = query_key_value(hidden_states, linears, norms, rotary, fuse=past_key_values is None)
        query, key, value = (x.transpose(1, 2) for x in heads)  # [B, H, T, d]
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        kind = self.config._attn_implementation
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(DOCUMENTS if kind == "sdpa" else kind, eager_attention)
        kwargs["dropout"] = self.config.attention_probs_dropout_prob if self.training else 0.0
        kwargs["is_causal"] = self.is_causal if is_causal is None else is_causal
        context, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return context.reshape(hidden_states.shape), weights


class SelfOutput(nn.Module):
    """The projection after attention."""

    def __init__(self, config: TransformerSettings):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)


class AttentionBlock(nn.Module):
    """Self-attention and the projection after it, under the official names of parameters."""

    def __init__(self, config: TransformerSettings, layer_idx: int):
        super().__init__()
        self.attention = SelfAttention(config, layer_idx)
        self.output = SelfOutput(config)


class LayerScale(nn.Module):
    """Returns LayerScale's factors `lambda1` [D], or None. A call, because offloaded weights are loaded by calls."""

    def __init__(self, config: TransformerSettings):
        super().__init__()
        value = config.layerscale_value
        self.lambda1 = None if value is None else nn.Parameter(torch.full((config.hidden_size,), float(value)))

    def forward(self) -> Tensor | None:
        return self.lambda1


class Expansion(nn.Module):
    """First half of the feed-forward layer: up, and the gate where there is one."""

    def __init__(self, config: TransformerSettings):
        super().__init__()
        if config.use_gated_mlp:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act_fn = {"gelu": nn.GELU(), "silu": nn.SiLU()}.get(config.hidden_act) or ACT2FN[config.hidden_act]
        self.use_gated_mlp = config.use_gated_mlp

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.use_gated_mlp:
            return activated_linear(self.gate_proj, self.act_fn, hidden_states) * self.up_proj(hidden_states)
        return activated_linear(self.up_proj, self.act_fn, hidden_states)


class Contraction(nn.Module):
    """Second half of the feed-forward layer: down."""

    def __init__(self, config: TransformerSettings):
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layer_scale = LayerScale(config)


class TransformerLayer(GradientCheckpointingLayer):
    """Pre-norm layer: x + scale * attention(norm(x)), then x + scale * mlp(norm(x))."""

    def __init__(self, config: TransformerSettings, layer_idx: int = 0):
        super().__init__()
        self.attention = AttentionBlock(config, layer_idx)
        self.layer_scale = LayerScale(config)
        self.intermediate = Expansion(config)
        self.output = Contraction(config)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_prob = config.hidden_dropout_prob

    def forward(
        self, hidden_states: Tensor, rotary: tuple[Tensor, Tensor], paths: Tensor | None = None, **kwargs: object
    ) -> Tensor:
        """paths [2, B]: factors of the two updates in stochastic depth, 0 or above 1; None: both are kept."""
        first, second = (None, None) if paths is None else paths
        context, _ = self.attention.attention(self.layernorm_before(hidden_states), rotary, **kwargs)
        hidden_states = self.add(hidden_states, self.attention.output.dense, context, self.layer_scale(), first)
        feed_forward = chain((self.layernorm_after,), self.intermediate.modules(), self.output.modules())
        if self.training or not in_parts(hidden_states, feed_forward):
            return self.feed_forward(hidden_states, second)
        for rows in hidden_states.flatten(0, -2).split(MANY_ROWS):
            rows.copy_(self.feed_forward(rows))
        return hidden_states

    def feed_forward(self, hidden_states: Tensor, path: Tensor | None = None) -> Tensor:
        """hidden_states [..., D] and the update of the second half; path [B] as in `forward`."""
        expanded = self.intermediate(self.layernorm_after(hidden_states))
        return self.add(hidden_states, self.output.dense, expanded, self.output.layer_scale(), path)

    def add(self, residual: Tensor, linear: nn.Linear, x: Tensor, scale: Tensor | None, path: Tensor | None) -> Tensor:
        if not self.training or (self.dropout_prob == 0 and path is None):
            return scaled_linear(linear, x, scale, residual)
        update = F.dropout(scaled_linear(linear, x, scale), self.dropout_prob)
        return residual + (update if path is None else update * path[:, None, None].to(update.dtype))


class Transformer(nn.Module):
    """The stack of layers."""

    def __init__(self, config: TransformerSettings):
        super().__init__()
        self.dropout_prob = config.hidden_dropout_prob
        num = config.num_hidden_layers
        self.drop_path_probs = [config.drop_path_prob * i / max(num - 1, 1) for i in range(num)]
        self.layer = nn.ModuleList([TransformerLayer(config, i) for i in range(num)])

    def forward(self, z: Tensor, output_layers: bool = True, **kwargs: object) -> list[Tensor]:
        """z [B, T, D] and every layer's output, or the last layer's output alone, so that the memory of the others can
        be used again. Keyword arguments go to the attention."""
        paths = self.paths(z)
        layers = [z]
        hidden = F.dropout(z, self.dropout_prob, self.training)
        for layer, path in zip(self.layer, paths):  # a shortened stack has fewer layers
            hidden = layer(hidden, paths=path, **kwargs)
            layers = [*layers, hidden] if output_layers else [hidden]
        return layers

    def paths(self, z: Tensor) -> list[Tensor | None]:
        """Factors of the two updates of each layer, [2, B], drawn for each sample.

        Source: stochastic depth (arXiv 1603.09382); ours draws from the sample's own seed.
        """
        rates = self.drop_path_probs
        if not self.training or not any(rates):
            return [None] * len(rates)
        kept = 1 - torch.tensor(rates, device=z.device)[:, None, None]  # [L, 1, 1]
        drawn = uniform(z.shape[0], 2 * len(rates), PATHS, z.device).T.unflatten(0, (-1, 2))  # [L, 2, B]
        factors = (drawn < kept).float() / kept
        return [factors[i] if rate else None for i, rate in enumerate(rates)]


def init_transformer(module: nn.Module, config: Any) -> None:
    """Initial weights of a module of the stack: truncated normal for matrices, LayerScale at its initial value."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
        init.trunc_normal_(module.weight, mean=0.0, std=config.initializer_range)
    elif isinstance(module, LayerScale) and module.lambda1 is not None and config.layerscale_value is not None:
        init.constant_(module.lambda1, config.layerscale_value)
