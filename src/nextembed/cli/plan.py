"""`plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.files import checked_file
from .arguments import Settings
from .completing import offer_recipes
from .options import command
from .words import check_recipe, check_settings

if TYPE_CHECKING:
    from ..planning.plan import Plan
    from ..planning.settings import PlanSettings

ROWS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "averages": "averaged weights (EMA)",
    "casts": "bf16 copies of weights",
    "activations": "activations and workspace",
    "batch": "batch",
    "communication": "communication between devices",
}


@command(settings="planning.settings:PlanSettings")
def plan(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe, config.yaml, run folder or my_file.py:my_recipe.",
            autocompletion=offer_recipes,
        ),
    ],
    settings: "PlanSettings",
    overrides: Settings = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON to this file.")
    ] = None,
) -> None:
    """Estimate what a run will need: memory, FLOPs, hours.

    Nothing is allocated: a plan for a model of any size takes seconds on any machine.

    \b
    Examples:
      nextembed plan nepa_demo
      nextembed plan nepa_base_imagenet --devices 8 --peak-tflops h100 --samples 1281167
    """
    check_recipe(recipe)
    check_settings(overrides or [])
    from .. import recipes
    from ..core.config import apply_overrides
    from ..planning.plan import plan as make_plan

    if json_file is not None:
        checked_file(json_file)
    made = make_plan(apply_overrides(recipes.load(recipe), overrides or []), **settings.model_dump())
    if json_file is not None:
        made.save(json_file)
    show(made, settings.peak)


def show(plan: "Plan", device: str) -> None:
    """A table and a few sentences on the terminal."""
    from rich.table import Table
    from rich.text import Text

    from ..core.console import PlainConsole
    from ..core.terminal import plain

    console = PlainConsole()
    several = f"{plan.devices} devices" if plan.devices > 1 else "1 device"
    room = plan.device_memory
    table = Table(title=f"{plan.name} on {several} of {size(room)}", title_justify="left", title_style="bold")
    table.add_column("on each device, at the peak of a step")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right", style="dim")
    for name, words in ROWS.items():
        if plan.memory.get(name):
            table.add_row(words, size(plan.memory[name]), f"{plan.memory[name] / plan.peak:.0%}")
    table.add_section()
    table.add_row("peak", size(plan.peak), f"{plan.peak / room:.0%} of {size(room)}", style="bold")
    console.print(table)
    for name, text in facts(plan, device):
        console.print(Text(f"{name:16}", style="dim") + Text(plain(text)), soft_wrap=True)
    style = {"fits": "green", "tight": "yellow", "does not fit": "red"}[plan.verdict]
    reason = {
        "fits": "It fits.",
        "tight": "It is tight: above 80 % of the memory, and the estimate may be off by 20 %.",
        "does not fit": "It does not fit.",
    }[plan.verdict]
    console.print(Text(plain(reason), style=f"bold {style}"))
    if plan.advice:
        console.print("What would help:")
    for line in plan.advice:
        console.print(f"  - {line}", soft_wrap=True)


def facts(plan: "Plan", device: str) -> list[tuple[str, str]]:
    """(name, text) of the lines below the table."""
    from ..planning.hardware import PEAKS

    trained = f", {count(plan.trained)} trainable" if plan.trained < plan.parameters else ""
    parts = ", ".join(f"{name} {count(value)}" for name, value in plan.parts.items())
    passes = f" x {plan.accumulation} passes" if plan.accumulation > 1 else ""
    named = f" ({device})" if device.lower() in PEAKS else ""
    rate = f"{plan.peak_tflops:g} TFLOP/s{named}"
    rows = [
        ("parameters", f"{count(plan.parameters)}{trained}" + (f" ({parts})" if len(plan.parts) > 1 else "")),
        ("batch", f"{plan.batch_size} = {plan.micro_batch_size} x {plan.devices} devices{passes}"),
        ("activations", f"{size(plan.kept_for_backward)} are saved for the backward pass"),
        ("FLOPs", f"{count(plan.flops_per_step, flops=True)} a step, all devices"),
    ]
    seconds = plan.flops_per_step / (plan.devices * plan.peak_tflops * 1e12 * plan.utilisation)
    at = f"{duration(seconds)} a step, at {plan.utilisation:.0%} of {rate} a device"
    if plan.hours is None:
        million = duration(seconds * 1e6 / plan.batch_size)
        rows.append(("time", f"{million} per million samples (--samples N gives the whole); {at}"))
    else:
        rows.append(("time", f"{duration(plan.hours * 3600)} for {plan.steps:,} steps; {at}"))
    return rows + [("assumed", line) for line in plan.assumptions]


def duration(seconds: float) -> str:
    """A time as text: 3.2 ms, 41 s, 12 min, 73 hours."""
    for unit, name in ((3600, "hours"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:,.{0 if seconds >= 100 * unit else 1}f} {name}"
    return f"{seconds:.1g} s"


def size(num_bytes: int) -> str:
    """Bytes as text: 3.2 GiB, 410 MiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.{0 if num_bytes >= 100 * unit else 1}f} {name}"
    return f"{num_bytes} B"


def count(number: int, flops: bool = False) -> str:
    """A large number as text: 86.1 M, 14.2 B; FLOPs like 3.1 TFLOP."""
    names = ("P", "T", "G", "M") if flops else ("", "T", "B", "M")
    for power, name in zip((15, 12, 9, 6), names, strict=True):
        if number >= 10**power and name:
            return f"{number / 10**power:.3g} {name}" + ("FLOP" if flops else "")
    return f"{number:,}" + (" FLOP" if flops else "")
