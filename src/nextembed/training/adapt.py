"""What is applied to a model from outside: memory savers, compilation, sharding. Models know nothing of it."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import TrainingArguments

from ..core.types import PretrainingModel
from ..errors import ConfigError, unknown


def adapt(
    model: PretrainingModel, attn_implementation: str | None, gradient_checkpointing: bool, frozen: Sequence[str] = ()
) -> None:
    """Sets the backbone's attention implementation and gradient checkpointing and freezes parameters, in place.

    Raises ConfigError if the backbone does not have the implementation or the parameters.
    """
    backbone: Any = model.backbone
    freeze(backbone, frozen)
    if attn_implementation is not None:
        try:
            backbone.set_attn_implementation(attn_implementation)
        except (ValueError, ImportError) as err:
            raise ConfigError(f"train.attn_implementation: {str(err).splitlines()[0]}") from None
    if gradient_checkpointing:
        # transformers 5.23 renamed it; earlier versions only know the old name
        enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def freeze(backbone: nn.Module, names: Sequence[str]) -> None:
    """Parameters whose dotted names hold one of `names` as whole parts take no gradient any more.

    Raises ConfigError for a name that fits none, with the nearest one, or if nothing is left to train.
    """
    params = dict(backbone.named_parameters())
    for name in names:
        found = [p for full, p in params.items() if f".{name}." in f".{full}."]
        if not found:
            modules = sorted({part for full in params for part in full.split(".") if not part.isdigit()})
            raise ConfigError(unknown("train.freeze: parameter", name, modules))
        for param in found:
            param.requires_grad_(False)
    if not any(param.requires_grad for param in params.values()):
        raise ConfigError("train.freeze: nothing is left to train")


def compile_model(model: PretrainingModel) -> None:
    """torch.compile in place: parameter names stay as they are. Compiles at the first step."""
    model.compile()


def shard(args: TrainingArguments, model: PretrainingModel) -> None:
    """Makes the backbone's blocks the units that FSDP2 gathers one at a time."""
    if args.fsdp_plugin_args is not None:
        blocks = getattr(model.backbone, "_no_split_modules", None) or []
        args.fsdp_plugin_args["transformer_cls_names_to_wrap"] = ",".join(blocks)
