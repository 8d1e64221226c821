"""Traces one training step of a run: peak memory of a device, and FLOPs."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from transformers import PreTrainedModel

from ..core.objective import Objective, PretrainingModel, ViewSettings
from ..core.types import Backbone, Batch
from ..core.weightless import to_fake, weightless
from ..errors import ConfigError, NextEmbedError
from ..models.emu import EmuForConditionalGeneration, EmuParts
from ..nn.linear import as_on_accelerator
from ..runs import RunConfig
from ..tasks import model_part, task_of
from ..tasks.base import Task
from ..training.adapt import adapt
from ..training.eight_bit import state_bytes
from ..training.optim import build_optimizer
from ..training.state import ADAMW
from ..training.watch import EmaWeights
from .known import KnownValues
from .trace import ACTIVATIONS, AVERAGES, BATCH, CASTS, GRADIENTS, OPTIMIZER, WEIGHTS, Trace

FLOAT = 4  # bytes
MAX_TRACED = 1024  # samples: masks of more may be too large to look at


@dataclass(frozen=True)
class Step:
    """What tracing a step gives. memory: bytes on one device at its peak, by category; kept: activations (and copies of
    weights) that the forward pass leaves for the backward pass; flops: of one micro batch; all for one device.
    parameters, trained: of the whole model; parts: parameters by part of the model."""

    micro_batch_size: int
    accumulation: int
    parameters: int
    trained: int
    parts: dict[str, int]
    memory: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    flops: int = 0

    @property
    def peak(self) -> int:
        return sum(self.memory.values())


def trace_step(config: RunConfig, devices: int, num_classes: int) -> Step:
    """Builds the run's model and objective without weights and traces one micro batch, forward and backward.

    It is a later step: the optimizer has its state; with accumulation, gradients of earlier micro batches are there.
    Raises ConfigError for settings that a run would refuse, too, and for a model that cannot be traced.
    """
    micro = config.train.micro_batch(devices)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fake tensors warn about attributes that deepcopy reads
            return _trace(config, devices, micro, num_classes)
    except NextEmbedError:
        raise
    except Exception as err:
        if micro > MAX_TRACED and isinstance(err, DynamicOutputShapeException | DataDependentOutputException):
            raise ConfigError(f"cannot plan {micro:,} samples at once; set train.micro_batch_size") from err
        reason = (" ".join(str(err).split()) or "no message")[:200]
        raise ConfigError(f"cannot plan {config.name}: {type(err).__name__} while tracing a step: {reason}") from err


def _trace(config: RunConfig, devices: int, micro: int, num_classes: int) -> Step:
    fake, known = FakeTensorMode(allow_non_fake_inputs=True), KnownValues()
    train, accumulation = config.train, config.train.batch_size // (micro * devices)
    backbone = build_weightless(config, num_classes)
    with _modes(fake, known, train.device):
        to_fake(backbone)
        with torch.device(
            "meta"
        ):  # peft would move new layers to their neighbours' device, which fails for fake tensors
            adapt(backbone, train, config.seed)
        to_fake(backbone)
        objective = config.objective.build(cast(Backbone, backbone))
        model = PretrainingModel(backbone, objective).train()
        to_fake(model)
        sizes = quantized(backbone, config.model.quantize if isinstance(config.model, EmuParts) else None)
        averages = EmaWeights(train.ema_decay, backbone) if train.ema_decay is not None else None
    batch = example_batch(config, backbone, objective, micro)
    trace = Trace(shares(train.fsdp, devices))
    with _modes(fake, known, train.device):
        optimizer = with_gradients_and_state(model, config)
        inputs = {name: known.fake(value) for name, value in cast(Any, batch).items()}
        place(trace, model, optimizer, averages, inputs, accumulation if train.device == "cpu" else 1)
        for param, size in sizes.items():
            trace.move(param, WEIGHTS, size)
        if config.optim.kind == "adamw_8bit":
            keep_in_eight_bits(trace, optimizer)
        if accumulation == 1:
            optimizer.zero_grad(set_to_none=True)
        with trace:
            trace.watch_gradients(model)
            trace.restart()
            with torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bf16"):
                output = model(cast(Any, inputs))
            loss = output.loss_sum.sum() * 0.5
            kept = trace.now[ACTIVATIONS] + trace.now[CASTS]
            loss.backward()
    memory = {name: round(trace.shares.get(name, 1.0) * size) for name, size in trace.peak.items()}
    if sizes:  # one layer at a time is unpacked
        memory[CASTS] = memory.get(CASTS, 0) + 2 * max(param.numel() for param in sizes)
    memory["communication"] = communication(model, config, devices)
    return Step(micro, accumulation, *counted(model), memory, kept, trace.flops)


@contextlib.contextmanager
def _modes(fake: FakeTensorMode, known: KnownValues, device: str) -> Iterator[None]:
    """Fake tensors are on the CPU, whose autocast and attention keep what those of a GPU keep. Ways that
    only a CPU goes
    are left out unless the run is for one."""
    with contextlib.nullcontext() if device == "cpu" else as_on_accelerator(), fake, known:
        yield


def build_weightless(config: RunConfig, num_classes: int) -> PreTrainedModel:
    """The run's backbone on torch's meta device; a classifier gets as many classes as its settings say."""
    model = cast(Any, config.model)
    if isinstance(config.model, EmuParts):  # packing is estimated by `quantized`, which needs no bitsandbytes
        model = model.model_copy(update={"quantize": None})
    names = class_names(config, num_classes) if needs_classes(config) else []
    with weightless():
        return model.build(names)


def needs_classes(config: RunConfig) -> bool:
    """Whether the run's model is built for the classes of its data."""
    return type(task_of(config)).class_names is not Task.class_names


