"""From a segmentation run or checkpoint to its scores."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSemanticSegmentation

from ..core.pretrained import load_pretrained
from ..core.scores import SegmentScores
from ..errors import ConfigError, MissingSplit
from .finetuned import SCORERS
from .probes.loading import keep_decoded
from .probes.sweep import ProbeConfig
from .segmentation import Counts, QuickSegment, score_segmenter, window_of


def quick_segment(data: Any, config: ProbeConfig, model: Any) -> QuickSegment:
    """What a run calls every `train.probe_steps`, on its validation split.

    Raises ConfigError if there is no validation split to choose weights on, MissingExtra without torchmetrics.
    """
    Counts(2)  # torchmetrics is missed before training starts, not at the first probe
    samples = read_samples(data, "validation", model, config.num_validation)
    return QuickSegment(keep_decoded(samples), config.stride, config.batch_size)


def score_segments(folder: Path, data: Any, config: ProbeConfig, splits: Sequence[str]) -> SegmentScores:
    """Scores of a segmenter's folder on the first split that the data has; see `finetuned.score_checkpoint`.

    Raises ConfigError for data without masks or with other classes, or if it has none of the splits.
    """
    if not getattr(data, "has_masks", False):
        raise ConfigError(
            f"data of kind '{data.kind}' has no masks; in place of --data name it with data.kind=segmentation "
            "data.source=... data.classes=[...]"
        )
    model = load_segmenter(folder)
    check_classes(model, data.class_names())
    for split in splits:
        try:
            samples = read_samples(data, split, model, config.num_test)
        except MissingSplit:
            continue
        return score_segmenter(
            model, samples, samples.class_names, split, config.stride, config.batch_size, config.precision
        )
    raise ConfigError(f"data: there is no {' or '.join(splits)} split to score on")


SCORERS["ForSemanticSegmentation"] = score_segments


def check_classes(model: Any, class_names: list[str]) -> None:
    """Raises ConfigError unless a segmenter's classes are those of the data, in the same order."""
    own = [str(model.config.id2label[i]) for i in sorted(model.config.id2label)]
    if own != list(class_names):
        at = next((i for i, (a, b) in enumerate(zip(own, class_names)) if a != b), min(len(own), len(class_names)))
        ours, theirs = (names[at] if at < len(names) else "nothing" for names in (own, class_names))
        raise ConfigError(
            f"the class list does not match the head: it has {len(class_names)} classes, the model {len(own)}; "
            f"class {at} is '{theirs}' in the data, '{ours}' in the model"
        )


def load_segmenter(folder: Path) -> Any:
    """A segmenter on the accelerator if there is one. Raises ConfigError if it cannot be loaded."""
    importlib.import_module("nextembed.models.nepa")  # registers the model with the Auto classes
    model = load_pretrained(AutoModelForSemanticSegmentation, folder)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return model.to(device).eval()


def read_samples(data: Any, split: str, model: Any, num_samples: int | None = None) -> Any:
    """Images of a split with their masks, at the model's size."""
    config = getattr(model.config, "backbone_config", None) or model.config
    return data.eval_samples(
        split, image_size=window_of(model), num_channels=config.num_channels, num_samples=num_samples
    )
