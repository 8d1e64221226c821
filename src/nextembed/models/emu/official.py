"""The released Emu checkpoints: their parameter names and ours, and the configuration that follows from their shapes.
There are two layouts: the base model, and the instructed one, whose language model has peft's names, with LoRA. Names
may begin with `module.` (a wrapper of their trainer) and `decoder.lm.base_model.model.` (peft); peft since 0.7 calls an
adapted matrix `q_proj.base_layer.weight`, before that `q_proj.weight`. All of these are treated as one name.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.blip_2 import Blip2VisionConfig

from ...errors import ConfigError
from .configuration_emu import EmuConfig

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
BACK = (
    (r"^model\.visual\.embeddings\.class_embedding$", "visual.cls_token"),
    (r"^model\.visual\.embeddings\.position_embedding$", "visual.pos_embed"),
    (r"^model\.visual\.embeddings\.patch_embedding\.", "visual.patch_embed.proj."),
    (r"^model\.visual\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual.blocks.\1.attn.proj."),
    (r"^model\.visual\.encoder\.layers\.(\d+)\.self_attn\.qkv\.weight$", r"visual.blocks.\1.attn.qkv.weight"),
    (r"^model\.visual\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"visual.blocks.\1.norm\2."),
    (r"^model\.visual\.encoder\.layers\.(\d+)\.mlp\.", r"visual.blocks.\1.mlp."),
    (r"^model\.visual_norm\.", "ln_visual."),
    (r"^model\.connector\.(causal_tokens|projection\.)", r"cformer.\1"),
    (r"^model\.connector\.stack\.", "cformer.cformer."),
    (r"^regression_head\.weight$", "decoder.lm.stu_regress_head.weight"),
    (r"^model\.language_model\.", "decoder.lm."),
)
BIAS = re.compile(r"^visual\.blocks\.(\d+)\.attn\.([qv])_bias$")
OUR_BIAS = re.compile(r"^model\.visual\.encoder\.layers\.(\d+)\.self_attn\.qkv\.bias$")
UNREAD = re.compile(r"^visual\.(norm|head)\.|^cformer\.cformer\.embed_tokens\.|\.rotary_emb\.inv_freq$")
PEFT = "decoder.lm.base_model.model."
LORA = re.compile(r"^(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>\w+))?\.weight$")
LORA_ALPHA = 16  # of the release


class Part(NamedTuple):
    """One of our parameters: its shape, and the released tensors (by name in the file) and function that it is made
    of."""

    shape: tuple[int, ...]
    sources: tuple[str, ...]
    make: Callable[..., Tensor]


class Mapped(NamedTuple):
    """A released checkpoint by our names.

    parts: of the model. lora: A and B, by the name of the matrix they change and "A" | "B"; rank: 0 without LoRA.
    """

    parts: dict[str, Part]
    lora: dict[tuple[str, str], str]
    rank: int


def plain_name(name: str) -> str:
    """A released name without prefixes of trainers and peft."""
    name = name.removeprefix("module.")
    if name.startswith(PEFT):
        name = "decoder.lm." + name.removeprefix(PEFT).replace(".base_layer.", ".")
    return name


def our_name(name: str) -> str | None:
    """Our name of a released parameter; None for what nothing reads (the tower's own norm and head, the embedding
    table of the causal former, rotary tables) and for the two biases that `joined_bias` makes one of.

    Raises ConfigError for a name that is none of Emu's.
    """
    if UNREAD.search(name) or BIAS.match(name):
        return None
    for pattern, ours in NAMES:
        renamed, found = re.subn(pattern, ours, name)
        if found:
            return renamed
    raise ConfigError(f"'{name}' is not a parameter of Emu")


def official_name(name: str) -> str:
    """The released name of one of our parameters, except the joined biases of the tower. Raises ConfigError for what
    the release does not have."""
    for pattern, theirs in BACK:
        renamed, found = re.subn(pattern, theirs, name)
        if found:
            return renamed
    raise ConfigError(f"the released layout has no place for '{name}'")


def joined_bias(query: Tensor, value: Tensor) -> Tensor:
    """The bias of queries, keys and values of an EVA block: the release keeps the outer two; keys have none."""
    return torch.cat([query, torch.zeros_like(query), value])


def merged(scale: float) -> Callable[..., Tensor]:
    """Makes a matrix with its LoRA: W + scale B A, added in float32 and rounded once."""

    def make(matrix: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.addmm(matrix.float(), b.float(), a.float(), alpha=scale).to(matrix.dtype)

    return make


def same(tensor: Tensor) -> Tensor:
    return tensor


def is_official(names: Iterable[str]) -> bool:
    """Whether these are names of a released Emu."""
    return any(plain_name(name).startswith(("cformer.", "decoder.lm.", "ln_visual.")) for name in names)


def map_official(shapes: Mapping[str, tuple[int, ...]], merge: bool = True, alpha: float | None = None) -> Mapped:
    """How each of our parameters is made of the tensors of a released file, given its names and shapes.

    merge: LoRA is merged into the matrices; otherwise it is kept separately in `Mapped.lora`. alpha: of LoRA; the
    update is scaled by alpha / rank (None: 16, the release's). Raises ConfigError for a name that is none of Emu's, is
    there twice, or is half of a pair.
    """
    found: dict[str, str] = {}
    for name in shapes:
        plain = plain_name(name)
        if plain in found:
            raise ConfigError(f"the weights contain {plain} twice: as '{found[plain]}' and as '{name}'")
        found[plain] = name
    parts: dict[str, Part] = {}
    lora: dict[tuple[str, str], str] = {}
    adapters: set[str] = set()
    for plain, name in found.items():
        if match := LORA.match(plain):
            adapters.add(match["adapter"] or "default")
            layer = our_name(match["layer"] + ".weight")
            lora[str(layer), match["side"]] = name
        elif match := BIAS.match(plain):
            if match[2] == "q":
                other = found.get(plain.replace("q_bias", "v_bias"))
                if other is None:
                    raise ConfigError(f"a weight is missing: {plain.replace('q_bias', 'v_bias')}")
                joined = f"model.visual.encoder.layers.{match[1]}.self_attn.qkv.bias"
                parts[joined] = Part((3 * shapes[name][0],), (name, other), joined_bias)
        elif (ours := our_name(plain)) is not None:
            parts[ours] = Part(shapes[name], (name,), same)
    if len(adapters) > 1:
        raise ConfigError(
            f"the weights contain several adapters ({', '.join(sorted(adapters))}); only one is supported"
        )
    rank = _check_lora(lora, parts, shapes)
    if merge:
        scale = (LORA_ALPHA if alpha is None else alpha) / max(1, rank)
        for layer in {layer for layer, _ in lora}:
            pair = lora[layer, "A"], lora[layer, "B"]
            parts[layer] = Part(parts[layer].shape, (*parts[layer].sources, *pair), merged(scale))
        lora = {}
    return Mapped(parts, lora, rank)


def _check_lora(lora: dict[tuple[str, str], str], parts: dict[str, Part], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The rank of all pairs; 0 if there are none. Raises ConfigError for half a pair, or one that does not fit its
    matrix."""
    ranks = set()
    for layer, side in lora:
        pair = [lora.get((layer, "A")), lora.get((layer, "B"))]
        if None in pair:
            raise ConfigError(f"LoRA of {layer} is incomplete: '{lora[layer, side]}' has no counterpart")
        if layer not in parts:
            raise ConfigError(f"LoRA changes {layer}, which is missing")
        a, b = (shapes[str(name)] for name in pair)
        if (b[0], a[1]) != parts[layer].shape or a[0] != b[1]:
            raise ConfigError(
                f"LoRA of {layer} has shapes {list(b)} x {list(a)}, the matrix {list(parts[layer].shape)}"
            )
        ranks.add(a[0])
    if len(ranks) > 1:
        raise ConfigError(f"LoRA has several ranks ({', '.join(map(str, sorted(ranks)))}); one is expected")
    return ranks.pop() if ranks else 0


VISION, FORMER, TEXT = "model.visual.", "model.connector.", "model.language_model."


def derive_config(
    parts: Mapping[str, Part],
    instruct: bool,
    head_dim: int | None = None,
    heads: int | None = None,
    vision_heads: int | None = None,
    relative_max_distance: int | None = None,
    rope_theta: float = 10000.0,
) -> EmuConfig:
    """The configuration that the shapes of a released checkpoint tell.

    What they do not: heads of the language model (its rotary tables tell `head_dim`; else 128 each, as LLaMA), of the
    tower (88 each, as EVA-CLIP g), the causal former's greatest relative distance (128, as T5).
    Raises ConfigError for sizes that do not fit, naming the option that says them, or for a missing parameter.
    """

    vocabulary, hidden = _shape(parts, TEXT + "model.embed_tokens.weight")
    layer = TEXT + "model.layers.0."
    inner = _shape(parts, layer + "self_attn.q_proj.weight")[0]
    size = _head_size(inner, heads, head_dim, 128, "--heads")
    tokens = token_ids(vocabulary, instruct)
    return EmuConfig(
        vision_config=_tower(parts, vision_heads),
        causal_former_config=_former(parts, relative_max_distance or 128),
        text_config=LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, head_dim=size,
            intermediate_size=_shape(parts, layer + "mlp.gate_proj.weight")[0],
            num_hidden_layers=_depth(parts, TEXT + r"model\.layers"),
            num_attention_heads=inner // size,
            num_key_value_heads=_shape(parts, layer + "self_attn.k_proj.weight")[0] // size,
            max_position_embeddings=2048, rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            pad_token_id=tokens["pad_token_id"], bos_token_id=1, eos_token_id=2,
        ),
        num_image_latents=_shape(parts, FORMER + "causal_tokens")[1],
        **tokens,
    )  # fmt: skip


