"""The contract of objectives: everything that can be trained on a backbone.

Each consists of two classes: its settings, plain values for run, loader and report, and the module that they build.
Shapes: B samples, T latents a sample, D latent width, K terms of a loss.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ..errors import ConfigError, NotGenerative
from .config import Config, Part, Registry
from .optim import OptimConfig
from .randomness import drawn_by
from .sizes import MAX_SIDE
from .types import Attention, AttentionMode, Backbone, Batch, Hidden, Metrics, Scoring, ScoringBackbone, SteppedBackbone

FOLDER = "objective"  # next to the model, for an objective that provides features itself
Accumulation = Literal["exact", "per micro batch"]
History = Sequence[Mapping[str, float]]  # logged lines, oldest first
ReadFeatures = Callable[[Backbone, Batch, Attention | None, bool], Hidden]  # as `Objective.read`
Folder = tuple[dict[str, Any], dict[str, Tensor]] | Callable[[Path], None]


class ViewSettings(Config):
    """Crops of each image that an objective compares.

    Attributes:
        num_global: number of large crops.
        global_scale: [smallest, largest] share of the image's area that they take.
        num_local: number of small crops.
        local_scale: [smallest, largest] share that these take.
        local_size: side of the small ones in pixels; the large ones have the model's size.

    Source:
        multi-crop (SwAV, arXiv 2006.09882).
    """

    num_global: int = Field(2, ge=1, le=64)
    global_scale: tuple[float, float] = (0.3, 1.0)
    num_local: int = Field(0, ge=0, le=64)
    local_scale: tuple[float, float] = (0.05, 0.3)
    local_size: int = Field(96, gt=0, le=MAX_SIDE)


class SampleSettings(Config):
    """How an objective samples new signals; each uses the settings that apply to it.

    Attributes:
        guidance: strength of classifier-free guidance: 0 samples without the class, 1 with the class, above 1 pushes
            further towards the class.
        temperature: sampling temperature; above 1 is more varied, 0 takes the most likely.
        top_k: sample each token from this many most likely ones; 0: all.
        top_p: sample each token from the most likely ones that together have this probability.
        num_steps: generation steps of an image whose tokens are drawn in random order; the objective's own if left out.
        num_denoising_steps: steps of a diffusion or flow head for each token; the objective's own if left out.

    Source:
        classifier-free guidance (arXiv 2207.12598), as u + s (c - u) of what comes without a class (u) and with it.
    """

    guidance: float = Field(1.0, ge=0, le=100)
    temperature: float = Field(1.0, ge=0, le=100)
    top_k: int = Field(0, ge=0, le=10**9)
    top_p: float = Field(1.0, gt=0, le=1)
    num_steps: int | None = Field(None, ge=1, le=10**5, json_schema_extra={"option": "--steps"})
    num_denoising_steps: int | None = Field(None, ge=1, le=10**5, json_schema_extra={"option": "--denoising-steps"})


class Verdict(NamedTuple):
    """word: "learning", "copying", "collapsed" or "undecided"; for what is judged by scores instead: "decoder",
    "readout", "classifier", "segmenter", "language model". sentence: why, in plain words with the figures."""

    word: str
    sentence: str


class ObjectiveSettings(Part):
    """Settings of an objective, and its properties that need no network.

    Attributes:
        defaults: what a recipe of this objective starts from.
        attends: default attention of a model that it trained: as in training.
        trains_backbone: False for what is trained on a frozen one.
        trained_parts: beginnings of the names of the parameters that it trains, if not all; the others are frozen.
    """

    defaults: ClassVar[OptimConfig] = OptimConfig()
    attends: ClassVar[AttentionMode] = "full"
    trains_backbone: ClassVar[bool] = True
    trained_parts: ClassVar[tuple[str, ...]] = ()

    @property
    def views(self) -> int | ViewSettings:
        """The crops of each image that it needs. A single one arrives as `pixel_values`; several as `global_views` and
        `local_views`, see `Batch`."""
        return 1

    @property
    def accumulation(self) -> Accumulation:
        """ "exact" if a step does not depend on how it is divided into micro batches; "per micro batch" for objectives
        that compare or mix the samples of a batch."""
        return "exact"

    def build(self, backbone: Backbone) -> "Objective":
        """Makes the objective. It reads from the backbone and changes nothing in it.

        Args:
            backbone: the network that is trained.

        Returns:
            The module.

        Raises:
            ConfigError: the backbone does not fit.
        """
        raise NotImplementedError

    def scoring(self) -> Scoring | None:
        """What a backbone that scores targets itself has to know; None if the objective scores its targets."""
        return None

    def draw(self, sample: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Random masks, orders and similar tensors of one sample, which are added to it. Called in the loaders'
        workers, also for each document before packing, with a generator seeded by (seed, epoch, key): the result
        depends on neither batch size nor ranks nor workers.

        Args:
            sample: tensors of one sample without batch axis: `latent_mask` [T], `pixel_values` [C, H, W], ...; of a
                document those with one row a position.
            generator: where every random number comes from.

        Returns:
            New tensors by name, of the same shape for all images; of documents [T, ...].
        """
        return {}

    def warnings(self, history: History) -> list[str]:
        """What is wrong now, one sentence each: "kind: what, and what to do".

        Args:
            history: logged lines, oldest first.

        Returns:
            The sentences; empty if nothing is wrong.
        """
        return []

    def verdict(self, history: History) -> Verdict:
        """What a run did, by its logged lines: is it learning, copying, collapsed?

        Args:
            history: logged lines, oldest first.

        Returns:
            A word and a sentence.
        """
        return Verdict("undecided", "No diagnostics were logged.")

    def usage(self, folder: str) -> str | None:
        """A command that uses a finished run.

        Args:
            folder: of the run.

        Returns:
            The command; None leaves it to the task.
        """
        return None


