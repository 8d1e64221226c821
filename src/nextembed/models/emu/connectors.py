"""From the tokens of a visual encoder to the N latents of an image, as wide as the language model."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Stack


class CausalFormer(nn.Module):
    """Learned queries with causal self-attention read the image: latent j depends on queries 1..j only.

    Called with features [I, T, E]; gives [I, N, D]. `causal_tokens` [1, N, d_model], `stack` T5's decoder whose key
    and value matrices of cross-attention take the encoder's width E, `projection` to D.
    Source: Emu (arXiv 2307.05222), section 2.1.
    """

    def __init__(self, config: T5Config, num_latents: int, encoder_width: int, width: int, std: float):
        super().__init__()
        self.causal_tokens = nn.Parameter(torch.empty(1, num_latents, config.d_model).normal_(std=std))
        stack: Any = T5Stack._from_config(config)
        stack.embed_tokens = None
        inner = config.num_heads * config.d_kv
        for block in stack.block:
            cross = block.layer[1].EncDecAttention
            cross.k = nn.Linear(encoder_width, inner, bias=False)
            cross.v = nn.Linear(encoder_width, inner, bias=False)
            for matrix in (cross.k, cross.v):
                nn.init.normal_(matrix.weight, std=encoder_width**-0.5)
                if not matrix.weight.is_meta:  # otherwise T5Stack would initialise them again, with deviation 1
                    matrix._is_hf_initialized = True
        self.stack = stack
        self.projection = nn.Linear(config.d_model, width)

    def hidden(self, features: Tensor) -> Tensor:
        """[I, N, d_model]: before the projection."""
        queries = self.causal_tokens.expand(len(features), -1, -1)
        return self.stack(inputs_embeds=queries, encoder_hidden_states=features).last_hidden_state

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(self.hidden(features))


class PooledGrid(nn.Module):
    """Means over n x n regions of the patch grid, projected: features [I, T, E] to [I, n n, D], in raster order.

    Tokens before the patches (class token, registers) are left out. Source: Emu2 (arXiv 2312.13286), section 2.1.
    """

    def __init__(self, num_latents: int, num_patches: int, encoder_width: int, width: int):
        super().__init__()
        self.side, self.grid = round(num_latents**0.5), round(num_patches**0.5)
        if self.grid**2 != num_patches or self.side > self.grid:
            raise ValueError(f"connector 'pooled_grid' cannot make {num_latents} latents of {num_patches} patches")
        self.projection = nn.Linear(encoder_width, width)

    def hidden(self, features: Tensor) -> Tensor:
        """[I, n n, E]: before the projection."""
        patches = features[:, -(self.grid**2) :].mT.unflatten(-1, (self.grid, self.grid))  # [I, E, grid, grid]
        return nn.functional.adaptive_avg_pool2d(patches, self.side).flatten(2).mT

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(self.hidden(features))


class Identity(nn.Module):
    """Every token of the encoder is a latent: features [I, N, E], projected to [I, N, D] where E is not D."""

    def __init__(self, num_latents: int, encoder_width: int, width: int):
        super().__init__()
        self.num_latents = num_latents
        self.projection = nn.Identity() if encoder_width == width else nn.Linear(encoder_width, width)

    def hidden(self, features: Tensor) -> Tensor:
        """The features as they are. Raises ValueError if they are not N."""
        if features.shape[1] != self.num_latents:
            raise ValueError(
                f"connector 'identity': the encoder gives {features.shape[1]} tokens, num_image_latents says "
                f"{self.num_latents}"
            )
        return features

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(self.hidden(features))


@torch.no_grad()
def standardise(connector: Any, features: Tensor, std: float) -> None:
    """Scales and shifts a connector's projection so that, over the images of `features` [I, T, E], each of the D
    dimensions of the latents has mean 0 and, at each of the N places, this standard deviation on average.

    A new connector's latents are almost the same for every image; those of a trained one keep their information.
    """
    projection = connector.projection
    if not isinstance(projection, nn.Linear):
        return
    hidden = connector.hidden(features)
    latents = projection(hidden)  # [I, N, D]
    spread = (latents - latents.mean(0, keepdim=True)).square().mean((0, 1)).sqrt()
    scale = std / spread.clamp(min=1e-6)
    projection.weight.mul_(scale[:, None])
    projection.bias.copy_(-nn.functional.linear(hidden, projection.weight).mean((0, 1)))


def build_connector(config: Any) -> nn.Module:
    """The connector that an EmuConfig names."""
    vision, width, num = config.vision_config, config.hidden_size, config.num_image_latents
    if config.connector == "causal_former":
        return CausalFormer(config.causal_former_config, num, vision.hidden_size, width, config.initializer_range)
    if config.connector == "identity":
        return Identity(num, vision.hidden_size, width)
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    return PooledGrid(num, (config.image_size // patch) ** 2, vision.hidden_size, width)
