"""What happens beside the training step: averaged weights, records, progress, online probe."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import TrainerCallback

from ..core import distributed
from ..core.files import to_json, write_text
from ..core.run_folder import read_lines
from ..errors import NextEmbedError
from ..nn.ema import decay_at, follow
from .checkpoint import saving

Probe = Callable[[Any], dict[str, float]]
Keep = Callable[[dict[str, float], int], None]
Say = Callable[[str], None]
Warnings = Callable[[list[dict[str, Any]]], list[str]]


class Interrupted(NextEmbedError):
    """Training was stopped by a signal, and saved; the message holds the command that resumes it."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum


class EmaWeights(TrainerCallback):
    """Exponential moving average of the backbone's parameters that train; the others stay as they are.

    weights: by name in the backbone; sharded like the parameters under FSDP2.
    The decay after step t is `nn.ema.decay_at`. Of a frozen backbone there is nothing to average.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.weights: dict[str, Tensor] = {}

    def start(self, backbone: nn.Module, stored: dict[str, Tensor] | None = None) -> None:
        """Begins at the backbone's weights, or goes on from stored ones (whole tensors by name)."""
        self.weights = {n: p.detach().clone() for n, p in backbone.named_parameters() if p.requires_grad}
        for name, value in (stored or {}).items():
            if name in self.weights:
                self.weights[name].copy_(_like(value, self.weights[name]))

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        params = dict(model.backbone.named_parameters())
        decay = decay_at(self.decay, state.global_step + 1)
        follow(list(self.weights.values()), [params[n] for n in self.weights], decay)

    def full(self) -> dict[str, Tensor]:
        """Whole tensors on the CPU. Under FSDP2 every rank must call it."""
        return {n: _whole(t).cpu() for n, t in self.weights.items()}

    @contextmanager
    def applied(self, backbone: nn.Module) -> Iterator[None]:
        """The backbone holds the averaged weights inside the block, and its own again after it."""
        by_name = dict(backbone.named_parameters())
        params = [by_name[n].data for n in self.weights]
        own = [p.clone() for p in params]
        copy_into(params, list(self.weights.values()))
        try:
            yield
        finally:
            copy_into(params, own)


def copy_into(params: list[Tensor], values: list[Tensor]) -> None:
    if params:
        torch._foreach_copy_(params, values)


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _like(value: Tensor, target: Any) -> Tensor:
    if not hasattr(target, "device_mesh"):
        return value.to(target.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)


class Records(TrainerCallback):
    """metrics.jsonl: one JSON object per logging step, written at once; and each lasting warning once on the terminal.

    warnings: all lines so far -> sentences about what is wrong now; they are recorded with the line as "warnings".
    say: prints. resume_step: lines after it are dropped first, also one that a kill cut short.
    """

    def __init__(self, path: Path, warnings: Warnings, say: Say, resume_step: int = 0):
        self.path, self.warnings, self.say = path, warnings, say
        found = (line for line in read_lines(path) if isinstance(line.get("step"), int))
        self.lines = [line for line in found if line["step"] <= resume_step]
        self.said: set[str] = set()
        distributed.on_main(self._rewrite)

    def on_log(self, args, state, control, logs=None, **kwargs):
        # JSON has no NaN: what is not a number now is left out, as what is not measured now
        line = {"step": state.global_step} | {n: v for n, v in logs.items() if not isinstance(v, float) or isfinite(v)}
        self.lines.append(line)
        if found := self.warnings(self.lines):
            line["warnings"] = found
        distributed.on_main(lambda: self._append(line))
        before = self.lines[-2].get("warnings", []) if len(self.lines) > 1 else []
        for text in found:  # said at the second line in a row: the first steps of any run look like copying
            if kind(text) not in self.said and kind(text) in map(kind, before):
                self.say(f"[yellow]warning[/] step {state.global_step}: {text}")
                self.said.add(kind(text))

    def _rewrite(self) -> None:
        if self.path.exists():
            write_text(self.path, "".join(to_json(line) + "\n" for line in self.lines))

    def _append(self, line: dict[str, Any]) -> None:
        with saving(self.path.parent, f"writing {self.path.name}"), self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(line) + "\n")


