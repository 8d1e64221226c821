"""A training step without values: lifetimes of storages, and number of operations.

The step runs the real model and objective on fake tensors, which have shapes but no values. Autograd is real, so a
storage lives exactly as long as in training: what the backward pass needs until it has been used, the rest briefly.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

WEIGHTS, GRADIENTS, OPTIMIZER, AVERAGES = "weights", "gradients", "optimizer", "averages"
CASTS, ACTIVATIONS, BATCH = "casts", "activations", "batch"  # casts: copies of weights for autocast

Shares = Mapping[str, float]


def _cpu_attention(query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _cpu_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


_ATEN = torch.ops.aten
# torch's table lacks the CPU's attention; causal attention counts like full attention, as torch does elsewhere.
FLOPS: dict[OpOverloadPacket, Callable[..., int]] = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}


class Trace(TorchDispatchMode):
    """Counts bytes of living storages by category, their peak, and floating-point operations.

    shares: of each category, how much of it one device holds (1 where nothing is said); the peak is that of the
    weighted sum. peak: bytes by category at that moment, unweighted. flops: multiplications and additions of matrix
    products, convolutions and attention, recomputed ones included.
    """

    def __init__(self, shares: Shares):
        super().__init__()
        self.shares = dict(shares)
        self.live: dict[int, tuple[int, str]] = {}  # storage -> bytes, category
        self.now: Counter[str] = Counter()
        self.peak: dict[str, int] = {}
        self._total = self._highest = 0.0
        self.flops = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Tensor, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        category = ACTIVATIONS
        if func is _ATEN._to_copy.default and self.category(args[0]) == WEIGHTS:
            category = CASTS
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.see(leaf, category)
        if (count := FLOPS.get(func._overloadpacket)) is not None:
            self.flops += int(count(*args, **kwargs, out_val=out))
        return out

    def see(self, tensor: Tensor, category: str) -> None:
        """Counts a tensor's storage from now on until it is freed; one that is known stays in its category."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live:
            return
        size = storage.nbytes()
        self.live[key] = (size, category)
        weakref.finalize(storage, self._free, key)
        self._add(category, size)

    def move(self, tensor: Tensor, category: str, size: int | None = None) -> None:
        """Puts a tensor's storage into a category; size: bytes it really takes, where that is not its size here."""
        self.see(tensor, category)
        key = tensor.untyped_storage()._cdata
        before, old = self.live[key]
        size = before if size is None else size
        self._add(old, -before)
        self.live[key] = (size, category)
        self._add(category, size)

    def category(self, tensor: Tensor) -> str | None:
        found = self.live.get(tensor.untyped_storage()._cdata)
        return found[1] if found else None

    def watch_gradients(self, module: nn.Module) -> None:
        """From now on, a parameter's finished gradient counts as one."""
        for param in module.parameters():
            if param.requires_grad:
                param.register_post_accumulate_grad_hook(self._finished)

    def restart(self) -> None:
        """Starts counting peak and operations."""
        self.peak, self._highest, self.flops = {}, 0.0, 0
        self._note()

    def _finished(self, param: Tensor) -> None:
        assert param.grad is not None
        self.move(param.grad, GRADIENTS)

    def _free(self, key: int) -> None:
        size, category = self.live.pop(key)
        self._add(category, -size)

    def _add(self, category: str, size: int) -> None:
        self.now[category] += size
        self._total += self.shares.get(category, 1.0) * size
        self._note()

    def _note(self) -> None:
        if self._total > self._highest:
            self._highest, self.peak = self._total, dict(self.now)