@runtime_checkable
class MakesBatches(Protocol):
    """A data part with example batches of its own."""

    def example_batch(self, micro_batch_size: int, backbone: PreTrainedModel) -> Batch: ...


def example_batch(config: RunConfig, backbone: PreTrainedModel, objective: Objective, size: int) -> Batch:
    """One micro batch, as the model part makes it. A data part of the user's own kind may do it (`MakesBatches`)."""
    if isinstance(config.data, MakesBatches):
        return config.data.example_batch(size, backbone)
    batch = model_part(config).example_batch(backbone, size, objective.settings.draw)
    return with_views(batch, objective.settings.views)


def with_views(batch: Batch, views: int | ViewSettings) -> Batch:
    """The batch with as many crops of each image as an objective compares."""
    if views == 1:
        return batch
    pixels = batch["pixel_values"]  # [B, C, H, W]
    num_global = views if isinstance(views, int) else views.num_global
    large = pixels[:, None].repeat(1, num_global, 1, 1, 1)
    if isinstance(views, int) or not views.num_local:
        return {**batch, "global_views": large}
    small = pixels.new_zeros(len(pixels), views.num_local, pixels.shape[1], views.local_size, views.local_size)
    return {**batch, "global_views": large, "local_views": small}


def quantized(backbone: nn.Module, quantize: str | None) -> dict[nn.Parameter, int]:
    """Bytes of the weights that `model.quantize` ("4bit", "8bit") packs: frozen linear layers of the language model but
    its output. A block of 64 numbers of 4 bits has a float32 scale, a row of 8 bits too. They are computed
    with in bf16.
    """
    if quantize is None or not isinstance(backbone, EmuForConditionalGeneration):
        return {}
    language = backbone.model.language_model
    head, packed = language.get_output_embeddings(), {}
    for layer in language.modules():
        if isinstance(layer, nn.Linear) and layer is not head and not layer.weight.requires_grad:
            layer.weight = nn.Parameter(torch.empty(layer.weight.shape, dtype=torch.bfloat16), requires_grad=False)
            rows, numbers = layer.weight.shape[0], layer.weight.numel()
            packed[layer.weight] = (
                numbers // 2 + numbers // 64 * FLOAT if quantize == "4bit" else numbers + rows * FLOAT
            )
    return packed


