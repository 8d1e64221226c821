"""torch.compile: when it is used, how long it took, and falling back to plain code."""

import importlib.util
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ..core.files import first_line
from .settings import TrainConfig
from .watch import Say

T = TypeVar("T")
LONG = 2000  # number of steps from which on compiling saves time
COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")


def compiles(train: TrainConfig, packed: bool) -> bool:
    """Whether a run is compiled: by the settings; if these are null, with CUDA and Triton, LONG steps or more, images
    of one size, and unsharded weights that are all trained. packed: rows of documents, whose masks differ.
    """
    if train.compile is not None:
        return train.compile
    triton = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
    simple = not (packed or train.fsdp or train.lora is not None or train.gradient_checkpointing)
    return not train.on_cpu() and triton and simple and (train.max_steps is None or train.max_steps >= LONG)


class Compiled:
    """Compiles a model in place, parameter names unchanged, at its first step; falls back to plain code if that fails.

    wanted: False changes nothing. say: prints how long the first step took, or what failed.
    """

    def __init__(self, model: nn.Module, wanted: bool, say: Say):
        self.model, self.active, self.say, self.started = model, wanted, say, False
        if wanted:
            model.compile()

    def run(self, part: Callable[[], T], undo: Callable[[], None]) -> T:
        """Calls `part`. If compiling fails, it is turned off and `part` is called again in plain code."""
        if not self.active:
            return part()
        start = time.monotonic()
        try:
            found = part()
        except Exception as err:
            if not type(err).__module__.startswith(COMPILERS):
                raise
            self.active, self.model._compiled_call_impl = False, None
            reason = first_line(getattr(err, "inner_exception", None) or err)
            self.say(f"torch.compile failed, training continues without it: {reason}")
            undo()
            return part()
        if not self.started:
            self.say(f"torch.compile: the first step took {time.monotonic() - start:.0f} s, compiling included")
        self.started = True
        return found
