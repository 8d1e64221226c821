"""From a run folder or a checkpoint to the model that is exported."""

from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from ..core.pretrained import load_pretrained
from ..core.run_folder import find_saved, read_model_file
from ..errors import ConfigError
from ..models import loading, nepa_spt
from ..models.nepa import ViTNepaConfig, ViTNepaForImageClassification, ViTNepaPreTrainedModel
from ..objectives.saved import ObjectiveFile, objective_beside

Task = Literal["features", "classification"]

MODEL_TYPES = (ViTNepaConfig.model_type, nepa_spt.SptNepaConfig.model_type)


class Loaded(NamedTuple):
    """A model in eval mode on the CPU in float32, its folder, and the mean and std of its preprocessing (for pixels in
    [0, 1]; None where the folder has no image processor)."""

    model: ViTNepaPreTrainedModel
    folder: Path
    mean: list[float] | None
    std: list[float] | None

    @property
    def classifies(self) -> bool:
        """Whether the model has a classifier on top."""
        return isinstance(self.model, ViTNepaForImageClassification)


def read_model_config(folder: Path) -> ViTNepaConfig:
    """The configuration of one of our vision models. Raises ConfigError naming the type if it is of another."""
    if (found := read_model_file(folder).model_type) not in MODEL_TYPES:
        raise ConfigError(f"{folder} contains a model of type '{found}'; this needs {' or '.join(MODEL_TYPES)}")
    config: ViTNepaConfig = load_pretrained(AutoConfig, folder)
    return config


def is_classifier(config: ViTNepaConfig) -> bool:
    """Whether a model was saved with a classifier on top."""
    return any(name.endswith("ForImageClassification") for name in config.architectures or [])


def load_model(path: str | Path, task: Task | None = None, weights: str | None = None) -> Loaded:
    """The model to export.

    Args:
        path: a run, a checkpoint or a model folder.
        task: "features" reads the transformer alone, "classification" needs a classifier in the checkpoint; None takes
            what the checkpoint was saved as.
        weights: "raw", "ema" or "best"; None takes the first there is.

    Raises:
        ConfigError: for a checkpoint of another model type, without a classifier, or broken; for features that its
            objective reads.
    """
    folder = find_saved(path).local_folder(weights)
    has_head = is_classifier(read_model_config(folder))
    if task == "classification" and not has_head:
        raise ConfigError(f"{folder} has no classifier (its config.json says so); fine-tune first, or --task features")
    if not (has_head and task != "features"):
        check_reader(folder)
    kind = AutoModelForImageClassification if has_head and task != "features" else AutoModel
    model = cast(ViTNepaPreTrainedModel, loading.load_model(folder, kind, "cpu", dtype=torch.float32))
    return Loaded(model, folder, *preprocessing(folder))


def check_reader(folder: Path) -> None:
    """Raises ConfigError for a model whose objective provides the features: an exported file would give others."""
    beside = objective_beside(folder)
    if beside is not None and (file := ObjectiveFile.load(beside)).reads_itself:
        raise ConfigError(
            f"the features of {folder} are read by its objective {file.name} ({beside}), which cannot be exported; use "
            "nextembed embed, probe or push"
        )


def preprocessing(folder: Path) -> tuple[list[float] | None, list[float] | None]:
    """Mean and std of a folder's image processor, one number a channel; None where it has none."""
    if not (folder / "preprocessor_config.json").is_file():
        return None, None
    what = f"cannot read {folder / 'preprocessor_config.json'}"
    processor = load_pretrained(AutoImageProcessor, folder, what)
    try:
        return list(processor.image_mean), list(processor.image_std)
    except (AttributeError, TypeError):
        raise ConfigError(f"{what}: it has no image_mean and image_std") from None
