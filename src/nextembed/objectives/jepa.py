"""Joint-embedding prediction: a teacher's features of hidden blocks, from the remaining patches. I-JEPA for images,
V-JEPA for clips.

Shapes: B samples, P patches in raster order, T = P + 1 latents (the begin latent first), K patches of context, M
targets of up to Q patches each, D width.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..core.objective import OBJECTIVES, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.optim import OptimConfig
from ..core.sizes import COLOURS, MAX_LAYERS, MAX_WIDTH, TUBELET
from ..core.types import Attention, Backbone, Batch, Hidden, Latents, PatchConfig, by_name, reads_clips
from ..errors import ConfigError
from ..nn.diagnostics import COLLAPSED_RANK, COLLAPSED_STD, MAX_ROWS, effective_rank, spread
from ..nn.ema import Teacher, decay_at
from ..nn.heads import Predictor
from ..nn.losses import masked_sum, regression_distance
from .blocks import BlockSettings, block, places
from .pixels import EXPLAINED, grid_of, patch_shape_of

LASTING = 5  # logged lines
Rows = tuple[Tensor, Tensor, Tensor, Tensor]  # predictions, targets [N, D]; their position, sample and block [N]


class JepaSettings(ObjectiveSettings):
    """Settings that the JEPAs share.

    Attributes:
        distance: distance between predictions and targets.
        teacher_decay: decay of the teacher's average at the start; it rises linearly to 1 at the last step.
        predictor_width: width of the predictor, which is discarded after training.
        predictor_layers: layers of the predictor.
        predictor_heads: attention heads of the predictor.
    """

    defaults: ClassVar[OptimConfig] = OptimConfig(learning_rate=1e-3, weight_decay=0.05, warmup_rate=0.1)
    questions: ClassVar[tuple[str, ...]]  # kinds; each draws `context_KIND` [1 + K] and `targets_KIND` [M, Q]

    distance: Literal["smooth_l1", "l1", "mse"] = "smooth_l1"
    teacher_decay: float = Field(0.996, ge=0, le=1)
    predictor_width: int = Field(96, gt=0, le=MAX_WIDTH)
    predictor_layers: int = Field(3, gt=0, le=MAX_LAYERS)
    predictor_heads: int = Field(3, gt=0, le=MAX_WIDTH)

    def check(self, num_patches: int, blocks: BlockSettings) -> None:
        """Raises ConfigError for blocks or a predictor that do not fit."""
        blocks.check(num_patches, str(self.kind))
        if self.predictor_width % self.predictor_heads:
            raise ConfigError(
                f"objective.predictor_heads {self.predictor_heads} does not divide predictor_width "
                f"{self.predictor_width}"
            )

    def verdict(self, history: History) -> Verdict:
        """By the spread of the teacher's targets, and the share of it that is predicted; for clips also of its
        changes."""
        found = [line for line in history if "target_spread" in line]
        if not found:
            return Verdict("undecided", "No diagnostics were logged.")
        last = found[-1]
        far, rank, known = last["target_spread"], last["target_rank"], last["explained"]
        said = (
            f"{max(0, 100 * known):.1f} % of the variance of the teacher's features in hidden patches is "
            "predicted, beyond what their positions tell"
        )
        little = "the positions of patches"
        if (changes := last.get("changes_explained")) is not None:
            said += f", and {max(0, 100 * changes):.1f} % of how they change within a clip"
            known, little = changes, "what stays the same in a clip"
        said += f"; its targets have spread {far:.2f} of 1 and effective rank {rank:.1f}"
        if far < COLLAPSED_STD or rank < COLLAPSED_RANK:
            return Verdict(
                "collapsed",
                f"The teacher's features are nearly identical for all patches: {said}. Lower the learning rate.",
            )
        if known < EXPLAINED:
            return Verdict("undecided", f"Little is predicted beyond {little}: {said}. Train longer.")
        return Verdict("learning", f"{said}.")

    def warnings(self, history: History) -> list[str]:
        """Warnings of a lasting collapse; most runs come near one in their first steps."""
        found = [line for line in history if "target_spread" in line][-LASTING:]
        if len(found) < LASTING or any(self.verdict([line]).word != "collapsed" for line in found):
            return []
        last = found[-1]
        return [
            f"collapsed: the teacher's targets have spread {last['target_spread']:.2f} of 1 and effective rank "
            f"{last['target_rank']:.1f}; lower optim.learning_rate"
        ]


class Jepa(Objective):
    """Teacher, predictor and their diagnostics."""

    reads_itself = True  # of the teacher
    settings: JepaSettings

    def __init__(self, settings: JepaSettings, backbone: Backbone, num_axes: int):
        super().__init__(settings)
        self.teacher = Teacher(cast(nn.Module, backbone))
        sizes = (settings.predictor_width, settings.predictor_layers, settings.predictor_heads)
        self.predictor = Predictor(backbone.config.hidden_size, *sizes, num_axes, len(settings.questions))

    def valid(self, batch: Batch, question: str) -> Tensor:
        """Entries of `targets_KIND` that are patches, not padding, bool [B, M, Q]."""
        targets = by_name(batch)[f"targets_{question}"]
        mask = batch["latent_mask"].gather(1, targets.flatten(1)).view_as(targets)
        return mask & (targets > 0)

    def count_targets(self, batch: Batch) -> Tensor:
        """Number of (block, patch) pairs."""
        return torch.stack([self.valid(batch, question).sum() for question in self.settings.questions]).sum()

    def targets(self, batch: Batch) -> tuple[Tensor, Latents]:
        """The teacher's features of whole samples, normalised without parameters, [B, T, D], and its latents, which
        have the true coordinates of patches."""
        teacher = cast(Backbone, self.teacher.network)
        with torch.no_grad():
            latents = teacher.embed(batch)
            hidden = teacher.encode(latents, "full").last.float()
        return F.layer_norm(hidden, hidden.shape[-1:]), latents

    def predicted(self, backbone: Backbone, batch: Batch, question: int, coordinates: Tensor) -> Tensor:
        """Predictions for `targets_KIND`, [B, M, Q, D], from `context_KIND` alone.

        coordinates: of all latents, [B, T, A].
        """
        kind = self.settings.questions[question]
        context, targets = by_name(batch)[f"context_{kind}"], by_name(batch)[f"targets_{kind}"]
        hidden = backbone.encode(backbone.embed(batch).take(context), "full").last
        num = targets.shape[1]
        where = [at(coordinates, index) for index in (context, targets.flatten(1))]
        pred: Tensor = self.predictor(
            hidden.repeat_interleave(num, 0),
            where[0].repeat_interleave(num, 0),
            where[1].unflatten(1, targets.shape[1:]).flatten(0, 1),
            self.valid(batch, kind).flatten(0, 1),
            question,
        )
        return pred.unflatten(0, targets.shape[:2])

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        seen, latents = self.targets(batch)
        losses: list[Tensor] = []
        rows: list[Rows] = []
        for number, question in enumerate(self.settings.questions):
            index, valid = by_name(batch)[f"targets_{question}"], self.valid(batch, question)
            target = at(seen, index.flatten(1)).unflatten(1, index.shape[1:])
            pred = self.predicted(backbone, batch, number, latents.coordinates)
            losses.append(masked_sum(regression_distance(pred, target, self.settings.distance), valid)[0])
            if self.diagnose:
                sample = torch.arange(index.shape[0], device=index.device)[:, None, None] + number * index.shape[0]
                rows.append((pred[valid].detach().float(), target[valid], index[valid], sample.expand_as(index)[valid]))
        metrics = self.measured(rows, backbone) if self.diagnose else None
        return ObjectiveOutput(
            loss_sum=torch.stack(losses).sum(), num_targets=self.count_targets(batch), metrics=metrics
        )

    def measured(self, rows: list[Rows], backbone: Backbone) -> dict[str, Tensor]:
        """Diagnostics of predictions; for clips also of changes over time."""
        pred, target, index, sample = (torch.cat(part) for part in zip(*rows, strict=True))
        found = {
            "explained": explained(pred, target, index),
            "target_spread": spread(target),
            "target_rank": effective_rank(target[:MAX_ROWS]),
            "prediction_spread": spread(pred),
        }
        if isinstance(backbone.config, PatchConfig) and reads_clips(backbone.config):
            num = patches_of(backbone.config)
            at_rest = sample * num + (index - 1) % num  # a position of a block in a clip, at all times
            found["changes_explained"] = explained(changing(pred, at_rest), changing(target, at_rest), index)
        return found

    def read(
        self, backbone: Backbone, batch: Batch, attention: Attention | None = None, output_layers: bool = False
    ) -> Hidden:
        teacher = cast(Backbone, self.teacher.network)
        return teacher.encode(teacher.embed(batch), attention or "full", output_layers)

    def teacher_network(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.teacher.network)

    def after_step(self, backbone: Backbone, step: int, max_steps: int) -> None:
        """Moves the teacher towards the backbone."""
        start = self.settings.teacher_decay
        decay = start + (1 - start) * step / max(1, max_steps)
        self.teacher.follow(cast(nn.Module, backbone), decay_at(decay, step))


def patches_of(config: PatchConfig) -> int:
    """Patches of an image, or of a frame."""
    (height, width), (rows, columns) = config.image_shape, config.patch_shape
    return (height // rows) * (width // columns)


def at(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, K] of values [B, T, D], [B, K, D]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def explained(pred: Tensor, target: Tensor, index: Tensor) -> Tensor:
    """Share of the variance of targets [N, D] that is predicted, beyond what their positions `index` [N] explain, [].

    1 - error / variance around the mean of the targets at the same place, unbiased; positions that occur once do not
    count. Predictions from the position alone give at most about 0.
    """
    count = index.bincount()
    mean = target.new_zeros(len(count), target.shape[1]).index_add(0, index, target) / count.clamp(min=1)[:, None]
    several = count[index] > 1
    unbiased = count[index] / (count[index] - 1).clamp(min=1)
    variance = ((target - mean[index]).square().mean(-1) * unbiased)[several].sum()
    return 1 - (pred - target).square().mean(-1)[several].sum() / variance.clamp(min=1e-12)


def changing(values: Tensor, group: Tensor) -> Tensor:
    """Values [N, D] minus the mean of their group [N]."""
    _, inverse, count = group.unique(return_inverse=True, return_counts=True)
    mean = values.new_zeros(len(count), values.shape[1]).index_add(0, inverse, values) / count[:, None]
    return values - mean[inverse]


@OBJECTIVES.register("ijepa")
class IjepaSettings(JepaSettings):
    """A teacher's features of four blocks of an image, from other patches of it; each block is predicted separately.

        s = layer_norm(teacher(image))                               # the whole image, full attention
        h = transformer(z of the context patches, full attention)
        loss = mean over blocks and their patches of smooth_l1(predictor(h, places of the block), stop_gradient(s))
        teacher := decay teacher + (1 - decay) transformer           # after each step

    Attributes:
        blocks: the blocks that are predicted.
        context_scale: share of the image that the square block of the context covers.

    Source:
        I-JEPA (arXiv 2301.08243); smooth L1 as in its code (the paper writes "mse"). Ours has NEPA's backbone (rotary
        positions, a begin latent that is always seen). Each image has blocks of its own sizes; scale and aspect are two
        random numbers, and blocks reach the last row and column. The context is as large in all images, drawn from the
        patches that its block and no target holds: the paper cuts all contexts of a batch to the shortest, at 14 x 14
        patches about 0.28 of an image, by dropping what is lowest. The decay of the teacher also rises from 0.2 as (1 +
        step) / (10 + step), so that short runs do not keep their random start. Weight decay is constant, where the
        paper's rises from 0.04 to 0.4. Features are the teacher's.
    """

    questions: ClassVar[tuple[str, ...]] = ("block",)

    blocks: BlockSettings = BlockSettings()
    context_scale: tuple[float, float] = (0.85, 1.0)

    @model_validator(mode="after")
    def _range(self) -> "IjepaSettings":
        if not 0 < self.context_scale[0] <= self.context_scale[1] <= 1:
            raise ValueError(f"context_scale {list(self.context_scale)} should be [smallest, largest], in (0, 1]")
        return self

    def build(self, backbone: Backbone) -> "Jepa":
        patch_shape_of(backbone, "ijepa")
        self.check(patches_of(cast(PatchConfig, backbone.config)), self.blocks)
        return Jepa(self, backbone, num_axes=2)

    def draw(self, sample: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """context_block [1 + K], targets_block [M, Q], int64: indices of latents."""
        rows, columns = grid_of(sample)
        within = block(rows, columns, self.context_scale, (1.0, 1.0), generator)
        context, blocks = self.blocks.draw(rows, columns, generator, within)
        largest = min(rows * columns, self.blocks.largest(rows * columns))
        seen = places(context, self.blocks.num_context(rows * columns))
        return {"context_block": F.pad(seen, (1, 0)), "targets_block": places(blocks, largest)}


@OBJECTIVES.register("vjepa")
class VjepaSettings(JepaSettings):
    """A teacher's features of hidden parts of a clip, from the other parts; a part is hidden at all times.

        s = layer_norm(teacher(clip))                                # the whole clip, full attention
        for two masks: h = transformer(z of the context, full attention)
            loss = mean over hidden tubelets of |predictor(h, places, kind of mask) - stop_gradient(s)|
        teacher := decay teacher + (1 - decay) transformer           # after each step

    Attributes:
        short: the two masks: many small blocks, and few large ones. Each has its own vector in the predictor.
        long: the two masks: many small blocks, and few large ones. Each has its own vector in the predictor.

    Source:
        V-JEPA (arXiv 2404.08471), its masks and L1. Ours has NEPA's backbone, with rotary positions in time, height and
        width; a latent is a patch of two frames, as there. The context of a mask has the same number of patches in all
        clips, at all times, drawn from those that no block holds; the paper cuts the contexts of a batch to the
        shortest, which drops the last frames. The decay rises from 0.998 to 1, as there, and from 0.2 at the start, see
        `IjepaSettings`; weight decay is constant. Features are the teacher's.
    """

    questions: ClassVar[tuple[str, ...]] = ("short", "long")

    distance: Literal["smooth_l1", "l1", "mse"] = "l1"
    teacher_decay: float = Field(0.998, ge=0, le=1)
    short: BlockSettings = BlockSettings(num_blocks=8, scale=(0.15, 0.15), context_rate=0.25, min_context=1)
    long: BlockSettings = BlockSettings(num_blocks=2, scale=(0.7, 0.7), context_rate=0.1, min_context=1)

    def build(self, backbone: Backbone) -> "Jepa":
        if not isinstance(backbone.config, PatchConfig) or not reads_clips(backbone.config):
            raise ConfigError("objective vjepa needs clips: set model.kind=vit_nepa and model.num_frames, e.g. 8")
        for blocks in (self.short, self.long):
            self.check(patches_of(backbone.config), blocks)
        return Jepa(self, backbone, num_axes=3)

    def draw(self, sample: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """context_KIND [1 + K], targets_KIND [1, Q], int64, of both masks: indices of latents."""
        times = sample["pixel_values"].shape[0] // (COLOURS * TUBELET)
        num = (len(sample["latent_mask"]) - 1) // times  # patches of a frame
        rows, columns = grid_of({**sample, "latent_mask": sample["latent_mask"][: num + 1]})
        found = {}
        for kind, settings in zip(self.questions, (self.short, self.long), strict=True):
            context, blocks = settings.draw(rows, columns, generator)
            num_seen = settings.num_context(num)
            hidden = places(blocks.any(0).repeat(times)[None], (num - num_seen) * times)
            found[f"context_{kind}"] = F.pad(places(context.repeat(times), num_seen * times), (1, 0))
            found[f"targets_{kind}"] = hidden
        return found
