"""Everything a report shows, read from a run folder."""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForPreTraining

from ..core.code import check_code
from ..core.config import DATA, MODELS, common_task
from ..core.files import first_line
from ..core.objective import OBJECTIVES, Verdict, verdict_of
from ..core.pretrained import load_pretrained
from ..core.probe_table import ProbeTable
from ..core.run_folder import Environment, read_config, read_environment, read_history, read_lines, weights_folders
from ..core.saved import checked, read_json
from ..core.scores import ClassScores
from ..errors import ConfigError, MissingSplit, NextEmbedError
from ..objectives.latent_decoder import FOLDER, load_decoder
from .inside import Inside, look_inside
from .overlays import Overlays, look_at_segments
from .pictures import Scene, build_scene
from .settings import Settings, settings_of

T = TypeVar("T")

NUM_IMAGES = 128  # drawn from validation: the pool in which patches are looked up
NUM_INSIDE = 4  # of which the inside is shown


@dataclass
class RunView:
    """A run as the report sees it. What is not there is empty; `missing` says in plain words what and why.

    config, listed: config.yaml and environment.json as they are, to be listed; settings, environment: what of them is
    read. history: see `read_history`.
    """

    dir: Path
    config: dict[str, Any]
    settings: Settings
    history: list[dict[str, Any]] = field(default_factory=list)
    listed: dict[str, Any] = field(default_factory=dict)
    environment: Environment = field(default_factory=Environment)
    probes: ProbeTable | None = None
    skipped: list[dict[str, Any]] = field(default_factory=list)
    scene: Scene | None = None
    inside: Inside | None = None
    inside_images: list[int] = field(default_factory=list)
    overlays: Overlays | None = None
    model_config: Any = None
    weights: Path | None = None
    num_parameters: int = 0
    split: str = "validation"
    task: str = "pretraining"
    scores: ClassScores | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """What the run's objective says of its curves."""
        return verdict_of(self.config.get("objective"), self.history)

    @property
    def name(self) -> str:
        return self.settings.name or self.dir.resolve().name

    def read(self, what: str, reader: Callable[[], T], otherwise: T) -> T:
        """What `reader` gives; where a file holds something else, `otherwise`, and `missing` says why."""
        try:
            return reader()
        except NextEmbedError as err:
            self.missing.append(f"{what} left out: {err}.")
            return otherwise


def read_run(
    run_dir: str | Path,
    num_images: int = NUM_IMAGES,
    num_inside: int = NUM_INSIDE,
    decoders: Sequence[str | Path] = (),
) -> RunView:
    """Reads a run folder and, where a model and data are there, looks at real images with it.

    num_inside: images whose inside is shown. decoders: runs of the recipe latent_decoder; its own is taken anyway.
    Raises ConfigError if the folder does not exist or holds no run.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ConfigError(f"no such run folder: {folder}")
    config = read_config(folder)
    check_code({slot: config.get(slot) for slot in ("data", "model", "objective")}, folder / "config.yaml")
    view = RunView(folder, config, settings_of(config, folder))
    view.history = view.read("The curves are", lambda: read_history(folder), [])
    if not view.history and not view.missing:
        view.missing.append("There are no curves: the run stopped before its first logging step.")
    if (file := folder / "environment.json").is_file():
        view.listed = view.read("The environment is", lambda: checked(dict[str, Any], read_json(file), file), {})
        view.environment = view.read("The parameters are", lambda: read_environment(folder), Environment())
    if (table := folder / "probe.json").is_file():
        view.probes = view.read("The probes are", lambda: ProbeTable.load(table), None)
    view.skipped = read_lines(folder / "skipped.jsonl")
    if not view.config and not (folder / "metrics.jsonl").is_file():
        raise ConfigError(f"{folder} is no run folder: it has neither config.yaml nor metrics.jsonl")
    segments = view.settings.objective.kind == "segmentation"
    if (task := task_of(view.settings)) != "pretraining" and not segments:
        view.task = task
        if task != "multimodal":
            view.model_config = _model_config(view)
            if (file := folder / "scores.json").is_file():
                view.scores = view.read("The scores are", lambda: ClassScores.load(file), None)
        return view
    if not table.is_file() and not segments and view.settings.probe.enabled:
        view.missing.append("There is no probe table: the run was not probed (no labels, or it did not finish).")
    try:
        with looking(view):
            look_at_segments(view) if segments else _look(view, num_images, num_inside, decoders)
    except NextEmbedError as err:
        if decoders:  # they were asked for by name
            raise
        view.missing.append(f"There are no pictures: {err}.")
    return view


@contextlib.contextmanager
def looking(view: RunView) -> Iterator[None]:
    """Whatever goes wrong while a model runs on data as a ConfigError: of a model or settings that somebody changed,
    torch says so in errors of every kind."""
    try:
        yield
    except (NextEmbedError, MemoryError):
        raise
    except Exception as err:
        where = view.weights or view.dir
        raise ConfigError(f"{where} does not run on its data: {type(err).__name__}: {first_line(err)}") from err


def task_of(settings: Settings) -> str:
    """What a run's objective is for: "pretraining", "classification", ..."""
    for package in ("objectives", "models.nepa", "models.emu", "models.omni"):  # registers their kinds
        importlib.import_module(f"nextembed.{package}")
    try:
        objective = OBJECTIVES.find(settings.objective.kind)
    except NextEmbedError:
        return "pretraining"
    try:
        model = MODELS.find(settings.model.kind)
    except NextEmbedError:  # the user's own, from a file
        return objective.task
    return common_task(objective, model) or objective.task


