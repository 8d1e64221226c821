"""Sampling of tokens, with class conditions that may be left out, and guidance.

Shapes: B signals, K codes, D latent width.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Generator, Tensor, nn

from ..core.objective import SampleSettings
from ..core.types import IGNORE_LABEL, Batch
from ..errors import ConfigError


class ClassTable(nn.Module):
    """A vector for each class, and one for no class, [B] -> [B, D]."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, labels: Tensor) -> Tensor:
        """labels: int64 [B], IGNORE_LABEL for no class; ignored if there are no classes. Raises ConfigError for a class
        that is not in the table."""
        if self.num_classes and bool((labels >= self.num_classes).any()):
            raise ConfigError(
                f"objective.num_classes {self.num_classes}: the data has a class {int(labels.max())}, counted from 0; "
                "say how many classes there are, or 0 to learn without them"
            )
        known = (labels >= 0) & (labels < self.num_classes)
        return cast(Tensor, self.table(torch.where(known, labels, self.num_classes)))


def drop_class(rate: float, generator: Generator) -> dict[str, Tensor]:
    """class_dropped []: whether the class of a sample is hidden in training, which guidance needs."""
    return {"class_dropped": torch.rand((), generator=generator) < rate}


def told_labels(batch: Batch, num: int, device: torch.device) -> Tensor:
    """The labels of a batch of `num` signals, int64 [B], without those that were dropped; none where it has none."""
    nothing = torch.full((num,), IGNORE_LABEL, dtype=torch.int64, device=device)
    values = cast(Mapping[str, Tensor], batch)
    labels = values.get("labels", nothing)
    return torch.where(values["class_dropped"], nothing, labels) if "class_dropped" in values else labels


def with_and_without(labels: Tensor) -> Tensor:
    """Rows for guidance, [2 B]: the classes, then B rows without class."""
    return torch.cat((labels, torch.full_like(labels, IGNORE_LABEL)))


def guided(pairs: Tensor, scale: float) -> Tensor:
    """Rows of `with_and_without`, [2 B, ...], as one: u + s (c - u), [B, ...].

    Source: classifier-free guidance (arXiv 2207.12598), in the form of LlamaGen (arXiv 2406.06525).
    """
    told, untold = pairs.chunk(2)
    return untold + scale * (told - untold)


def draw_tokens(logits: Tensor, settings: SampleSettings, generator: Generator | None) -> Tensor:
    """Samples one token for each row, [..., K] -> int64 [...], with temperature, top k, then top p. Drawn on the CPU,
    in float32. The most likely token is always kept.
    """
    flat = logits.detach().float().cpu().flatten(0, -2)
    if settings.temperature == 0:
        return flat.argmax(-1).view(logits.shape[:-1]).to(logits.device)
    flat = flat / settings.temperature
    if 0 < settings.top_k < flat.shape[-1]:
        least = flat.topk(settings.top_k).values[:, -1:]
        flat = flat.masked_fill(flat < least, -torch.inf)
    shares = flat.softmax(-1)
    if settings.top_p < 1:
        ordered, places = shares.sort(descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= settings.top_p, 0)  # those before reach top p
        shares = torch.zeros_like(shares).scatter(-1, places, ordered)
    return torch.multinomial(shares, 1, generator=generator).view(logits.shape[:-1]).to(logits.device)