def listed_classes(config: RunConfig) -> list[str]:
    """Those in the settings of the data; empty where there are none."""
    return list(dict(config.data).get("classes") or [])


def class_names(config: RunConfig, num_classes: int) -> list[str]:
    """Those in the settings of the data; else `num_classes` invented ones: the data are not read."""
    return listed_classes(config) or [f"class {i}" for i in range(num_classes)]


def with_gradients_and_state(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """The run's optimizer after a step: it has its state, and parameters have gradients. AdamW stands for AdamW in 8
    bits, whose step cannot be traced; `place` counts its bytes."""
    kind = "adamw" if config.optim.kind == "adamw_8bit" else config.optim.kind
    optimizer = build_optimizer(model, config.optim.model_copy(update={"kind": kind}))
    for param in model.parameters():
        if param.requires_grad:
            param.grad = torch.empty_like(param)
    optimizer.step()
    return optimizer


def place(
    trace: Trace,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averages: EmaWeights | None,
    inputs: dict[str, torch.Tensor],
    batches: int,
) -> None:
    """Assigns everything that exists before the forward pass to its category."""
    for tensor in (*model.parameters(), *model.buffers()):
        trace.move(tensor, WEIGHTS)
    for param in model.parameters():
        if param.grad is not None:
            trace.move(param.grad, GRADIENTS)
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                trace.move(value, OPTIMIZER)
    for value in averages.weights.values() if averages is not None else ():
        trace.move(value, AVERAGES)
    for value in inputs.values():
        trace.move(value, BATCH, value.untyped_storage().nbytes() * batches)


def keep_in_eight_bits(trace: Trace, optimizer: torch.optim.Optimizer) -> None:
    """Counts AdamW's averages as those of `adamw_8bit`."""
    for param, state in optimizer.state.items():
        for moment in ADAMW:
            trace.move(state[moment], OPTIMIZER, state_bytes(param.numel(), "adamw_8bit") // 2)


def shares(fsdp: bool, devices: int) -> dict[str, float]:
    """The share of each category that one device holds. With FSDP, autocast's copies of weights are the gathered
    weights themselves, which `communication` counts."""
    if not fsdp or devices == 1:
        return {}
    return {**dict.fromkeys((WEIGHTS, GRADIENTS, OPTIMIZER, AVERAGES), 1 / devices), CASTS: 0.0}


def communication(model: PretrainingModel, config: RunConfig, devices: int) -> int:
    """Bytes that communication between devices needs.

    Without FSDP: DistributedDataParallel's buckets, a second copy of the gradients. With it: the weights of two blocks
    (the one at work and the next) and of all that is in no block, gathered, and one block's gradients twice, whole and
    on their way.
    """
    if devices == 1:
        return 0
    if not config.train.fsdp:
        return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    backbone = model.backbone
    names = set(backbone._no_split_modules or []) if isinstance(backbone, PreTrainedModel) else set()
    units = [m for m in model.modules() if type(m).__name__ in names]
    sizes = [sum(p.numel() for p in unit.parameters()) for unit in units]
    inside = {id(p) for unit in units for p in unit.parameters()}
    root = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    width = 2 if config.train.precision == "bf16" else FLOAT
    return width * (root + 4 * max(sizes, default=0))


def counted(model: PretrainingModel) -> tuple[int, int, dict[str, int]]:
    """Parameters, those that train, and parameters by part."""
    params = list(model.parameters())
    backbone = model.backbone
    assert isinstance(backbone, nn.Module)
    children = dict(backbone.named_children())
    trunk = children.pop(backbone.base_model_prefix, None) if isinstance(backbone, PreTrainedModel) else None
    children |= dict(trunk.named_children()) if trunk is not None else {}
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in children.items()}
    parts["objective"] = sum(p.numel() for p in model.objective.parameters())
    trained = sum(p.numel() for p in params if p.requires_grad)
    return sum(p.numel() for p in params), trained, {name: size for name, size in parts.items() if size}