def _model_config(view: RunView) -> Any:
    """Of a fine-tuned model, without its weights; None where there is none."""
    importlib.import_module("nextembed.models.nepa")  # registers the model with the Auto classes
    try:
        best = view.dir / "best"
        folder = best if (best / "config.json").is_file() else next(iter(weights_folders(view.dir).values()))
        return load_pretrained(AutoConfig, folder)
    except NextEmbedError as err:
        view.missing.append(f"There is no model to look at: {err}.")
        return None


def _look(view: RunView, num_images: int, num_inside: int, decoders: Sequence[str | Path]) -> None:
    folders = weights_folders(view.dir)
    view.weights = folders.get("raw") or next(iter(folders.values()))
    model = load_model(view.weights)
    view.model_config = model.config
    view.num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if "data" not in view.config:
        raise ConfigError("the run has no config.yaml that names its data")
    importlib.import_module("nextembed.toys.kinds")  # registers its kinds
    data: Any = DATA.parse(view.config["data"])
    if not hasattr(data, "eval_samples"):
        raise ConfigError(f"data of kind {data.kind} gives no images to look at")
    pixels, view.split = _images(data, model.config, num_images)
    causal = view.settings.objective.causal
    view.scene = build_scene(model, pixels, data.mean, data.std, causal)
    if num_inside:
        view.inside_images = view.scene.spread(num_inside)
        folders_of_decoders = [*decoders, *([view.dir] if (view.dir / FOLDER).is_dir() else [])]
        loaded = [load_decoder(folder) for folder in folders_of_decoders]
        view.inside = look_inside(
            model, pixels[view.inside_images], data.mean, data.std, "causal" if causal else "full", decoders=loaded
        )


def load_model(folder: Path) -> Any:
    """A saved model in eval mode, with the attention that gives its weights. Raises ConfigError if it cannot be."""
    for name in ("nepa", "emu", "omni"):  # registers the models with the Auto classes
        importlib.import_module(f"nextembed.models.{name}")
    # Only eager attention gives the attention weights.
    return load_pretrained(AutoModelForPreTraining, folder, attn_implementation="eager").eval()


def _images(data: Any, model_config: Any, num: int) -> tuple[Tensor, str]:
    """Images [N, C, S, S] of the validation split, or of the training split where there is no other."""
    sizes = {"image_size": model_config.image_shape[0], "num_channels": model_config.num_channels}
    split = "validation"
    try:
        samples = data.eval_samples(split, num_samples=num, **sizes)
    except MissingSplit:
        split = "train"
        samples = data.eval_samples(split, num_samples=num, **sizes)
    return torch.stack([samples[i]["pixel_values"] for i in range(len(samples))]), split
