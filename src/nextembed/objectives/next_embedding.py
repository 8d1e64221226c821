"""Next-embedding prediction: NEPA, with switches for its ablations and later variants.

With the defaults this is NEPA's Algorithm 1 (arXiv 2512.16922):

    z = embed(image)                            # latents
    h = transformer(z)                          # causal: h[t] sees z[<= t]
    loss = -cosine(h[:, :-1], stop_gradient(z[:, 1:]))
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol, cast, runtime_checkable

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from ..core.objective import OBJECTIVES, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.randomness import normal
from ..core.sizes import MAX_WIDTH
from ..core.types import (
    BEGIN,
    AttentionMode,
    Backbone,
    Batch,
    CountsLatents,
    Hidden,
    Latents,
    LayeredConfig,
    Scorer,
    Scoring,
    ScoringBackbone,
    SizedConfig,
)
from ..errors import ConfigError
from ..nn import losses
from ..nn.diagnostics import diagnose, lasting_warnings, verdict
from ..nn.ema import Teacher
from ..nn.read_noise import noised

DIRECTIONS = 16  # stream of random numbers


@OBJECTIVES.register("next_embedding")
class NextEmbeddingSettings(ObjectiveSettings):
    """Switches of next-embedding prediction; the defaults are the paper's.

    It is for images (NEPA) and for packed documents of any modality (Omni) alike.

    Attributes:
        shift: predict the next latent; False compares each position with itself (the paper's failing ablation).
        stop_gradient: no gradient into the targets; False collapses.
        causal: attention of the autoregressor.
        input_mask_rate: share of patches hidden from the autoregressor (they stay targets); drawn for each image.
        context_drop_rate: share of documents in which everything before the last signal is neither seen (the
            latent that ends a document is read in its place) nor a target; guidance needs it.
        input_noise: noise on continuous latents that the autoregressor reads, not on those that it predicts: its
            largest standard deviation, in units of a latent's root mean square; see `nn.read_noise`. It makes a model
            robust to its own samples.
        target: prediction target: "latents" | "teacher" (an EMA copy of the backbone) | "hidden" (the backbone's own
            layer `target_layer`).
        target_layer: layer of the teacher or of the backbone; 0 is the latents, -1 the last layer.
        teacher_decay: decay of the EMA teacher, for each optimizer step.
        distance: between prediction and target: "cosine" | "mse" | "smooth_l1" | "info_nce" (the true target among the
            patches of its image) | "sigreg" (squared error in a projected space kept Gaussian by SIGReg, no
            stop-gradient; LeNEPA) | "vocabulary" (Omni only: where the target is a row of a table, as tokens are,
            cross-entropy of a softmax over cosines with all rows, with a learned temperature; elsewhere cosine, or the
            likelihood if there is a density) | "likelihood" (Omni with a density: -log of the density relative to the
            uniform one, in nats).
        stop_gradient_table: whether the softmax of "vocabulary" trains the table only through what it feeds in; False
            trains it as an output, too, as GPT-2 does.
        weights: factors of the distance, by modality, e.g. {text: 2}; "begin" are the latents that start a segment; 1
            for those not given. For balance only.
        temperature: temperature of info_nce's softmax.
        sigreg_weight: factor of SIGReg beside the squared error of "sigreg".
        sigreg_width: width of the projected space of "sigreg".
        sigreg_directions: random directions it is measured along.
        steps_ahead: how far ahead it predicts, or several distances at once; each k beyond the first gets a linear head
            of its own.
        every_layer: add the mean loss of the layers before the last.
    """

    also_for: ClassVar[tuple[str, ...]] = ("multimodal",)
    attends: ClassVar[AttentionMode] = "causal"

    shift: bool = True
    stop_gradient: bool = True
    causal: bool = True
    input_mask_rate: float = Field(0.0, ge=0, lt=1)
    context_drop_rate: float = Field(0.0, ge=0, lt=1)
    input_noise: float = Field(0.0, ge=0, le=10)
    target: Literal["latents", "teacher", "hidden"] = "latents"
    target_layer: int = 0
    teacher_decay: float = Field(0.996, ge=0, le=1)
    distance: Literal["cosine", "mse", "smooth_l1", "info_nce", "sigreg", "vocabulary", "likelihood"] = "cosine"
    stop_gradient_table: bool = False
    weights: dict[str, Annotated[float, Field(ge=0, le=1e6)]] = {}
    temperature: float = Field(0.1, ge=1e-4, le=1e4)
    sigreg_weight: float = Field(0.1, ge=0, le=1e6)
    sigreg_width: int = Field(128, gt=0, le=MAX_WIDTH)
    sigreg_directions: int = Field(64, gt=0, le=MAX_WIDTH)
    steps_ahead: list[int] = [1]
    every_layer: bool = False

    @field_validator("steps_ahead", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return [value] if isinstance(value, int) else value

    @model_validator(mode="after")
    def _fits(self) -> "NextEmbeddingSettings":
        if not self.steps_ahead or min(self.steps_ahead) < 1 or len(set(self.steps_ahead)) < len(self.steps_ahead):
            raise ValueError(f"steps_ahead {self.steps_ahead} should be different whole numbers from 1")
        if not self.shift and self.steps_ahead != [1]:
            raise ValueError("shift=false compares each position with itself; leave steps_ahead at 1")
        if self.target == "hidden" and self.target_layer == 0:
            raise ValueError("target=hidden needs target_layer other than 0 (0 is the latents: target=latents)")
        return self

    def build(self, backbone: Backbone) -> "NextEmbedding":
        """Makes the objective.

        Args:
            backbone: the network that is trained.

        Returns:
            The module.

        Raises:
            ConfigError: the backbone has too few layers or latents for these settings.
        """
        if not isinstance(backbone.config, LayeredConfig):
            raise ConfigError(
                "objective next_embedding needs model.kind=vit_nepa or omni, or a model of your own of the same form"
            )
        num_layers = backbone.config.num_hidden_layers
        if not -num_layers - 1 <= self.target_layer <= num_layers:
            raise ConfigError(f"objective.target_layer {self.target_layer}: the model has layers 0 to {num_layers}")
        if self.target == "hidden" and self.target_layer == -num_layers - 1:
            raise ConfigError("objective.target_layer: layer 0 is the latents: target=latents")
        longest, length = max(self.steps_ahead), latents_of_an_image(backbone)
        if length < 3:
            raise ConfigError(
                "objective: an image of one patch has no next patch; set model.patch_size to half of image_size or less"
            )
        if longest >= length:
            raise ConfigError(f"objective.steps_ahead {longest}: an image has only {length} latents")
        self._check_scoring(backbone)
        return NextEmbedding(self, backbone)

    def draw(self, sample: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Draws what is hidden from the model in one sample.

        Args:
            sample: with latent_mask [T]; of documents also document_ids and kinds [T].
            generator: seeded for this sample.

        Returns:
            input_mask bool [T]: each patch with probability `input_mask_rate`, the begin token never. For documents,
            with probability `context_drop_rate`, everything before the last signal, and latent_mask without it.
        """
        if "kinds" in sample and self.context_drop_rate > 0:
            return self._without_context(sample, generator)
        if self.input_mask_rate == 0:
            return {}
        mask = torch.rand(1, len(sample["latent_mask"]), generator=generator)[0] < self.input_mask_rate
        mask[0] = False
        return {"input_mask": mask}

    def _without_context(self, sample: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """A begin latent stands before each signal; one at the end of a document only ends it."""
        begins = (sample["kinds"][:-1] == BEGIN).nonzero()[:, 0]
        first = int(begins[-1]) if len(begins) else 0
        dropped = bool(torch.rand((), generator=generator) < self.context_drop_rate)
        places = torch.arange(len(sample["kinds"]))
        mask = (places < first) & dropped
        return {"input_mask": mask, "latent_mask": sample["latent_mask"] & ((places > first) | (not dropped))}

    def warnings(self, history: History) -> list[str]:
        """Warnings of copying and collapse that last; see `nn.diagnostics`.

        Args:
            history: logged lines, oldest first.

        Returns:
            The sentences; empty if nothing is wrong.
        """
        return lasting_warnings(history)

    def verdict(self, history: History) -> Verdict:
        """Learning, copying or collapsed, from cosines and ranks; see `nn.diagnostics`.

        Args:
            history: logged lines, oldest first.

        Returns:
            A word and a sentence.
        """
        return verdict(history)

    def scoring(self) -> Scoring:
        """What a backbone needs to know about the comparison of targets."""
        return Scoring(self.distance, self.weights, self.stop_gradient_table)

    def _check_scoring(self, backbone: Backbone) -> None:
        """Some distances need a backbone that scores targets itself, and only one step ahead."""
        if isinstance(backbone, ScoringBackbone):
            backbone.check(self.scoring())
            if self.steps_ahead != [1] or not self.shift or self.target != "latents" or self.input_mask_rate > 0:
                raise ConfigError(
                    "objective: packed documents need steps_ahead=1, shift=true, target=latents and input_mask_rate=0"
                )
            return
        if self.context_drop_rate > 0:
            raise ConfigError("objective.context_drop_rate needs documents of several signals: model.kind=omni")
        if self.distance == "vocabulary":
            raise ConfigError("objective.distance=vocabulary needs a model with a table of tokens: model.kind=omni")
        if self.distance == "likelihood":
            raise ConfigError("objective.distance=likelihood needs model.density=von_mises_fisher or mixture")
        if self.weights:
            raise ConfigError("objective.weights needs a model of several modalities: model.kind=omni")


def latents_of_an_image(backbone: Backbone) -> float:
    """Infinite for a backbone that does not know it."""
    if not isinstance(backbone, CountsLatents) or not isinstance(backbone.config, SizedConfig):
        return math.inf
    return backbone.num_latents(backbone.config.image_size, backbone.config.image_size)


@runtime_checkable
class HoldsDiscrete(Protocol):
    """A backbone some of whose latents are rows of tables."""

    def continuous(self, batch: Batch) -> Tensor:
        """Latents that are not rows of tables, bool [B, T]."""


class PlainScorer:
    """Compares vectors only, as NEPA needs; see `core.types.Scorer`."""

    def __init__(self, settings: NextEmbeddingSettings):
        self.settings = settings

    def distance(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        match self.settings.distance:
            case "info_nce":
                return losses.info_nce(pred, target, mask, self.settings.temperature)
            case "sigreg":
                return losses.mse(pred, target)
            case name:
                return losses.regression_distance(pred, target, name)

    def diagnose(self, z: Tensor, h: Tensor, target: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return diagnose(z, h, h, target)


class NextEmbedding(Objective):
    """The objective of `NextEmbeddingSettings` on a backbone of width D."""

    settings: NextEmbeddingSettings

    def __init__(self, settings: NextEmbeddingSettings, backbone: Backbone):
        super().__init__(settings)
        self.steps = sorted(settings.steps_ahead) if settings.shift else [0]
        # The hidden state of the last latent is not needed: it predicts nothing, and no other latent attends to it.
        self.skip_last = settings.causal and settings.shift and settings.target != "hidden"
        self.stop_gradient = settings.stop_gradient and settings.distance != "sigreg"
        width = backbone.config.hidden_size
        self.heads = nn.ModuleDict({str(k): nn.Linear(width, width) for k in self.steps[1:]})
        self.projector = None
        if settings.distance == "sigreg":
            hidden = 2 * settings.sigreg_width
            self.projector = nn.Sequential(
                nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, settings.sigreg_width)
            )
        self.teacher = Teacher(cast(nn.Module, backbone)) if settings.target == "teacher" else None

    def count_targets(self, batch: Batch) -> Tensor:
        """Number of (position, step) pairs that are compared; layers do not count.

        Args:
            batch: as the loader gives it.

        Returns:
            int64 [].
        """
        mask = batch["latent_mask"]
        return torch.stack([mask[:, k:].sum() for k in self.steps]).sum()

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        # --8<-- [start:forward]
        latents = backbone.embed(batch)
        hidden = backbone.encode(
            self.seen(backbone, self.noisy(backbone, latents, batch), batch),
            attention="causal" if self.settings.causal else "full",
            output_layers=self.settings.every_layer or self.settings.target == "hidden",
        )
        target = self.target(backbone, latents, hidden, batch)
        if self.stop_gradient:
            target = target.detach()
        mask = batch.get("latent_mask")
        scorer = self.scorer(backbone, batch)
        count = self.count_targets(batch)
        loss = self.loss(hidden.last, target, mask, scorer)
        # --8<-- [end:forward]
        if self.settings.every_layer:
            before = [self.loss(layer, target, mask, scorer) for layer in hidden.layers[1:-1]]
            loss = loss + torch.stack(before).mean() if before else loss
        if self.projector is not None:
            loss = loss + self.settings.sigreg_weight * self.gaussianity(target, mask)
        metrics = None
        if self.diagnose:
            with torch.no_grad():
                metrics = scorer.diagnose(latents.z.detach(), hidden.last.detach(), target.detach(), mask)
        return ObjectiveOutput(loss_sum=loss, num_targets=count, metrics=metrics)

    def noisy(self, backbone: Backbone, latents: Latents, batch: Batch) -> Latents:
        """Latents with noise on the continuous ones, in training (`input_noise`); the begin latent of an image stays
        clean.

        Args:
            backbone: the network.
            latents: [B, T, D].
            batch: as the loader gives it.

        Returns:
            [B, T, D].
        """
        if self.settings.input_noise == 0 or not self.training:
            return latents
        if isinstance(backbone, HoldsDiscrete):
            where = backbone.continuous(batch)
        else:
            where = torch.ones(latents.z.shape[:2], dtype=torch.bool, device=latents.z.device)
            where[:, 0] = False
        return latents._replace(z=noised(latents.z, where, self.settings.input_noise, latents.documents))

    def seen(self, backbone: Backbone, latents: Latents, batch: Batch) -> Latents:
        """What the autoregressor reads: hidden patches are zero, a hidden context is what the backbone reads as absent,
        and the last latent is left out where nothing follows it.

        Args:
            backbone: the network.
            latents: [B, T, D].
            batch: with input_mask [B, T] where patches are hidden.

        Returns:
            [B, T or T - 1, D].
        """
        z = latents.z
        mask = batch.get("input_mask")
        if mask is not None:
            nothing = backbone.absent().to(z.dtype) if isinstance(backbone, ScoringBackbone) else z.new_zeros(())
            z = torch.where(mask[..., None], nothing, z)
        return latents._replace(z=z).until(z.shape[1] - 1 if self.skip_last else z.shape[1])

    def scorer(self, backbone: Backbone, batch: Batch) -> Scorer:
        """Compares predictions with targets: the backbone's own scorer, where its modalities decide how targets are
        scored.

        Args:
            backbone: the network.
            batch: as the loader gives it.

        Returns:
            The scorer.
        """
        if isinstance(backbone, ScoringBackbone):
            return backbone.scorer(batch, self.settings.scoring())
        return PlainScorer(self.settings)

    def target(self, backbone: Backbone, latents: Latents, hidden: Hidden, batch: Batch) -> Tensor:
        """The prediction targets.

        Args:
            backbone: the network.
            latents: [B, T, D].
            hidden: hidden states of `latents`.
            batch: as the loader gives it.

        Returns:
            [B, T, D].
        """
        if self.settings.target == "latents":
            return latents.z
        if self.settings.target == "hidden":
            return hidden.layers[self.settings.target_layer]
        assert self.teacher is not None
        teacher: Any = self.teacher.network
        with torch.no_grad():
            z = teacher.embed(batch)
            if self.settings.target_layer == 0:
                return z.z
            return teacher.encode(z, output_layers=True).layers[self.settings.target_layer]

    def loss(self, hidden: Tensor, target: Tensor, mask: Tensor | None, scorer: Scorer) -> Tensor:
        """Summed distance over positions and steps.

        Args:
            hidden: [B, T, D].
            target: [B, T, D].
            mask: bool [B, T], positions that are targets; None takes all.
            scorer: compares the two.

        Returns:
            [].
        """
        # --8<-- [start:shift]
        total = hidden.new_zeros((), dtype=torch.float32)
        project = self.projector or nn.Identity()
        target = project(target)
        for k in self.steps:
            head = self.heads[str(k)] if str(k) in self.heads else nn.Identity()
            pred, shifted = losses.shifted(project(head(hidden)), target, k)
            valid = None if mask is None else mask[:, k:]
            total = total + losses.masked_sum(scorer.distance(pred, shifted, valid), valid)[0]
        return total
        # --8<-- [end:shift]

    def gaussianity(self, target: Tensor, mask: Tensor | None) -> Tensor:
        """SIGReg of the projected latents of each image, weighted by its targets and summed.

        It is a separate term, added once: neither layers nor steps ahead change its weight.

        Args:
            target: [B, T, D].
            mask: bool [B, T]; None takes all positions.

        Returns:
            [].
        """
        assert self.projector is not None
        z = self.projector(target)
        num = self.settings.sigreg_directions
        directions = normal(len(z), z.shape[-1] * num, DIRECTIONS, z.device).unflatten(1, (-1, num))  # of each image
        valid = torch.ones(z.shape[:2], dtype=torch.bool, device=z.device) if mask is None else mask
        targets = torch.stack([valid[:, k:].sum(1) for k in self.steps]).sum(0)  # [B]
        return (losses.sigreg(z, directions) * targets).sum()

    def after_step(self, backbone: Backbone, step: int, max_steps: int) -> None:
        """Moves the teacher towards the backbone.

        Args:
            backbone: the network.
            step: number of the step that was taken, from 1.
            max_steps: steps of the run.
        """
        if self.teacher is not None:
            self.teacher.follow(cast(nn.Module, backbone), self.settings.teacher_decay)
