"""Labelled images of a run's data, as probes and scores read them."""

from typing import Any

import torch

from ...core.config import Part
from ...core.types import Role, reads_clips
from ...data.images import ImagePart
from ...errors import ConfigError, MissingSplit
from .sweep import ProbeConfig, ProbeData

CACHE_BYTES = 2**30  # decoded probe images are kept up to this size, because every model reads them


def load_data(data: Part, config: ProbeConfig, model_config: Any) -> ProbeData:
    """The splits of a data config (`ImagePart`) as probes need them, at the model's image size.

    Without a validation split, part of the training images is held out for choices; without a test split, there are no
    test values. Small images are decoded once and kept.
    """
    if not isinstance(data, ImagePart):
        raise ConfigError(f"data of kind {data.kind} has no classes of images to probe on")
    size, channels = model_config.image_shape[0], model_config.num_channels

    def read(role: Role, num: int) -> Any:
        return data.eval_samples(role, image_size=size, num_channels=channels, num_samples=num)

    def read_if_there(role: Role, num: int) -> object:
        try:
            return read(role, num)
        except MissingSplit:
            return None

    validation = read_if_there("validation", config.num_validation)
    if validation is not None:
        train = read("train", config.num_train)
        names = train.class_names
    else:
        both = read("train", config.num_train + config.num_validation)
        names = both.class_names
        train, validation = _hold_out(both, config.num_validation)
    test = read_if_there("test", config.num_test)
    things = "clips" if reads_clips(model_config) else "images"
    tested = None if test is None else keep_decoded(test)
    return ProbeData(keep_decoded(train), keep_decoded(validation), tested, names, things=things)


def _hold_out(samples: Any, num: int) -> tuple[Any, Any]:
    """Two disjoint parts, drawn with a fixed seed; the second has `num` samples, at most a fifth."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(1)).tolist()
    num = max(1, min(num, len(samples) // 5))
    return torch.utils.data.Subset(samples, order[num:]), torch.utils.data.Subset(samples, order[:num])


def keep_decoded(samples: Any) -> Any:
    """The samples decoded, as a list, if they are small enough together."""
    pixels = samples[0]["pixel_values"]
    if len(samples) * pixels.numel() * pixels.element_size() > CACHE_BYTES:
        return samples
    return [samples[i] for i in range(len(samples))]
