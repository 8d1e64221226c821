"""The pixel decoder's UNet. Imports diffusers (extra `paint`)."""

import inspect
from typing import Any

import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

Parent: Any = UNet2DConditionModel  # diffusers has no types
PARENT = inspect.signature(UNet2DConditionModel.__init__)
NUM_LATENTS = inspect.Parameter("num_latents", inspect.Parameter.KEYWORD_ONLY)


class LatentUNet(Parent):  # type: ignore[misc]
    """diffusers' UNet that adds what it predicts to a linear map of all latents, fitted beside it (`VisualDecoding`).

    The map gives each pixel its mean, the UNet the difference to a sharp image. Cross-attention alone finds slowly
    which place of an image a latent describes: a new UNet knows no places, every one of them asks the same question.
    For networks that predict the clean image; at first the prediction is that of the map.

    Args:
        num_latents: N of the latents [B, N, D] that it attends to.
        unet: arguments of `UNet2DConditionModel`; its weights are saved and loaded as those are.
    """

    def __init__(self, *, num_latents: int, **unet: object):
        super().__init__(**unet)
        self.register_to_config(num_latents=num_latents)
        outputs = self.config.out_channels * self.config.sample_size**2
        self.mean = nn.Linear(num_latents * self.config.cross_attention_dim, outputs)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **options: object) -> object:
        """The prediction, as the parent's.

        Args:
            sample: noisy [B, C, h, w].
            timestep: int64 [B].
            encoder_hidden_states: latents [B, N, D].
            options: see the parent.

        Returns:
            An object with `sample` [B, C, h, w].
        """
        found = super().forward(sample, timestep, encoder_hidden_states, **options)
        side = self.config.sample_size
        mean = self.mean(encoder_hidden_states.flatten(1)).view(len(sample), -1, side, side)
        if sample.shape[-2:] != mean.shape[-2:]:
            mean = F.interpolate(mean, sample.shape[-2:], mode="bilinear")
        found.sample = found.sample + mean
        return found


# diffusers reads from the signature which values of a config.json belong to a model
LatentUNet.__init__.__signature__ = PARENT.replace(  # type: ignore[attr-defined]
    parameters=[*PARENT.parameters.values(), NUM_LATENTS]
)
