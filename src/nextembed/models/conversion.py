"""Converts checkpoints between our layout, the official one and that of stable-pretraining.

Official layout: a Hugging Face folder. Its configuration fields and parameter names are ours, so nothing is renamed;
what comes as a bare state dict (also with `module.`/`model.` prefixes, or with EMA entries) gets the configuration that
its shapes tell.

stable-pretraining 0.1.8 (MIT; `methods/nepa.py`, class NEPA), D width, M width of the MLP, p patch size:

    theirs                                  ours (after "vit_nepa.")
    patch_embed.proj [D, 3, p, p]           embeddings.patch_embeddings.projection
    blocks.I.norm1, norm2 [D]               encoder.layer.I.layernorm_before, layernorm_after
    blocks.I.attn.qkv [3 D, D]              encoder.layer.I.attention.attention.query, key, value, each [D, D]
    blocks.I.attn.proj [D, D]               encoder.layer.I.attention.output.dense
    blocks.I.ls1, ls2 [D]                   encoder.layer.I.layer_scale.lambda1, output.layer_scale.lambda1
    blocks.I.mlp.w1, w2 [M, D], w3 [D, M]   encoder.layer.I.intermediate.gate_proj, up_proj, output.dense
      or mlp.fc1, fc2 (GELU, with biases)   encoder.layer.I.intermediate.up_proj, output.dense
    norm [D]                                layernorm
    blocks.I.attn.rope.inv_freq             (computed: models/nepa_spt.py)

They pair neighbouring channels in the rotation, we pair halves: rows of queries and keys are permuted within each head,
which attention does not see. w1, w2, w3 have no biases: ours are zero. What cannot be renamed away (no begin token,
other rotary positions) is model type "spt_nepa", models/nepa_spt.py.
"""

import math
import re
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .nepa.configuration_nepa import ViTNepaConfig
from .nepa_spt import SptNepaConfig

State = dict[str, Tensor]
SPT_VERSION = "0.1.8"
SPT_CLASS = "stable_pretraining.methods.nepa.NEPA"
PATCHES = {"official": "embeddings.patch_embeddings.projection.weight", "stable-pretraining": "patch_embed.proj.weight"}
ROUND = {"layer_norm_eps": 1e-5, "rope_theta": 10000.0, "qk_norm": True, "qk_norm_affine": False, "qk_norm_bias": False}
ATTENTION = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
GATED = {"mlp.w1": "intermediate.gate_proj", "mlp.w2": "intermediate.up_proj", "mlp.w3": "output.dense"}
PLAIN = {"mlp.fc1": "intermediate.up_proj", "mlp.fc2": "output.dense"}
SCALES = {"ls1": "layer_scale.lambda1", "ls2": "output.layer_scale.lambda1"}
TOP = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}


def find_layout(names: Any) -> tuple[str, str]:
    """("official" or "stable-pretraining", prefix of its names). Raises ConfigError for the names of another model."""
    for layout, patches in PATCHES.items():
        found = sorted((n for n in names if n.endswith(patches)), key=len)
        if found:
            return layout, found[0].removesuffix(patches)
    raise ConfigError(f"these are not NEPA weights: none is named ...{' or ...'.join(PATCHES.values())}")


def plain_state(state: State) -> tuple[str, State]:
    """The layout, and the weights of the transformer and its classifier by plain names, without prefixes of trainers
    (`module.`, `model.`, `_orig_mod.`, ...) and without other parts (probes, objectives)."""
    layout, prefix = find_layout(state)
    if layout == "stable-pretraining":
        own = re.compile(r"(patch_embed|blocks|norm|pos_embed)\b")
        names = {n: n[len(prefix) :] for n in state if n.startswith(prefix)}
        return layout, {short: state[n] for n, short in names.items() if own.match(short)}
    outer = prefix.removesuffix("vit_nepa.")
    found: State = {}
    for name, tensor in state.items():
        if name.startswith(prefix) and re.match(r"(embeddings|encoder|layernorm)\.", name[len(prefix) :]):
            found["vit_nepa." + name[len(prefix) :]] = tensor
        elif name.startswith(outer) and re.match(r"(classifier|fc_norm)\.", name[len(outer) :]):
            found[name[len(outer) :]] = tensor
    return layout, found


