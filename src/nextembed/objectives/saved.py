"""Features that an objective reads itself, after training: from RUN/objective, beside the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..core.code import check_code
from ..core.files import first_line
from ..core.objective import FOLDER, OBJECTIVES, Objective
from ..core.saved import load
from ..core.sizes import building
from ..core.types import Backbone
from ..errors import ConfigError

MODELS = ("model", "ema")  # folders of a run and of its checkpoints that the objective lies beside


@dataclass
class ObjectiveFile:
    """What RUN/objective/config.json holds. settings: as of config.yaml."""

    kind: Literal["objective"]
    settings: dict[str, object]


def objective_beside(model: Path | str) -> Path | None:
    """The folder of the objective that reads the features of a saved model; None where the model does it."""
    if isinstance(model, str):  # a hub id
        return None
    places = [model / FOLDER, *([model.parent / FOLDER] if model.name in MODELS else [])]
    return next((place for place in places if (place / "config.json").is_file()), None)


def load_objective(folder: Path, backbone: PreTrainedModel, seed: int | None = None) -> Objective:
    """The objective that was saved with a model, in eval mode, on the model's device.

    Args:
        folder: as `objective_beside` gives it.
        backbone: the model.
        seed: draws fresh weights from it, for the baseline of an untrained model; None loads the saved ones. The global
            random state stays as it was.

    Raises:
        ConfigError: for what does not load or fit.
        CodeRefused: for an objective of somebody's own whose file was not allowed.
    """
    file = folder / "config.json"
    values = load(ObjectiveFile, file).settings
    check_code({"objective": values}, file)
    settings = OBJECTIVES.parse(values)
    with building(f"the objective in {folder}"), torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        objective = settings.build(cast(Backbone, backbone))
    if seed is None:
        try:
            objective.load_state_dict(load_file(folder / "model.safetensors"))
        except Exception as err:  # whatever a broken file raises
            raise ConfigError(f"cannot load the objective in {folder}: {first_line(err)}") from None
    return objective.requires_grad_(False).eval().to(backbone.device)


def objective_of(model: Path | str, backbone: PreTrainedModel) -> Objective | None:
    """The objective that reads a saved model's features; None where the model does it. Errors of `load_objective`."""
    folder = objective_beside(model)
    return None if folder is None else load_objective(folder, backbone)
