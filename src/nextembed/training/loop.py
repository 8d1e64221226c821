"""The training loop: exact under accumulation and ranks, and resumed bit for bit.

- An objective gives a loss sum and a count. The gradient of a step is d(sum of all losses) / (number of all targets),
  over the whole accumulation window and all ranks, so batch 16, 4 x 4 and 2 ranks x 8 give the same weights. Each term
  of a loss of several has its own count.
- Every forward pass is seeded with (seed, step, micro step, rank), and random numbers of a sample by the sample, so
they depend on nothing else. - Batches come from an endless loader that can start at a saved position; nothing is
replayed on resume. - Nothing waits for the device within a step; sums stay there until they are logged.
"""

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..core import distributed
from ..core.objective import ObjectiveOutput, PretrainingModel
from ..core.optim import OptimConfig
from ..core.signals import StopSignals, kill_workers
from ..core.types import Batch
from ..data.stream import checked_workers
from ..errors import ConfigError, DataError, TrainingError
from . import checkpoint
from .adapt import only_last_syncs, shard
from .compiled import Compiled
from .optim import build_optimizer, check_parts, set_learning_rates
from .settings import TrainConfig, check_places
from .watch import Averages, EmaWeights, Interrupted, OnlineProbe, Probe, Say, Trackers, Watcher, quiet

Advance = Callable[[dict[str, Any] | None, Tensor], dict[str, Any]]


class Source(NamedTuple):
    """The data of a run.

    loader: endless batches of this rank, of the micro-batch size, from where the run starts or resumes. advance: (state
    or None, position rows [B, P] of a consumed batch) -> state, JSON values: the `start` of a loader that continues
    after that batch. `checkpoint.start_state` reads it back. num_samples: samples of an epoch; None if unknown, as of
    streams and of packed documents. facts: use of the data so far, for the lines of metrics. shares: counts of
    processed samples since the last call: by name, to how many, and of how many.
    """

    loader: Iterable[Batch]
    advance: Advance
    num_samples: int | None = None
    facts: Callable[[], dict[str, float]] = dict
    shares: Callable[[], dict[str, tuple[int, int]]] = dict


class Judges(NamedTuple):
    """Observers of a run. watchers: receive events. probe: backbone -> scores by name, run every `config.probe_steps`;
    None where there is nothing to probe on. best: the name among them (its EMA twin, where weights are averaged) whose
    best weights are kept in RUN/best. say: prints messages of the loop.
    """

    watchers: Sequence[Watcher] = ()
    probe: Probe | None = None
    best: str | None = None
    say: Say = quiet


