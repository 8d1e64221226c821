"""Objectives that predict pixels of patches: AIM in order, MAE for dropped patches.

Shapes: B images, P patches in raster order, T = P + 1 latents (the begin latent first), V values a patch.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..core.objective import OBJECTIVES, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.optim import OptimConfig
from ..core.sizes import MAX_LAYERS, MAX_WIDTH
from ..core.types import Attention, Backbone, Batch, Hidden, PatchConfig, Prefix, reads_clips
from ..errors import ConfigError
from ..nn.heads import PlaceDecoder, TokenHead
from ..nn.readout import to_patches

EXPLAINED = 0.05  # share of the variance below which a model predicts little more than the mean of a patch


class PixelSettings(ObjectiveSettings):
    """Settings that AIM and MAE share.

    Attributes:
        normalise: normalise the pixels of each patch to mean 0 and variance 1, as in both papers.
    """

    normalise: bool = True

    def warnings(self, history: History) -> list[str]:
        return []

    def verdict(self, history: History) -> Verdict:
        """By the share of the pixels' variance that is predicted; the mean of a patch explains nothing of normalised
        pixels."""
        found = [line["explained"] for line in history if "explained" in line]
        if not found:
            return Verdict("undecided", "No diagnostics were logged.")
        share = f"{100 * found[-1]:.1f} % of the variance of hidden pixels is predicted"
        if found[-1] < 0:
            return Verdict(
                "undecided", "Hidden pixels are predicted worse than by the mean of each patch. Train longer."
            )
        if found[-1] < EXPLAINED:
            return Verdict("undecided", f"Only {share}; the mean of each patch would explain none. Train longer.")
        return Verdict("learning", f"{share[0].upper()}{share[1:]}; the mean of each patch would explain none.")


def patch_shape_of(backbone: Backbone, kind: str) -> tuple[int, int]:
    """Raises ConfigError for a backbone without patches, or whose images have fewer than four."""
    if not isinstance(backbone.config, PatchConfig):
        raise ConfigError(f"objective {kind} needs a model of image patches: model.kind=vit_nepa")
    if reads_clips(backbone.config):
        raise ConfigError(f"objective {kind} supports images only; for clips use vjepa, next_embedding or cpc")
    shape, (height, width) = backbone.config.patch_shape, backbone.config.image_shape
    if (height // shape[0]) * (width // shape[1]) < 4:
        raise ConfigError(f"objective {kind} needs four patches or more; make model.patch_size smaller")
    return int(shape[0]), int(shape[1])


def grid_of(sample: Mapping[str, Tensor]) -> tuple[int, int]:
    """Rows and columns of patches of a sample, by its pixels and its latents."""
    height, width = sample["pixel_values"].shape[-2:]
    num = len(sample["latent_mask"]) - 1
    columns = max(1, round(math.sqrt(num * width / height)))
    return num // columns, columns


def pixel_targets(pixels: Tensor, shape: tuple[int, int], normalise: bool) -> Tensor:
    """What is predicted of each patch, [B, P, V]: (x - mean) / sqrt(var + 1e-6), the variance unbiased.

    Source: MAE (arXiv 2111.06377), its code's `norm_pix_loss`.
    """
    patches = to_patches(pixels.float(), shape)
    if not normalise:
        return patches
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def compared(pred: Tensor, target: Tensor, mask: Tensor, diagnose: bool) -> ObjectiveOutput:
    """Mean squared error of a patch's values, summed over the patches of `mask` [B, P]."""
    error = (pred.float() - target).square().mean(-1) * mask
    metrics = None
    if diagnose:
        spread = (target.var(-1, unbiased=False) * mask).sum().detach()
        metrics = {"explained": 1 - error.sum().detach() / spread.clamp(min=1e-12)}
    return ObjectiveOutput(loss_sum=error.sum(), num_targets=mask.sum(), metrics=metrics)


