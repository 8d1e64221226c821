"""Values of small tensors, stored with fake tensors, so that code that reads masks can run on shapes alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

MAX_BYTES = 16 * 2**20  # largest storage whose values are stored
MAX_FLOATS = 256  # numbers of a float tensor whose values are carried: drawn shares, rates
_ATEN = torch.ops.aten
_BY_MASK = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default, _ATEN._index_put_impl_.default}
_EMPTY = {_ATEN.empty.memory_format, _ATEN.empty_like.default, _ATEN.new_empty.default, _ATEN.empty_strided.default}
Named = dict[str, object]
_UNKNOWN = (DataDependentOutputException, DynamicOutputShapeException)


class KnownValues(TorchDispatchMode):
    """Inside a FakeTensorMode: whole numbers and masks that come from known ones (or from nothing, as `arange`) have
    values, and what depends on values (`x[mask]`, `.item()`) then works. Where they are unknown, torch's own error of
    fake tensors comes through."""

    def __init__(self) -> None:
        super().__init__()
        self.values = WeakIdKeyDictionary()

    def fake(self, value: Tensor) -> Tensor:
        """A fake tensor that stands for `value`, whose values are carried if it is small or holds whole numbers."""
        out = torch.empty(value.shape, dtype=value.dtype)
        self._carry(out, value)
        return out

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: Named | None = None
    ) -> object:
        kwargs = kwargs or {}
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known, given = all(self.value(x) is not None for x in inputs), (func, args, kwargs)
        if func in _BY_MASK:
            args = (args[0], self._numbered(args[1]), *args[2:])
        if func is _ATEN.masked_select.default:
            func, args = _ATEN.index.Tensor, (args[0].expand_as(args[1]), self._numbered([args[1].expand_as(args[0])]))
        try:
            out = func(*args, **kwargs)
        except _UNKNOWN:
            if not known:
                raise
            real = self._compute(*given)
            return tree_map_only(Tensor, self.fake, real)
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if known and outputs and all(_is_small(x) for x in outputs):
            reals = [x for x in tree_leaves(self._compute(*given)) if isinstance(x, Tensor)]
            for one, real in zip(outputs, reals, strict=True):
                self._carry(one, real)
        elif func._schema.is_mutable:
            for changed in inputs[:1]:
                self.values.pop(changed, None)
        return out

    def value(self, tensor: Tensor) -> Tensor | None:
        """The values of a tensor; None if they are not carried."""
        return self.values.get(tensor) if isinstance(tensor, FakeTensor) else tensor

    def _carry(self, fake: Tensor, value: Tensor) -> None:
        if _is_small(value):
            self.values[fake] = value

    def _compute(self, func: OpOverload, args: tuple[object, ...], kwargs: Named) -> object:
        with _disable_current_modes(), torch.no_grad():
            kwargs = {n: v for n, v in kwargs.items() if n != "device"}
            out = func(*tree_map_only(Tensor, self.value, args), **tree_map_only(Tensor, self.value, kwargs))
            return out.zero_() if func in _EMPTY else out

    def _numbered(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Indices with each known mask replaced by as many row numbers as it has places."""
        found: list[Tensor | None] = []
        for index in indices:
            mask = self.value(index) if index is not None and index.dtype == torch.bool else None
            if mask is None:
                found.append(index)
                continue
            with _disable_current_modes():
                count = int(mask.sum())
            found += [torch.empty(count, dtype=torch.int64) for _ in range(mask.ndim)]
        return found


def _is_small(x: Tensor) -> bool:
    if x.dtype.is_floating_point or x.dtype.is_complex:
        return x.numel() <= MAX_FLOATS and x.layout == torch.strided
    return x.untyped_storage().nbytes() <= MAX_BYTES
