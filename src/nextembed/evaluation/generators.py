"""A generative model with its objective: both with averaged or both with trained weights."""

from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from ..core.objective import Objective
from ..core.run_folder import Saved
from ..models.loading import load_model
from ..objectives.saved import objective_of


class Generator(NamedTuple):
    """objective: None if none was saved with the model. weights: "raw" or "ema". folder: of the model."""

    model: PreTrainedModel
    objective: Objective | None
    weights: str
    folder: Path | str


def open_generator(saved: Saved, weights: str | None = None, device: str | None = None) -> Generator:
    """The generator.

    Args:
        saved: what lies at a path.
        weights: "raw" or "ema", of the model and of what belongs to the objective; None takes averaged ones where both
            were averaged.
        device: by name; None takes the accelerator if there is one.

    Raises:
        ConfigError: for what does not load.
    """
    averaged = weights is None and "ema" in saved.folders
    folder = saved.folder("ema" if averaged else weights)
    model = load_model(folder, device=device)
    objective = objective_of(folder, model)
    if averaged and objective is not None and not objective.averages:  # heads do not fit averaged weights
        averaged, folder = False, saved.folder()
        model = load_model(folder, device=device)
    name = "ema" if averaged else weights or next(iter(saved.folders))
    if objective is not None:
        alone = weights is None and saved.run is None  # unknown weights
        objective.draws_averaged = name == "ema" or alone
    return Generator(model, objective, name, folder)
