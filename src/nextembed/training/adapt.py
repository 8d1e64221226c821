"""What is applied to a model from outside: memory savers, compilation, sharding. Models know nothing of it."""

from typing import Any

from transformers import TrainingArguments

from ..core.types import PretrainingModel
from ..errors import ConfigError


def adapt(model: PretrainingModel, attn_implementation: str | None, gradient_checkpointing: bool) -> None:
    """Sets the backbone's attention implementation and gradient checkpointing, in place.

    Raises ConfigError if the backbone does not have the implementation.
    """
    backbone: Any = model.backbone
    if attn_implementation is not None:
        try:
            backbone.set_attn_implementation(attn_implementation)
        except (ValueError, ImportError) as err:
            raise ConfigError(f"train.attn_implementation: {str(err).splitlines()[0]}") from None
    if gradient_checkpointing:
        # transformers 5.23 renamed it; earlier versions only know the old name
        enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def compile_model(model: PretrainingModel) -> None:
    """torch.compile in place: parameter names stay as they are. Compiles at the first step."""
    model.compile()


def shard(args: TrainingArguments, model: PretrainingModel) -> None:
    """Makes the backbone's blocks the units that FSDP2 gathers one at a time."""
    if args.fsdp_plugin_args is not None:
        blocks = getattr(model.backbone, "_no_split_modules", None) or []
        args.fsdp_plugin_args["transformer_cls_names_to_wrap"] = ",".join(blocks)
