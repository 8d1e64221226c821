"""Observers of the training step: averaged weights, means, records, progress, trackers, online probe."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor, nn

from ..core import distributed
from ..core.console import PlainConsole
from ..core.files import saving, to_json, write_text
from ..core.objective import PretrainingModel
from ..core.run_folder import read_lines
from ..core.terminal import plain
from ..errors import MissingExtra, NextEmbedError
from ..nn.ema import decay_at, follow

Probe = Callable[[Any], dict[str, float]]
Keep = Callable[[dict[str, float], int], None]
Say = Callable[[str], None]
Warnings = Callable[[list[dict[str, Any]]], list[str]]


def quiet(text: str) -> None:
    """Says nothing."""


class Interrupted(NextEmbedError):
    """Training was stopped by a signal and saved; the message has the command that resumes it."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum


class Training(Protocol):
    """The loop as watchers see it. step: steps done; max_steps: of the run; bare: backbone and objective."""

    step: int
    max_steps: int
    bare: PretrainingModel


class Watcher:
    """Receives events of training; the methods of this class do nothing."""

    def started(self, loop: Training) -> None:
        """Before the first step."""

    def stepped(self, loop: Training) -> None:
        """After each step; `loop.step` is its number, from 1."""

    def logged(self, loop: Training, line: dict[str, Any]) -> None:
        """With each line of metrics; later watchers record what is added to it."""

    def ready(self, loop: Training) -> None:
        """Before the next step, after probe, log and checkpoint of the last one."""