def _shape(parts: Mapping[str, Part], name: str) -> tuple[int, ...]:
    """Raises ConfigError for a missing parameter."""
    if name not in parts:
        raise ConfigError(f"a weight is missing: {name}")
    return parts[name].shape


def _tower(parts: Mapping[str, Part], heads: int | None) -> Blip2VisionConfig:
    """Of the visual encoder. Raises ConfigError for one of another kind."""
    width, channels, patch, _ = _shape(parts, VISION + "embeddings.patch_embedding.weight")
    num_patches = _shape(parts, VISION + "embeddings.position_embedding")[1] - 1
    side = round(num_patches**0.5)
    if channels != 3 or side * side != num_patches:
        raise ConfigError(f"the tower has {channels} channels and {num_patches} patches: Emu's has 3 and a square")
    return Blip2VisionConfig(
        image_size=side * patch,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=_depth(parts, VISION + r"encoder\.layers"),
        num_attention_heads=width // _head_size(width, heads, None, 88, "--vision-heads"),
        intermediate_size=_shape(parts, VISION + "encoder.layers.0.mlp.fc1.weight")[0],
    )


def _former(parts: Mapping[str, Part], max_distance: int) -> dict[str, int]:
    """Of the causal former, as changes to T5's."""
    first = FORMER + "stack.block.0."
    buckets, heads = _shape(parts, first + "layer.0.SelfAttention.relative_attention_bias.weight")
    return {
        "d_model": _shape(parts, FORMER + "causal_tokens")[2],
        "num_heads": heads,
        "d_kv": _shape(parts, first + "layer.0.SelfAttention.q.weight")[0] // heads,
        "d_ff": _shape(parts, first + "layer.2.DenseReluDense.wi.weight")[0],
        "num_layers": _depth(parts, FORMER + r"stack\.block"),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": max_distance,
    }


