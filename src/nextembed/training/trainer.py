"""The trainer: transformers.Trainer with a loss that is exact under accumulation and ranks, and exact resume.

How it differs from its parent:
- An objective gives a loss sum and a count. The gradient of a step is d(sum of all losses) / (number of all targets),
  over the whole accumulation window and all ranks, so batch 16, 4 x 4 and 2 ranks x 8 give the same weights. Each term
  of a loss of several has its own count.
- Every forward pass is seeded with (seed, step, micro step, rank): what it draws depends on nothing else.
- Batches come from an endless loader that can start at a saved position; nothing is replayed on resume.
- Checkpoints are those of `checkpoint.py`.
"""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from ..core import distributed
from ..core.config import Config
from ..core.files import new_folder
from ..core.signals import StopSignals
from ..core.sizes import MAX_NUMBER
from ..core.types import Batch, PretrainingModel
from ..data.stream import checked_workers
from ..errors import ConfigError, DataError, MissingExtra, TrainingError
from . import checkpoint
from .adapt import LoraSettings, adapt, compile_model, shard
from .callbacks import EmaWeights, Interrupted, OnlineProbe
from .optim import OptimConfig, build_optimizer, build_scheduler, check_parts

Advance = Callable[[dict[str, Any] | None, Tensor], dict[str, Any]]


class TrainConfig(Config):
    """How long, how large, how precise, and what is written.

    batch_size: images per optimizer step, over all ranks and accumulation.
    micro_batch_size: images per forward pass and rank; null: the whole share of a rank at once. The gradient is
        accumulated over batch_size / (micro_batch_size x ranks) passes.
    max_steps | epochs: optimizer steps, or passes over the data; exactly one.
    precision: "bf16" is autocast; weights and optimizer stay float32.
    attn_implementation: "sdpa", "eager", "flex_attention", ...; null: the model's own choice.
    ema_decay: averages the weights (saved and probed beside the raw ones); null: does not.
    log_steps, save_steps, probe_steps: every so many optimizer steps; probe_steps null: no online probe.
    keep_checkpoints: the newest ones that are kept.
    freeze: parameters of the backbone that do not train: their names, or the beginning or a dotted part of them, e.g.
        ["patch_embeddings", "encoder.layer.0"].
    lora: trains adapters of low rank and the head in place of the whole, e.g. {rank: 8}; null: does not.
    trackers: "tensorboard", "wandb", "trackio"; metrics.jsonl is always written.
    fsdp: shards weights and optimizer over the ranks (FSDP2).
    device: "auto" (an accelerator if there is one), "cpu", "cuda" or "mps".
    """

    batch_size: int = Field(256, ge=1, le=MAX_NUMBER)
    micro_batch_size: int | None = Field(None, ge=1, le=MAX_NUMBER)
    max_steps: int | None = Field(None, ge=1, le=10**15)
    epochs: float | None = Field(None, gt=0, le=1e9)
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False
    gradient_checkpointing: bool = False
    attn_implementation: str | None = None
    ema_decay: float | None = Field(None, gt=0, lt=1)
    log_steps: int = Field(20, ge=1, le=10**15)
    save_steps: int = Field(500, ge=1, le=10**15)
    keep_checkpoints: int = Field(2, ge=1, le=10**15)
    freeze: list[str] = []
    lora: LoraSettings | None = None
    probe_steps: int | None = Field(None, ge=1, le=10**15)
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(["tensorboard"])
    fsdp: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give one of max_steps and epochs")
        return self

    def micro_batch(self, world_size: int) -> int:
        """Images per forward pass and rank. Raises ConfigError if the batch does not divide."""
        micro = self.micro_batch_size or self.batch_size // world_size
        if micro == 0 or self.batch_size % (micro * world_size):
            parts = f"micro_batch_size {micro} x {world_size} ranks" if world_size > 1 else f"micro_batch_size {micro}"
            raise ConfigError(f"train.batch_size {self.batch_size} is not a multiple of {parts}")
        return micro

    def num_steps(self, num_samples: int | None) -> int:
        """Optimizer steps of the run. Raises ConfigError for epochs over data of unknown size."""
        if self.max_steps is not None:
            return self.max_steps
        if num_samples is None:
            raise ConfigError("train.epochs needs data of known size; set train.max_steps for streamed data")
        return max(1, round(float(self.epochs or 0) * num_samples / self.batch_size))


