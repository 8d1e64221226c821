"""Painting from image latents: a diffusion decoder that reconstructs images from the latents of a frozen model."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..core import distributed
from ..core.config import DECODERS, Part
from ..core.objective import OBJECTIVES, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.randomness import drawn_by, normal, seeds_within, uniform
from ..core.types import Backbone, Batch, by_name
from ..errors import ConfigError
from ..nn.diffusion import add_noise, clean_estimate, diffusion_target, min_snr_weight
from ..nn.ema import Teacher, decay_at
from ..nn.running_regression import MAX_INPUTS, RunningRegression

DROPPED, REGRESSED, STEPS, NOISE = 17, 18, 19, 20  # streams of random numbers
NUM_FITS = 20  # of the map from latents to mean images, at equal distances over the run
FOLDER = "visual_decoder"  # in the run folder
DecoderPart = Annotated[SerializeAsAny[Part], BeforeValidator(DECODERS.parse)]


@OBJECTIVES.register("visual_decoder")
class VisualDecoderSettings(ObjectiveSettings):
    """A diffusion decoder from the image latents of a frozen model to pictures.

    Attributes:
        decoder: the decoder network: "pixels" (small, new) or "stable_diffusion" (from a folder).
        drop_rate: share of images trained with the latents of the empty prompt instead of their own, which guidance
            needs.
        regressed_rate: share of images trained with latents that the model generates from what precedes the image, as
            at inference; only images with something before them. Slower: N passes for each batch.
        standardise: in training the UNet reads latents shifted and scaled by their mean and spread, measured on the
            images of the first step, which learns faster; it is folded into the weights when they are saved, so that
            the decoder takes latents as they are (and a decoder that is trained further begins as the one it was).
        min_snr_gamma: limit on the weight of noise levels (5 in the paper); null: all have equal weight.
        map_prior: strength of the prior of a new pixel decoder's map from latents to mean images (a ridge regression):
            it counts as so many images per number of the latents. Small: images of training are remembered; large:
            better for others if there are few images.
        ema_decay: decay of the average of the UNet's weights, which is what is saved; null: no average.
        gradient_checkpointing: computes the UNet's activations again in the backward pass, which saves memory.
        mean: mean that `pixel_values` were normalised with; targets are computed from it where the batch has no
            `target_pixel_values`.
        std: standard deviation that `pixel_values` were normalised with.

    Source:
        Emu (arXiv 2307.05222), section 2.3.
    """

    task: ClassVar[str] = "multimodal"
    trains_backbone: ClassVar[bool] = False

    decoder: DecoderPart = Field(default_factory=lambda: DECODERS.parse("pixels"))
    drop_rate: float = Field(0.1, ge=0, lt=1)
    regressed_rate: float = Field(0.0, ge=0, le=1)
    standardise: bool = True
    min_snr_gamma: float | None = Field(None, gt=0, le=1e6)
    map_prior: float = Field(0.05, ge=0, le=1e3)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    gradient_checkpointing: bool = False
    mean: list[Annotated[float, Field(ge=-1e3, le=1e3)]] = Field([0.5, 0.5, 0.5], min_length=1, max_length=3)
    std: list[Annotated[float, Field(ge=1e-3, le=1e3)]] = Field([0.5, 0.5, 0.5], min_length=1, max_length=3)

    @field_validator("mean", "std")
    @classmethod
    def _channels(cls, value: list[float]) -> list[float]:
        if len(value) == 2:
            raise ValueError("should be one number, or three for red, green and blue")
        return value

    def verdict(self, history: History) -> Verdict:
        lines = [line for line in history if "psnr" in line]
        if not lines:
            return Verdict("decoder", "A diffusion decoder of a frozen model was trained; no PSNR was logged.")
        sentence = f"A noisy training image is denoised in one step with a PSNR of {lines[-1]['psnr']:.1f} dB"
        return Verdict("decoder", f"{sentence}, averaged over all noise levels; judge it by the images it generates.")

    def build(self, backbone: Backbone) -> "VisualDecoding":
        """Raises ConfigError if the backbone has no image latents."""
        return VisualDecoding(self, with_images(backbone))


class ImageTextConfig(Protocol):
    """Token ids of a model of text and image latents."""

    image_token_id: int
    image_end_token_id: int
    num_image_latents: int
    bos_token_id: int | None
    pad_token_id: int | None


@runtime_checkable
class ImageTextBackbone(Protocol):
    """A language model that reads and generates image latents."""

    @property
    def config(self) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def image_latents(self, pixel_values: Tensor) -> Tensor: ...
    def generate_image_embeddings(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        guidance: bool = False,
        *,
        seed: int | Sequence[int] | None = 0,
    ) -> Tensor: ...


def with_images(backbone: object) -> ImageTextBackbone:
    """Raises ConfigError for a model without image latents."""
    if not isinstance(backbone, ImageTextBackbone):
        raise ConfigError("objective visual_decoder needs a model with image_latents: set model.kind=emu")
    return backbone


class VisualDecoding(Objective):
    """The objective of `VisualDecoderSettings`. Loss: squared error of the UNet's prediction, averaged over each image;
    an image is one target. Targets are in [-1, 1].

    The linear map of a new `LatentUNet` is fitted by ridge regression on everything that was read, 20 times in a run:
    gradient steps learn slowly what latents hardly vary in.
    """

    signal: Tensor
    empty: Tensor
    center: Tensor
    spread: Tensor
    measured: Tensor

    settings: VisualDecoderSettings

    def __init__(self, settings: VisualDecoderSettings, backbone: ImageTextBackbone):
        super().__init__(settings)
        width = backbone.config.get_text_config().hidden_size
        num = backbone.config.num_image_latents
        self.decoder: Any = settings.decoder.build(width, num)  # type: ignore[attr-defined]  # user's parts, too
        if self.decoder.vae is not None:
            self.decoder.vae.requires_grad_(False)
        if settings.gradient_checkpointing:
            self.decoder.unet.enable_gradient_checkpointing()
        layer = None if self.decoder.knows_latents else self.decoder.mean_map
        self.regression: RunningRegression | None = None
        if layer is not None and layer.in_features <= MAX_INPUTS:
            layer.requires_grad_(False)
            self.regression = RunningRegression(layer.in_features, layer.out_features, settings.map_prior)
        self.ema = None if settings.ema_decay is None else Teacher(self.decoder.unet)
        self.prediction = self.decoder.scheduler.config.prediction_type
        self.register_buffer("signal", self.decoder.scheduler.alphas_cumprod.float().clone(), persistent=False)
        self.register_buffer("empty", torch.zeros(num, width))  # latents of the empty prompt
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.register_buffer("measured", torch.tensor(False))  # whether the three above are known

    def count_targets(self, batch: Batch) -> Tensor:
        """Number of images."""
        return torch.tensor(len(batch["pixel_values"]))

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        with drawn_by(image_seeds(batch, backbone.config)):
            return self.denoise(with_images(backbone), batch)

    def denoise(self, backbone: ImageTextBackbone, batch: Batch) -> ObjectiveOutput:
        decoder, count = self.decoder, self.count_targets(batch)
        if int(count) == 0:
            nothing = torch.stack([p.sum() * 0.0 for p in decoder.unet.parameters()]).sum()
            return ObjectiveOutput(loss_sum=nothing, num_targets=count)
        if decoder.vae is not None:
            decoder.vae.eval()
        with torch.no_grad():
            latents = self.latents(backbone, batch)  # [I, N, D]
            condition = self.standardised(self.with_dropped(latents))
            clean = decoder.encode(target_images(batch, self.settings, decoder.image_size))  # [I, C, h, w]
            if self.regression is not None and self.training:
                self.regression.add(condition.flatten(1), clean.flatten(1))
        steps = (uniform(len(clean), 1, STEPS, clean.device)[:, 0] * len(self.signal)).long()
        noise = normal(len(clean), clean[0].numel(), NOISE, clean.device).view_as(clean).to(clean.dtype)
        signal = self.signal[steps]
        noisy = add_noise(clean, noise, signal)
        found = decoder(noisy, steps, condition)
        error = (found - diffusion_target(clean, noise, signal, self.prediction)).square().flatten(1).mean(1)
        if self.settings.min_snr_gamma is not None:
            error = error * min_snr_weight(signal, self.prediction, self.settings.min_snr_gamma)
        metrics = None
        if self.diagnose and decoder.vae is None:
            estimate = clean_estimate(found.detach(), noisy, signal, self.prediction).clamp(-1, 1)
            metrics = {"psnr": 10 * torch.log10(4 / (estimate - clean).square().mean().clamp(min=1e-10))}
        return ObjectiveOutput(loss_sum=error.sum(), num_targets=count, metrics=metrics)

    def latents(self, backbone: ImageTextBackbone, batch: Batch) -> Tensor:
        """The conditions, [I, N, D]: the images' own latents, some replaced by those the model predicts."""
        latents = backbone.image_latents(batch["pixel_values"])
        if self.settings.regressed_rate > 0:
            drawn = uniform(len(latents), 1, REGRESSED, latents.device)[:, 0] < self.settings.regressed_rate
            chosen = drawn & has_context(batch, backbone.config)
            if bool(chosen.any()):
                prompts = contexts(batch, chosen, backbone.config)
                seeds = image_seeds(batch, backbone.config)
                latents = latents.clone()
                latents[chosen] = backbone.generate_image_embeddings(
                    prompts["input_ids"],
                    prompts["pixel_values"],
                    prompts["attention_mask"],
                    seed=None if seeds is None else seeds[chosen].tolist(),
                ).to(latents.dtype)
        return latents

    def with_dropped(self, latents: Tensor) -> Tensor:
        """Some images' latents replaced by those of the empty prompt."""
        dropped = uniform(len(latents), 1, DROPPED, latents.device)[:, 0] < self.settings.drop_rate
        return torch.where(dropped[:, None, None], self.empty.to(latents.dtype), latents)

    def standardised(self, latents: Tensor) -> Tensor:
        return (latents - self.center.to(latents)) / self.spread.to(latents) if self.settings.standardise else latents

    @torch.no_grad()
    def prepare(self, backbone: Backbone, window: Sequence[Batch]) -> bool:
        """Measures the latents of the images of the first step that has some, on all ranks."""
        if bool(self.measured):
            return True
        model = with_images(backbone)
        found = [model.image_latents(batch["pixel_values"]) for batch in window if len(batch["pixel_values"])]
        return self.measure(model, torch.cat(found) if found else self.empty[None, :0].expand(0, -1, -1))

    def measure(self, backbone: ImageTextBackbone, latents: Tensor) -> bool:
        """The empty prompt's latents, and mean and spread of each channel of latents [I, N, D] over all ranks. Returns
        whether there were any. Every rank has to call it, also without images."""
        flat = latents.cpu().double().flatten(0, 1)  # not every accelerator has float64
        number = torch.full((flat.shape[1],), float(len(flat)), dtype=flat.dtype)
        number, first, second = distributed.sum_over_ranks(torch.stack([number, flat.sum(0), flat.square().sum(0)]))
        if number[0] == 0:
            return False
        self.empty.copy_(empty_prompt_latents(backbone))
        mean = first / number
        spread = (second / number - mean.square()).clamp(min=0).sqrt()
        self.center.copy_(mean)
        self.spread.copy_(spread.clamp(min=1e-3 * spread.mean() + 1e-8))  # a constant channel is not scaled
        if self.settings.standardise and self.decoder.knows_latents:
            for unet in (self.decoder.unet, *([] if self.ema is None else [self.ema.network])):
                self.decoder.fold_standardisation(-self.center / self.spread, 1 / self.spread, unet)
        self.measured.fill_(True)
        return True

    def after_step(self, backbone: Backbone, step: int, max_steps: int) -> None:
        """Fits the map to mean images, and moves the averaged weights, which early in a run follow closely."""
        if self.regression is not None and step % max(1, max_steps // NUM_FITS) == 0:
            self.fit(self.regression)
        if self.ema is not None and self.settings.ema_decay is not None:
            self.ema.follow(self.decoder.unet, decay_at(self.settings.ema_decay, step))

    @torch.no_grad()
    def fit(self, regression: RunningRegression) -> None:
        """Sets the map to mean images, of the average, too. Every rank has to call it."""
        if (found := regression.solve()) is not None:
            for unet in (self.decoder.unet, *([] if self.ema is None else [self.ema.network])):
                fill(unet.mean.weight, found[0])
                fill(unet.mean.bias, found[1])

    def folders(self, state: dict[str, Tensor]) -> dict[str, Callable[[Path], None]]:
        """RUN/visual_decoder, for `VisualDecoder.from_pretrained`; averaged weights where there are any."""
        prefix = "decoder.unet." if self.ema is None else "ema.network."
        unet = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        shift = (state["center"], state["spread"]) if self.settings.standardise else None
        return {FOLDER: lambda folder: self.decoder.save_weights(folder, unet, shift)}


def fill(parameter: Tensor, value: Tensor) -> None:
    """Sets a parameter, also one that is sharded; `value` is whole and the same on all ranks."""
    value = value.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.copy_(value)


def target_images(batch: Batch, settings: VisualDecoderSettings, size: int) -> Tensor:
    """The target images, [I, 3, size, size] in [-1, 1].

    `target_pixel_values` if the batch has them, else `pixel_values` without their normalisation. Larger images are made
    smaller. Raises ConfigError for smaller ones.
    """
    images = by_name(batch).get("target_pixel_values")
    if images is None:
        pixels = batch["pixel_values"].float()
        mean, std = (pixels.new_tensor(x).view(-1, 1, 1) for x in (settings.mean, settings.std))
        images = ((pixels * std + mean) * 2 - 1).clamp(-1, 1)
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise ConfigError(f"images of {height} x {width} pixels are too small to train a decoder of {size} x {size}")
    if (height, width) != (size, size):
        images = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return images.float().expand(-1, 3, -1, -1)


def empty_prompt_latents(backbone: ImageTextBackbone) -> Tensor:
    """Latents of the empty prompt, [N, D], for guidance."""
    config, device = backbone.config, next(backbone.parameters()).device
    any_token = config.image_end_token_id if config.bos_token_id is None else config.bos_token_id
    ids = torch.tensor([[any_token]], device=device)
    return backbone.generate_image_embeddings(input_ids=ids, guidance=True)[1]


def image_starts(batch: Batch, config: ImageTextConfig) -> list[tuple[int, int, int]]:
    """Row, start of the document, and position of `[IMG]` of each image, in reading order."""
    places = (batch["input_ids"] == config.image_token_id).nonzero()[:: config.num_image_latents].tolist()
    documents = batch.get("document_ids")
    if documents is None:
        documents = torch.ones_like(batch["input_ids"])
    found = []
    for row, latent in places:
        begin = int((documents[row] == documents[row, latent]).long().argmax())
        found.append((row, begin, latent - 1))
    return found


def image_seeds(batch: Batch, config: ImageTextConfig) -> Tensor | None:
    """Seeds of the images [I], for random numbers of each."""
    rows = (batch["input_ids"] == config.image_token_id).nonzero()[:: config.num_image_latents, 0].contiguous()
    return seeds_within(rows)


def has_context(batch: Batch, config: ImageTextConfig) -> Tensor:
    """Images [I] that are preceded by more than the begin token in their document."""
    least = 0 if config.bos_token_id is None else 1
    found = [start - begin > least for _, begin, start in image_starts(batch, config)]
    return torch.tensor(found, dtype=torch.bool, device=batch["input_ids"].device)


def contexts(batch: Batch, chosen: Tensor, config: ImageTextConfig) -> dict[str, Tensor]:
    """The context of the chosen images [I] in their documents, as prompts padded on the left, with their images."""
    rows, images = [], []
    for index, (row, begin, start) in enumerate(image_starts(batch, config)):
        if bool(chosen[index]):
            ids = batch["input_ids"][row, begin:start]
            num = int((ids == config.image_token_id).sum()) // config.num_image_latents
            rows.append(ids)
            images += list(range(index - num, index))
    longest = max(map(len, rows))
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    ids = torch.stack([F.pad(r, (longest - len(r), 0), value=pad) for r in rows])
    mask = torch.stack([F.pad(torch.ones_like(r), (longest - len(r), 0)) for r in rows])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": batch["pixel_values"][images]}
