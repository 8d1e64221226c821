"""The loader of saved models and processors, of our own kinds and all others in transformers."""

import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForPreTraining, AutoProcessor, PreTrainedModel, ProcessorMixin

from ..core.config import MODELS as MODELS
from ..core.pretrained import ModelT, ProcessorT, load_pair, load_pretrained, load_whole
from ..core.run_folder import find_saved, read_model_file
from ..core.sizes import usable_device
from ..errors import ConfigError
from . import emu, nepa, nepa_spt, omni

FAMILIES = (nepa, nepa_spt, emu, omni)  # importing them registers them with the Auto classes


def open_model(path: str | Path, weights: str | None = None, **options: Any) -> PreTrainedModel:
    """The model of a run, a checkpoint, a model folder or a hub id.

    Args:
        path: see `core.run_folder.find_saved`.
        weights: "raw", "ema" or "best"; None takes the first there is.
        options: as of `load_model`.

    Raises:
        ConfigError: one line, for a path without such a model, or one that does not load whole.
    """
    return load_model(find_saved(path).folder(weights), **options)


def load_model(
    folder: str | Path, kind: Any = AutoModelForPreTraining, device: str | None = None, what: str = "", **options: Any
) -> PreTrainedModel:
    """The model of a folder or hub id, in eval mode, with every weight that its class has.

    Args:
        folder: with config.json and weights; a hub id is downloaded.
        kind: class or Auto class that loads it.
        device: by name; None takes the accelerator if there is one, else the CPU.
        what: how an error begins.
        options: of `from_pretrained`.

    Raises:
        ConfigError: one line, for what does not load, lacks weights, or needs code of its own.
    """
    model: Any = load_whole(kind, folder, what, **options)
    found: PreTrainedModel = model.to(usable_device(device))
    return found


def load_processor(folder: str | Path, kind: Any = AutoProcessor) -> ProcessorMixin:
    """The processor that was saved with a model. Raises ConfigError if it does not load."""
    found: ProcessorMixin = load_pretrained(kind, folder, f"cannot load the processor in {folder}")
    return found


def open_pair(
    path: str | os.PathLike[str],
    model_class: type[ModelT],
    processor_class: type[ProcessorT],
    weights: str | None = None,
    device: str | None = None,
) -> tuple[ModelT, ProcessorT]:
    """A model of one family with its processor, of a run, a checkpoint, a model folder or a hub id.

    Args:
        path: see `core.run_folder.find_saved`.
        model_class: of the family.
        processor_class: of the family.
        weights: "raw", "ema" or "best"; None takes the first there is.
        device: by name; None takes the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: one line, for a path without such a model, or one that does not load whole.
    """
    saved = find_saved(path)
    folder = saved.folder(weights)
    wanted: Any = model_class.config_class
    if (found := model_type(folder)) != wanted.model_type:
        raise ConfigError(f"{path} contains a model of type '{found}', not '{wanted.model_type}'")
    own = isinstance(folder, str) or (folder / "processor_config.json").is_file()
    home = folder if own else saved.first_of("raw")  # averaged weights are saved without one
    return load_pair((folder, home), model_class, processor_class, device)


def model_type(folder: str | Path) -> str:
    """The model type in the config.json of a model folder or hub id. Raises ConfigError without one."""
    if isinstance(folder, Path):
        return read_model_file(folder).model_type
    return str(load_pretrained(AutoConfig, folder).model_type)