def kind(warning: str) -> str:
    """The words before the colon, which stay the same while the figures change."""
    return warning.partition(":")[0]


class ProgressBar(TrainerCallback):
    """A live bar with loss, gap, images/s and ETA on a terminal; elsewhere one line per logging step."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(file=sys.stderr, highlight=False)
        self.bar: Progress | None = None
        self.task: Any = None
        self.start = (0.0, 0)

    def say(self, text: str) -> None:
        """Prints above the bar, on the main rank only."""
        if distributed.is_main():
            self.console.print(text, soft_wrap=True)

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = (time.monotonic(), state.global_step)
        if not (state.is_world_process_zero and self.console.is_terminal):
            return
        columns = (TextColumn("training"), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
        self.bar = Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=self.console)
        self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step, text="")
        self.bar.start()

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        text = summary(logs)
        if self.bar is not None:
            self.bar.update(self.task, text=text)
            return
        began, first = self.start
        left = (time.monotonic() - began) / max(1, state.global_step - first) * (state.max_steps - state.global_step)
        self.say(f"step {state.global_step}/{state.max_steps}  {text}  ETA {duration(left)}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def summary(logs: dict[str, float]) -> str:
    """One line of what matters in a logging step."""
    parts = [name for name in logs if name.startswith(("top1/", "cos_next/")) and not name.endswith("/begin")]
    what = "rows" if "text_loss" in logs or parts else "images"
    names = {"loss": "loss {:.4f}", "text_loss": "text {:.3f}", "regression_loss": "latents {:.4f}"}
    names |= {"cos_gap": "gap {:+.3f}", "images_per_second": f"{{:.0f}} {what}/s"}
    names |= {"probe/knn": "kNN {:.1%}", "probe/linear": "linear {:.1%}"}
    names |= {"eval/accuracy": "accuracy {:.1%}", "eval/ema_accuracy": "EMA {:.1%}", "eval/miou": "mIoU {:.1%}"}
    for name in parts:  # Omni: tokens read out right, cosines elsewhere
        own = name.partition("/")[2]
        if name.startswith("top1/") or f"top1/{own}" not in logs:
            names[name] = f"{own} {{:.3f}}"
    names |= {"eval/text_loss": "validation text {:.3f}", "eval/regression_loss": "latents {:.4f}"}
    return "  ".join(form.format(logs[n]) for n, form in names.items() if n in logs)


def duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, secs = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{secs:02d}"


class OnlineProbe(TrainerCallback):
    """Runs an injected probe on the backbone every `steps` steps and at the last; its results join the logged line.

    The probe sees the model in eval mode. Its random draws cannot reach training, which seeds every forward pass.
    probe: None on the other ranks, and where there is nothing to probe on. results: what the trainer takes and logs.
    keep: called with the results and the step after each probe.
    """

    def __init__(self, probe: Probe | None, steps: int, ema: EmaWeights | None, keep: Keep | None = None):
        self.probe, self.steps, self.ema, self.keep = probe, steps, ema, keep
        self.results: dict[str, float] = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.steps and state.global_step < state.max_steps:
            return
        control.should_log = True
        if self.probe is not None and state.is_world_process_zero:
            self.results = self.measure(self.probe, model.backbone)
            if self.keep is not None:
                self.keep(self.results, state.global_step)

    def measure(self, probe: Probe, backbone: nn.Module) -> dict[str, float]:
        training = backbone.training
        backbone.eval()
        try:
            results = probe(backbone)
            if self.ema is not None:
                with self.ema.applied(backbone):
                    averaged = probe(backbone)
                results = results | {n.replace("/", "/ema_", 1): v for n, v in averaged.items()}
        finally:
            backbone.train(training)
        return results