class EmaWeights:
    """Exponential moving average of the backbone's trained parameters.

    weights: by name in the backbone; sharded like the parameters under FSDP2. The decay after step t is
    `nn.ema.decay_at`. A frozen backbone has none.
    """

    def __init__(self, decay: float, backbone: nn.Module):
        self.decay = decay
        self.weights = {n: p.detach().clone() for n, p in backbone.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def start(self, backbone: nn.Module) -> None:
        """Restarts from the backbone's weights."""
        params = dict(backbone.named_parameters())
        copy_into(list(self.weights.values()), [params[n].detach() for n in self.weights])

    def update(self, backbone: nn.Module, step: int) -> None:
        """After optimizer step `step`, from 1."""
        params = dict(backbone.named_parameters())
        follow(list(self.weights.values()), [params[n].detach() for n in self.weights], decay_at(self.decay, step))

    @contextmanager
    def applied(self, backbone: nn.Module) -> Iterator[None]:
        """Context in which the backbone has the averaged weights."""
        by_name = dict(backbone.named_parameters())
        params = [by_name[n].data for n in self.weights]
        own = [p.clone() for p in params]
        copy_into(params, list(self.weights.values()))
        try:
            yield
        finally:
            copy_into(params, own)


def copy_into(params: list[Tensor], values: list[Tensor]) -> None:
    for param, value in zip(params, values, strict=True):
        param.copy_(value)


class Averages:
    """Means since the last log, kept on the device, so that adding does not synchronise."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor, count: Tensor | float = 1.0) -> None:
        value = value.detach().float()
        count = torch.as_tensor(count, dtype=torch.float32, device=value.device)
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts[name] + count if name in self.counts else count

    def state(self) -> dict[str, list[float]]:
        """{name: [sum, count]}: exact in JSON."""
        return {n: [float(s), float(self.counts[n])] for n, s in self.sums.items()}

    def load(self, state: dict[str, list[float]], device: torch.device) -> None:
        self.sums = {n: torch.tensor(s, device=device) for n, (s, _) in state.items()}
        self.counts = {n: torch.tensor(c, device=device) for n, (_, c) in state.items()}

    def drain(self) -> dict[str, float]:
        """Means over all ranks, also of metrics that only some have; then restarts. Every rank must call it."""
        states = distributed.gather_objects(self.state())
        self.sums, self.counts = {}, {}
        found = {}
        for name in dict.fromkeys(name for state in states for name in state):
            total, count = (sum(state[name][i] for state in states if name in state) for i in (0, 1))
            found[name] = total / max(1e-12, count)
        return found


class Trackers:
    """TensorBoard, Weights & Biases and trackio, through accelerate; on the main rank. Raises MissingExtra."""

    def __init__(self, names: Sequence[str], run_dir: Path):
        self.names, self.run_dir = names, run_dir
        self.trackers: list[Any] = []
        for name in names:
            try:
                __import__(name)
            except ImportError:
                raise MissingExtra(name, name) from None

    def start(self, step: int) -> None:
        """step: from which a run resumes; tracked values of later steps are removed."""
        if not distributed.is_main():
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in self.names:
            if name == "tensorboard":
                options: dict[str, Any] = {"logging_dir": self.run_dir, "purge_step": step + 1 if step else None}
                self.trackers.append(LOGGER_TYPE_TO_CLASS[name]("tensorboard", **options))
            else:
                self.trackers.append(LOGGER_TYPE_TO_CLASS[name]("nextembed", name=self.run_dir.name))
            self.trackers[-1].start()

    def log(self, line: dict[str, Any]) -> None:
        numbers = {name: value for name, value in line.items() if isinstance(value, int | float) and name != "step"}
        for tracker in self.trackers:
            tracker.log(numbers, step=line["step"])

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = []


class Records(Watcher):
    """metrics.jsonl: one JSON object per logging step, written at once; and each lasting warning once on the terminal.

    warnings: all lines so far -> current warnings, which are recorded in the line as "warnings". say: prints.
    resume_step: lines after it are dropped first, also one that a kill cut short.
    """

    def __init__(self, path: Path, warnings: Warnings, say: Say, resume_step: int = 0):
        self.path, self.warnings, self.say = path, warnings, say
        found = (line for line in read_lines(path) if isinstance(line.get("step"), int))
        self.lines = [line for line in found if line["step"] <= resume_step]
        self.said: set[str] = set()
        distributed.on_main(self._rewrite)

    def logged(self, loop: Training, line: dict[str, Any]) -> None:
        # JSON has no NaN: such values are left out
        line = {n: v for n, v in line.items() if not isinstance(v, float) or isfinite(v)}
        self.lines.append(line)
        if found := self.warnings(self.lines):
            line["warnings"] = found
        distributed.on_main(lambda: self._append(line))
        before = self.lines[-2].get("warnings", []) if len(self.lines) > 1 else []
        for text in found:  # printed at the second line in a row: the first steps of any run look like copying
            if kind(text) not in self.said and kind(text) in map(kind, before):
                self.say(f"warning step {line['step']}: {text}")
                self.said.add(kind(text))

    def _rewrite(self) -> None:
        if self.path.exists():
            write_text(self.path, "".join(to_json(line) + "\n" for line in self.lines))

    def _append(self, line: dict[str, Any]) -> None:
        with saving(self.path.parent, f"writing {self.path.name}"), self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(line) + "\n")


def kind(warning: str) -> str:
    """The text before the colon, which stays the same while figures change."""
    return warning.partition(":")[0]


class ProgressBar(Watcher):
    """A live bar with loss, gap, images/s and ETA on a terminal; elsewhere one line per logging step."""

    def __init__(self, console: Console | None = None):
        self.console = console or PlainConsole(file=sys.stderr)
        self.bar: Progress | None = None
        self.task: Any = None
        self.start = (0.0, 0)

    def say(self, text: str) -> None:
        """Prints above the bar, on the main rank only."""
        if distributed.is_main():
            shown = Text(plain(text))
            if text.startswith("warning"):
                shown.stylize("yellow", end=len("warning"))
            self.console.print(shown, soft_wrap=True)

    def started(self, loop: Training) -> None:
        self.start = (time.monotonic(), loop.step)
        if not (distributed.is_main() and self.console.is_terminal):
            return
        columns = (
            TextColumn("training"),
            BarColumn(None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        self.bar = Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=self.console)
        self.task = self.bar.add_task("", total=loop.max_steps, completed=loop.step, text="")
        self.bar.start()

    def stepped(self, loop: Training) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=loop.step)

    def logged(self, loop: Training, line: dict[str, Any]) -> None:
        if not distributed.is_main():
            return
        text = summary(line)
        if self.bar is not None:
            self.bar.update(self.task, text=plain(text))
            return
        began, first = self.start
        left = (time.monotonic() - began) / max(1, loop.step - first) * (loop.max_steps - loop.step)
        self.say(f"step {loop.step}/{loop.max_steps}  {text}  ETA {duration(left)}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def summary(logs: dict[str, float]) -> str:
    """The line of a logging step."""
    parts = [name for name in logs if name.startswith(("top1/", "cos_next/")) and not name.endswith("/begin")]
    what = "rows" if "text_loss" in logs or parts else "images"
    names = {"loss": "loss {:.4f}", "text_loss": "text {:.3f}", "regression_loss": "latents {:.4f}"}
    names |= {"cos_gap": "gap {:+.3f}", "images_per_second": f"{{:.0f}} {what}/s"}
    names |= {"probe/knn": "kNN {:.1%}", "probe/linear": "linear {:.1%}"}
    names |= {"eval/accuracy": "accuracy {:.1%}", "eval/ema_accuracy": "EMA {:.1%}", "eval/miou": "mIoU {:.1%}"}
    for name in parts:  # Omni: token accuracy, cosines elsewhere
        own = name.partition("/")[2]
        if name.startswith("top1/") or f"top1/{own}" not in logs:
            names[name] = f"{own} {{:.3f}}"
    names |= {"eval/text_loss": "validation text {:.3f}", "eval/regression_loss": "latents {:.4f}"}
    return "  ".join(form.format(logs[n]) for n, form in names.items() if n in logs)


def duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, secs = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{secs:02d}"


class OnlineProbe:
    """Runs an injected probe on the backbone every `steps` steps and at the last; its results join the logged line.

    The probe sees the model in eval mode. Its random draws cannot reach training, which seeds every forward pass.
    probe: None on the other ranks, and where there is nothing to probe on. keep: called with the results and the step
    after each probe.
    """

    def __init__(self, probe: Probe | None, steps: int, ema: EmaWeights | None, keep: Keep | None = None):
        self.probe, self.steps, self.ema, self.keep = probe, steps, ema, keep

    def due(self, step: int, max_steps: int) -> bool:
        return step % self.steps == 0 or step == max_steps

    def __call__(self, loop: Training) -> dict[str, float]:
        """Results on the main rank; the others wait for it without a time limit."""
        results: dict[str, float] = {}
        if self.probe is not None and distributed.is_main():
            results = self.measure(self.probe, loop.bare.backbone)
            if self.keep is not None:
                self.keep(results, loop.step)
        distributed.wait()
        return results

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
