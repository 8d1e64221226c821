"""Everything a report shows, read from a run folder."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForPreTraining

from ..core.code import check_code
from ..core.config import DATA, MODELS, OBJECTIVES, common_task
from ..core.pretrained import load_pretrained
from ..core.run_folder import read_config, read_lines, weights_folders
from ..errors import ConfigError, NextEmbedError
from ..objectives.latent_decoder import FOLDER, load_decoder
from .inside import Inside, look_inside
from .overlays import Overlays, is_segmentation, look_at_segments
from .pictures import Scene, build_scene

NUM_IMAGES = 128  # drawn from validation: the pool in which patches are looked up
NUM_INSIDE = 4  # of which the inside is shown


@dataclass
class RunView:
    """A run as the report sees it. What is not there is empty; `missing` says in plain words what and why."""

    dir: Path
    config: dict[str, Any]
    history: list[dict[str, Any]]
    environment: dict[str, Any]
    probes: dict[str, Any] | None
    skipped: list[dict[str, Any]]
    scene: Scene | None = None
    inside: Inside | None = None
    inside_images: list[int] = field(default_factory=list)
    overlays: Overlays | None = None
    model_config: Any = None
    weights: Path | None = None
    num_parameters: int = 0
    split: str = "validation"
    task: str = "pretraining"
    scores: dict[str, Any] | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.dir.resolve().name)


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
    view = RunView(
        dir=folder,
        config=read_config(folder),
        history=read_lines(folder / "metrics.jsonl"),
        environment=_read_json(folder / "environment.json") or {},
        probes=_read_json(folder / "probe.json"),
        skipped=read_lines(folder / "skipped.jsonl"),
    )
    check_code({slot: view.config.get(slot) for slot in ("data", "model", "objective")}, folder / "config.yaml")
    if not view.config and not view.history:
        raise ConfigError(f"{folder} is no run folder: it has neither config.yaml nor metrics.jsonl")
    if not view.history:
        view.missing.append("There are no curves: the run stopped before its first logging step.")
    segments = is_segmentation(view.config)
    if (task := task_of(view.config)) != "pretraining" and not segments:
        view.task, view.scores = task, _read_json(folder / "scores.json")
        view.model_config = _model_config(view) if task != "multimodal" else None
        return view
    if view.probes is None and not segments and (view.config.get("probe") or {}).get("enabled", True):
        view.missing.append("There is no probe table: the run was not probed (no labels, or it did not finish).")
    try:
        look_at_segments(view) if segments else _look(view, num_images, num_inside, decoders)
    except NextEmbedError as err:
        if decoders:  # they were asked for by name
            raise
        view.missing.append(f"There are no pictures: {err}.")
    return view


def task_of(config: dict[str, Any]) -> str:
    """What a run's objective is for: "pretraining", "classification", ..."""
    for package in ("objectives", "models.nepa", "models.emu", "models.omni"):  # registers their kinds
        importlib.import_module(f"..{package}", __package__)
    try:
        objective = OBJECTIVES.find(str((config.get("objective") or {}).get("kind", "")))
    except NextEmbedError:
        return "pretraining"
    try:
        model = MODELS.find(str((config.get("model") or {}).get("kind", "")))
    except NextEmbedError:  # the user's own, from a file
        return objective.task
    return common_task(objective, model) or objective.task


def _model_config(view: RunView) -> Any:
    """Of a fine-tuned model, without its weights; None where there is none."""
    importlib.import_module("..models.nepa", __package__)  # registers the model with the Auto classes
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
    importlib.import_module("..data.kinds", __package__)  # registers its kinds
    data: Any = DATA.parse(view.config["data"])
    if not hasattr(data, "eval_samples"):
        raise ConfigError(f"data of kind {data.kind} gives no images to look at")
    pixels, view.split = _images(data, model.config, num_images)
    causal = (view.config.get("objective") or {}).get("causal", True)
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
        importlib.import_module(f"..models.{name}", __package__)
    # Only eager attention gives the attention weights.
    return load_pretrained(AutoModelForPreTraining, folder, attn_implementation="eager").eval()


def _images(data: Any, model_config: Any, num: int) -> tuple[Tensor, str]:
    """Images [N, C, S, S] of the validation split, or of the training split where there is no other."""
    sizes = {"image_size": model_config.image_shape[0], "num_channels": model_config.num_channels}
    split = "validation"
    try:
        samples = data.eval_samples(split, num_samples=num, **sizes)
    except ConfigError as err:
        if "split" not in str(err):
            raise
        split = "train"
        samples = data.eval_samples(split, num_samples=num, **sizes)
    return torch.stack([samples[i]["pixel_values"] for i in range(len(samples))]), split


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
