"""Linear layers with neighbouring operations folded in, so that fewer activations are written, read and saved.

On a CPU most of the time outside matrix products is memory traffic. Folding works on weights, which are much smaller
than activations. `is_plain` says where this is allowed: a layer that other code changed is called as it is.
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether using the weights of this module is the same as calling it: it is a `kind` without changes (LoRA,
    quantisation, offloaded weights, hooks)."""
    return type(module) is kind and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Whether other code acts when the module is called, so that the number of calls matters."""
    hooks = module._forward_pre_hooks or module._forward_hooks or module._backward_hooks
    return "forward" in vars(module) or bool(hooks)


_AS_ACCELERATOR = ContextVar("as_accelerator", default=False)


@contextmanager
def as_on_accelerator() -> Iterator[None]:
    """Inside the block, tensors on the CPU use the code path of other devices, for plans of runs there."""
    token = _AS_ACCELERATOR.set(True)
    try:
        yield
    finally:
        _AS_ACCELERATOR.reset(token)


def is_uncompiled_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU, without compiler."""
    return x.device.type == "cpu" and not _AS_ACCELERATOR.get() and not torch.compiler.is_compiling()


def is_eager_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU in float32 or float64, without compiler and autocast."""
    in_full = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    return in_full and is_uncompiled_cpu(x)


MANY_ROWS = 1024


def in_parts(x: Tensor, modules: Iterable[nn.Module]) -> bool:
    """Whether a function of single rows x [..., in] is better computed `MANY_ROWS` at a time: without gradients on a
    CPU, where new memory for all of them costs more than the computation on it. modules: those that it calls."""
    if torch.is_grad_enabled() or not is_eager_cpu(x):  # first: an export must not depend on the number of rows
        return False
    return x.is_contiguous() and x.numel() > MANY_ROWS * x.shape[-1] and not any(map(is_hooked, modules))


FEW_ROWS = 3


@contextmanager
def fast_for_few_rows(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block, plain linear layers among the modules of a model on a CPU read their weights two to three times
    as fast for up to `FEW_ROWS` rows, as in generation for one prompt, whose time is that of reading weights."""
    plain = [module for module in modules if isinstance(module, nn.Linear) and is_plain(module, nn.Linear)]
    layers = [module for module in plain if module.weight.device.type == "cpu"]
    for layer in layers:
        layer.forward = functools.partial(few_rows_linear, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def few_rows_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """linear(x), x [..., in]. Of few rows the product is W x^T, for which the matrix library reads W once and in order;
    for x W^T, and for a single column, it is slower, so a single row is doubled."""
    rows = x.numel() // max(x.shape[-1], 1) if is_eager_cpu(x) else 0
    if not 0 < rows <= FEW_ROWS or linear.weight.dtype != x.dtype:
        return F.linear(x, linear.weight, linear.bias)
    columns = (x.reshape(1, -1).expand(2, -1) if rows == 1 else x.reshape(rows, -1)).contiguous().t()
    out = (linear.weight @ columns)[:, :rows].t().reshape(*x.shape[:-1], -1)
    return out if linear.bias is None else out + linear.bias


def scaled_linear(linear: nn.Linear, x: Tensor, scale: Tensor | None, residual: Tensor | None = None) -> Tensor:
    """linear(x) * scale, added to `residual`: a linear layer with LayerScale, without keeping its output for the
    backward pass. x [..., in], scale [out], residual [..., out]. A linear layer with changes is called as it is. On a
    CPU it has no second derivative."""
    if scale is None:
        out = linear(x)
    elif not is_plain(linear, nn.Linear):
        out = linear(x) * scale
    elif is_eager_cpu(x):
        return _ScaledLinear.apply(x, linear.weight, linear.bias, scale, residual)
    else:
        out = F.linear(x, linear.weight * scale[:, None], None if linear.bias is None else linear.bias * scale)
    return out if residual is None else residual + out


def activated_linear(linear: nn.Linear, activation: nn.Module, x: Tensor) -> Tensor:
    """activation(linear(x)); without gradients GELU and SiLU overwrite their input, since new memory costs a CPU more
    than the computation."""
    out = linear(x)
    if not torch.is_grad_enabled() and is_plain(linear, nn.Linear):
        if is_plain(activation, nn.GELU) and activation.approximate == "none":
            return torch.ops.aten.gelu_(out)
        if is_plain(activation, nn.SiLU):
            return F.silu(out, inplace=True)
    return activation(out)


class _ScaledLinear(torch.autograd.Function):
    """Scale and residual are applied in one pass, and the backward pass scales weights instead of activations."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, residual: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias, scale)
        out = F.linear(x, weight, bias)
        return out.mul_(scale) if residual is None else torch.addcmul(residual, out, scale, out=out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        x, weight, bias, scale = ctx.saved_tensors
        grad_x, grad_residual = grads[0] @ (weight * scale[:, None]), grads[0] if ctx.needs_input_grad[4] else None
        if not any(ctx.needs_input_grad[1:4]):
            return grad_x, None, None, None, grad_residual
        grad_weight, grad_bias = weight_gradients(x, grads[0])
        grad_scale = torch.bmm(grad_weight[:, None], weight[:, :, None]).flatten()  # rows' dot products
        if bias is None:
            return grad_x, grad_weight.mul_(scale[:, None]), None, grad_scale, grad_residual
        grad_scale += grad_bias * bias
        return grad_x, grad_weight.mul_(scale[:, None]), grad_bias.mul_(scale), grad_scale, grad_residual


def weight_gradients(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight [out, in] and bias [out] from that of F.linear(x, weight, bias); x [..., in]."""
    rows = grad.flatten(0, -2)
    return rows.t() @ x.flatten(0, -2), rows.sum(0)
