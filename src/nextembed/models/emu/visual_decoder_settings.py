"""The `decoder` slot of the objective `visual_decoder`: sizes of a new pixel decoder, or the one to start from."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import nn

from ...core.config import DECODERS, Part
from ...core.quiet import no_progress_bar
from ...core.sizes import MAX_LAYERS, MAX_SIDE, MAX_WIDTH
from ...nn.diffusion import Prediction
from .visual_decoder import VisualDecoder, check_parameters, diffusers, scheduler_class


@DECODERS.register("pixels")
class PixelDecoder(Part):
    """A small UNet on pixels, without a VAE: trains in minutes on a CPU.

    Attributes:
        image_size: side in pixels.
        patch_size: side, in pixels, of the patches that are folded into channels, without loss; the UNet works at
            image_size / patch_size.
        channels: channels at each resolution; each resolution is half of the one before.
        attention: which of these resolutions attend to the latents; null: all.
        layers_per_block: layers of each resolution.
        head_width: channels of an attention head.
        num_train_steps: noise levels in training.
        prediction: what the UNet predicts of a noisy image. "sample", the clean image, learns fastest by far where
            patches are folded: noise is as wide as a patch, a narrow UNet cannot pass it on (measured in docs/paint.md;
            arXiv 2511.13720 says why).
        scheduler: scheduler for painting, a class of diffusers; it can be replaced later.
    """

    image_size: int = Field(32, gt=0, le=MAX_SIDE)
    patch_size: int = Field(4, gt=0, le=MAX_SIDE)
    channels: list[Annotated[int, Field(gt=0, le=MAX_WIDTH)]] = Field([64, 128], min_length=1, max_length=10)
    attention: list[bool] | None = None
    layers_per_block: int = Field(1, ge=1, le=MAX_LAYERS)
    head_width: int = Field(32, gt=0, le=MAX_WIDTH)
    prediction: Prediction = "sample"
    scheduler: str = "DDIMScheduler"
    num_train_steps: int = Field(1000, ge=2, le=10**6)

    @model_validator(mode="after")
    def _fits(self) -> "PixelDecoder":
        step = self.patch_size * 2 ** (len(self.channels) - 1)
        if self.image_size % step:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {step} (patch_size and halvings)")
        for width in self.channels:
            if width % self.head_width:
                raise ValueError(f"head_width {self.head_width} does not divide {width} channels")
        if self.attention is not None and len(self.attention) != len(self.channels):
            raise ValueError(f"attention has {len(self.attention)} entries for {len(self.channels)} resolutions")
        return self

    def build(self, latent_width: int, num_latents: int) -> VisualDecoder:
        """A new decoder.

        Args:
            latent_width: D of the latents [B, N, D].
            num_latents: N.

        Returns:
            A UNet that predicts what it adds to a linear map of the latents (`LatentUNet`); a plain one where it does
            not predict the clean image.

        Raises:
            MissingExtra: without diffusers.
        """
        look, library = self.attention or [True] * len(self.channels), diffusers()
        kind: Callable[..., nn.Module] = library.UNet2DConditionModel
        if self.prediction == "sample":
            from .visual_decoder_unet import LatentUNet

            kind = partial(LatentUNet, num_latents=num_latents)
        unet = kind(
            sample_size=self.image_size // self.patch_size,
            in_channels=3 * self.patch_size**2,
            out_channels=3 * self.patch_size**2,
            down_block_types=["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in look],
            up_block_types=["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(look)],
            block_out_channels=self.channels,
            layers_per_block=self.layers_per_block,
            cross_attention_dim=latent_width,
            attention_head_dim=[width // self.head_width for width in self.channels],  # diffusers: number of heads
            norm_num_groups=self.head_width // 2 if self.head_width % 2 == 0 else 1,
        )
        return VisualDecoder(unet, self._scheduler())

    def _scheduler(self) -> Any:
        """Cosine noise: at low resolution the usual schedule leaves too little noise (arXiv 2301.11093)."""
        options = {
            "num_train_timesteps": self.num_train_steps,
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": self.prediction,
        }
        # with DDIM's own settings, so that `DDIMScheduler.from_config(...)` finds them later
        made = diffusers().DDIMScheduler(**options, clip_sample=True, timestep_spacing="trailing")
        return made if self.scheduler == "DDIMScheduler" else scheduler_class(self.scheduler).from_config(made.config)


@DECODERS.register("stable_diffusion")
class StableDiffusionDecoder(Part):
    """The UNet of a Stable Diffusion (or of an earlier visual decoder) with its VAE, which stays frozen.

    Attributes:
        pretrained: folder with unet/, vae/ and scheduler/. Where the UNet attends to latents of another width than the
            model gives, those key and value matrices start anew, as in Emu; all else keeps its weights.
        prediction: what the UNet predicts from a noisy image; null: as pretrained.
    """

    pretrained: str
    prediction: Literal["epsilon", "v_prediction", "sample"] | None = None

    def build(self, latent_width: int, num_latents: int) -> VisualDecoder:
        """The decoder of the folder, for latents of this width, as many as there are. Raises ConfigError if it does not
        load."""
        folder = Path(self.pretrained).expanduser()
        decoder = VisualDecoder.from_pretrained(folder, safety_checker=False)
        knows = decoder.latent_width == latent_width
        if not knows:
            decoder = with_latent_width(decoder, latent_width)
        if self.prediction is not None:
            decoder.scheduler = type(decoder.scheduler).from_config(
                decoder.scheduler.config, prediction_type=self.prediction
            )
        decoder.pretrained, decoder.knows_latents = folder, knows
        return decoder


def with_latent_width(decoder: VisualDecoder, width: int) -> VisualDecoder:
    """The same decoder for latents of another width, with new key and value matrices in its cross-attention."""
    config = dict(decoder.unet.config) | {"cross_attention_dim": width}
    with no_progress_bar():
        unet = type(decoder.unet).from_config(config)
    kept = {n: t for n, t in decoder.unet.state_dict().items() if ".attn2.to_k." not in n and ".attn2.to_v." not in n}
    info = unet.load_state_dict(kept, strict=False)
    anew = [n for n in info.missing_keys if ".attn2.to_" not in n]
    check_parameters("the UNet", {"missing_keys": anew, "unexpected_keys": info.unexpected_keys})
    return VisualDecoder(unet.to(decoder.unet.dtype), decoder.scheduler, decoder.vae)
