"""Classification of images: evaluated by top-1 on the test split, with the best weights on validation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

from ..core.config import Part
from ..core.objective import Objective
from ..core.pretrained import load_pretrained
from ..core.scores import ClassScores
from ..core.types import IGNORE_LABEL, Role
from ..data.images import ImagePart
from ..data.labels import classes_to_learn
from ..errors import ConfigError, MissingSplit, NextEmbedError
from ..evaluation.classification import METRIC, QuickScore, score_classifier
from ..evaluation.probes.samples import keep_decoded
from ..evaluation.probes.sweep import ProbeConfig
from ..report import classification as sections
from ..report import page
from ..report.view import RunView
from ..training.watch import Probe, Say
from .base import SPLITS, OpenRun, RunSettings, Task, finish_with, register, scored_folder, weights_of


@register
class Classification(Task):
    name: ClassVar[str] = "classification"
    metric: ClassVar[str | None] = METRIC
    lora: ClassVar[str] = "[query, value]"

    def class_names(self, data: Part) -> list[str]:
        return classes_to_learn(images_of(data))

    def quick(
        self, config: RunSettings, backbone: PreTrainedModel, objective: Objective, loading: Mapping[str, Any], say: Say
    ) -> Probe:
        """Raises ConfigError if there is no validation split for choosing weights, or if it has no labels."""
        try:
            samples = samples_of(config.data, "validation", backbone.config, config.probe.num_validation)
        except MissingSplit as err:
            raise ConfigError(
                f"{err} The best weights are chosen on validation images: name their split (data.validation), "
                "hold out some training images with data.validation_rate=0.1, or choose none with "
                "train.probe_steps=null"
            ) from None
        kept = keep_decoded(samples)
        if all(kept[i]["label"] == IGNORE_LABEL for i in range(len(kept))):
            raise ConfigError(
                "data: the validation images have no labels; set train.probe_steps=null to choose no weights"
            )
        return QuickScore(kept, config.probe.batch_size, config.probe.precision)

    def finish(self, run: OpenRun, say: Say) -> dict[str, Any]:
        """Writes scores.json: the best weights on the test split, else on validation."""
        scores = finish_with(score, run, say)
        return {} if scores is None else {"top1": scores.top1, "top5": scores.top5}

    def sections(self, view: RunView, run: OpenRun, decoders: Sequence[str | Path]) -> list[str]:
        config: Any = None
        try:
            config = load_pretrained(AutoConfig, scored_folder(run))  # without its weights
        except NextEmbedError as err:
            view.missing.append(f"There is no model to look at: {err}.")

        def pictures(scores: ClassScores) -> list[sections.Picture]:
            if config is None:
                raise ConfigError("there is no model to tell their size")
            return sections.pictures_of(scores, run.source(), config, view.settings.probe.num_test)

        return [
            sections.header(view),
            page.missing(view),
            sections.answers(view, pictures),
            page.curves(view),
            sections.what_was_trained(view),
        ]

    def summary(self, run: OpenRun) -> list[str]:
        scores = run.scores()
        return [scores.sentence() if scores is not None else "Nothing was scored."]

    def usage(self, run: OpenRun, folder: str) -> str:
        model = "best" if (run.dir / "best").is_dir() else "model"
        if not (run.dir / model / "preprocessor_config.json").is_file():
            return f"nextembed evaluate {folder}"  # for clips, which image pipelines cannot read
        use = f'transformers.pipeline("image-classification", model="{folder}/{model}")'
        return f"import nextembed, transformers; {use}"


def score(
    run: OpenRun, data: Part | None = None, config: ProbeConfig | None = None, splits: Sequence[str] = SPLITS
) -> ClassScores:
    """Scores of a classifier on labelled images.

    Args:
        run: opened; of a run the best weights count, else averaged, else raw ones.
        data: None takes the run's own.
        config: on how many images; None takes the run's own.
        splits: the first of these that the data has is taken.

    Raises:
        ConfigError: no classifier, splits that are not there, or data with other classes.
    """
    data, config = data if data is not None else run.source(), config if config is not None else run.probe_settings()
    folder = scored_folder(run)
    model = run.model(run.saved().name_of(folder), kind=AutoModelForImageClassification)
    samples, split = first_split(data, splits, model.config, config)
    found = score_classifier(model, samples, split, config.batch_size, config.precision)
    for error in found.errors:
        if error.index is not None:
            error.key = str(samples[error.index]["key"])
    found.weights, found.step = weights_of(folder)
    return found


def images_of(data: Part) -> ImagePart:
    """Data of images with classes. Raises ConfigError for others."""
    if not isinstance(data, ImagePart):
        raise ConfigError(f"data of kind {data.kind} has no classes of images")
    return data


def samples_of(data: Part, split: str, model_config: Any, num_samples: int | None = None) -> Any:
    """Labelled images of a split, resized to the model's size. Raises ConfigError for data without images."""
    sizes = {"image_size": model_config.image_shape[0], "num_channels": model_config.num_channels}
    return images_of(data).eval_samples(cast(Role, split), num_samples=num_samples, **sizes)


def first_split(data: Part, splits: Sequence[str], model_config: Any, config: ProbeConfig) -> tuple[Any, str]:
    """Samples of the first existing split, and its name."""
    for name in splits:
        try:
            return samples_of(data, name, model_config, config.num_test), name
        except MissingSplit:
            if len(splits) == 1:
                raise
    raise ConfigError(f"data: there is no {' or '.join(splits)} split to score on")
