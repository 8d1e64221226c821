"""Loads pretrained weights into a NEPA model with a head, with one clear line for anything that does not fit."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from ...errors import ConfigError
from ..parts import load_part
from .configuration_nepa import ViTNepaConfig


def read_config(pretrained: str) -> ViTNepaConfig:
    """The configuration of an HF folder or hub id. Raises ConfigError if it is none, or of another model type."""
    config = read_any_config(pretrained)
    if not isinstance(config, ViTNepaConfig):
        raise ConfigError(
            f"model.pretrained: {pretrained} is a model of type '{config.model_type}', not {ViTNepaConfig.model_type}"
        )
    return config


def read_any_config(pretrained: str) -> PreTrainedConfig:
    """The configuration of an HF folder or hub id, whatever the model. Raises ConfigError if there is none."""
    return load_part(AutoConfig, pretrained, "pretrained")


def check_classes(config: ViTNepaConfig, class_names: Sequence[str], pretrained: str) -> None:
    """Raises ConfigError if a checkpoint's own head was trained for other classes than the data's."""
    if not any(name.endswith("ForImageClassification") for name in config.architectures or []):
        return  # it has no head of this kind
    by_id: Any = config.id2label
    own = [str(by_id[i]) for i in sorted(by_id)]
    if own != class_names:
        raise ConfigError(
            f"model.pretrained: {pretrained} has a head for {len(own)} classes ({few(own)}), the data has "
            f"{len(class_names)} ({few(class_names)}); set model.new_head=true for a new head"
        )


def few(names: Sequence[str], num: int = 4) -> str:
    """The first names, for a message."""
    return ", ".join(names[:num]) + (", ..." if len(names) > num else "")


def with_pretrained_weights(model: Any, pretrained: str, head: tuple[str, ...], new_head: bool = False) -> Any:
    """A model of this class and config with the weights of a checkpoint, in float32.

    Parameters whose names start with one of `head` keep the values they have where the checkpoint has none that fit,
    or all of them with `new_head`; layers that the model does not have are left out. Raises ConfigError if any other
    is missing.
    """
    fresh = {name: value.clone() for name, value in model.state_dict().items() if name.startswith(head)}
    loaded, info = load_part(
        type(model),
        pretrained,
        "pretrained",
        config=model.config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    new = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    wrong = sorted(name for name in new if not name.startswith(head))
    if wrong:
        raise ConfigError(f"model.pretrained: {pretrained} has no weights that fit {wrong[0]} ({len(wrong)} in all)")
    # Initialised before loading, so that a new head depends on the seed alone.
    loaded.load_state_dict({name: value for name, value in fresh.items() if new_head or name in new}, strict=False)
    return loaded
