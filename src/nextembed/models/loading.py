"""Saved models and their processors: the only loader, of our own kinds and of all others that transformers knows."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForPreTraining, AutoProcessor, PreTrainedModel, ProcessorMixin

from ..core.pretrained import load_pretrained
from ..core.run_folder import find_saved
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
    model, info = load_pretrained(kind, folder, what, output_loading_info=True, **options)
    if names := sorted(map(str, info["missing_keys"])):
        raise ConfigError(f"the model in {folder} lacks parameter {names[0]} ({len(names)} such in all)")
    found: PreTrainedModel = model.to(usable_device(device)).eval()
    return found


def load_processor(folder: str | Path, kind: Any = AutoProcessor) -> ProcessorMixin:
    """The processor that was saved beside a model. Raises ConfigError, one line, for what does not load."""
    found: ProcessorMixin = load_pretrained(kind, folder, f"cannot load the processor in {folder}")
    return found
