"""The start of a sharded run: rank 0 builds and loads the model, the other ranks build its shapes on torch's meta
device, which needs no memory. They receive each block's weights just before it is sharded, so none of them ever holds
the whole model. Values, random state and errors are those of a model that every rank builds.
"""

import contextlib
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..core import distributed
from ..core.files import first_line
from ..core.objective import PretrainingModel
from ..core.weightless import weightless
from .watch import Say


def build(make: Callable[[], PretrainingModel], sharded: bool, say: Say) -> PretrainingModel:
    """The model of `make`: whole on rank 0, shapes on the others; whole on every rank if it is not going to be sharded,
    or if its shapes cannot be built. Every rank must call it.

    make: draws from torch's random state. say: prints why every rank builds it. Raises what `make` raises on rank 0.
    """
    if not sharded or distributed.world_size() == 1:
        return make()
    state = torch.get_rng_state()
    model, why = distributed.together(lambda: (make(), "") if distributed.is_main() else shapes(make))
    expected = distributed.broadcast_object(outline(model) if model is not None and distributed.is_main() else [])
    if model is not None and not distributed.is_main():
        why = difference(outline(model), expected) or left_behind(model)
    if why := next(filter(None, distributed.gather_objects(why)), ""):
        say(f"         every rank builds the whole model, not rank 0 alone: {why}")
        if not distributed.is_main():
            torch.set_rng_state(state)
            model = None
        model = distributed.together(lambda: make() if model is None else model)
    share_random_state()
    assert model is not None
    return model


def measure(model: nn.Module, change: Callable[[], None]) -> None:
    """Calls `change`, which computes weights or buffers of the model: on rank 0 alone if others have only its shapes.
    Every rank must call it."""
    if some_wait(model):
        distributed.on_main(change)
        share_random_state()
    else:
        change()


def delivery(model: nn.Module) -> Callable[[nn.Module], None]:
    """A function that gives a part of the model rank 0's parameters, to be called just before the part is sharded.
    Buffers, which are not sharded, are given at once. It does nothing if every rank has the whole model. Every rank
    must call both.
    """
    if not some_wait(model):
        return lambda part: None
    fill(module._buffers for module in model.modules())
    return lambda part: fill(module._parameters for module in part.modules())


def some_wait(model: nn.Module) -> bool:
    """Whether some rank has only the shapes."""
    return any(distributed.gather_objects(any(param.is_meta for param in model.parameters())))


def fill(tables: Iterable[dict[str, Any]]) -> None:
    """Replaces tensors in tables of parameters or buffers by those of rank 0, except sharded ones. Shared ones stay
    shared."""
    filled: dict[int, tuple[Tensor, Tensor]] = {}  # by id of the old one, which is kept so that no other gets its id
    for table in tables:
        for name, old in table.items():
            if old is None or isinstance(old, DTensor):
                continue
            if id(old) not in filled:
                filled[id(old)] = old, received(old)
            table[name] = filled[id(old)][1]


def received(old: Tensor) -> Tensor:
    """Rank 0's tensor in place of one of its shape."""
    value = distributed.broadcast_tensor(old.detach())
    if distributed.is_main():
        return old
    return nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value


def share_random_state() -> None:
    """Gives every rank torch's random state of rank 0, as if it had drawn the weights itself."""
    torch.set_rng_state(distributed.broadcast_object(torch.get_rng_state()))


def shapes(make: Callable[[], PretrainingModel]) -> tuple[PretrainingModel | None, str]:
    """The model on the meta device, or None and why there is none."""
    try:
        with weightless():
            return make(), ""
    except Exception as err:  # rank 0 knows whether the settings are wrong
        return None, first_line(err)


def outline(model: nn.Module) -> list[tuple[object, ...]]:
    """Everything about a model but its values: modules and their modes; shapes, kinds and sharing of its tensors."""
    lines: list[tuple[object, ...]] = [(n, type(m).__qualname__, m.training) for n, m in model.named_modules()]
    numbers: dict[int, int] = {}
    for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, one in tensors:
            number = numbers.setdefault(id(one), len(numbers))
            lines.append((name, tuple(one.shape), str(one.dtype), one.requires_grad, number))
    return lines


def difference(found: list[tuple[object, ...]], expected: list[tuple[object, ...]]) -> str:
    """The first difference of two outlines, empty if there is none."""
    pairs = zip([*found, ()], [*expected, ()], strict=False)
    ours, theirs = next((pair for pair in pairs if pair[0] != pair[1]), ((), ()))
    return f"without weights it has {ours}, not {theirs}" if ours or theirs else ""


def left_behind(model: nn.Module) -> str:
    """Names the owner of a tensor on the meta device that `fill` would not replace: one in another place than the
    tables of parameters and buffers. Empty if there is none."""
    seen = {id(table) for module in model.modules() for table in (module._parameters, module._buffers)}
    left: list[tuple[str, object]] = [("", model)]
    while left:
        owner, one = left.pop()
        if id(one) in seen or isinstance(one, type | ModuleType):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            if one.is_meta:
                return f"{owner} has a tensor that is neither parameter nor buffer"
        elif isinstance(one, dict):
            left += [(owner, value) for value in one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            left += [(owner, value) for value in one]
        else:
            with contextlib.suppress(TypeError):  # numbers, texts and the like have no attributes
                left += [(type(one).__name__, value) for value in vars(one).values()]
    return ""
