"""`plan`: whether a run fits into memory, its FLOPs and duration, and changes that would make it fit."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..core.config import apply_overrides, validated
from ..core.files import write_json
from ..errors import ConfigError
from ..models.emu.settings import EXAMPLE_TEXT, EmuParts
from ..runs import RunConfig
from ..tasks import task_of
from .fitting import Verdict, judge, largest_that_fits
from .hardware import peak_tflops
from .settings import PlanSettings
from .step import MakesBatches, Step, class_names, listed_classes, needs_classes, trace_step

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """The requirements of a run. Bytes are those of one device, at the peak of a training step.

    Attributes:
        name: of the run.
        devices: that train together.
        device_memory: bytes of each device.
        micro_batch_size: samples of a forward pass.
        accumulation: forward passes of a step.
        batch_size: samples of a step, over all devices.
        parameters: of the model and the objective.
        trained: parameters that train.
        parts: parameters by part of the model.
        peak: bytes at the highest moment of a step.
        peak_tflops: TFLOP/s of a device.
        utilisation: share of that peak which training is expected to reach.
        memory: by category: weights, gradients, optimizer, averages (EMA), activations, casts (copies of weights in
            bf16), batch, communication (between devices).
        kept_for_backward: activations and casts after the forward pass.
        flops_per_step: of all devices; matrix products, convolutions and attention, forward and backward, what gradient
            checkpointing computes twice counted twice.
        steps: None where the length is in epochs and the number of samples is unknown.
        hours: None where the length is in epochs and the number of samples is unknown.
        verdict: "tight" is above 80 % of the memory.
        advice: sentences.
        assumptions: sentences.
    """

    name: str
    devices: int
    device_memory: int
    micro_batch_size: int
    accumulation: int
    batch_size: int
    parameters: int
    trained: int
    parts: dict[str, int]
    memory: dict[str, int]
    peak: int
    kept_for_backward: int
    flops_per_step: int
    steps: int | None
    peak_tflops: float
    utilisation: float
    hours: float | None
    verdict: Verdict
    advice: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON.

        Args:
            path: the file.

        Raises:
            ConfigError: the file cannot be written.
        """
        write_json(path, asdict(self))


def plan(config: RunConfig, **settings: object) -> Plan:
    """Plans a run; no data and no weights are read.

    Args:
        config: The run.
        **settings: Fields of `PlanSettings`: devices, memory (GiB of each), utilisation, peak, samples, classes.

    Returns:
        The plan: memory by category, FLOPs, hours, a verdict and advice.

    Raises:
        ConfigError: For settings that cannot work, and for a model or objective that cannot be traced.
    """
    chosen = validated(PlanSettings, settings, "plan")
    devices, samples = chosen.devices, chosen.samples
    tflops = peak_tflops(chosen.peak, config.train.precision)
    step = trace_step(config, devices, chosen.classes)
    room = int(chosen.memory * GIB)
    found = judge(step.peak, room)
    steps = None if config.train.max_steps is None and samples is None else config.train.num_steps(samples)
    flops = step.flops * step.accumulation * devices
    return Plan(
        name=config.name,
        devices=devices,
        device_memory=room,
        micro_batch_size=step.micro_batch_size,
        accumulation=step.accumulation,
        batch_size=config.train.batch_size,
        parameters=step.parameters,
        trained=step.trained,
        parts=step.parts,
        memory=step.memory,
        peak=step.peak,
        kept_for_backward=step.kept,
        flops_per_step=flops,
        steps=steps,
        peak_tflops=tflops,
        utilisation=chosen.utilisation,
        hours=None if steps is None else steps * flops / (devices * tflops * 1e12 * chosen.utilisation) / 3600,
        verdict=found,
        advice=[] if found == "fits" else list(advise(config, devices, room, chosen.classes, step.peak)),
        assumptions=list(assumed(config, step, chosen.classes)),
    )


def assumed(config: RunConfig, step: Step, classes: int) -> Iterator[str]:
    """Assumptions, in sentences."""
    if needs_classes(config) and not listed_classes(config):
        yield f"{len(class_names(config, classes)):,} classes (--classes)"
    if isinstance(config.model, EmuParts) and not isinstance(config.data, MakesBatches):
        yield f"rows of full length, one image for every {EXAMPLE_TEXT} text tokens"
    if config.train.compile:
        yield "without torch.compile, which may need less memory"
    if step.trained < step.parameters:
        yield "frozen parameters have neither gradients nor optimizer state"


def advise(config: RunConfig, devices: int, room: int, classes: int, whole: int) -> Iterator[str]:
    """Changes that would make the run fit, in sentences; each was traced. whole: the peak of the run without
    changes."""
    share = config.train.batch_size // devices

    def peak(*changes: str) -> int | None:
        try:
            return trace_step(apply_overrides(config, changes), devices, classes).peak
        except ConfigError:  # a change that this model does not support
            return None

    def said(what: str, change: str, needs: int) -> str:
        verdict = judge(needs, room)
        effect = "it fits" if verdict == "fits" else "it just fits" if verdict == "tight" else "still does not fit"
        return f"{what} ({change}): {needs / GIB:.1f} GiB, {effect}"

    found = largest_that_fits(
        lambda size: peak(f"train.micro_batch_size={size}"), config.train.micro_batch(devices), share, whole, room
    )
    if found is not None:
        size, needs = found
        yield said("smaller micro batches with gradient accumulation", f"train.micro_batch_size={size}", needs)
    tried: list[str] = []
    changes = [("gradient checkpointing", "train.gradient_checkpointing=true",
                not config.train.gradient_checkpointing),
               ("half-precision activations", "train.precision=bf16", config.train.precision != "bf16"),
               ("8-bit optimizer state", "optim.kind=adamw_8bit",
                devices == 1 and config.optim.kind == "adamw"),
               ("weights and optimizer state sharded over the devices", "train.fsdp=true",
                devices > 1 and not config.train.fsdp)]  # fmt: skip
    for what, change, possible in changes:
        if possible and (needs_now := peak(change)) is not None:
            yield said(what, change, needs_now)
            tried.append(change)
    together = [*tried, *([f"train.micro_batch_size={found[0]}"] if found is not None else [])]
    if len(together) > 1 and (needs_now := peak(*together)) is not None:
        yield said("all of these together", " ".join(together), needs_now)
    if config.train.lora is None and (targets := task_of(config).lora):
        lora = f"train.lora={{rank: 8, targets: {targets}}}"
        if (needs_now := peak(lora)) is not None:
            yield said("low-rank adapters (LoRA) instead of full fine-tuning", lora, needs_now)