class Loop:
    """Trains a PretrainingModel.

    Args:
        model: backbone, adapted already (`training.adapt`), and objective.
        config, optim: settings.
        run_dir: where checkpoints go.
        source: the data.
        seed: of all draws in training.
        judges: who watches and measures.
        processor: saved with each checkpoint.

    Raises:
        ConfigError: For a device, tracker or sharding that is not there, or parts that the model has not.
    """

    def __init__(
        self,
        model: PretrainingModel,
        config: TrainConfig,
        optim: OptimConfig,
        run_dir: Path,
        source: Source,
        seed: int,
        judges: Judges | None = None,
        processor: checkpoint.Saves | None = None,
    ):
        judges = judges or Judges()
        self.loader, self.advance, self.num_samples, self.facts, self.shares = source
        self.image_processor, self.watchers = processor, list(judges.watchers)
        num_samples, probe, best = source.num_samples, judges.probe, judges.best
        self.config, self.optim_config, self.run_dir, self.seed = config, optim, run_dir, seed
        self.num_micro_batches = config.batch_size // (config.micro_batch(distributed.world_size()) * _world())
        self.max_steps = config.num_steps(num_samples)
        self.step = 0
        self.signals, self.stop_signal = StopSignals(), 0
        self.data_state: dict[str, object] | None = None
        check_places(config, _world())
        check_parts(model, optim)
        self.accelerator = Accelerator(cpu=config.on_cpu())
        check_sharding(self.accelerator)
        self.device = self.accelerator.device
        self.bare = shard(model) if config.fsdp else model.to(self.device)
        self.model: nn.Module = self.bare if config.fsdp else self.accelerator.prepare_model(model)
        self.compiled = Compiled(self.bare, bool(config.compile), judges.say)
        self.optimizer = build_optimizer(self.bare, optim)
        per_epoch = num_samples / config.batch_size if num_samples else None
        self.warmup_steps = optim.num_warmup_steps(self.max_steps, per_epoch)
        self.ema = EmaWeights(config.ema_decay, self.bare.backbone) if config.ema_decay is not None else None
        self.trackers = Trackers(config.trackers, run_dir)
        keep = checkpoint.BestWeights(run_dir, best, self.ema, model.backbone, processor) if best else None
        self.probe = OnlineProbe(probe, config.probe_steps, self.ema, keep) if config.probe_steps else None
        self.averages = Averages()
        self.step_loss = torch.zeros((), device=self.device)
        self.first_bad_step = torch.tensor(-1, device=self.device)
        self.clock, self.clock_step = time.monotonic(), 0

    # -- the loop

    def train(self, resume: Path | None = None) -> None:
        """Trains from `resume` (a checkpoint folder) or from the start, to the last step.

        Raises:
            TrainingError: The loss is not a number, or a write failed.
            DataError: The data ended, or too much of it is unreadable.
            Interrupted: After a signal, when the state is saved.
        """
        if resume is not None:
            self.restore(resume)
            if distributed.is_main():
                checkpoint.set_aside(self.run_dir, self.step)  # later ones no longer belong to this run
            if self.step >= self.max_steps:
                return
        self.trackers.start(self.step)
        self.clock, self.clock_step = time.monotonic(), self.step
        for watcher in self.watchers:
            watcher.started(self)
        self.model.train()
        prepared = False
        with self.signals, checked_workers(self.loader):
            batches = iter(self.loader)
            while self.step < self.max_steps and not self.stop_signal:
                window = self.window(batches)
                if not prepared:
                    prepared = self.bare.prepare([self.moved(batch) for batch in window])
                counts = [self.bare.objective.count_targets(batch).long().reshape(-1) for batch in window]
                totals = self.over_ranks(counts)
                self.bare.objective.diagnose = self.logs_at(self.step + 1)
                outputs = self.compiled.run(partial(self.gradients, window, totals), self.optimizer.zero_grad)
                for output, count in zip(outputs, counts):
                    self.watch(output, count)
                self.update()
                self.end_of_step()
        self.trackers.close()
        if self.stop_signal:
            kill_workers()  # a hanging tracker must not block the end
            command = f"nextembed train --resume {shlex.quote(str(self.run_dir))}"
            raise Interrupted(f"stopped and saved; resume with: {command}", self.stop_signal)

    def window(self, batches: Iterator[Batch]) -> list[Batch]:
        """The micro batches of one optimizer step; the position of the data is stored."""
        window = [batch for _, batch in zip(range(self.num_micro_batches), batches)]
        if len(window) < self.num_micro_batches:
            raise DataError(f"the data ended at step {self.step}")
        for batch in window:
            self.data_state = self.advance(self.data_state, batch["position"])
        for name, (count, of) in self.shares().items():
            self.averages.add(name, torch.tensor(float(count), device=self.device), of)
        return window

    def over_ranks(self, counts: list[Tensor]) -> Tensor:
        """Targets of the step on all ranks, [terms], at least 1; every rank learns here of a signal to one."""
        own = torch.stack(counts).sum(0).cpu()
        *totals, signum = distributed.sum_over_ranks(torch.cat([own, torch.tensor([self.signals.received])]))
        if signum:  # all ranks see it at the same step, so that they stop and save together
            self.stop_signal = max(int(s) for s in distributed.gather_objects(self.signals.received))
        return torch.stack(totals).clamp(min=1).to(self.device)

    def gradients(self, window: list[Batch], totals: Tensor) -> list[ObjectiveOutput]:
        """Accumulates the gradient of a step; returns the objective's outputs, detached."""
        outputs = []
        for number, batch in enumerate(window):
            with only_last_syncs(self.model, number == len(window) - 1):
                output = self.forward(batch, number)
                assert output.loss_sum is not None
                (output.loss_sum * (_world() / totals)).sum().backward()
            outputs.append(ObjectiveOutput(output.loss_sum.detach(), output.num_targets, output.metrics))
        return outputs

    def forward(self, batch: Batch, number: int) -> ObjectiveOutput:
        """One micro batch, the `number`th of its step."""
        key = [self.seed, self.step, number, distributed.rank()]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output: ObjectiveOutput = self.model(self.moved(batch))
        return output

    def moved(self, batch: Batch) -> Batch:
        """The batch on this rank's device."""
        parts = cast(dict[str, Tensor], batch)
        return cast(Batch, {name: part.to(self.device, non_blocking=True) for name, part in parts.items()})

    @torch.no_grad()
    def watch(self, output: ObjectiveOutput, counts: Tensor) -> None:
        assert output.loss_sum is not None
        losses = output.loss_sum.detach().reshape(-1)
        self.step_loss = self.step_loss + losses.sum()
        for term, count in enumerate(counts.tolist()):
            self.averages.add(f"loss.{term}", losses[term], count)
        for name, value in (output.metrics or {}).items():
            self.averages.add(name, *(value if isinstance(value, tuple) else (value,)))

    def update(self) -> None:
        """Clips, steps the optimizer, and updates everything that follows the weights."""
        params = [p for p in self.bare.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(params, self.optim_config.max_grad_norm or float("inf"))
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.averages.add("grad_norm", norm)
        bad = ~torch.isfinite(self.step_loss + norm) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, self.step + 1, self.first_bad_step)
        self.step_loss = torch.zeros_like(self.step_loss)
        if self.device.type == "cpu":  # on accelerators reading it would synchronise, so this waits for log and save
            self.check_finite()
        set_learning_rates(self.optimizer, self.optim_config, self.step, self.warmup_steps, self.max_steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.bare.backbone, self.step)
        self.bare.after_step(self.step, self.max_steps)

    def end_of_step(self) -> None:
        """Probes, logs and saves when due."""
        for watcher in self.watchers:
            watcher.stepped(self)
        if self.signals.received and _world() == 1:
            self.stop_signal = self.signals.received
        results = self.probe(self) if self.probe is not None and self.probe.due(self.step, self.max_steps) else {}
        if self.logs_at(self.step):
            self.log(results)
        if self.step % self.config.save_steps == 0 or self.step == self.max_steps or self.stop_signal:
            self.save()
        for watcher in self.watchers:
            watcher.ready(self)

    # -- logs

    def logs_at(self, step: int) -> bool:
        due = self.probe is not None and self.probe.due(step, self.max_steps)
        return due or step in (1, self.max_steps) or step % self.config.log_steps == 0

    def log(self, results: dict[str, float]) -> None:
        """One line of means since the last one. results: of the probe. Every rank must call it."""
        self.check_finite()
        now, means = time.monotonic(), self.averages.drain()
        seen = self.step * self.config.batch_size
        line = {
            "step": self.step,
            "samples_seen": seen,
            "loss": sum(means.pop(name) for name in sorted(means) if name.startswith("loss.")),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "grad_norm": means.pop("grad_norm"),
            "images_per_second": (self.step - self.clock_step) * self.config.batch_size / max(1e-9, now - self.clock),
            **means,
            **results,
            **self.facts(),
        }
        if self.num_samples:
            line["epoch"] = seen / self.num_samples
        for watcher in self.watchers:
            watcher.logged(self, line)
        self.trackers.log(line)
        self.clock, self.clock_step = time.monotonic(), self.step

    def check_finite(self) -> None:
        """Raises TrainingError if any loss or gradient so far was not a number. Every rank must call it."""
        step = int(self.first_bad_step)
        if _world() > 1:
            step = max(distributed.gather_objects(step))
        if step >= 0:
            clipping = "" if self.optim_config.max_grad_norm else ", set optim.max_grad_norm=1"
            raise TrainingError(
                f"step {step}: the loss or its gradient is not a finite number; lower optim.learning_rate "
                f"(now {self.optim_config.learning_rate:g}), lengthen the warm-up{clipping}, or use "
                "train.precision=float32"
            )

    # -- state

    def save(self) -> None:
        """Writes RUN/checkpoints/step-N atomically. Every rank must call it."""
        self.check_finite()
        ranks = distributed.gather_objects({"data": self.data_state, "averages": self.averages.state()})
        checkpoint.save(
            checkpoint.step_dir(self.run_dir, self.step),
            self.bare,
            self.optimizer,
            self.ema,
            checkpoint.Progress(self.step, self.max_steps, ranks),
            self.image_processor,
        )
        if distributed.is_main():
            checkpoint.prune(self.run_dir, self.config.keep_checkpoints)

    def restore(self, folder: Path) -> None:
        """Resumes from a checkpoint. Raises ConfigError if it belongs to another model or objective."""
        progress = checkpoint.load(folder, self.bare, self.optimizer, self.ema)
        self.step = progress.step
        self.data_state = checkpoint.start_state(folder)
        if len(progress.ranks) == _world():  # otherwise the means since the last log start again
            self.averages.load(progress.ranks[distributed.rank()]["averages"], self.device)

    def save_folders(self) -> None:
        """Writes the final RUN/model and RUN/ema, for `from_pretrained`. Every rank must call it."""
        checkpoint.save_models(self.run_dir, self.bare, self.ema, self.image_processor)


def check_sharding(accelerator: Accelerator) -> None:
    """Raises ConfigError for a kind of sharding in a configuration of accelerate that this loop does not support."""
    kind = accelerator.distributed_type.value
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        raise ConfigError(f"accelerate is configured for {kind}: launch with plain ranks; train.fsdp=true shards")


def _world() -> int:
    return distributed.world_size()
