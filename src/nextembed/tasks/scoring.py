"""Scores of a fine-tuned model, by the kind of its checkpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..core.config import Part
from ..core.run_folder import read_model_file
from ..core.scores import ClassScores, SegmentScores
from ..errors import ConfigError
from ..evaluation.probes.sweep import ProbeConfig
from . import classification, segmentation
from .base import SPLITS, OpenRun, scored_folder

SCORERS: dict[str, Callable[..., ClassScores | SegmentScores]] = {
    "ForImageClassification": classification.score,
    "ForSemanticSegmentation": segmentation.score,
}


def instead(folder: Path, kind: str) -> str:
    """The commands for models that are neither classifiers nor segmenters."""
    match read_model_file(folder).model_type:
        case "emu":
            return "it is an Emu: nextembed evaluate RUN --task caption --data SOURCE, or vqa, retrieval, text_to_image"
        case "omni":
            return "it is an Omni: nextembed probe RUN, or nextembed generate RUN TEXT"
        case "vit_nepa" | "spt_nepa":
            return "it is pretrained without labels: nextembed probe RUN, or fine-tune it with the recipe finetune"
    return f"its model is of type {kind}"


def score(
    run: OpenRun, data: Part | None = None, config: ProbeConfig | None = None, splits: Sequence[str] = SPLITS
) -> ClassScores | SegmentScores:
    """Scores of a run (its best weights), a checkpoint or a saved model on labelled images.

    Args:
        run: opened.
        data: None takes the run's own.
        config: on how many images; None takes the run's own.
        splits: the first of these that the data has is taken.

    Raises:
        ConfigError: a path without such a model, splits that are not there, or data with other classes.
    """
    folder = scored_folder(run)
    name = next(iter(read_model_file(folder).architectures or []), "")
    kind = name[name.find("For") :] if "For" in name else name
    if kind not in SCORERS:
        raise ConfigError(f"{folder} contains no fine-tuned model to score ({instead(folder, kind)})")
    return SCORERS[kind](run, data, config, splits)
