"""Loads Hugging Face folders and hub ids without running code from them."""

import json
import os
from pathlib import Path
from typing import Any, Protocol, TypeVar
from unittest.mock import patch

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import PreTrainedModel, dynamic_module_utils

from ..errors import ConfigError, NextEmbedError, shortened
from .files import first_line
from .hub import unreachable
from .sizes import loading, usable_device

ModelT = TypeVar("ModelT", bound=PreTrainedModel)
ProcessorT = TypeVar("ProcessorT", bound="Processor")

SETTINGS = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def load_pretrained(kind: Any, name: str | Path, what: str = "", **options: object) -> Any:
    """`kind.from_pretrained(name, **options)`, without output. Nothing is downloaded for a local folder. what:
    beginning of the message. Raises ConfigError if it does not load, if its sizes are impossible, or if it needs code
    of its own (transformers would ask on the terminal whether to run it).
    """
    name = str(name)
    what = what or f"cannot load the model in {name}"
    away = None if os.path.isdir(name) else unreachable()
    options = {"local_files_only": os.path.isdir(name), "trust_remote_code": False} | options
    try:
        if kernel := next((k for k in _said(name, "attn_implementation") if "/" in str(k)), None):
            raise ConfigError(f"{what}: config.json asks for the kernel {kernel} from the hub, which is not run")
        # transformers passes no argument to nested models; with a time limit of 0 it does not ask.
        with loading(name), patch.object(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0):
            return kind.from_pretrained(name, **options)
    except NextEmbedError:
        raise
    except Exception as err:  # a broken file may raise anything
        if away:
            raise ConfigError(
                f"{what}: it is neither a local folder nor in the download cache, and {away}; give a local folder"
            ) from err
        own = _said(name, "auto_map")
        reason = "it needs custom code (auto_map), which is not run" if own else shortened(first_line(err))
        raise ConfigError(f"{what}: {reason}") from err


def load_whole(
    kind: Any, folder: str | Path, what: str = "", strict: bool = False, **options: object
) -> PreTrainedModel:
    """A model in eval mode; missing weights are an error. strict: unexpected weights are an error, too. Otherwise as
    `load_pretrained`.
    """
    model, info = load_pretrained(kind, folder, what, output_loading_info=True, **options)
    for words, names in (("lacks", info["missing_keys"]), ("has unknown", info["unexpected_keys"] if strict else ())):
        if names:
            first = sorted(map(str, names))[0]
            raise ConfigError(f"the model in {folder} {words} parameter {first} ({len(names)} in all)")
    found: PreTrainedModel = model.eval()
    return found


def hub_file(repo_id: str, name: str) -> Path | None:
    """A file of a hub repository, downloaded or from the cache; None if it does not exist or cannot be downloaded."""
    try:
        return Path(hf_hub_download(repo_id, name, local_files_only=unreachable() is not None))
    except (HfHubHTTPError, HFValidationError, OSError):
        return None


class Processor(Protocol):
    """A processor that can check which models it fits."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any: ...

    def check(self, config: Any) -> None:
        """Raises ValueError or ConfigError for a model that it does not fit."""


def load_pair(
    folders: tuple[str | Path, str | Path],
    model_class: type[ModelT],
    processor_class: type[ProcessorT],
    device: str | None = None,
    **options: Any,
) -> tuple[ModelT, ProcessorT]:
    """A complete model, in eval mode on its device, and its processor, checked against each other.

    folders: of the model, of the processor. device: None takes the accelerator if there is one, else the CPU. options:
    as of `load_whole`. Raises ConfigError, one line, for what does not load or fit.
    """
    folder, home = folders
    model: Any = load_whole(model_class, folder, strict=True, **options)
    processor = load_pretrained(processor_class, home, f"cannot load the processor in {home}")
    try:
        processor.check(model.config)
    except ValueError as err:
        raise ConfigError(f"cannot load the model in {folder}: {first_line(err)}") from None
    return model.to(usable_device(device)), processor


def _said(folder: str, key: str) -> list[object]:
    """All values of a name in the settings of a local folder."""
    found: list[object] = []
    for file in SETTINGS:
        try:
            left = [json.loads((Path(folder) / file).read_text(encoding="utf-8"))]
        except (OSError, ValueError, RecursionError):
            continue
        for values in left:
            if isinstance(values, dict):
                found += [values[key]] if key in values else []
                left += values.values()
            elif isinstance(values, list):
                left += [one for one in values if isinstance(one, dict)]
    return found
