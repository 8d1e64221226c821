"""Loads objectives that provide features themselves: from RUN/objective, next to the model, or from the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..core.code import check_code
from ..core.files import first_line
from ..core.objective import FOLDER, OBJECTIVES, Objective
from ..core.pretrained import hub_file
from ..core.run_folder import TEACHER
from ..core.saved import load
from ..core.sizes import building
from ..core.types import Backbone
from ..errors import ConfigError

FILES = ("config.json", "model.safetensors")
MODELS = ("model", "ema")  # model folders next to which the objective is saved


@dataclass
class ObjectiveFile:
    """Content of RUN/objective/config.json. settings: as in config.yaml; reads_itself: whether it provides features."""

    kind: Literal["objective"]
    settings: dict[str, object]
    reads_itself: bool = True

    @property
    def name(self) -> str:
        """The kind of objective, as in config.yaml."""
        return str(self.settings.get("kind", ""))

    @classmethod
    def load(cls, folder: Path) -> "ObjectiveFile":
        """Reads the description in a folder of `objective_beside`. Raises ConfigError if it is not valid."""
        return load(cls, folder / "config.json")


@dataclass
class Marked:
    """The entry of a model's config.json that says that its objective is saved next to it. On a hub, finding this out
    would otherwise take a request for every model."""

    nextembed_objective: bool = False


def objective_beside(model: Path | str) -> Path | None:
    """The folder of the objective that was saved with a model; None if there is none. model: its folder, or a hub id.
    Raises ConfigError if a model on a hub names one that is missing.
    """
    if isinstance(model, str):
        return objective_on_hub(model)
    places = [model / FOLDER, *([model.parent / FOLDER] if model.name in MODELS else [])]
    return next((place for place in places if (place / "config.json").is_file()), None)


def other_features(model: str) -> str:
    """A note for fine-tuning a model whose features are provided by its objective; else empty. model: its folder, or
    its run; hub ids are not checked.
    """
    path = Path(model).expanduser()
    if not path.exists():
        return ""
    beside = objective_beside(path / MODELS[0] if (path / MODELS[0]).is_dir() else path)
    if beside is None or not (file := ObjectiveFile.load(beside)).reads_itself:
        return ""
    teacher = beside.parent / TEACHER
    better = (
        (f"; model.pretrained={teacher} starts from the weights that features are read from")
        if teacher.is_dir()
        else ""
    )
    return (
        f"features of {model} are read by its objective {file.name}, but training starts from the model "
        f"without it{better}"
    )


def objective_on_hub(repo_id: str) -> Path | None:
    """As `objective_beside`, for a hub id; files are downloaded or come from the cache."""
    file = hub_file(repo_id, "config.json")
    if file is None or not load(Marked, file).nextembed_objective:
        return None
    files = [hub_file(repo_id, f"{FOLDER}/{name}") for name in FILES]
    if None in files:
        raise ConfigError(f"{repo_id} is read by an objective, and its {FOLDER}/ is not there or cannot be downloaded")
    return next(file.parent for file in files if file is not None)


def load_objective(folder: Path, backbone: PreTrainedModel, seed: int | None = None) -> Objective:
    """The objective that was saved with a model, in eval mode, on the model's device.

    Args:
        folder: as `objective_beside` gives it.
        backbone: the model.
        seed: draws fresh weights from it, for the baseline of an untrained model; None loads the saved ones. The global
            random state stays as it was.

    Raises:
        ConfigError: for what does not load or fit.
        CodeRefused: for an objective in a Python file that was not allowed.
    """
    file = folder / "config.json"
    values = ObjectiveFile.load(folder).settings
    check_code({"objective": values}, file)
    settings = OBJECTIVES.parse(values)
    with building(f"the objective in {folder}"), torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        objective = settings.build(cast(Backbone, backbone))
    if seed is None:
        try:
            objective.load_state_dict(load_file(folder / FILES[1]))
        except Exception as err:  # whatever a broken file raises
            raise ConfigError(f"cannot load the objective in {folder}: {first_line(err)}") from None
    return objective.requires_grad_(False).eval().to(backbone.device)


def objective_of(model: Path | str, backbone: PreTrainedModel) -> Objective | None:
    """The objective that provides a saved model's features; None if the model does. Errors as of `load_objective`."""
    folder = objective_beside(model)
    return None if folder is None else load_objective(folder, backbone)
