"""Both losses of an Emu model on validation documents, while it trains."""

from collections.abc import Sequence
from typing import Any

import torch

from ..core.objective import Objective
from ..core.types import Batch, Encode
from ..data.packing import DocumentPlace, Fit, first_fit, pack
from ..data.transforms import Unreadable
from ..errors import DataError

NUM_DOCUMENTS = 512


class HeldOutLoss:
    """Called with a model in eval mode: means over all targets of fixed validation batches, "eval/text_loss",
    "eval/text_accuracy", "eval/regression_loss". skipped: the reason by document that could not be read."""

    def __init__(self, batches: Sequence[Batch], objective: Objective, skipped: dict[str, str] | None = None):
        self.batches, self.objective, self.skipped = batches, objective, skipped or {}

    @torch.no_grad()
    def __call__(self, backbone: Any) -> dict[str, float]:
        device = next(backbone.parameters()).device
        sums: dict[str, list[float]] = {}
        self.objective.eval()
        for batch in self.batches:
            moved: Any = {name: tensor.to(device) for name, tensor in batch.items()}  # type: ignore[attr-defined]
            for name, value in (self.objective(backbone, moved).metrics or {}).items():
                if isinstance(value, tuple):
                    total, count = sums.get(name, [0.0, 0.0])
                    sums[name] = [total + float(value[0]), count + float(value[1])]
        return {f"eval/{name}": total / count for name, (total, count) in sums.items() if count}


def held_out_loss(data: Any, encode: Encode, max_length: int, rows: int, objective: Objective) -> HeldOutLoss:
    """On the first NUM_DOCUMENTS documents of the validation split, `rows` packed rows a batch.

    Raises ConfigError where there is no such split, DataError if nothing of it fits or too many cannot be read.
    """
    waiting = []
    documents, fit = data.documents("validation"), Fit(encode, max_length, "skip")
    for number, document in enumerate(documents, 1):
        try:
            _, encoded = fit(document)
        except Unreadable as err:  # as in training: left out, counted and named
            documents.skipped.add(str(document.get("key", number)), str(err), number)
            continue
        if encoded is not None:
            waiting.append((DocumentPlace(0, 0, 0, number), encoded))
        if len(waiting) == NUM_DOCUMENTS:
            break
    packed = []
    while waiting:
        packed.append(first_fit(waiting, max_length))
    if not packed:
        raise DataError(f"no validation document fits {max_length} positions")
    batches = [pack(packed[i : i + rows], max_length, [0]) for i in range(0, len(packed), rows)]
    return HeldOutLoss(batches, objective, dict(documents.skipped.reasons))
