"""From a fine-tuned run or checkpoint to its scores."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageClassification

from ..core.quiet import no_progress_bar
from ..errors import ConfigError
from .classify import ClassScores, QuickScore, check_same_classes, score_classifier
from .loading import keep_decoded
from .probes import ProbeConfig

SPLITS = ("test", "validation")


def quick_score(data: Any, config: ProbeConfig, model_config: Any) -> QuickScore:
    """What a run calls every `train.probe_steps`, on its validation split.

    Raises ConfigError if there is no validation split to choose weights on.
    """
    samples = read_samples(data, "validation", model_config, config.num_validation)
    return QuickScore(keep_decoded(samples), config.batch_size)


def score_checkpoint(
    path: str | Path, data: Any, config: ProbeConfig | None = None, split: str | None = None
) -> ClassScores:
    """Scores of a run folder (its best weights), a checkpoint or a saved classifier on labelled images.

    data: a data config. split: "test", else "validation", where None. Raises ConfigError for a path without a
    classifier, a split that is not there, or data with other classes.
    """
    config = config or ProbeConfig()
    folder = finetuned_folder(path)
    model = load_classifier(folder)
    samples, split = _split_of(data, split, model.config, config)
    check_same_classes(model, samples.class_names)
    found = score_classifier(model, samples, samples.class_names, split, config.batch_size, config.precision)
    for error in found.errors:
        error["key"] = samples[error.pop("index")]["key"]
    score_file = folder / "score.json"
    score = json.loads(score_file.read_text()) if score_file.is_file() else {}
    found.weights = score.get("weights", "ema" if folder.name == "ema" else "raw")
    found.step = score.get("step")
    return found


def finetuned_folder(path: str | Path) -> Path:
    """The model folder of a run (best, else averaged, else final weights), or the path itself if it is one."""
    path = Path(path)
    for folder in (path, path / "best", path / "ema", path / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise ConfigError(f"{path} holds no model" if path.exists() else f"no such run or checkpoint: {path}")


def load_classifier(folder: Path) -> Any:
    """A classifier on the accelerator if there is one. Raises ConfigError if the folder holds none."""
    importlib.import_module("..models.nepa", __package__)  # registers the model with the Auto classes
    values = json.loads((folder / "config.json").read_text())
    kinds = values.get("architectures") or []
    if not any("ForImageClassification" in kind for kind in kinds):
        raise ConfigError(f"{folder} holds a {', '.join(kinds) or 'model'}, which is no image classifier")
    try:
        with no_progress_bar():
            model = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as err:
        raise ConfigError(f"cannot load the model in {folder}: {str(err).strip().splitlines()[0]}") from err
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return model.to(device).eval()


def read_samples(data: Any, split: str, model_config: Any, num_samples: int | None = None) -> Any:
    """Labelled images of a split, resized to the model's size."""
    sizes = {"image_size": model_config.image_shape[0], "num_channels": model_config.num_channels}
    return data.eval_samples(split, num_samples=num_samples, **sizes)


def _split_of(data: Any, split: str | None, model_config: Any, config: ProbeConfig) -> tuple[Any, str]:
    for name in (split,) if split else SPLITS:
        try:
            return read_samples(data, name, model_config, config.num_test), name
        except ConfigError as err:
            if split or "split" not in str(err):
                raise
    raise ConfigError("data: there is neither a test nor a validation split to score on")
