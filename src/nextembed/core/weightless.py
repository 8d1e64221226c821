"""Models without weights: built as in a run, but only configurations are read."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

LOADING_INFO = {"missing_keys": set, "unexpected_keys": set, "mismatched_keys": set, "error_msgs": list}


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Inside, new modules have shapes only (torch's meta device), and `from_pretrained` of Hugging Face models gives
    the architecture of a checkpoint in its dtype: a folder or hub id of which only config.json is read."""
    with torch.device("meta"), patch.object(PreTrainedModel, "from_pretrained", classmethod(_architecture)):
        yield


def _architecture(
    cls: type[PreTrainedModel], /, name: str, *args: object, config: PreTrainedConfig | None = None, **kwargs: Any
) -> PreTrainedModel | tuple[PreTrainedModel, dict[str, object]]:
    if config is None:
        assert cls.config_class is not None
        config = cls.config_class.from_pretrained(name)
    dtype = kwargs.get("dtype", kwargs.get("torch_dtype", "auto"))
    dtype = (config.dtype or torch.float32) if dtype in ("auto", None) else dtype
    if attention := kwargs.get("attn_implementation"):
        config._attn_implementation = attention
    model = cls(config)
    nn.Module.to(model, vars(torch)[dtype] if isinstance(dtype, str) else dtype)
    quantization = kwargs.get("quantization_config")
    if quantization is not None:
        model.config.quantization_config = quantization
    model.eval()
    return (
        (model, {name: make() for name, make in LOADING_INFO.items()}) if kwargs.get("output_loading_info") else model
    )


def to_fake(module: nn.Module) -> None:
    """Those parameters and buffers that are on the meta device as fake tensors, in place; shared ones stay shared.

    Call it inside a FakeTensorMode."""
    made: dict[int, Tensor] = {}

    def fake(old: Tensor) -> Tensor:
        if id(old) not in made:
            new = torch.empty(old.shape, dtype=old.dtype)
            made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        return made[id(old)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, old in tensors.items():
                if old is not None and old.device.type == "meta":
                    tensors[name] = fake(old)  # type: ignore[assignment]