def training_arguments(
    config: TrainConfig, optim: OptimConfig, run_dir: Path, seed: int, max_steps: int
) -> TrainingArguments:
    """The parent's settings. Raises ConfigError or MissingExtra for a device or tracker that is not there."""
    if config.device in ("cuda", "mps") and not getattr(torch, config.device).is_available():
        raise ConfigError(f"train.device: there is no {config.device} device here; use 'auto' or 'cpu'")
    for tracker in config.trackers:
        try:
            __import__(tracker)
        except ImportError:
            raise MissingExtra(tracker, tracker) from None
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    if config.fsdp and distributed.world_size() == 1:
        raise ConfigError("train.fsdp needs several ranks: start with torchrun or accelerate launch")
    if config.fsdp and cpu:
        raise ConfigError("train.fsdp needs accelerators: on the CPU, accelerate has no FSDP2")
    if config.fsdp and config.probe_steps is not None:
        raise ConfigError("train.probe_steps needs a whole model on one rank; leave it out with train.fsdp")
    micro = config.micro_batch(distributed.world_size())
    args = TrainingArguments(
        output_dir=str(run_dir),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // (micro * distributed.world_size()),
        max_steps=max_steps,
        learning_rate=optim.learning_rate(config.batch_size),
        max_grad_norm=optim.max_grad_norm or 0.0,
        logging_steps=config.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=config.save_steps,
        report_to=[t for t in config.trackers if t != "tensorboard"],
        run_name=run_dir.name,
        disable_tqdm=True,
        seed=seed,
        log_level="error",
        bf16=config.precision == "bf16",
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and distributed.world_size() > 1 else None,
        ddp_find_unused_parameters=False,
        fsdp=cast(Any, config.fsdp or None),
        ignore_data_skip=True,
        remove_unused_columns=False,
    )
    args._n_gpu = min(args.n_gpu, 1)  # several GPUs are used through ranks, never through nn.DataParallel
    return args


