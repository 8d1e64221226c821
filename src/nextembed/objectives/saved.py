"""Features that an objective reads itself, after training: from RUN/objective, beside the model, or from a hub."""

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
MODELS = ("model", "ema")  # folders of a run and of its checkpoints that the objective lies beside


@dataclass
class ObjectiveFile:
    """What RUN/objective/config.json holds. settings: as of config.yaml; reads_itself: whether features are those that
    it reads."""

    kind: Literal["objective"]
    settings: dict[str, object]
    reads_itself: bool = True

    @property
    def name(self) -> str:
        """The kind of objective, as in config.yaml."""
        return str(self.settings.get("kind", ""))

    @classmethod
    def load(cls, folder: Path) -> "ObjectiveFile":
        """Of a folder as `objective_beside` gives it. Raises ConfigError for another file."""
        return load(cls, folder / "config.json")


@dataclass
class Marked:
    """What of a model's config.json says that its objective lies beside it. On a hub nothing else tells it without a
    request that most models would be asked in vain."""

    nextembed_objective: bool = False


def objective_beside(model: Path | str) -> Path | None:
    """The folder of the objective that was saved with a model; None where there is none.

    model: its folder, or a hub id.
    Raises ConfigError if a model on a hub says that it has one, and it is not there.
    """
    if isinstance(model, str):
        return objective_on_hub(model)
    places = [model / FOLDER, *([model.parent / FOLDER] if model.name in MODELS else [])]
    return next((place for place in places if (place / "config.json").is_file()), None)


def other_features(model: str) -> str:
    """What to say where a model is to be fine-tuned whose features are not its own; else nothing.

    model: its folder, or the run that it lies in; a hub id is not asked.
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
    """As `objective_beside`, of a hub id; its files are downloaded, or were kept from before."""
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
        CodeRefused: for an objective of somebody's own whose file was not allowed.
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
    """The objective that reads a saved model's features; None where the model does it. Errors of `load_objective`."""
    folder = objective_beside(model)
    return None if folder is None else load_objective(folder, backbone)
