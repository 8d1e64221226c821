"""From a run folder or a checkpoint to its probes: what `sweep` takes, loaded."""

import importlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForPreTraining

from ...core import distributed
from ...core.code import check_code
from ...core.config import DATA, validated
from ...core.pretrained import load_pretrained
from ...core.probe_table import ProbeTable
from ...core.run_folder import read_config, run_folder, weights_folders
from ...errors import ConfigError, MissingSplit
from .records import segment_data
from .sweep import ProbeConfig, ProbeData, sweep

CACHE_BYTES = 2**30  # decoded probe images are kept up to this size: every model reads them again


def probe_checkpoint(
    path: str | Path, data: Any = None, config: ProbeConfig | None = None, all_ranks: bool = False
) -> ProbeTable:
    """Probes of a run folder, a checkpoint or any saved model: its weights, its EMA weights where there are
    some, and the same network untrained (initialised with the run's seed).

    data: a data config; None takes the run's own, as does config. Written nowhere: see `ProbeTable.save`. Of an Omni
    `probe.modality` says what is probed; images are taken where it is not said and the data are images.
    all_ranks: every rank calls it and takes its share, see `sweep`.
    Raises ConfigError for a path without a model or a source that cannot be read, DataError without labels.
    """

    def opened() -> tuple[dict[str, Any], ProbeData, ProbeConfig]:
        return _opened(path, data, config)

    return sweep(*(distributed.together(opened) if all_ranks else opened()), all_ranks)


def _opened(path: str | Path, data: Any, config: ProbeConfig | None) -> tuple[dict[str, Any], ProbeData, ProbeConfig]:
    """What `sweep` takes."""
    values = read_config(run) if (run := run_folder(path)) else {}
    if data is None:
        if "data" not in values:
            raise ConfigError(f"{path} is not part of a run, so the data to probe on has to be named: --data")
        importlib.import_module("nextembed.toys.kinds")  # registers its kinds
        check_code({"data": values["data"]}, f"{run}/config.yaml")
        data = DATA.parse(values["data"])
    if config is None:
        config = validated(ProbeConfig, values.get("probe") or {}, "probe")
    models = load_models(path, seed=values.get("seed", 0))
    if hasattr(models["untrained"].config, "modalities"):
        return models, segment_data(data, config, next(iter(models.values())).processor), config
    return models, load_data(data, config, models["untrained"].config), config


def load_models(path: str | Path, seed: int = 0) -> dict[str, Any]:
    """Backbones "raw", "ema" (where saved) and "untrained", on the accelerator if there is one.

    Raises ConfigError if the path holds no model, or not one of ours.
    """
    for package in ("models.nepa", "models.omni"):  # registers the models with the Auto classes
        importlib.import_module(f"nextembed.{package}")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    models: dict[str, Any] = {}
    for name, folder in weights_folders(path).items():
        models[name] = load_pretrained(AutoModelForPreTraining, folder)
        if not (hasattr(models[name], "embed") and hasattr(models[name], "encode")):
            raise ConfigError(f"{folder} holds a {type(models[name]).__name__}, which has no latents to probe")
    first = next(iter(models.values()))
    models["untrained"] = untrained(first, seed)
    return {name: model.to(device).eval() for name, model in models.items()}


def untrained(model: Any, seed: int = 0) -> Any:
    """The same network with fresh weights drawn from `seed`; the global random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(model)(model.config)


def load_data(data: Any, config: ProbeConfig, model_config: Any) -> ProbeData:
    """The splits of a data config (`ImagePart`) as probes need them, at the model's image size.

    Without a validation split, part of the training images is held out to choose on; without a test split,
    nothing is measured on test. Small images are decoded once and kept.
    """
    if getattr(data, "has_masks", False):
        raise ConfigError(f"data of kind {data.kind} has masks, and no classes of images to probe on")
    size, channels = model_config.image_shape[0], model_config.num_channels

    def read(role: str, num: int) -> Any:
        return data.eval_samples(role, image_size=size, num_channels=channels, num_samples=num)

    def read_if_there(role: str, num: int) -> Any:
        try:
            return read(role, num)
        except MissingSplit:
            return None

    validation = read_if_there("validation", config.num_validation)
    if validation is not None:
        train = read("train", config.num_train)
        names = train.class_names
    else:
        both = read("train", config.num_train + config.num_validation)
        names = both.class_names
        train, validation = _hold_out(both, config.num_validation)
    test = read_if_there("test", config.num_test)
    return ProbeData(keep_decoded(train), keep_decoded(validation), None if test is None else keep_decoded(test), names)


def _hold_out(samples: Any, num: int) -> tuple[Any, Any]:
    """Two disjoint parts, drawn with a fixed seed; the second has `num` samples, at most a fifth."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(1)).tolist()
    num = max(1, min(num, len(samples) // 5))
    return torch.utils.data.Subset(samples, order[num:]), torch.utils.data.Subset(samples, order[:num])


def keep_decoded(samples: Any) -> Any:
    """The samples decoded, as a list, if they are small enough together."""
    pixels = samples[0]["pixel_values"]
    if len(samples) * pixels.numel() * pixels.element_size() > CACHE_BYTES:
        return samples
    return [samples[i] for i in range(len(samples))]