def official_config(state: State, **known: Any) -> ViTNepaConfig:
    """The configuration that follows from plain official weights, and `known` for the rest: num_attention_heads where
    there is no learned QK-norm, qk_norm, image_size, is_causal.

    Raises ConfigError if the number of heads is not known.
    """
    patches = state["vit_nepa." + PATCHES["official"]]
    layer = "vit_nepa.encoder.layer.0."
    width = patches.shape[0]
    affine = state.get(layer + "attention.attention.q_norm.weight")
    heads = known.pop("num_attention_heads", None) or (None if affine is None else width // affine.numel())
    if heads is None:
        raise ConfigError(
            "the number of attention heads cannot be inferred from the weights: set --heads (official B 12, L 16)"
        )
    if width % heads or width // heads % 4:
        raise ConfigError(f"{heads} attention heads do not fit the width {width}")
    gated = layer + "intermediate.gate_proj.weight" in state
    head = state.get("classifier.weight")
    fields: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": _depth(state, r"vit_nepa\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": heads,
        "intermediate_size": state[layer + "intermediate.up_proj.weight"].shape[0],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "patch_size": _patch(patches),
        "num_channels": patches.shape[1],
        "qkv_bias": layer + "attention.attention.query.bias" in state,
        "qk_norm": True,
        "qk_norm_affine": affine is not None,
        "qk_norm_bias": layer + "attention.attention.q_norm.bias" in state,
        "layerscale_value": 1e-5 if layer + "layer_scale.lambda1" in state else None,
        "add_pooling_layer": "fc_norm.weight" in state,
    }
    if head is not None:
        fields["num_labels"] = head.shape[0]
    return ViTNepaConfig(**_image_size(fields | known))


def from_stable_pretraining(state: State, **known: Any) -> tuple[SptNepaConfig, State]:
    """Configuration and weights of model type "spt_nepa" from plain stable-pretraining weights.

    known: image_size, qk_norm, is_causal (their evaluation: full). Raises ConfigError for a model with additive
    position embeddings (`use_rope=False`), which has no counterpart here, or weights of something else.
    """
    if "pos_embed" in state or "blocks.0.attn.rope.inv_freq" not in state:
        raise ConfigError("this stable-pretraining model has additive positions (use_rope=False); only rotary converts")
    patches, gated = state["patch_embed.proj.weight"], "blocks.0.mlp.w1.weight" in state
    width, head_dim = patches.shape[0], 4 * state["blocks.0.attn.rope.inv_freq"].numel()
    num_layers = _depth(state, r"blocks\.(\d+)\.")
    fields = {
        "hidden_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": width // head_dim,
        "intermediate_size": state["blocks.0.mlp.w1.weight" if gated else "blocks.0.mlp.fc1.weight"].shape[0],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "patch_size": _patch(patches),
        "num_channels": patches.shape[1],
    }
    known.pop("num_attention_heads", None)  # follows from the weights
    config = SptNepaConfig(**_image_size(fields | known))
    ours: State = {"embeddings.cls_token": torch.zeros(1, 1, width)}
    used = {f"blocks.{i}.attn.rope.inv_freq" for i in range(num_layers)}
    for theirs, name in _pairs(num_layers, gated):
        for part in ("weight", "bias"):
            if f"{theirs}.{part}" in state:
                ours[f"{name}.{part}"] = state[f"{theirs}.{part}"]
                used.add(f"{theirs}.{part}")
            else:
                ours[f"{name}.{part}"] = torch.zeros(len(state[f"{theirs}.weight"]))
    for i in range(num_layers):
        block, layer = f"blocks.{i}.", f"encoder.layer.{i}."
        for theirs, name in SCALES.items():
            ours[layer + name] = state[block + theirs]
        for part in ("weight", "bias"):
            query, key, value = state[f"{block}attn.qkv.{part}"].chunk(3)
            own = f"{layer}attention.attention."
            ours[f"{own}query.{part}"], ours[f"{own}key.{part}"] = (_to_halves(x, head_dim) for x in (query, key))
            ours[f"{own}value.{part}"] = value
        used |= {block + name for name in (*SCALES, "attn.qkv.weight", "attn.qkv.bias")}
    if left := sorted(state.keys() - used):
        raise ConfigError(
            f"the stable-pretraining weights contain parameters that NEPA does not have: {left[0]} ({len(left)} in all)"
        )
    return config, {f"vit_nepa.{name}": t.float().contiguous().clone() for name, t in ours.items()}