class Averages:
    """Means since the last log, kept on the device so that adding to them never waits for it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor, count: Tensor | float = 1.0) -> None:
        value = value.detach().float()
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0.0) + torch.as_tensor(count, dtype=torch.float32)

    def state(self) -> dict[str, list[float]]:
        """{name: [sum, count]}: exact in JSON, where null is what was not a number."""
        return {n: [float(s), float(self.counts[n])] for n, s in self.sums.items()}

    def load(self, state: dict[str, list[float]], device: torch.device) -> None:
        self.sums = {n: torch.tensor(math.nan if s is None else s, device=device) for n, (s, _) in state.items()}
        self.counts = {n: torch.tensor(c) for n, (_, c) in state.items()}

    def drain(self) -> dict[str, float]:
        """Means over all ranks; starts anew. Every rank must call it."""
        states = distributed.gather_objects(self.state())
        self.sums, self.counts = {}, {}
        totals = {n: [s.get(n, [0.0, 0.0]) for s in states] for n in states[0]}
        return {n: sum(s for s, _ in pairs) / max(1e-12, sum(c for _, c in pairs)) for n, pairs in totals.items()}


class PretrainTrainer(Trainer):
    """Trains a PretrainingModel.

    loader: endless batches of this rank, of the micro-batch size, from where the run starts or resumes.
    advance: (state or None, position rows [B, P] of a consumed batch) -> state, JSON values: the `start` of a loader
        that goes on behind that batch. `checkpoint.start_state` reads it back.
    num_samples: size of the data, for the epoch that is logged; None if unknown.
    image_processor: saved with each checkpoint.
    probe: backbone -> accuracies by name, run every `config.probe_steps`.
    best: the name among them (its EMA twin, where weights are averaged) whose best weights are kept in RUN/best.
    """

    loss_is_scaled_for_ga = True
    model: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: PretrainingModel,
        config: TrainConfig,
        optim: OptimConfig,
        run_dir: Path,
        loader: Iterable[Batch],
        advance: Advance,
        seed: int,
        num_samples: int | None = None,
        image_processor: Any = None,
        callbacks: Iterable[TrainerCallback] = (),
        probe: Callable[[Any], dict[str, float]] | None = None,
        best: str | None = None,
    ):
        self.config, self.optim_config, self.run_dir = config, optim, run_dir
        self.loader, self.advance, self.num_samples, self.image_processor = (
            loader,
            advance,
            num_samples,
            image_processor,
        )
        self.averages = Averages()
        self.signals = StopSignals()
        self.stop_signal = 0
        self.micro_step = 0
        self.data_state: dict[str, Any] | None = None
        self.ema = EmaWeights(config.ema_decay) if config.ema_decay is not None else None
        self.probe: OnlineProbe | None = None
        own = [StepEnd(self), *([self.ema] if self.ema else [])]
        if config.probe_steps is not None:
            keep = checkpoint.BestWeights(run_dir, best, self.ema, model.backbone, image_processor) if best else None
            self.probe = OnlineProbe(probe, config.probe_steps, self.ema, keep)
            own.append(self.probe)
        args = training_arguments(config, optim, run_dir, seed, config.num_steps(num_samples))
        adapt(model, config.attn_implementation, config.gradient_checkpointing, config.freeze, config.lora, seed)
        check_parts(model, optim)
        shard(args, model)
        super().__init__(model=model, args=args, callbacks=[*own, *callbacks])
        self.remove_callback(PrinterCallback)
        if config.compile:
            compile_model(model)
        self.first_bad_step = torch.tensor(-1, device=self.args.device)
        self.step_loss = torch.zeros((), device=self.args.device)
        self.clock, self.clock_step = time.monotonic(), 0

    def pretrain(self, resume: Path | None = None) -> None:
        """Trains from `resume` (a checkpoint folder) or from the start, to max_steps.

        Raises TrainingError (loss not a number, failed write), DataError, or Interrupted after a signal.
        """
        step = checkpoint.checkpoint_step(resume) if resume else 0
        if resume is not None:
            checkpoint.check_trainer_state(resume)
            self.data_state = checkpoint.start_state(resume)
            ranks = checkpoint.read_ranks(resume)
            if len(ranks) == distributed.world_size():  # else the means since the last log start anew
                self.averages.load(ranks[distributed.rank()]["averages"], self.args.device)
        if distributed.is_main() and "tensorboard" in self.config.trackers:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=step + 1 if step else None)
            self.add_callback(TensorBoardCallback(writer))
        if resume is not None and step >= self.args.max_steps:
            checkpoint.load_weights(resume, self.model)
            self._start_ema(resume)
            self._set_aside(step)
            return
        with self.signals, checked_workers(self.loader):
            self.train(resume_from_checkpoint=str(resume) if resume else None)
        if self.stop_signal:
            raise Interrupted(
                f"stopped and saved; go on with: nextembed train --resume {self.run_dir}", self.stop_signal
            )

    # -- data

    def get_train_dataloader(self) -> Any:
        return self.loader

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro batches of one optimizer step, and the number of targets in them on all ranks."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        if len(batches) < num_batches:
            raise DataError(f"the data ended at step {self.state.global_step}")
        self.micro_step = 0
        for batch in batches:
            self.data_state = self.advance(self.data_state, batch["position"])
        objective = self.accelerator.unwrap_model(self.model, keep_torch_compile=False).objective
        objective.diagnose = self._logs_at(self.state.global_step + 1)
        counts = torch.stack([objective.count_targets(b).long().reshape(-1) for b in batches]).sum(0)  # [terms]
        *totals, signum = distributed.sum_over_ranks(torch.cat([counts.cpu(), torch.tensor([self.signals.received])]))
        if signum:  # every rank sees it at the same step, so that all stop and save together
            self.stop_signal = max(int(s) for s in distributed.gather_objects(self.signals.received))
        return batches, torch.stack(totals).clamp(min=1).to(device or "cpu")

    def _prepare_inputs(self, inputs):
        return {n: t.to(self.args.device, non_blocking=True) for n, t in inputs.items()}

    # -- the step

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        key = [self.args.seed, self.state.global_step, self.micro_step, distributed.rank()]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
        self.micro_step += 1
        output = model(inputs)
        loss = (output.loss_sum * (distributed.world_size() / num_items_in_batch)).sum()
        self._watch(output)
        return (loss, output) if return_outputs else loss

    @torch.no_grad()
    def _watch(self, output: Any) -> None:
        self.step_loss = self.step_loss + output.loss_sum.detach().sum()
        counts = output.num_targets.detach().cpu().reshape(-1)
        for term, (value, count) in enumerate(zip(output.loss_sum.reshape(-1), counts)):
            self.averages.add(f"loss.{term}", value, count)
        for name, value in (output.metrics or {}).items():
            self.averages.add(name, *(value if isinstance(value, tuple) else (value,)))

    def _get_grad_norm(self, model, grad_norm=None):
        """The parent calls this once between backward and optimizer step; a bad step is noted here."""
        norm = torch.as_tensor(super()._get_grad_norm(model, grad_norm))
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.averages.add("grad_norm", norm)
        bad = ~torch.isfinite(self.step_loss + norm.to(self.step_loss.device)) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, self.state.global_step + 1, self.first_bad_step)
        self.step_loss = torch.zeros_like(self.step_loss)
        if self.args.device.type == "cpu":  # elsewhere reading it would stop the queue: it waits for log and save
            self.check_finite()
        return norm

    def check_finite(self) -> None:
        """Raises TrainingError if any loss or gradient so far was not a number. Every rank must call it."""
        step = int(self.first_bad_step)
        if distributed.world_size() > 1:
            step = max(distributed.gather_objects(step))
        if step >= 0:
            rate, clip = self.optim_config.base_learning_rate, self.optim_config.max_grad_norm
            clipping = "" if clip else ", set optim.max_grad_norm=1"
            raise TrainingError(
                f"step {step}: the loss or its gradient is not a finite number; lower optim.base_learning_rate "
                f"(now {rate:g}), lengthen the warm-up{clipping}, or use train.precision=float32"
            )

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            rate = self.optim_config.learning_rate(self.config.batch_size)
            self.optimizer = build_optimizer(self.model, self.optim_config, rate)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None:
            per_epoch = self.num_samples / self.config.batch_size if self.num_samples else None
            warmup = self.optim_config.num_warmup_steps(num_training_steps, per_epoch)
            self.lr_scheduler = build_scheduler(
                optimizer or self.optimizer, self.optim_config, warmup, num_training_steps
            )
        return self.lr_scheduler

    # -- logs

    def _logs_at(self, step: int) -> bool:
        every = [self.config.log_steps, *([self.probe.steps] if self.probe else [])]
        return step in (1, self.state.max_steps) or any(step % n == 0 for n in every)

    def log(self, logs, start_time=None):
        if "loss" not in logs:  # the parent's closing summary
            return
        self.check_finite()
        now, step = time.monotonic(), self.state.global_step
        means = self.averages.drain()
        line = {
            "samples_seen": step * self.config.batch_size,
            "loss": sum(means.pop(name) for name in sorted(means) if name.startswith("loss.")),
            "learning_rate": logs["learning_rate"],
            "grad_norm": means.pop("grad_norm"),
            "images_per_second": (step - self.clock_step) * self.config.batch_size / max(1e-9, now - self.clock),
            **means,
        }
        if self.probe is not None:
            line |= self.probe.results
            self.probe.results = {}
        super().log(line)
        self.state.log_history.clear()  # metrics.jsonl has it all; in every checkpoint it would only grow
        self.clock, self.clock_step = time.monotonic(), step

    # -- checkpoints

    def _save_checkpoint(self, model, trial=None):
        self.check_finite()
        folder = checkpoint.step_dir(self.run_dir, self.state.global_step)
        bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        optimizer = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=checkpoint.FULL)
        state, ema = checkpoint.full_state(self.model), self.ema.full() if self.ema else None
        ranks = distributed.gather_objects({"data": self.data_state, "averages": self.averages.state()})

        def write() -> None:
            with checkpoint.saving(self.run_dir, f"saving step {self.state.global_step}"):
                with new_folder(folder, replace=True) as scratch:
                    scheduler = self.lr_scheduler.state_dict()
                    checkpoint.write(scratch, bare, state, ema, self.image_processor, optimizer, scheduler, ranks,
                                     self.state)  # fmt: skip
                checkpoint.prune(self.run_dir, self.config.keep_checkpoints)

        distributed.on_main(write)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        checkpoint.load_weights(Path(resume_from_checkpoint), model or self.model)

    def _load_optimizer_and_scheduler(self, folder):
        if folder is None:
            return
        own = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=checkpoint.FULL)
        stored = checkpoint.read_state(Path(folder) / "optimizer.pt", own)
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, self.optimizer.optimizer, stored, options=options)
        schedule = checkpoint.read_state(Path(folder) / "scheduler.pt", self.lr_scheduler.state_dict())
        self.lr_scheduler.load_state_dict(schedule)

    def _start_ema(self, resume: Path | None) -> None:
        if self.ema is not None:
            backbone = self.accelerator.unwrap_model(self.model, keep_torch_compile=False).backbone
            folder = None if resume is None else resume / "ema"
            stored = checkpoint.read_backbone(folder, backbone) if folder and folder.is_dir() else None
            self.ema.start(backbone, stored)

    def _set_aside(self, step: int) -> None:
        """Once all of a checkpoint could be read: later ones are not of this run any more."""
        if distributed.is_main():
            checkpoint.set_aside(self.run_dir, step)

    def save_folders(self) -> None:
        """The final RUN/model and RUN/ema, ready for `from_pretrained`. Every rank must call it."""
        bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        whole = checkpoint.full_state(self.model)
        raw = checkpoint.part(whole, "backbone.")
        weights = {"model": raw} | ({"ema": raw | self.ema.full()} if self.ema else {})

        def write() -> None:
            with checkpoint.saving(self.run_dir, "saving the model"):
                for name, state in weights.items():
                    with new_folder(self.run_dir / name, replace=True) as scratch:
                        checkpoint.save_backbone(bare.backbone, state, scratch, self.image_processor)
                for name, parts in bare.objective.folders(checkpoint.part(whole, "objective.")).items():
                    with new_folder(self.run_dir / name, replace=True) as scratch:
                        parts(scratch) if callable(parts) else checkpoint.save_part(scratch, *parts)

        distributed.on_main(write)


class StepEnd(TrainerCallback):
    """Ends of steps: the objective's own (its teacher), the true epoch, the last log, and a stop that was asked for."""

    def __init__(self, trainer: PretrainTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        state.compute_steps(args, state.max_steps)  # a resumed run follows its config, not the stored state
        resume = checkpoint.step_dir(self.trainer.run_dir, state.global_step) if state.global_step else None
        self.trainer._start_ema(resume)
        self.trainer._set_aside(state.global_step)
        self.trainer.clock, self.trainer.clock_step = time.monotonic(), state.global_step

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.after_step(state.global_step + 1, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        seen, size = state.global_step * self.trainer.config.batch_size, self.trainer.num_samples
        state.epoch = seen / size if size else None
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self.trainer.signals.received and distributed.world_size() == 1:
            self.trainer.stop_signal = self.trainer.signals.received
        if self.trainer.stop_signal:
            control.should_save = control.should_training_stop = True
