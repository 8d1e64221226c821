"""AdamW whose averages are kept in 8 bits, by bitsandbytes: a quarter of the memory of AdamW's state.

Source: Dettmers et al. (2021), arXiv 2110.02861. Averages of parameters of fewer than 4,096 numbers stay float32.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..core.optim import OptimConfig
from ..core.quiet import import_bitsandbytes
from ..errors import ConfigError, MissingExtra

MOMENTS = ("state1", "state2", "absmax1", "absmax2")  # what is saved; the tables of the codes are always the same
WHOLE = 4096  # size of a parameter from which on averages have 8 bits


class EightBit(Protocol):
    """The part of bitsandbytes' optimizer that is used."""

    def init_state(self, group: dict, p: Tensor, gindex: int, pindex: int) -> None: ...


def adamw_8bit(groups: list[dict], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer. Raises MissingExtra without bitsandbytes, ConfigError for parameters that it cannot train."""
    import_bitsandbytes()
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise MissingExtra("bitsandbytes", "quantize") from None
    params: list[nn.Parameter] = [param for group in groups for param in group["params"]]
    if any(isinstance(param, DTensor) for param in params):
        raise ConfigError("optim.kind=adamw_8bit cannot shard its state: unset train.fsdp, or use adamw")
    if wrong := {param.device.type for param in params} - {"cpu", "cuda"}:
        raise ConfigError(f"optim.kind=adamw_8bit supports cpu and cuda, not {wrong.pop()}")
    kwargs = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps, "min_8bit_size": WHOLE}
    return cast(torch.optim.Optimizer, AdamW8bit(groups, **kwargs))


def is_eight_bit(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is the one of `adamw_8bit`."""
    return type(optimizer).__module__.startswith("bitsandbytes.")


def start_eight_bit(optimizer: torch.optim.Optimizer, param: Tensor, step: int) -> None:
    """The state of one parameter after `step` steps, whose averages are read later."""
    for number, group in enumerate(optimizer.param_groups):
        for place, one in enumerate(group["params"]):
            if one is param:
                cast(EightBit, optimizer).init_state(group, param, number, place)
    optimizer.state[param]["step"] = step


def state_bytes(numel: int, kind: str) -> int:
    """Bytes of an optimizer's state for a parameter of so many numbers, by `optim.kind`; of "muon" for its matrices."""
    if kind == "adamw_8bit" and numel >= WHOLE:
        return 2 * (numel + 4 * -(-numel // 256))  # a scale for each 256
    return numel * (4 if kind == "muon" else 8)
