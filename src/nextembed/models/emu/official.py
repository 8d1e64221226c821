"""Names of the released Emu checkpoints, and ours."""

import re
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError

# The released name, beginning at one of these, becomes ours; order matters.
NAMES = (
    (r"^visual\.cls_token$", "model.visual.embeddings.class_embedding"),
    (r"^visual\.pos_embed$", "model.visual.embeddings.position_embedding"),
    (r"^visual\.patch_embed\.proj\.", "model.visual.embeddings.patch_embedding."),
    (r"^visual\.blocks\.(\d+)\.attn\.proj\.", r"model.visual.encoder.layers.\1.self_attn.projection."),
    (r"^visual\.blocks\.(\d+)\.attn\.qkv\.", r"model.visual.encoder.layers.\1.self_attn.qkv."),
    (r"^visual\.blocks\.(\d+)\.norm([12])\.", r"model.visual.encoder.layers.\1.layer_norm\2."),
    (r"^visual\.blocks\.(\d+)\.mlp\.", r"model.visual.encoder.layers.\1.mlp."),
    (r"^ln_visual\.", "model.visual_norm."),
    (r"^cformer\.causal_tokens$", "model.connector.causal_tokens"),
    (r"^cformer\.projection\.", "model.connector.projection."),
    (r"^cformer\.cformer\.", "model.connector.stack."),
    (r"^decoder\.lm\.stu_regress_head\.", "regression_head."),
    (r"^decoder\.lm\.", "model.language_model."),
)
BIAS = re.compile(r"^visual\.blocks\.(\d+)\.attn\.([qv])_bias$")
UNREAD = re.compile(r"^visual\.(norm|head)\.|^cformer\.cformer\.embed_tokens\.|\.rotary_emb\.inv_freq$")


def our_name(name: str) -> str | None:
    """Our name of a released parameter; None for what nothing reads (the tower's own norm and head, the embedding
    table of the causal former, rotary tables) and for the two biases that `our_biases` joins.

    Raises ConfigError for a name that is none of Emu's.
    """
    if UNREAD.search(name) or BIAS.match(name):
        return None
    for pattern, ours in NAMES:
        renamed, found = re.subn(pattern, ours, name)
        if found:
            return renamed
    raise ConfigError(f"'{name}' is no parameter of Emu")


def our_biases(block: int, query: Tensor, value: Tensor) -> dict[str, Tensor]:
    """The joined bias of an EVA block: the release keeps those of queries and values; keys have none."""
    joined = torch.cat([query, torch.zeros_like(query), value])
    return {f"model.visual.encoder.layers.{block}.self_attn.qkv.bias": joined}


def from_official(state: dict[str, Any]) -> dict[str, Tensor]:
    """A released state dict (base variant) by our names."""
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if (renamed := our_name(name)) is not None:
            ours[renamed] = tensor
        if (match := BIAS.match(name)) and match[2] == "q":
            ours |= our_biases(int(match[1]), tensor, state[name.replace("q_bias", "v_bias")])
    return ours
