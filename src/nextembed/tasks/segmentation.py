"""Segmentation: evaluated by mIoU on the test split, with the best weights on validation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from transformers import AutoModelForSemanticSegmentation, PreTrainedModel

from ..core.config import Part
from ..core.objective import Objective
from ..core.scores import SegmentScores
from ..core.types import Role
from ..data.masks import MaskPart, classes_to_segment
from ..errors import ConfigError, MissingSplit, NextEmbedError
from ..evaluation.probes.samples import keep_decoded
from ..evaluation.probes.sweep import ProbeConfig
from ..evaluation.segmentation import METRIC, Counts, QuickSegment, score_segmenter, window_of
from ..models.nepa.segmenter import trunk_config
from ..report import page
from ..report import segmentation as sections
from ..report.view import RunView, looking
from ..training.watch import Probe, Say
from .base import SPLITS, OpenRun, RunSettings, Task, finish_with, register, scored_folder, weights_of


@register
class Segmentation(Task):
    name: ClassVar[str] = "segmentation"
    metric: ClassVar[str | None] = METRIC
    lora: ClassVar[str] = "[query, value]"

    def class_names(self, data: Part) -> list[str]:
        return classes_to_segment(masks_of(data))

    def quick(
        self,
        config: RunSettings,
        backbone: PreTrainedModel,
        objective: Objective,
        loading: Mapping[str, object],
        say: Say,
    ) -> Probe:
        """Raises ConfigError if there is no validation split to choose on, MissingExtra without torchmetrics."""
        Counts(2)  # a missing torchmetrics is found before training, not at the first probe
        samples = samples_of(config.data, "validation", backbone, config.probe.num_validation)
        return QuickSegment(keep_decoded(samples), config.probe.stride, config.probe.batch_size)

    def finish(self, run: OpenRun, say: Say) -> dict[str, Any]:
        """Writes scores.json: the best weights on the test split, else on validation."""
        scores = finish_with(score, run, say)
        return {} if scores is None else dict(scores.metrics())

    def sections(self, view: RunView, run: OpenRun, decoders: Sequence[str | Path]) -> list[str]:
        overlays: sections.Overlays | None = None
        try:
            with looking(run.dir):
                model = run.model(best_weights(run), kind=AutoModelForSemanticSegmentation, device="cpu")
                overlays = sections.look(model, run.source(), view.settings.probe.stride)
        except NextEmbedError as err:
            view.missing.append(f"There are no pictures: {err}.")
        return [
            sections.header(view, overlays),
            page.missing(view),
            sections.answers(view, overlays),
            page.curves(view),
            page.warnings(view),
            sections.what_was_trained(view, overlays),
        ]

    def summary(self, run: OpenRun) -> list[str]:
        scores = run.scores()
        return [scores.sentence() if scores is not None else "Nothing was scored."]

    def usage(self, run: OpenRun, folder: str) -> str:
        model = "best" if (run.dir / "best").is_dir() else "model"
        use = f'transformers.pipeline("image-segmentation", model="{folder}/{model}")'
        return f"import nextembed, transformers; {use}"


def best_weights(run: OpenRun) -> str:
    """The best weights of a run: best on validation, else averaged, else raw."""
    folders = run.saved().folders
    return next(name for name in ("best", "ema", "raw") if name in folders)


def score(
    run: OpenRun, data: Part | None = None, config: ProbeConfig | None = None, splits: Sequence[str] = SPLITS
) -> SegmentScores:
    """Scores of a segmenter on images with masks. Arguments as of `classification.score`.

    Raises:
        ConfigError: data without masks or with other classes, or if it has none of the splits.
    """
    data, config = data if data is not None else run.source(), config if config is not None else run.probe_settings()
    if not isinstance(data, MaskPart):
        raise ConfigError(
            f"data of kind '{data.kind}' has no masks; instead of --data give data.kind=segmentation "
            "data.source=... data.classes=[...]"
        )
    folder = scored_folder(run)
    model = run.model(run.saved().name_of(folder), kind=AutoModelForSemanticSegmentation)
    check_classes(model, data.class_names())
    for split in splits:
        try:
            samples = samples_of(data, split, model, config.num_test)
        except MissingSplit:
            continue
        found = score_segmenter(
            model, samples, samples.class_names, split, config.stride, config.batch_size, config.precision
        )
        found.weights, found.step = weights_of(folder)
        return found
    raise ConfigError(f"data: there is no {' or '.join(splits)} split to score on")


def check_classes(model: Any, class_names: list[str]) -> None:
    """Raises ConfigError unless a segmenter's classes are those of the data, in the same order."""
    own = [str(model.config.id2label[i]) for i in sorted(model.config.id2label)]
    if own != list(class_names):
        at = next((i for i, (a, b) in enumerate(zip(own, class_names)) if a != b), min(len(own), len(class_names)))
        ours, theirs = (names[at] if at < len(names) else "nothing" for names in (own, class_names))
        raise ConfigError(
            f"the class list does not match the head: it has {len(class_names)} classes, the model {len(own)}; "
            f"class {at} is '{theirs}' in the data, '{ours}' in the model"
        )


def masks_of(data: Part) -> MaskPart:
    """Data with masks. Raises ConfigError for others."""
    if not isinstance(data, MaskPart):
        raise ConfigError(f"data of kind '{data.kind}' has no masks")
    return data


def samples_of(data: Part, split: str, model: Any, num_samples: int | None = None) -> Any:
    """Images of a split with their masks, at the model's size. Raises ConfigError for data without masks."""
    config = trunk_config(model.config)
    return masks_of(data).eval_samples(
        cast(Role, split), image_size=window_of(model), num_channels=config.num_channels, num_samples=num_samples
    )
