"""Configuration of Omni: the sizes of one transformer, and its modalities."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ...core.sizes import check_sizes
from ...core.types import BEGIN as BEGIN

DENSITIES = ("none", "von_mises_fisher", "mixture", "flow", "energy")
PADDING, FIRST = 0, BEGIN + 1  # kinds of positions: FIRST + i is the i-th modality


@strict
class OmniConfig(PreTrainedConfig):
    """Settings of an Omni model (model_type "omni").

    Attributes:
        modalities: settings by name, each with its `kind` (else the name is the kind): {"text": {"vocabulary": 4096},
            "image": {"image_size": 32, "patch_size": 4}, "touch": {"kind": "series", "channels": 1}}.
        modality_names: their order, which numbers begin latents and kinds; filled in, since JSON does not keep a
            dict's.
        hidden_size: width D of the latents and of every layer.
        num_hidden_layers: number of layers.
        num_attention_heads: heads of each layer.
        intermediate_size: width of the MLPs.
        use_gated_mlp: SwiGLU in place of hidden_act.
        hidden_act: activation of the MLPs.
        qkv_bias: whether query, key and value have a bias.
        qk_norm: LayerNorm on each head's query and key.
        qk_norm_affine: whether that norm has a learned scale.
        qk_norm_bias: whether that norm has a learned shift.
        layerscale_value: LayerScale at the start; None leaves it out.
        drop_path_prob: stochastic depth of the last layer, rising linearly from 0.
        layer_norm_eps: epsilon of the norms.
        initializer_range: standard deviation of new weights.
        rope_theta: base of the rotary frequencies.
        is_causal: attention of a forward call that does not set it.
        hidden_dropout_prob: dropout after each part of a layer.
        attention_probs_dropout_prob: dropout of attention weights.
        rope_split: rotary frequencies for time, height and width, which sum to half a head's width; None gives a half
            to time and a quarter to each other. [0, n, n] is NEPA's.
        tell_next: the model is told where the latent is that it must predict, which orders other than raster and time
            need.
        density: "none" predicts a latent; "von_mises_fisher" a direction and a concentration; "mixture" num_components
            of them with weights; "flow" and "energy" what draws come from (`nn.sampled`).
        num_components: directions of a mixture.
        max_cosine: the mean cosine that a component expects at most.
        token_softmax: whether latents that are rows of tables (tokens, begin latents) are read by a softmax over
            cosines even where there is a density; objective `vocabulary` sets it.

    Source:
        the essay behind NEPA ("Omnimodality from First Principles"); layers of NEPA (arXiv 2512.16922).
    """

    model_type = "omni"

    modalities: dict[str, Any] | None = None
    modality_names: list[str] | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 2048
    use_gated_mlp: bool = True
    hidden_act: str = "silu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    rope_theta: float | int = 100.0
    rope_split: list[int] | None = None
    qkv_bias: bool = True
    qk_norm: bool = True
    qk_norm_bias: bool = False
    qk_norm_affine: bool = False
    layerscale_value: float | int | None = 1e-5
    drop_path_prob: float | int = 0.0
    is_causal: bool = True
    tell_next: bool = False
    density: str = "none"
    num_components: int = 8
    max_cosine: float = 0.95
    token_softmax: bool = False

    def __post_init__(self, **kwargs):
        check_sizes(vars(self), self.model_type)
        if self.modalities is None:
            self.modalities = {"text": {}, "image": {}}
        self.modalities = in_order(self.modalities, self.modality_names)
        self.modality_names = list(self.modalities)
        for name in self.modalities:
            if not re.fullmatch(r"[A-Za-z]\w*", name):
                raise ValueError(f"'{name}' is not a valid name for a modality: use letters, digits and _")
        if self.density not in DENSITIES:
            raise ValueError(f"density is {', '.join(DENSITIES[:-1])} or {DENSITIES[-1]}, not '{self.density}'")
        if self.hidden_size % self.num_attention_heads or self.head_dim % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} over {self.num_attention_heads} heads is not a multiple of 4 per head"
            )
        if self.rope_split is None:
            quarter = self.head_dim // 8
            self.rope_split = [self.head_dim // 2 - 2 * quarter, quarter, quarter]
        if len(self.rope_split) != 3 or 2 * sum(self.rope_split) != self.head_dim:
            raise ValueError(f"rope_split {self.rope_split}: three numbers that sum to {self.head_dim // 2}")
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def names(self) -> list[str]:
        """Modalities in the order of their begin latents; the end latent comes after."""
        return list(self.modalities or {})


def in_order(modalities: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """Settings of modalities in the order of `names`. Raises ValueError if the names differ."""
    names = list(modalities if names is None else names)
    if sorted(names) != sorted(modalities):
        raise ValueError(f"modality_names {', '.join(names)} are not those of modalities: {', '.join(modalities)}")
    return {name: modalities[name] for name in names}
