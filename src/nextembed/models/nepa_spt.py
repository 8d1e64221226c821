"""NEPA as the library stable-pretraining builds it (model_type "spt_nepa"): its weights run here exactly.

What differs from the official architecture, read from stable-pretraining 0.1.8 (MIT), `methods/nepa.py`:

- There is no begin token. Here there is one nevertheless, which no patch sees and which sees no patch, so that position
0 is never a patch in this library; its hidden states are meaningless. - Rotary positions are whole numbers (row,
column), base 10000, without 2 pi. Of the d / 4 frequencies of an axis only
  every second one is used, each by two pairs of channels (the tables are built for halves, but read with stride two).
- LayerNorm eps 1e-5; MLP without biases, gated, of width 2/3 of the nominal one.
- Causal attention in training, full attention in evaluation, which is the default here.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    ViTImageProcessor,
)

from ..core.types import Batch, Latents
from .nepa.configuration_nepa import ViTNepaConfig
from .nepa.modeling_nepa import (
    ViTNepaForImageClassification,
    ViTNepaForPreTraining,
    ViTNepaModel,
    ViTNepaPreTrainedModel,
)


@strict
class SptNepaConfig(ViTNepaConfig):
    """`ViTNepaConfig` with stable-pretraining's values as defaults."""

    model_type = "spt_nepa"

    patch_size: int | list[int] | tuple[int, int] = 14
    intermediate_size: int = 2048
    use_gated_mlp: bool = True
    hidden_act: str = "silu"
    layer_norm_eps: float = 1e-5
    rope_theta: float | int = 10000.0
    qk_norm: bool = True
    is_causal: bool = False
    pos_embed_rescale: float | int | None = None


class SptNepaModel(ViTNepaModel):
    """stable-pretraining's transformer: pixels in, latents and hidden states out; position 0 is to be ignored."""

    config: SptNepaConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def embed(self, batch: Batch) -> Latents:
        """Latents of `pixel_values` [B, C, height, width]; coordinates [B, T, d / 2]: one axis for each rotary pair,
        whose angle is 2 pi times the coordinate."""
        pixel_values = batch["pixel_values"]
        z = self.embeddings(pixel_values)
        patch_height, patch_width = self.config.patch_shape
        height, width = pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width
        place = torch.stack(
            torch.meshgrid(
                torch.arange(height, device=z.device, dtype=torch.float32),
                torch.arange(width, device=z.device, dtype=torch.float32),
                indexing="ij",
            ),
            dim=-1,
        ).flatten(0, 1)  # [patches, 2]
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        num = head_dim // 4
        steps = torch.arange(num, device=z.device, dtype=torch.float32) / num
        speed = (self.config.rope_theta**-steps).repeat(2)[::2]
        angles = (place[:, :, None] * speed).flatten(1)  # [patches, d / 2]
        coordinates = F.pad(angles / (2 * math.pi), (0, 0, 1, 0)).expand(z.shape[0], -1, -1)
        # The begin token is a document of its own: it sees itself only, and no patch sees it.
        alone = (torch.arange(z.shape[1], device=z.device) > 0).long().expand(z.shape[0], -1)
        return Latents(z, coordinates, alone)


class SptNepaForPreTraining(ViTNepaForPreTraining):
    """With the loss of `ViTNepaForPreTraining`, which counts the begin token as one prediction more than theirs."""

    config: SptNepaConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: SptNepaConfig):
        ViTNepaPreTrainedModel.__init__(self, config)
        self.vit_nepa = SptNepaModel(config)
        self.post_init()

    def rollout(self, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError("rollout needs the begin token, which stable-pretraining's NEPA does not have")


class SptNepaForImageClassification(ViTNepaForImageClassification):
    """A linear classifier on the patches' mean, or on the last patch."""

    config: SptNepaConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: SptNepaConfig):
        super().__init__(config)
        self.vit_nepa = SptNepaModel(config)
        self.post_init()


AutoConfig.register("spt_nepa", SptNepaConfig, exist_ok=True)
AutoModel.register(SptNepaConfig, SptNepaModel, exist_ok=True)
AutoModelForPreTraining.register(SptNepaConfig, SptNepaForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(SptNepaConfig, SptNepaForImageClassification, exist_ok=True)
AutoImageProcessor.register(SptNepaConfig, image_processor_classes={"torchvision": ViTImageProcessor}, exist_ok=True)
