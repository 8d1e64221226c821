"""Settings of training: how long, how large, how precise, and what is written."""

from typing import Literal

import torch
from pydantic import Field, model_validator

from ..core.config import Config
from ..core.sizes import MAX_NUMBER
from ..errors import ConfigError
from .adapt import LoraSettings


class TrainConfig(Config):
    """How long, how large, how precise, and what is written.

    Attributes:
        batch_size: images per optimizer step, over all ranks and accumulation.
        micro_batch_size: images per forward pass and rank. The gradient is accumulated over batch_size /
            (micro_batch_size x ranks) passes. null: the whole share of a rank, or as much of it as fits into memory.
        max_steps: length in optimizer steps; give either this or epochs.
        epochs: length in passes over the data; give either this or max_steps. Not for streams and packed documents,
            whose steps in a pass are not known.
        precision: "bf16" is autocast; weights and optimizer stay float32.
        compile: compiles the model with torch.compile: a slow start, then faster steps; if that fails, training
            continues without it. null: for images on CUDA, from 2,000 steps on.
        gradient_checkpointing: recomputes the activations of the layers in the backward pass, which saves memory; null:
            only if a step does not fit otherwise.
        attn_implementation: how attention is computed: "sdpa", "eager", "flex_attention"; null: the model's choice.
        ema_decay: decay of the moving average of the weights, which is saved and probed beside the raw ones; null: no
            average.
        log_steps: optimizer steps between two logged lines of metrics.
        save_steps: optimizer steps between two checkpoints.
        probe_steps: optimizer steps between two probes while training; null: only at the end.
        keep_checkpoints: number of newest checkpoints that are kept.
        freeze: parameters of the backbone that do not train: their names, or the beginning or a dotted part of them,
            e.g. ["patch_embeddings", "encoder.layer.0"].
        lora: trains low-rank adapters and the head instead of all weights, e.g. {rank: 8}; null: off.
        trackers: trackers for the curves: "tensorboard", "wandb", "trackio"; metrics.jsonl is always written.
        fsdp: shards weights and optimizer over the ranks (FSDP2).
        device: device: "auto" (an accelerator if there is one), "cpu", "cuda" or "mps".
    """

    batch_size: int = Field(256, ge=1, le=MAX_NUMBER)
    micro_batch_size: int | None = Field(None, ge=1, le=MAX_NUMBER)
    max_steps: int | None = Field(None, ge=1, le=10**15)
    epochs: float | None = Field(None, gt=0, le=1e9)
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool | None = None
    gradient_checkpointing: bool | None = None
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
        """Images per forward pass and rank.

        Args:
            world_size: number of ranks.

        Returns:
            Samples of one forward pass of one rank.

        Raises:
            ConfigError: If the batch does not divide.
        """
        micro = self.micro_batch_size or self.batch_size // world_size
        if micro == 0 or self.batch_size % (micro * world_size):
            parts = f"micro_batch_size {micro} x {world_size} ranks" if world_size > 1 else f"micro_batch_size {micro}"
            raise ConfigError(f"train.batch_size {self.batch_size} is not a multiple of {parts}")
        return micro

    def num_steps(self, num_samples: int | None) -> int:
        """Optimizer steps of the run.

        Args:
            num_samples: training samples of an epoch; None where that is not known (streams, packed
                documents).

        Returns:
            `max_steps`, or what `epochs` makes of it.

        Raises:
            ConfigError: For epochs over data of unknown size.
        """
        if self.max_steps is not None:
            return self.max_steps
        if num_samples is None:
            raise ConfigError(
                "train.epochs needs data of known size; set train.max_steps for streams and packed documents"
            )
        return max(1, round(float(self.epochs or 0) * num_samples / self.batch_size))

    def on_cpu(self) -> bool:
        """Whether the run is on the CPU."""
        return self.device == "cpu" or not torch.accelerator.is_available()


def check_places(config: TrainConfig, world_size: int) -> None:
    """Raises ConfigError for a device that is not there, or sharding that cannot be."""
    if config.device in ("cuda", "mps") and not getattr(torch, config.device).is_available():
        raise ConfigError(f"train.device: there is no {config.device} device here; use 'auto' or 'cpu'")
    if config.fsdp and world_size == 1:
        raise ConfigError("train.fsdp needs several ranks: start with torchrun or accelerate launch")
    if config.fsdp and config.probe_steps is not None:
        raise ConfigError("train.probe_steps needs the whole model on one rank; unset it with train.fsdp")
