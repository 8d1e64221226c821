"""AdamW with parameter groups, and the learning-rate schedule."""

import math
import re
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from ..core.config import Config
from ..errors import ConfigError, unknown

Beta = Annotated[float, Field(ge=0, le=1 - 1e-9)]  # 1 would divide by 0


class OptimConfig(Config):
    """AdamW and its schedule.

    learning_rate: at the peak, of train.batch_size samples a step. For another batch size take another rate: twice the
        batch, up to twice the rate.
    warmup_steps | warmup_epochs | warmup_rate: linear warm-up, at most one of them (warmup_rate: share of the run).
    schedule: "cosine" falls to min_lr_rate x peak at the last step, "constant" stays at the peak.
    weight_decay: not on norms, biases and LayerScale (parameters with one axis); the first token decays.
    max_grad_norm: gradients are scaled down to this norm; null clips nothing.
    layer_decay: each layer's learning rate is this times that of the layer above it.
    layer_decay_end: the layer decay rises (half a cosine) to this at the last step; null stays at layer_decay.
    layer_warmup: the warm-up of a layer that learns at x times the top's rate takes (1 - x) of the warm-up steps, so
        lower layers wait longer and the head starts at once (NEPA's released fine-tuning).
    embed_lr_rate: learning rate of the input embedding (patches and first token), relative to the rest.
    part_lr_rates: learning rates of parts of the model, relative to the rest, by their names or dotted parts of names:
        {visual: 0.4, language_model: 0.3}.
    """

    learning_rate: float = Field(3e-4, gt=0, le=100)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, ge=1e-30, le=1)  # smaller is 0 in float32
    weight_decay: float = Field(0.05, ge=0, le=100)
    warmup_steps: int | None = Field(None, ge=0)
    warmup_epochs: float | None = Field(None, ge=0, le=1e9)
    warmup_rate: float | None = Field(None, ge=0, le=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr_rate: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float | None = Field(1.0, gt=0, le=1e9)
    layer_decay: float = Field(1.0, ge=0.01, le=1)
    layer_decay_end: float | None = Field(None, ge=0.01, le=1)
    layer_warmup: bool = False
    embed_lr_rate: float = Field(1.0, ge=0, le=1000)
    part_lr_rates: dict[str, Annotated[float, Field(ge=0, le=1000)]] = {}

    @model_validator(mode="after")
    def _one_warmup(self) -> "OptimConfig":
        given = [n for n in ("warmup_steps", "warmup_epochs", "warmup_rate") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(given)}, not {len(given)}")
        return self

    def num_warmup_steps(self, max_steps: int, steps_per_epoch: float | None) -> int:
        """Warm-up in optimizer steps. steps_per_epoch may be None unless warmup_epochs is set."""
        if self.warmup_epochs is not None:
            if steps_per_epoch is None:
                raise ConfigError("optim.warmup_epochs needs data of known size; set optim.warmup_steps instead")
            return round(self.warmup_epochs * steps_per_epoch)
        if self.warmup_rate is not None:
            return round(self.warmup_rate * max_steps)
        return self.warmup_steps or 0


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Groups for AdamW by weight decay and learning rate, the largest learning rate first.

    model: a PretrainingModel; parameters outside `backbone.` (heads, projectors) are on top of its last layer.
    """
    every = list(model.named_parameters())
    named = [(n, p) for n, p in every if p.requires_grad]
    num_layers = 1 + max((i for n, _ in every if (i := _layer(n)) is not None), default=-1)  # frozen layers count
    groups: dict[tuple[float, float, int], list[nn.Parameter]] = {}
    for name, param in named:
        below_top = num_layers - _depth(name, num_layers)
        rate = config.learning_rate * config.layer_decay**below_top
        if _is_embedding(name):
            rate *= config.embed_lr_rate
        rate *= math.prod(value for part, value in config.part_lr_rates.items() if f".{part}." in f".{name}.")
        decay = config.weight_decay if param.ndim > 1 else 0.0
        groups.setdefault((rate, decay, -below_top), []).append(param)
    return [
        {"params": params, "lr": rate, "peak_lr": rate, "weight_decay": decay, "below_top": -above}
        for (rate, decay, above), params in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def check_parts(model: nn.Module, config: OptimConfig) -> None:
    """Raises ConfigError if `part_lr_rates` names what the model does not have."""
    names = [name for name, _ in model.named_parameters()]
    for part in config.part_lr_rates:
        if not any(f".{part}." in f".{name}." for name in names):
            words = {word for name in names for word in name.split(".") if not word.isdigit()}
            raise ConfigError(unknown("optim.part_lr_rates: part", part, words))


def _layer(name: str) -> int | None:
    found = re.match(r"backbone\.(?:.*\.)?(?:layers?|blocks?)\.(\d+)\.", name)
    return int(found[1]) if found else None


def _is_embedding(name: str) -> bool:
    return name.startswith("backbone.") and _layer(name) is None and "embed" in name


def _depth(name: str, num_layers: int) -> int:
    """0 for the input embedding, i + 1 for layer i (but at most num_layers), num_layers above."""
    layer = _layer(name)
    if layer is not None:
        return min(layer + 1, num_layers)
    return 0 if _is_embedding(name) else num_layers


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, with the fused kernel (CPU, CUDA and MPS have one)."""
    groups = parameter_groups(model, config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def lr_rate(step: int, config: OptimConfig, num_warmup_steps: int, max_steps: int, below_top: int = 0) -> float:
    """Learning rate at optimizer step `step` (counted from 0) as a share of the peak of its parameter group.

    below_top: layers between the group and the top of the model. It counts with `layer_warmup` and `layer_decay_end`;
    the latter lets the share of lower layers rise above 1. Source: NEPA's released schedules (arXiv 2512.16922).
    """
    if config.layer_warmup:
        num_warmup_steps = round(num_warmup_steps * (1 - config.layer_decay**below_top))
    rise = 1.0
    if config.layer_decay_end is not None:
        done = 0.5 * (1 - math.cos(math.pi * min(1.0, step / max_steps)))
        decay = config.layer_decay + (config.layer_decay_end - config.layer_decay) * done
        rise = math.exp(
            min(700.0, below_top * math.log(decay / config.layer_decay))
        )  # of hundreds of layers: no overflow
    if step < num_warmup_steps:
        return rise * (step + 1) / num_warmup_steps
    if config.schedule == "constant":
        return rise
    progress = min(1.0, (step - num_warmup_steps) / max(1, max_steps - num_warmup_steps))
    return rise * (config.min_lr_rate + (1 - config.min_lr_rate) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rates(
    optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, num_warmup_steps: int, max_steps: int
) -> None:
    """Each group's learning rate for optimizer step `step` (counted from 0), a function of nothing else."""
    for group in optimizer.param_groups:
        below = group.get("below_top", 0)
        group["lr"] = group["peak_lr"] * lr_rate(step, config, num_warmup_steps, max_steps, below)