def token_ids(vocabulary: int, instruct: bool) -> dict[str, Any]:
    """Ids of Emu's tokens in a vocabulary of this size: they are its last four, or six in the instructed variant."""
    base = vocabulary - (6 if instruct else 4)
    return {
        "pad_token_id": base,
        "image_start_token_id": base + 1,
        "image_end_token_id": base + 2,
        "image_token_id": base + 3,
        "user_token_id": base + 4 if instruct else None,
        "assistant_token_id": base + 5 if instruct else None,
    }


def _head_size(inner: int, heads: int | None, known: int | None, usual: int, option: str) -> int:
    """Width of a head. Raises ConfigError naming the option if it is unknown or does not divide the width."""
    size = known or (inner // heads if heads else usual)
    if size < 1 or inner % size or (heads and inner // size != heads):
        what = (
            f"{heads} heads do not fit"
            if heads
            else (f"the number of heads of {usual} cannot be inferred from the weights in")
        )
        raise ConfigError(f"{what} the width {inner}: set {option}")
    return size


def _depth(parts: Mapping[str, Part], pattern: str) -> int:
    found = re.compile(rf"^{pattern}\.(\d+)\.")
    return 1 + max((int(match[1]) for name in parts if (match := found.match(name))), default=-1)


def unread_tensors(config: EmuConfig) -> dict[str, Tensor]:
    """Parameters that a strict load in the released code needs but nothing reads: norm and head of the tower (at their
    initial ones and zeros), the causal former's embedding table (zeros), rotary tables."""
    width, text = config.vision_config.hidden_size, config.text_config
    size, theta = text.head_dim, text.rope_parameters["rope_theta"]
    found = {
        "visual.norm.weight": torch.ones(width),
        "visual.norm.bias": torch.zeros(width),
        "visual.head.weight": torch.zeros(1024, width),
        "visual.head.bias": torch.zeros(1024),
        "cformer.cformer.embed_tokens.weight": torch.zeros(32128, config.causal_former_config.d_model),
    }
    inverse = 1.0 / theta ** (torch.arange(0, size, 2).float() / size)
    for layer in range(text.num_hidden_layers):
        found[f"decoder.lm.model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = inverse.clone()
    return found


def to_official(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One of our parameters as released tensors by name. Raises ConfigError if the release does not have it."""
    if match := OUR_BIAS.match(name):
        query, key, value = tensor.chunk(3)
        if key.any():
            raise ConfigError(f"the released tower has no bias of keys, but that of block {match[1]} is not zero")
        block = f"visual.blocks.{match[1]}.attn."
        return {block + "q_bias": query.clone(), block + "v_bias": value.clone()}
    return {official_name(name): tensor}
