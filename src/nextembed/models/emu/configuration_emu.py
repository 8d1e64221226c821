"""Configuration of Emu: a visual encoder, a connector to N visual latents, a language model, two heads."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig, T5Config
from transformers.models.blip_2 import Blip2VisionConfig

from ...core.sizes import check_sizes

Connector = Literal["causal_former", "pooled_grid", "identity"]
CONNECTORS = ("causal_former", "pooled_grid", "identity")
DISTANCES = ("mse", "cosine", "smooth_l1")
REGRESSION_HEADS = ("linear", "flow")


@strict
class EmuConfig(PreTrainedConfig):
    """Settings of an Emu model (model_type "emu"); defaults are the released 14B model's, whose EVA-CLIP tower has the
    shape of BLIP-2's.

    Attributes:
        vision_config: configuration of any Hugging Face vision model, ours included.
        vision_layer: which of its hidden states is read; null takes its last hidden state (for the EVA tower without
            its final norm, as released).
        connector: "causal_former" (Emu: a T5 decoder over learned queries), "pooled_grid" (Emu2: the grid of patches
            pooled to N = n x n means), "identity" (every token, projected).
        vision_layer_norm: whether a LayerNorm stands between encoder and connector.
        vision_layer_norm_eps: epsilon of that LayerNorm.
        causal_former_config: T5Config of the first: `d_model`, `d_kv`, `num_heads`, `d_ff`, `num_layers`, ...
        num_image_latents: N, latents of an image.
        text_config: configuration of any causal language model; its hidden_size D is the width of the latents.
        image_token_id: id of `<image>`.
        image_start_token_id: id of `[IMG]`.
        image_end_token_id: id of `[/IMG]`.
        pad_token_id: id of the padding token.
        bos_token_id: id of the begin token.
        eos_token_id: id of the end token.
        user_token_id: id of `[USER]`, of the instructed variant.
        assistant_token_id: id of `[ASSISTANT]`, of the instructed variant.
        regression_head: "linear" (Emu) or "flow", which samples the next latent (`nn.latent_flow`).
        text_weight: weight of the text loss that `forward` gives with labels.
        regression_weight: weight of the regression loss.
        regression_distance: "mse", "cosine" or "smooth_l1".
        initializer_range: standard deviation of new weights.
        regress_image_end: whether the last latent predicts the `[/IMG]` embedding.

    Raises:
        ValueError: For an impossible connector, head, distance or number of latents.

    Source:
        Emu (arXiv 2307.05222) and its released configuration.
    """

    model_type = "emu"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig, "causal_former_config": T5Config}

    vision_config: Any = None  # a configuration, or what config.json holds for it
    text_config: Any = None  # a configuration, or what config.json holds for it
    causal_former_config: Any = None  # a configuration, or what config.json holds for it
    connector: str = "causal_former"
    num_image_latents: int = 32
    vision_layer: int | None = None
    vision_layer_norm: bool = True
    vision_layer_norm_eps: float = 1e-6
    image_token_id: int = 32003
    image_start_token_id: int = 32001
    image_end_token_id: int = 32002
    pad_token_id: int | None = 32000
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    user_token_id: int | None = None
    assistant_token_id: int | None = None
    regression_head: str = "linear"
    text_weight: float | int = 1.0
    regression_weight: float | int = 1.0
    regression_distance: str = "mse"
    regress_image_end: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self._check()
        self.vision_config = as_config(self.vision_config, eva_clip_config)
        self.text_config = as_config(self.text_config, llama_13b_config)
        self.causal_former_config = former_config(self.causal_former_config)
        self._check_parts(self.vision_config, self.text_config)
        # The base class would set its own attention for all parts, before it has one; parts keep theirs.
        own = {name: getattr(self, name)._attn_implementation for name in self.sub_configs}
        if any(own.values()):
            kwargs.setdefault("attn_implementation", {"": None, **own})
        kwargs.setdefault("tie_word_embeddings", bool(getattr(self.text_config, "tie_word_embeddings", False)))
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        if self.connector not in CONNECTORS:
            raise ValueError(f"connector is one of {', '.join(CONNECTORS)}, not '{self.connector}'")
        if self.regression_distance not in DISTANCES:
            raise ValueError(f"regression_distance is one of {', '.join(DISTANCES)}, not '{self.regression_distance}'")
        if self.regression_head not in REGRESSION_HEADS:
            raise ValueError(f"regression_head is one of {', '.join(REGRESSION_HEADS)}, not '{self.regression_head}'")
        num = self.num_image_latents
        if num < 1:
            raise ValueError(f"num_image_latents should be at least 1, not {num}")
        if self.connector == "pooled_grid" and round(num**0.5) ** 2 != num:
            raise ValueError(f"connector 'pooled_grid' needs a square number of latents, not {num}")

    def _check_parts(self, vision: PreTrainedConfig, text: PreTrainedConfig) -> None:
        depth, layer = getattr(vision, "num_hidden_layers", None), self.vision_layer
        if layer is not None and depth is not None and not -depth - 1 <= layer <= depth:
            raise ValueError(f"vision_layer {layer}: the vision model has layers 0 to {depth}")
        vocabulary = getattr(text, "vocab_size", None)
        for name in ("image_token_id", "image_start_token_id", "image_end_token_id"):
            number = getattr(self, name)
            if vocabulary is not None and not 0 <= number < vocabulary:
                raise ValueError(f"{name} {number} is not in the vocabulary of {vocabulary}")

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The configuration of the language model, for caches and generation."""
        return self.text_config

    @property
    def image_size(self) -> int:
        """Side of the encoder's images, in pixels."""
        size = self.vision_config.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def num_positions(self) -> int | None:
        """Positions of the language model's context; None where it has no limit."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def num_channels(self) -> int:
        return getattr(self.vision_config, "num_channels", 3)

    @property
    def hidden_size(self) -> int:
        """D, the width of the latents and of the language model."""
        return self.text_config.hidden_size


def as_config(values: dict[str, Any] | PreTrainedConfig | None, default: Any) -> PreTrainedConfig:
    """A configuration object from its entry in `config.json`."""
    if values is None:
        return default()
    if isinstance(values, PreTrainedConfig):
        return values
    values = dict(values)
    check_sizes(values, "its configuration")
    kind = values.pop("model_type", None)
    if kind is None:
        raise ValueError("a vision_config or text_config needs its model_type")
    if kind == Blip2VisionConfig.model_type:
        return Blip2VisionConfig(**values)
    return AutoConfig.for_model(kind, **values)


def former_config(values: dict[str, Any] | PreTrainedConfig | None) -> T5Config:
    """The decoder of T5-base, with the changes in `values`. It has no vocabulary: the queries are learned."""
    given = values.to_dict() if isinstance(values, PreTrainedConfig) else dict(values or {})
    given.pop("model_type", None)
    check_sizes(given, "causal_former")
    fixed: dict[str, object] = {"is_decoder": True, "is_encoder_decoder": False, "use_cache": False, "vocab_size": 1}
    fixed |= dict.fromkeys(("pad_token_id", "eos_token_id", "decoder_start_token_id"))
    base = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "dropout_rate": 0.1}
    return T5Config(**{**base, **given, **fixed})


def eva_clip_config() -> Blip2VisionConfig:
    """EVA-CLIP g/14 at 224 px: 40 blocks of width 1408."""
    return Blip2VisionConfig(num_hidden_layers=40, initializer_range=0.02)


def llama_13b_config() -> LlamaConfig:
    """LLaMA-13B with Emu's four more tokens."""
    return LlamaConfig(
        vocab_size=32004,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        pad_token_id=32000,
    )
