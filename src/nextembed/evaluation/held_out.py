"""The losses of a model on validation documents, while it trains."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from ..core.config import Part
from ..core.objective import Objective, ObjectiveOutput
from ..core.types import Backbone, Batch, DocumentSource, Encode
from ..data.packing import DocumentPlace, Fit, first_fit, pack
from ..data.transforms import Unreadable
from ..errors import ConfigError, DataError

NUM_DOCUMENTS = 512


class HeldOutLoss:
    """Called with a backbone in eval mode: means over all targets of fixed validation batches, of the metrics that the
    objective gives as (sum, count), e.g. "eval/text_loss", and of a loss of one term as "eval/loss".

    objective: as in training; it keeps its mode. skipped: reasons by document.
    """

    def __init__(self, batches: Sequence[Batch], objective: Objective, skipped: dict[str, str] | None = None):
        self.batches, self.objective, self.skipped = batches, objective, skipped or {}

    @torch.no_grad()
    def __call__(self, backbone: Backbone) -> dict[str, float]:
        device = next(backbone.parameters()).device
        sums: dict[str, list[float]] = {}
        training, diagnose = self.objective.training, self.objective.diagnose
        self.objective.eval().diagnose = True
        try:
            for batch in self.batches:
                tensors = cast(dict[str, Tensor], batch)
                moved = cast(Batch, {name: tensor.to(device) for name, tensor in tensors.items()})
                for name, value in means_of(self.objective(backbone, moved)):
                    total, count = sums.get(name, [0.0, 0.0])
                    sums[name] = [total + float(value[0]), count + float(value[1])]
        finally:
            self.objective.train(training).diagnose = diagnose
        return {f"eval/{name}": total / count for name, (total, count) in sums.items() if count}


def means_of(output: ObjectiveOutput) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """(name, (sum, count)) of all metrics that can be averaged over batches."""
    assert output.loss_sum is not None and output.num_targets is not None
    if output.loss_sum.ndim == 0:
        yield "loss", (output.loss_sum, output.num_targets)
    yield from ((name, value) for name, value in (output.metrics or {}).items() if isinstance(value, tuple))


def held_out_loss(
    data: Part | DocumentSource, encode: Encode, max_length: int, rows: int, objective: Objective
) -> HeldOutLoss:
    """On the first NUM_DOCUMENTS documents of the validation split, `rows` packed rows a batch.

    Raises ConfigError where there is no such split, DataError if nothing of it fits or too many cannot be read.
    """
    if not isinstance(data, DocumentSource):
        raise ConfigError(f"data of kind {data.kind} gives no documents to measure on")
    waiting = []
    documents, fit = data.documents("validation"), Fit(encode, max_length, "skip")
    for number, document in enumerate(documents, 1):
        try:
            _, encoded = fit(document)
        except Unreadable as err:  # as in training: left out, counted and named
            documents.skipped.add(str(document.get("key", number)), str(err), number)
            continue
        if encoded is None:
            documents.skipped.add(str(document.get("key", number)), fit.too_long, number, counts=False)
        else:
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
