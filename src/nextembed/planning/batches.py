"""The batch that a run would train on, from its settings alone: right shapes and kinds, no data."""

from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ..core.objective import Objective
from ..core.types import IGNORE_LABEL, Batch
from ..errors import ConfigError
from ..run import RunConfig

POSITION = 3  # numbers that say where a sample stands in the data
TEXT = 30  # tokens beside each image, as in a short caption


@runtime_checkable
class MakesBatches(Protocol):
    """A data part that says itself what its batches are like."""

    def example_batch(self, micro_batch_size: int, backbone: Any) -> Batch: ...


def example_batch(config: RunConfig, backbone: Any, objective: Objective, micro_batch_size: int) -> Batch:
    """One micro batch. A data part of the user's own kind may make it itself (`MakesBatches`).

    Raises ConfigError for a task whose batches are not known here.
    """
    if isinstance(config.data, MakesBatches):
        return config.data.example_batch(micro_batch_size, backbone)
    make = MAKERS.get("omni" if config.model.kind == "omni" else config.objective.task)
    if make is None:
        raise ConfigError(f"plan: batches of task {config.objective.task} are not known; give the data part a method "
                          "example_batch(micro_batch_size, backbone)")  # fmt: skip
    return make(config, backbone, objective, micro_batch_size)


def _images(config: RunConfig, backbone: Any, objective: Objective, size: int) -> Batch:
    trunk = getattr(backbone, "backbone", backbone)  # of UPerNet
    side, channels = trunk.config.image_size, trunk.config.num_channels
    one: dict[str, Tensor] = {
        "pixel_values": torch.zeros(channels, side, side),
        "labels": torch.zeros((side, side) if config.objective.task == "segmentation" else (), dtype=torch.int64),
        "latent_mask": torch.ones(trunk.num_latents(side, side), dtype=torch.bool),
        "position": torch.zeros(POSITION, dtype=torch.int64),
    }
    one |= objective.settings.draw(one, torch.Generator().manual_seed(0))
    rows = {name: value.expand(size, *value.shape) for name, value in one.items()}
    return cast(Batch, rows)  # expanded: as large as one


def _row_length(config: RunConfig) -> int:
    """Positions of a packed row."""
    length = dict(config.model).get("max_length")
    if not isinstance(length, int):
        raise ConfigError(f"plan: model {config.model.kind} has no max_length, so its rows are not known")
    return length


def _documents(config: RunConfig, backbone: Any, objective: Objective, size: int) -> Batch:
    """Full rows of documents, each an image and about TEXT tokens."""
    numbers, length = backbone.config, _row_length(config)
    document = numbers.num_image_latents + 2 + TEXT
    images = max(1, length // document)
    block = [numbers.image_start_token_id, *[numbers.image_token_id] * numbers.num_image_latents,
             numbers.image_end_token_id]  # fmt: skip
    if len(block) > length:
        raise ConfigError(f"model.max_length {length}: one image takes {len(block)} positions")
    documents = torch.arange(length).div(document, rounding_mode="floor").clamp(max=images - 1)
    places = torch.arange(length) - documents * document
    ids = torch.zeros(length, dtype=torch.int64)
    for at, token in enumerate(block):
        ids[places == at] = token
    ids[places >= len(block)] = next(i for i in range(3, 100) if i not in block)
    is_text = places >= len(block)
    row = {
        "input_ids": ids,
        "labels": torch.where(is_text, ids, IGNORE_LABEL),
        "regression_mask": ~is_text & (places > 0),
        "document_ids": documents + 1,
        "position_ids": places,
        "position": torch.zeros(POSITION, dtype=torch.int64),
    }
    vision = numbers.vision_config
    side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    batch: Any = {name: value[None].expand(size, -1) for name, value in row.items()}
    batch["pixel_values"] = torch.zeros(1, getattr(vision, "num_channels", 3), side, side).expand(
        size * images, -1, -1, -1
    )
    return cast(Batch, batch)


def _mixed(config: RunConfig, backbone: Any, objective: Objective, size: int) -> Batch:
    """Full rows of documents of an Omni: every continuous modality in turn, as many latents of each as of text."""
    length, modalities = _row_length(config), dict(backbone.model.modalities)
    names = list(modalities)
    kinds = 2 + torch.arange(length).remainder(len(names))
    kinds[0] = 1
    row: dict[str, Tensor] = {
        "kinds": kinds,
        "input_ids": torch.zeros(length, dtype=torch.int64),
        "coordinates": torch.zeros(length, 3),
        "latent_mask": torch.arange(length) > 0,
        "document_ids": torch.ones(length, dtype=torch.int64),
        "position_ids": torch.arange(length),
        "position": torch.zeros(POSITION, dtype=torch.int64),
    }
    row |= objective.settings.draw(row, torch.Generator().manual_seed(0))
    batch: Any = {name: value[None].expand(size, *value.shape) for name, value in row.items()}
    for number, (name, modality) in enumerate(modalities.items()):
        if modality.value_size is not None:
            count = size * int((kinds == 2 + number).sum())
            batch[f"values.{name}"] = torch.zeros(1, modality.value_size).expand(count, -1)
    if backbone.config.tell_next:
        batch["next_coordinates"] = torch.zeros(1, 1, 3).expand(size, length, 3)
    return cast(Batch, batch)


MAKERS: dict[str, Callable[[RunConfig, Any, Objective, int], Batch]] = {
    "pretraining": _images,
    "classification": _images,
    "segmentation": _images,
    "multimodal": _documents,
    "omni": _mixed,
}
