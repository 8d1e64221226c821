"""The model part of a run: sizes of a new NEPA model, or the checkpoint it starts from."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from transformers import ViTImageProcessor

from ...core.config import MODELS, Part
from ...errors import ConfigError
from .configuration_nepa import ViTNepaConfig
from .modeling_nepa import ViTNepaForPreTraining


@MODELS.register("vit_nepa")
class NepaModel(Part):
    """Settings of a NEPA model; the fields are `ViTNepaConfig`'s, the defaults the paper's (SwiGLU, QK-norm, RoPE).

    pretrained: an HF folder or hub id to start from; its sizes win over the fields here.
    layerscale_value: 1e-5 in the paper; 0.1 to 1 learns faster in runs of minutes.
    """

    pretrained: str | None = None
    hidden_size: int = Field(768, gt=0)
    num_hidden_layers: int = Field(12, gt=0)
    num_attention_heads: int = Field(12, gt=0)
    intermediate_size: int | None = Field(None, gt=0, description="None: 4 * hidden_size")
    use_gated_mlp: bool = True
    hidden_act: Literal["gelu", "silu", "relu", "gelu_pytorch_tanh"] = "silu"
    image_size: int = Field(224, gt=0)
    patch_size: int = Field(14, gt=0)
    num_channels: Literal[1, 3] = 3
    layerscale_value: float | None = 1e-5
    qk_norm: bool = True
    qk_norm_affine: bool = False
    qk_norm_bias: bool = False
    rope_theta: float = Field(100.0, gt=0)
    drop_path_prob: float = Field(0.0, ge=0, lt=1)
    pos_embed_shift: float | None = Field(None, ge=0)
    pos_embed_jitter: float | None = Field(None, ge=1)
    pos_embed_rescale: float | None = Field(2.0, ge=1)
    is_causal: bool = True
    add_pooling_layer: bool = True

    @model_validator(mode="after")
    def _fits(self) -> "NepaModel":
        if self.image_size % self.patch_size:
            near = [p for p in range(1, self.image_size + 1) if self.image_size % p == 0]
            near.sort(key=lambda p: abs(p - self.patch_size))
            raise ValueError(
                f"patch_size {self.patch_size} does not divide image_size {self.image_size}; "
                f"near ones that do: {', '.join(map(str, sorted(near[:3])))}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}"
            )
        if self.hidden_size // self.num_attention_heads % 4:
            raise ValueError(
                f"hidden_size / num_attention_heads is {self.hidden_size // self.num_attention_heads}; "
                "rotary positions need a multiple of 4"
            )
        return self

    def hf_config(self) -> ViTNepaConfig:
        """The Hugging Face configuration that these settings describe."""
        fields: dict[str, Any] = self.model_dump(exclude={"kind", "pretrained"})
        fields["intermediate_size"] = self.intermediate_size or 4 * self.hidden_size
        return ViTNepaConfig(**fields)

    def build(self) -> ViTNepaForPreTraining:
        """A new model, or the pretrained one. Raises ConfigError if `pretrained` is no NEPA checkpoint."""
        if self.pretrained is None:
            return ViTNepaForPreTraining(self.hf_config())
        try:
            return ViTNepaForPreTraining.from_pretrained(str(Path(self.pretrained).expanduser()))
        except (OSError, ValueError) as err:
            reason = str(err).splitlines()[0]
            raise ConfigError(f"model.pretrained: cannot load '{self.pretrained}': {reason}") from None

    def image_processor(self) -> ViTImageProcessor:
        """What turns pictures into `pixel_values` for this model: resize, scale to [-1, 1]; saved with a checkpoint."""
        half = [0.5] * self.num_channels
        return ViTImageProcessor(
            size={"height": self.image_size, "width": self.image_size}, resample=2, image_mean=half, image_std=half
        )