@OBJECTIVES.register("aim")
class AimSettings(PixelSettings):
    """Next-patch regression: the pixels of each patch from the patches before it, in raster order.

    The first patches of an image, a random number of them, see each other; the rest is predicted:

        k ~ uniform{1, ..., P - 1}
        h = transformer(z, prefix k)         # h[t] sees z[<= max(t, k)]
        loss = mean over t >= k of |head(h[t]) - normalised pixels of patch t + 1|^2

    Attributes:
        head_blocks: blocks of the token-wise MLP that is discarded after training (12 in the paper).
        head_width: width of that MLP (2048 in the paper); null: the model's. Features are read with full attention, as
            the paper does.

    Source:
        AIM (arXiv 2401.08541), sections 3.1 to 3.3. Ours has NEPA's backbone (rotary positions, a begin latent that
        every patch sees) and a prefix drawn for each image.
    """

    defaults: ClassVar[OptimConfig] = OptimConfig(learning_rate=1e-3, weight_decay=0.05, warmup_rate=0.1)

    head_blocks: int = Field(2, ge=0, le=MAX_LAYERS)
    head_width: int | None = Field(None, gt=0, le=MAX_WIDTH)

    def build(self, backbone: Backbone) -> "Aim":
        return Aim(self, backbone)

    def draw(self, sample: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """prefix_length []: patches that see each other."""
        num_patches = len(sample["latent_mask"]) - 1
        return {"prefix_length": torch.randint(1, num_patches, (), generator=generator)}


class Aim(Objective):
    """The objective of `AimSettings`."""

    settings: AimSettings

    def __init__(self, settings: AimSettings, backbone: Backbone):
        super().__init__(settings)
        self.patch_shape = patch_shape_of(backbone, "aim")
        width = backbone.config.hidden_size
        values = backbone.config.num_channels * self.patch_shape[0] * self.patch_shape[1]
        self.head = TokenHead(width, values, settings.head_blocks, settings.head_width or width)

    def predicted(self, batch: Batch) -> Tensor:
        """Patches after the prefix, bool [B, P]."""
        valid = batch["latent_mask"][:, 1:]
        places = torch.arange(valid.shape[1], device=valid.device)
        return (places >= batch["prefix_length"][:, None]) & valid

    def count_targets(self, batch: Batch) -> Tensor:
        return self.predicted(batch).sum()

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        latents = backbone.embed(batch)
        seen = Prefix(batch["prefix_length"] + 1)  # and the begin latent
        # The last latent predicts nothing, and no other one may see it.
        hidden = backbone.encode(latents.until(latents.z.shape[1] - 1), seen)
        target = pixel_targets(batch["pixel_values"], self.patch_shape, self.settings.normalise)
        return compared(self.head(hidden.last), target, self.predicted(batch), self.diagnose)

    def read(
        self, backbone: Backbone, batch: Batch, attention: Attention | None = None, output_layers: bool = False
    ) -> Hidden:
        return backbone.encode(backbone.embed(batch), attention or "full", output_layers)


@OBJECTIVES.register("mae")
class MaeSettings(PixelSettings):
    """Masked autoencoding: the pixels of dropped patches from those that are left.

        z = embed(image), of which a random 25 % of the patches (and the begin latent) are kept
        h = transformer(z kept, full attention)
        loss = mean over dropped patches of |decoder(h, unknown elsewhere) - normalised pixels|^2

    Attributes:
        mask_rate: share of patches dropped, the same number in each image.
        decoder_width: width of the decoder (512 in the paper).
        decoder_layers: layers of the decoder (8 in the paper, for encoders of 12 and more layers).
        decoder_heads: attention heads of each decoder layer (16 in the paper).

    Source:
        MAE (arXiv 2111.06377). Ours has NEPA's backbone (rotary positions in place of sine and cosine ones, its begin
        latent in the place of the class token); the decoder's positions are fixed waves of coordinates.
    """

    defaults: ClassVar[OptimConfig] = OptimConfig(learning_rate=1e-3, weight_decay=0.05, warmup_rate=0.1)

    mask_rate: float = Field(0.75, gt=0, lt=1)
    decoder_width: int = Field(128, gt=0, le=MAX_WIDTH)
    decoder_layers: int = Field(2, gt=0, le=MAX_LAYERS)
    decoder_heads: int = Field(4, gt=0, le=MAX_WIDTH)

    def build(self, backbone: Backbone) -> "Mae":
        if self.decoder_width % self.decoder_heads:
            raise ConfigError(
                f"objective.decoder_heads {self.decoder_heads} does not divide decoder_width {self.decoder_width}"
            )
        return Mae(self, backbone)

    def num_kept(self, num_patches: int) -> int:
        return max(1, min(num_patches - 1, num_patches - round(self.mask_rate * num_patches)))

    def draw(self, sample: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """kept [1 + K], int64, ascending: the begin latent and the remaining patches."""
        num_patches = len(sample["latent_mask"]) - 1
        order = torch.randperm(num_patches, generator=generator)[: self.num_kept(num_patches)]
        return {"kept": torch.cat((torch.zeros(1, dtype=torch.int64), order.sort().values + 1))}


class Mae(Objective):
    """The objective of `MaeSettings`."""

    settings: MaeSettings

    def __init__(self, settings: MaeSettings, backbone: Backbone):
        super().__init__(settings)
        self.patch_shape = patch_shape_of(backbone, "mae")
        values = backbone.config.num_channels * self.patch_shape[0] * self.patch_shape[1]
        sizes = (settings.decoder_width, settings.decoder_layers, settings.decoder_heads)
        self.decoder = PlaceDecoder(backbone.config.hidden_size, values, *sizes)

    def dropped(self, batch: Batch) -> Tensor:
        """Patches that were dropped, bool [B, P]."""
        valid = batch["latent_mask"]
        return (valid & torch.ones_like(valid).scatter(1, batch["kept"], False))[:, 1:]

    def count_targets(self, batch: Batch) -> Tensor:
        return self.dropped(batch).sum()

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        latents, kept = backbone.embed(batch), batch["kept"]
        hidden = backbone.encode(latents.take(kept), "full").last
        pred = self.decoder(hidden, kept, latents.coordinates)[:, 1:]
        target = pixel_targets(batch["pixel_values"], self.patch_shape, self.settings.normalise)
        return compared(pred, target, self.dropped(batch), self.diagnose)

    def read(
        self, backbone: Backbone, batch: Batch, attention: Attention | None = None, output_layers: bool = False
    ) -> Hidden:
        return backbone.encode(backbone.embed(batch), attention or "full", output_layers)