def to_stable_pretraining(config: ViTNepaConfig, state: State) -> tuple[dict[str, Any], State]:
    """Arguments of stable-pretraining's `NEPA(...)`, and the state dict it loads, of a model of type "spt_nepa".

    Raises ConfigError, naming the difference, for a model their class cannot compute.
    """
    if not isinstance(config, SptNepaConfig):
        raise ConfigError(
            "stable-pretraining's NEPA cannot compute this model: it has no begin token in attention, and its rotary "
            f"positions are whole numbers with base 10000 (here centres in [-1, 1], base {config.rope_theta:g})"
        )
    values = config.to_dict()
    for name, wanted in ROUND.items():
        if (own := values[name]) != wanted:
            raise ConfigError(f"stable-pretraining's NEPA has {name} {wanted}, this model {own}")
    if config.layerscale_value is None or not config.qkv_bias or config.patch_shape[0] != config.patch_shape[1]:
        raise ConfigError("stable-pretraining's NEPA always has LayerScale, biases of queries, and square patches")
    if "classifier.weight" in state:
        raise ConfigError("stable-pretraining's NEPA has no classifier; convert the pretrained model")
    ours = {name.removeprefix("vit_nepa."): t for name, t in state.items()}
    head_dim, gated = config.hidden_size // config.num_attention_heads, config.use_gated_mlp
    theirs: State = {}
    for name, own in _pairs(config.num_hidden_layers, gated):
        for part in ("weight", "bias"):
            if gated and ".mlp." in name and part == "bias":
                if ours[f"{own}.bias"].any():
                    raise ConfigError(f"stable-pretraining's gated MLP has no biases, but {own}.bias is not zero")
            else:
                theirs[f"{name}.{part}"] = ours[f"{own}.{part}"]
    num = head_dim // 4
    for i in range(config.num_hidden_layers):
        block, own = f"blocks.{i}.", f"encoder.layer.{i}.attention.attention."
        for name, scale in SCALES.items():
            theirs[block + name] = ours[f"encoder.layer.{i}.{scale}"]
        for part in ("weight", "bias"):
            turned = [_to_neighbours(ours[f"{own}{x}.{part}"], head_dim) for x in ("query", "key")]
            theirs[f"{block}attn.qkv.{part}"] = torch.cat([*turned, ours[f"{own}value.{part}"]])
        theirs[f"{block}attn.rope.inv_freq"] = 1.0 / (10000.0 ** (torch.arange(0, num).float() / num))
    arguments = {
        "img_size": config.image_shape[0],
        "patch_size": config.patch_shape[0],
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": _mlp_ratio(config),
        "use_swiglu": gated,
    }
    return arguments, {name: t.float().contiguous().clone() for name, t in theirs.items()}


def _pairs(num_layers: int, gated: bool) -> list[tuple[str, str]]:
    """(their name, ours) of every layer that is only renamed."""
    pairs = list(TOP.items())
    for i in range(num_layers):
        inner = {**ATTENTION, **(GATED if gated else PLAIN)}
        pairs += [(f"blocks.{i}.{theirs}", f"encoder.layer.{i}.{ours}") for theirs, ours in inner.items()]
    return pairs


def _to_halves(x: Tensor, head_dim: int) -> Tensor:
    """Rows of each head: neighbours (2 k, 2 k + 1) become (k, k + d / 2)."""
    return x.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _to_neighbours(x: Tensor, head_dim: int) -> Tensor:
    """The inverse of `_to_halves`."""
    return x.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _depth(state: State, pattern: str) -> int:
    return 1 + max((int(m.group(1)) for n in state if (m := re.match(pattern, n))), default=-1)


def _patch(weight: Tensor) -> int | list[int]:
    height, width = weight.shape[-2:]
    return height if height == width else [height, width]


def _image_size(fields: dict[str, Any]) -> dict[str, Any]:
    """With image_size: 224 px where patches divide it, else 16 patches a side."""
    patch = fields["patch_size"] if isinstance(fields["patch_size"], int) else fields["patch_size"][0]
    size = fields.get("image_size") or (224 if 224 % patch == 0 else 16 * patch)
    if size % patch:
        raise ConfigError(f"image size {size} is not a multiple of the patch size {patch}")
    return fields | {"image_size": size}


def _mlp_ratio(config: ViTNepaConfig) -> float:
    """The ratio from which their class computes the width: int(2 / 3 int(D ratio)) gated, int(D ratio) else."""
    wanted, width = config.intermediate_size, config.hidden_size
    nominal = math.ceil(wanted * 1.5) if config.use_gated_mlp else wanted
    ratio = nominal / width
    return ratio if int(width * ratio) == nominal else (nominal + 0.5) / width
