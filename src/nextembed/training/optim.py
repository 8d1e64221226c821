"""AdamW (in 8 bits, too) or Muon with parameter groups, and the learning-rate schedule."""

import math
import re
from collections.abc import Callable

import torch
from torch import nn

from ..core.optim import OptimConfig
from ..errors import ConfigError, unknown
from .eight_bit import adamw_8bit


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Groups by optimizer, weight decay and learning rate, the largest learning rate first; "muon" marks those of Muon.
    model: a PretrainingModel; parameters outside `backbone.` (heads, projectors) are on top of its last layer.
    """
    every = list(model.named_parameters())
    named = [(n, p) for n, p in every if p.requires_grad]
    num_layers = 1 + max((i for n, _ in every if (i := _layer(n)) is not None), default=-1)  # frozen layers count
    matrices = layer_matrices(model) if config.kind == "muon" else set()
    groups: dict[tuple[float, float, int, bool], list[nn.Parameter]] = {}
    for name, param in named:
        below_top = num_layers - _depth(name, num_layers)
        rate = config.learning_rate * config.layer_decay**below_top
        if _is_embedding(name):
            rate *= config.embed_lr_rate
        rate *= math.prod(value for part, value in config.part_lr_rates.items() if f".{part}." in f".{name}.")
        decay = config.weight_decay if param.ndim > 1 else 0.0
        groups.setdefault((rate, decay, -below_top, param in matrices), []).append(param)
    return [
        {"params": params, "lr": rate, "peak_lr": rate, "weight_decay": decay, "below_top": -above, "muon": muon}
        for (rate, decay, above, muon), params in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def check_parts(model: nn.Module, config: OptimConfig) -> None:
    """Raises ConfigError if `part_lr_rates` names a part that the model does not have."""
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


def layer_matrices(model: nn.Module) -> set[torch.Tensor]:
    """The weights of linear layers inside numbered layers or blocks, for Muon."""
    return {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.search(r"\.(?:layers?|blocks?)\.\d+\.", f".{name}.")
    }


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for groups with "muon", AdamW for the others, as one optimizer.

    Groups and state are those of the two themselves. Muon's step has the size of AdamW's (`match_rms_adamw`), so that
    one learning rate and one weight decay serve both. Source: Jordan et al. (2024), Liu et al. (arXiv 2502.16982).
    """

    def __init__(self, groups: list[dict], config: OptimConfig):
        self.parts: list[torch.optim.Optimizer] = []
        if matrices := [group for group in groups if group["muon"]]:
            self.parts.append(torch.optim.Muon(matrices, lr=config.learning_rate, adjust_lr_fn="match_rms_adamw"))
        if others := [group for group in groups if not group["muon"]]:
            self.parts.append(_adamw(others, config))
        super().__init__(groups, {})
        self._share()

    def _share(self) -> None:
        for part in self.parts:
            mine = isinstance(part, torch.optim.Muon)
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["muon"] == mine]

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        assert closure is None
        for part in self.parts:
            part.step()
        return None


def _adamw(groups: list[dict], config: OptimConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over `parameter_groups`; AdamW with the fused kernel (CPU, CUDA and MPS have one).

    Raises ConfigError if an 8-bit one is not possible.
    """
    groups = parameter_groups(model, config)
    make = {"adamw": _adamw, "adamw_8bit": adamw_8bit, "muon": MuonAdamW}[config.kind]
    return make(groups, config)


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
    """Sets each group's learning rate for optimizer step `step` (counted from 0)."""
    for group in optimizer.param_groups:
        below = group.get("below_top", 0)
        group["lr"] = group["peak_lr"] * lr_rate(step, config, num_warmup_steps, max_steps, below)