OBJECTIVES = Registry("objective", ObjectiveSettings)


def verdict_of(values: object, history: History) -> Verdict:
    """The verdict of an objective on a run. The config.yaml may be damaged, or name code that is not allowed.

    Args:
        values: the objective, or its values in config.yaml.
        history: logged lines, oldest first.

    Returns:
        A word and a sentence.
    """
    try:
        return OBJECTIVES.parse(values or "next_embedding").verdict(history)
    except ConfigError:
        return Verdict("undecided", "The settings of its objective cannot be read.")


@dataclass
class ObjectiveOutput(ModelOutput):
    """The output of an objective, for the trainer.

    Attributes:
        loss_sum: []: summed over targets; the trainer divides by the count over the accumulation window and all ranks.
        num_targets: []: number of targets in the sum. A loss of K terms has [K] of both, each divided by its own count.
        metrics: detached scalars, means over this batch, or (sum, count); None or empty when `diagnose` is off.
    """

    loss_sum: Tensor | None = None
    num_targets: Tensor | None = None
    metrics: Metrics | None = None


class Objective(nn.Module):
    """Everything that can be trained. It owns what only it needs: heads, projector, teacher.

    Attributes:
        diagnose: whether `forward` fills `metrics`; the trainer sets it on the steps that it logs.
        reads_itself: whether `read` takes features from another place than the backbone. Then the objective is saved
            with the model, in RUN/objective, and every probe, `embed` and the report read where it says.
        generates: whether `sample` draws signals. Then it is saved in the same way.
        num_classes: number of classes that `sample` can be conditioned on; 0: none.
        averages: whether it keeps running means of its own weights, to sample with.
        draws_averaged: whether `sample` uses these, where there are any; set when it is opened.
    """

    diagnose: bool = True
    reads_itself: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    num_classes: int = 0
    averages: bool = False
    draws_averaged: bool = True

    def __init__(self, settings: ObjectiveSettings):
        super().__init__()
        self.settings = settings

    def count_targets(self, batch: Batch) -> Tensor:
        """Number of targets of a batch, known before the forward pass.

        Args:
            batch: as the loader gives it.

        Returns:
            int64 [], or [K] for a loss of K terms.
        """
        raise NotImplementedError

    def forward(self, backbone: Backbone, batch: Batch) -> ObjectiveOutput:
        raise NotImplementedError

    def read(
        self, backbone: Backbone, batch: Batch, attention: Attention | None = None, output_layers: bool = False
    ) -> Hidden:
        """Features of a batch, which probes read, with as many layers as the backbone has: by default the backbone's
        hidden states.

        An objective with a better place for features (a teacher, a table of its own) overrides this and sets
        `reads_itself`.

        Args:
            backbone: the trained network.
            batch: as the loader gives it.
            attention: None takes the backbone's.
            output_layers: whether the hidden states of all layers are kept.

        Returns:
            h [B, T, D].
        """
        return backbone.encode(backbone.embed(batch), attention, output_layers)

    def sample(
        self,
        backbone: Backbone,
        condition: Batch,
        settings: SampleSettings | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples new signals, without gradients.

        Args:
            backbone: what it was trained on, in eval mode.
            condition: one row a signal, on the backbone's device: what is known of it. Of images `labels` [B], int64,
                below `num_classes`; IGNORE_LABEL where no class is said. What else a batch holds is not looked at.
            settings: None takes the defaults.
            generator: on the CPU; where all random numbers come from, in one fixed order. None: torch's own.

        Returns:
            Pixels [B, C, H, W] of the size that the model trains on, or values [B, ...] of another modality, float32,
            scaled as the model reads them.

        Raises:
            NotGenerative: This objective trains no model of signals.
        """
        raise NotGenerative(f"objective {self.settings.kind or type(self).__name__} does not generate")

    def prepare(self, backbone: Backbone, window: Sequence[Batch]) -> bool:
        """Measures what training starts from, on all ranks: scales, first clusters.

        Called before the first step of a run and after resuming, and again before the following steps until it returns
        True. Every rank has its own batches and has to take part in the same collective operations.

        Args:
            backbone: the network.
            window: all micro batches of the next step.

        Returns:
            Whether it is done.
        """
        return True

    def after_step(self, backbone: Backbone, step: int, max_steps: int) -> None:
        """Called after every optimizer step, for example to move the EMA teacher.

        Args:
            backbone: the network.
            step: number of the step that was taken, from 1.
            max_steps: steps of the run.
        """

    def teacher_network(self) -> PreTrainedModel | None:
        """The network that `read` uses, if it is another one of the backbone's class. Its weights are saved in
        RUN/teacher, next to RUN/model, as a start for fine-tuning."""
        return None

    def folders(self, state: dict[str, Tensor]) -> Mapping[str, Folder]:
        """What is saved next to RUN/model at the end, by folder name.

        Args:
            state: this objective's parameters and buffers by name, whole and on the CPU. An objective that provides
                features itself, or generates, is saved, so that it can do so again.

        Returns:
            By folder name: values of config.json and weights, or a function that writes into the new, empty folder.
        """
        if not (self.reads_itself or self.generates):
            return {}
        settings = self.settings.model_dump(mode="json", serialize_as_any=True)
        return {FOLDER: ({"kind": FOLDER, "reads_itself": self.reads_itself, "settings": settings}, state)}


class PretrainingModel(nn.Module):
    """Backbone and objective as one module for DDP, FSDP2, compile and checkpoints. A backbone that the objective does
    not train is frozen here and stays in eval mode; so are parts that it does not train, except for the mode.
    """

    def __init__(self, backbone: PreTrainedModel, objective: Objective):
        super().__init__()
        self.backbone = backbone
        self.objective = objective
        scoring = objective.settings.scoring()
        if scoring is not None and isinstance(backbone, ScoringBackbone):
            backbone.accept(scoring)
        self.frozen = not objective.settings.trains_backbone
        if self.frozen:
            backbone.requires_grad_(False).eval()
        for name, parameter in backbone.named_parameters() if (parts := objective.settings.trained_parts) else ():
            if not name.startswith(parts):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "PretrainingModel":
        super().train(mode)
        if self.frozen:  # features must not depend on random numbers
            self.backbone.eval()
        return self

    def forward(self, batch: Batch) -> ObjectiveOutput:
        with drawn_by(batch.get("seeds")):
            output: ObjectiveOutput = self.objective(self.backbone, batch)
        return output

    def prepare(self, window: Sequence[Batch]) -> bool:
        """Called before the first steps, see `Objective.prepare`.

        Args:
            window: all micro batches of the next step.

        Returns:
            Whether it is done.
        """
        return self.objective.prepare(cast(Backbone, self.backbone), window)

    def after_step(self, step: int, max_steps: int) -> None:
        """Called after every optimizer step, on every rank.

        Args:
            step: number of the step that was taken, from 1.
            max_steps: steps of the run.
        """
        self.objective.after_step(cast(Backbone, self.backbone), step, max_steps)
        if isinstance(self.backbone, SteppedBackbone) and not self.frozen:
            self.backbone.after_step()

    def inexact(self) -> str:
        """Why a step depends on how it is divided into micro batches, as a sentence; empty if it does not."""
        if self.objective.settings.accumulation != "exact":
            name = self.objective.settings.kind or type(self.objective).__name__
            return f"objective {name} compares or mixes the samples of a micro batch"
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules()):
            return "the model has batch norms, whose statistics are those of a micro batch"
        return ""
