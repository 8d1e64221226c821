"""The batch that a run would train on, from its settings alone: right shapes and kinds, no data."""

from collections.abc import Callable
from typing import Any, cast

import torch

from ..core.types import Batch
from ..errors import ConfigError

POSITION = 3  # numbers that say where a sample stands in the data


def example_batch(config: Any, backbone: Any, objective: Any, micro_batch_size: int) -> Batch:
    """One micro batch. A data part of the user's own kind may make it itself:

        def example_batch(self, micro_batch_size: int, backbone) -> Batch

    Raises ConfigError for a task whose batches are not known here.
    """
    own = getattr(config.data, "example_batch", None)
    if own is not None:
        return own(micro_batch_size, backbone)
    make = MAKERS.get(config.objective.task)
    if make is None:
        raise ConfigError(f"plan: batches of task {config.objective.task} are not known; give the data part a method "
                          "example_batch(micro_batch_size, backbone)")  # fmt: skip
    return make(config, backbone, objective, micro_batch_size)


def _images(config: Any, backbone: Any, objective: Any, size: int) -> Batch:
    trunk = getattr(backbone, "backbone", backbone)  # of UPerNet
    side, channels = trunk.config.image_size, trunk.config.num_channels
    labels = (size, side, side) if config.objective.task == "segmentation" else (size,)
    batch: Batch = {
        "pixel_values": torch.zeros(size, channels, side, side),
        "labels": torch.zeros(labels, dtype=torch.int64),
        "latent_mask": torch.ones(size, trunk.num_latents(side, side), dtype=torch.bool),
        "position": torch.zeros(size, POSITION, dtype=torch.int64),
    }
    generator = torch.Generator().manual_seed(0)
    rows = [
        objective.draw(cast(Batch, {name: cast(Any, value)[row : row + 1] for name, value in batch.items()}), generator)
        for row in range(size)
    ]
    return cast(Batch, {name: torch.cat([cast(Any, row)[name] for row in rows]) for name in rows[0]})


MAKERS: dict[str, Callable[[Any, Any, Any, int], Batch]] = {
    "pretraining": _images,
    "classification": _images,
    "segmentation": _images,
}
