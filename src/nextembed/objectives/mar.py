"""MAR: masked autoregression of continuous tokens, in random order, with a small generative network for each token.

Shapes: B images, P patches in raster order, T = P + 1 latents (the begin latent first), V values a patch.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..core import distributed
from ..core.objective import (
    OBJECTIVES,
    History,
    Objective,
    ObjectiveOutput,
    ObjectiveSettings,
    SampleSettings,
    Verdict,
)
from ..core.optim import OptimConfig
from ..core.randomness import normal
from ..core.sizes import MAX_LAYERS, MAX_WIDTH
from ..core.types import IGNORE_LABEL, Attention, Backbone, Batch, Hidden, Latents
from ..errors import ConfigError
from ..nn.ema import Teacher, decay_at
from ..nn.generative import DiffusionHead, FlowHead, GenerativeHead, Guidance
from ..nn.heads import PlaceDecoder
from ..nn.readout import to_image, to_patches
from ..nn.sampling import ClassTable, drop_class, told_labels
from .pixels import patch_shape_of

LEAST, CENTRE, DEVIATION = 0.7, 1.0, 0.25  # of the share of patches that is masked
NOISE = 32  # stream of random numbers
GAIN = 0.02  # below, the image tells almost nothing about its hidden patches


@OBJECTIVES.register("mar")
class MarSettings(ObjectiveSettings):
    """Masked autoregression: hidden patches, drawn by a flow or a diffusion from those that are seen.

        r ~ normal(1, 0.25) between 0.7 and 1;  a random share r of the patches is masked
        h = decoder(transformer(z of the patches left, full attention), unknown elsewhere)
        loss = mean over masked patches x of the head's loss: for a flow |x - e - v((1 - t) e + t x, t, h)|^2 / V

    Pixels are brought to mean 0 and variance 1 by two numbers, measured on the first step's images.

    Attributes:
        head: "flow" (velocities) or "diffusion" (noise, as the paper).
        head_blocks: blocks of the small network that runs for each token (3 to 6 in the paper).
        head_width: width of the small network that runs for each token (1024 and more in the paper); null: the
            decoder's width.
        draws: noise samples for each target, each with its own time.
        num_classes: number of classes, to sample images of a class; 0 ignores labels.
        class_drop_rate: share of images trained without their class, which guidance needs.
        decoder_width: width of the decoder; in the paper as large as the encoder.
        decoder_layers: layers of the decoder.
        decoder_heads: attention heads of the decoder.
        ema_decay: decay of the averaged weights of decoder, head and classes, with which images are sampled (0.9999 in
            the paper; a short run follows faster); null: no average. Set train.ema_decay to the same for the backbone.

    Source:
        MAR (arXiv 2406.11838), sections 3 and 4. Ours draws a share for each image where the paper draws one a batch,
        so that a step does not depend on how it is divided; the encoder is NEPA's backbone with its begin latent, which
        carries the class, in place of 64 class tokens; and the target is pixels of patches, not those of a VAE.
    """

    defaults: ClassVar[OptimConfig] = OptimConfig(
        learning_rate=1e-3, weight_decay=0.02, warmup_rate=0.1, max_grad_norm=3.0
    )

    head: Literal["flow", "diffusion"] = "flow"
    head_blocks: int = Field(3, gt=0, le=MAX_LAYERS)
    head_width: int | None = Field(None, gt=0, le=MAX_WIDTH)
    draws: int = Field(4, ge=1, le=64)
    num_classes: int = Field(0, ge=0, le=10**6)
    class_drop_rate: float = Field(0.1, ge=0, le=1)
    decoder_width: int = Field(128, gt=0, le=MAX_WIDTH)
    decoder_layers: int = Field(2, gt=0, le=MAX_LAYERS)
    decoder_heads: int = Field(4, gt=0, le=MAX_WIDTH)
    ema_decay: float | None = Field(0.9999, ge=0, lt=1)

    def build(self, backbone: Backbone) -> "Mar":
        if self.decoder_width % self.decoder_heads:
            raise ConfigError(
                f"objective.decoder_heads {self.decoder_heads} does not divide decoder_width {self.decoder_width}"
            )
        return Mar(self, backbone)

    def draw(self, sample: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """input_mask [T]: masked patches. kept [1 + K], int64: the begin latent and, in random order, as many patches
        as are ever left; those that are masked in this image come last. class_dropped []: its label is not told."""
        num = len(sample["latent_mask"]) - 1
        masked = max(1, math.ceil(masked_share(generator) * num))
        order = 1 + torch.randperm(num, generator=generator)
        mask = torch.zeros(num + 1, dtype=torch.bool)
        mask[order[num - masked :]] = True
        most = num - math.ceil(LEAST * num)
        found = {"input_mask": mask, "kept": torch.cat((torch.zeros(1, dtype=torch.int64), order[:most]))}
        return found | (drop_class(self.class_drop_rate, generator) if self.num_classes else {})

    def usage(self, folder: str) -> str:
        told = " --class 0 --guidance 2" if self.num_classes else ""
        return f"nextembed sample {folder}{told} -o sheet.png"

    def verdict(self, history: History) -> Verdict:
        """By the reduction of the error, compared with a prediction that sees no patch."""
        found = [line["context_gain"] for line in history if "context_gain" in line]
        if not found:
            return Verdict("undecided", "No diagnostics were logged.")
        said = f"visible patches lower the error by {100 * found[-1]:.1f} % compared with predicting without them"
        if found[-1] < GAIN:
            return Verdict("undecided", f"Visible patches help little: {said}. Train longer.")
        return Verdict("learning", f"{said[0].upper()}{said[1:]}.")


def masked_share(generator: torch.Generator) -> float:
    """Draws from a normal distribution of mean 1 and deviation 0.25, truncated to [0.7, 1], by its inverse."""
    edges = torch.tensor([(LEAST - CENTRE) / DEVIATION, (1 - CENTRE) / DEVIATION], dtype=torch.float64)
    low, high = torch.special.ndtr(edges).tolist()
    place = low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64)
    return min(1.0, max(LEAST, CENTRE + DEVIATION * float(torch.special.ndtri(place))))


class Painter(nn.Module):
    """The parts after the backbone: decoder, head, and a vector for each class."""

    def __init__(self, settings: MarSettings, hidden_size: int, num_values: int):
        super().__init__()
        width = settings.decoder_width
        sizes = (width, settings.decoder_layers, settings.decoder_heads)
        self.decoder = PlaceDecoder(hidden_size, width, *sizes)
        kind = FlowHead if settings.head == "flow" else DiffusionHead
        self.head: GenerativeHead = kind(
            width, num_values, settings.head_width or width, settings.head_blocks, settings.draws
        )
        self.classes = ClassTable(settings.num_classes, hidden_size) if settings.num_classes else None

    def forward(self, backbone: Backbone, latents: Latents, kept: Tensor, valid: Tensor, labels: Tensor) -> Tensor:
        """Hidden states [B, P, D] of all patches.

        Args:
            backbone: reads what is kept.
            latents: of whole images, [B, T, D].
            kept: int64 [B, K], the begin latent first.
            valid: bool [B, K], which of these are seen.
            labels: int64 [B], IGNORE_LABEL where no class is told.
        """
        if self.classes is not None:
            first = latents.z[:, :1] + self.classes(labels)[:, None].to(latents.z.dtype)
            latents = latents._replace(z=torch.cat((first, latents.z[:, 1:]), 1))
        part = latents.take(kept)._replace(documents=valid.long())  # unseen patches are a document of their own
        hidden = backbone.encode(part, "full").last
        found: Tensor = self.decoder(hidden, kept, latents.coordinates, valid)
        return found[:, 1:]


class Mar(Objective):
    """The objective of `MarSettings`."""

    settings: MarSettings
    generates = True
    scale: Tensor
    measured: Tensor

    def __init__(self, settings: MarSettings, backbone: Backbone):
        super().__init__(settings)
        self.patch_shape = patch_shape_of(backbone, "mar")
        self.num_values = backbone.config.num_channels * self.patch_shape[0] * self.patch_shape[1]
        height, width = backbone.config.image_shape
        self.grid = (height // self.patch_shape[0], width // self.patch_shape[1])
        self.num_classes = settings.num_classes
        self.painter = Painter(settings, backbone.config.hidden_size, self.num_values)
        self.averages = settings.ema_decay is not None
        self.averaged = Teacher(self.painter) if self.averages else None
        self.register_buffer("scale", torch.tensor([0.0, 1.0]))  # mean and deviation of pixels
        self.register_buffer("measured", torch.tensor(False))

    @torch.no_grad()
    def prepare(self, backbone: Backbone, window: Sequence[Batch]) -> bool:
        """Measures mean and deviation of pixels, once, on all ranks."""
        if not bool(self.measured):
            pixels = torch.cat([batch["pixel_values"].flatten() for batch in window]).cpu().double()
            sums = torch.stack((torch.tensor(float(len(pixels))).double(), pixels.sum(), pixels.square().sum()))
            number, first, second = distributed.sum_over_ranks(sums).tolist()
            mean = first / number
            deviation = math.sqrt(max(second / number - mean**2, 1e-6))
            self.scale.copy_(torch.tensor([mean, deviation]))
            self.measured.fill_(True)
        return True

    def masked(self, batch: Batch) -> Tensor:
        """Patches to predict, bool [B, P]."""
        return (batch["input_mask"] & batch["latent_mask"])[:, 1:]

    def count_targets(self, batch: Batch) -> Tensor:
        return self.masked(batch).sum()

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        latents, masked = backbone.embed(batch), self.masked(batch)
        target = self.scaled(to_patches(batch["pixel_values"].float(), self.patch_shape))[masked]
        head = self.painter.head
        size = masked.shape[1] * head.draws * head.num_noise
        noise = normal(len(masked), size, NOISE, masked.device).view(*masked.shape, head.draws, -1)[masked]
        seen = (batch["latent_mask"] & ~batch["input_mask"]).gather(1, batch["kept"])
        labels = told_labels(batch, len(masked), masked.device)
        hidden = self.painter(backbone, latents, batch["kept"], seen, labels)[masked]
        loss, count, metrics = head.loss(hidden, target, noise).sum(), masked.sum(), None
        if self.diagnose:
            with torch.no_grad():
                begin = batch["kept"][:, :1]
                blind = self.painter(backbone, latents, begin, torch.ones_like(begin, dtype=torch.bool), labels)
                without = head.loss(blind[masked], target, noise).sum()
            metrics = {"context_gain": 1 - loss.detach() / without.clamp(min=1e-12)}
        return ObjectiveOutput(loss_sum=loss, num_targets=count, metrics=metrics)

    def scaled(self, patches: Tensor) -> Tensor:
        return (patches - self.scale[0]) / self.scale[1]

    def read(
        self, backbone: Backbone, batch: Batch, attention: Attention | None = None, output_layers: bool = False
    ) -> Hidden:
        return backbone.encode(backbone.embed(batch), attention or "full", output_layers)

    def after_step(self, backbone: Backbone, step: int, max_steps: int) -> None:
        """Moves the averaged weights; early in a run they follow closely."""
        if self.averaged is not None and self.settings.ema_decay is not None:
            self.averaged.follow(self.painter, decay_at(self.settings.ema_decay, step))

    @torch.no_grad()
    def sample(
        self,
        backbone: Backbone,
        condition: Batch,
        settings: SampleSettings | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples patches in random order, few at first: after step s of S a share cos(pi / 2 s / S) is left. Guidance
        grows linearly from none with the share that is done. Uses averaged weights if there are any. num_steps: by
        default a quarter of the patches, as in the paper (64 of 256).
        """
        settings = settings or SampleSettings()
        painter = self.painter
        if self.averaged is not None and self.draws_averaged:
            painter = cast(Painter, self.averaged.network)
        labels = condition["labels"]
        num, num_patches, device = len(labels), self.grid[0] * self.grid[1], labels.device
        order = torch.stack([torch.randperm(num_patches, generator=generator) for _ in range(num)]).to(device)
        told = [labels]
        if settings.guidance != 1 and self.num_classes:
            told.append(torch.full_like(labels, IGNORE_LABEL))
        patches = torch.zeros(num, num_patches, self.num_values, device=device)
        counts = drawn_after(num_patches, settings.num_steps or math.ceil(num_patches / 4))
        for start, end in pairwise(counts):
            latents = backbone.embed({"pixel_values": self.image(patches)})
            kept = F.pad(order[:, :start] + 1, (1, 0))
            seen, now = torch.ones_like(kept, dtype=torch.bool), order[:, start:end, None]
            scale = 1 + (settings.guidance - 1) * end / num_patches
            found = [painter(backbone, latents, kept, seen, own) for own in told]
            hidden = [h.gather(1, now.expand(-1, -1, h.shape[-1])).flatten(0, 1) for h in found]
            away = Guidance(hidden[1], scale) if len(hidden) > 1 else None
            new = painter.head.sample(hidden[0], generator, settings.temperature, away, settings.num_denoising_steps)
            patches.scatter_(1, now.expand(-1, -1, patches.shape[-1]), new.view(num, end - start, -1))
        return self.image(patches)

    def image(self, patches: Tensor) -> Tensor:
        """Scaled patches [B, P, V] to pixels [B, C, H, W]."""
        return to_image(patches * self.scale[1] + self.scale[0], self.grid, self.patch_shape)


def drawn_after(num_patches: int, num_steps: int) -> list[int]:
    """Number of patches that are done after each step, starting with 0, by the cosine schedule of MaskGIT (arXiv
    2202.04200); each step does at least one."""
    left = [math.floor(num_patches * math.cos(math.pi / 2 * step / num_steps)) for step in range(1, num_steps)]
    counts = [0]
    for own in (*left, 0):
        counts.append(min(num_patches, max(counts[-1] + 1, num_patches - own)))
        if counts[-1] == num_patches:
            break
    return counts
