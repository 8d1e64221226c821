"""From a fine-tuned run or checkpoint to its scores."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageClassification

from ..core.pretrained import load_pretrained
from ..core.run_folder import read_model_file, weights_folders
from ..core.saved import load
from ..core.scores import BestScore, ClassScores
from ..core.types import IGNORE_LABEL
from ..errors import ConfigError, MissingSplit
from .classification import QuickScore, score_classifier
from .probes.loading import keep_decoded
from .probes.sweep import ProbeConfig

SPLITS = ("test", "validation")


def quick_score(data: Any, config: ProbeConfig, model_config: Any) -> QuickScore:
    """What a run calls every `train.probe_steps`, on its validation split.

    Raises ConfigError if there is no validation split to choose weights on, or it has no labels.
    """
    try:
        samples = read_samples(data, "validation", model_config, config.num_validation)
    except MissingSplit as err:
        raise ConfigError(
            f"{err} The best weights are chosen on validation images: name their split (data.validation), or keep some "
            "of the training images apart with data.validation_rate=0.1; train.probe_steps=null chooses none"
        ) from None
    kept = keep_decoded(samples)
    if all(kept[i]["label"] == IGNORE_LABEL for i in range(len(kept))):
        raise ConfigError("data: the validation images have no labels; train.probe_steps=null chooses no weights")
    return QuickScore(kept, config.batch_size, config.precision)


def score_checkpoint(
    path: str | Path, data: Any, config: ProbeConfig | None = None, splits: Sequence[str] = SPLITS
) -> Any:
    """Scores of a run folder (its best weights), a checkpoint or a saved model on labelled images: `ClassScores` of a
    classifier, `SegmentScores` of a segmenter.

    data: a data config. splits: the first of these that the data has is taken. Raises ConfigError for a path without
    such a model, splits that are not there, or data with other classes.
    """
    config = config or ProbeConfig()
    folder = finetuned_folder(path)
    importlib.import_module("nextembed.evaluation.segmented")  # registers its scorer
    if (kind := architecture(folder)) not in SCORERS:
        raise ConfigError(f"{folder} holds no fine-tuned model that can be scored (it is a model {kind})")
    found = SCORERS[kind](folder, data, config, splits)
    best = load(BestScore, file) if (file := folder / "score.json").is_file() else BestScore()
    found.weights = best.weights or ("ema" if folder.name == "ema" else "raw")
    found.step = best.step
    return found


def score_classes(folder: Path, data: Any, config: ProbeConfig, splits: Sequence[str]) -> ClassScores:
    """Scores of an image classifier's folder, with the keys of its surest mistakes."""
    model = load_classifier(folder)
    samples, split = _first_split(data, splits, model.config, config)
    found = score_classifier(model, samples, split, config.batch_size, config.precision)
    for error in found.errors:
        if error.index is not None:
            error.key = str(samples[error.index]["key"])
    return found


# What scores a model, by what it is for.
SCORERS: dict[str, Callable[[Path, Any, ProbeConfig, Sequence[str]], Any]] = {
    "ForImageClassification": score_classes,
}


def finetuned_folder(path: str | Path) -> Path:
    """The model folder of a run (best, else averaged, else final weights, else those of the newest checkpoint), or the
    path itself if it is one. Raises ConfigError if there is none."""
    path = Path(path)
    for folder in (path, path / "best"):
        if (folder / "config.json").is_file():
            return folder
    found = weights_folders(path)
    return found.get("ema") or found["raw"]


def architecture(folder: Path) -> str:
    """What the model in a folder is for: the last words of its class, e.g. "ForImageClassification"."""
    name = next(iter(read_model_file(folder).architectures or []), "")
    return name[name.find("For") :] if "For" in name else name


def load_classifier(folder: Path) -> Any:
    """A classifier on the accelerator if there is one. Raises ConfigError if it cannot be loaded."""
    importlib.import_module("nextembed.models.nepa")  # registers the model with the Auto classes
    model = load_pretrained(AutoModelForImageClassification, folder)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return model.to(device).eval()


def read_samples(data: Any, split: str, model_config: Any, num_samples: int | None = None) -> Any:
    """Labelled images of a split, resized to the model's size."""
    sizes = {"image_size": model_config.image_shape[0], "num_channels": model_config.num_channels}
    return data.eval_samples(split, num_samples=num_samples, **sizes)


def _first_split(data: Any, splits: Sequence[str], model_config: Any, config: ProbeConfig) -> tuple[Any, str]:
    for name in splits:
        try:
            return read_samples(data, name, model_config, config.num_test), name
        except MissingSplit:
            if len(splits) == 1:
                raise
    raise ConfigError(f"data: there is no {' or '.join(splits)} split to score on")
