"""What int8 costs on real images: similarity, speed, and accuracy of float and int8."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..core.types import IGNORE_LABEL, Sample
from ..data.images import ImagePart
from ..errors import ConfigError, DataError
from ..evaluation.features.extract import Features, batches
from ..evaluation.probes.samples import load_data
from ..evaluation.probes.sweep import ProbeConfig, ProbeData, accuracy, fit_probes
from ..models.nepa import ViTNepaConfig
from .formats import onnx_session
from .graph import GraphSpec
from .int8 import Likeness, Run, likeness, speed_ratio
from .loading import Task

BATCH = 16
NAMES = {"knn": "kNN", "linear": "linear probe"}


@dataclass
class Cost:
    """int8 compared with float. speed: ratio. accuracy: (float, int8) in [0, 1] by what was measured, on `num_scored`
    images of `split`; empty, with the `reason`, if there are no labels."""

    task: Task
    likeness: Likeness
    speed: float
    batch: int
    accuracy: dict[str, tuple[float, float]] = field(default_factory=dict)
    split: str = "validation"
    num_scored: int = 0
    reason: str = ""


def measure(
    full: Path,
    small: Path,
    spec: GraphSpec,
    data: ImagePart,
    model_config: ViTNepaConfig,
    config: ProbeConfig | None = None,
) -> Cost:
    """Both ONNX files on the images of a data config, one thread each.

    Features: kNN and linear probes fitted on training images and scored on test ones (validation where there are
    none), for each file its own. Classifier: top-1 on the same.
    Raises ConfigError or DataError if the data cannot be read.
    """
    runs = [onnx_session(file, threads=1) for file in (full, small)]
    config = config or ProbeConfig(num_train=2_000, num_validation=1_000, num_test=1_000)
    parts = load_data(data, config, model_config)
    assert parts.validation is not None  # images always have one
    seen = [_input(batch["pixel_values"], spec, data) for batch in batches(parts.validation, BATCH)]
    speed = speed_ratio(runs[0], runs[1], seen[0])[1]
    cost = Cost(spec.task, likeness(runs[0], runs[1], seen), speed, len(seen[0]))
    try:
        if spec.task == "classification":
            _top1(cost, runs, parts, spec, data)
        else:
            _probes(cost, runs, parts, spec, data, config)
    except (ConfigError, DataError) as err:
        cost.reason = str(err)
    return cost


def _probes(
    cost: Cost, runs: list[Run], parts: ProbeData, spec: GraphSpec, data: ImagePart, config: ProbeConfig
) -> None:
    score_on = parts.test if parts.test is not None else parts.validation
    cost.split = "test" if parts.test is not None else "validation"
    found: dict[str, list[float]] = {}
    for run in runs:
        train, chosen, scored = (_features(run, x, spec, data) for x in (parts.train, parts.validation, score_on))
        for probe, fit in fit_probes(train, chosen, config)["embedding"].items():
            found.setdefault(NAMES[probe], []).append(accuracy(fit, scored, "embedding"))
        cost.num_scored = len(scored.labels)
    cost.accuracy = {name: (full, small) for name, (full, small) in found.items()}


def _top1(cost: Cost, runs: list[Run], parts: ProbeData, spec: GraphSpec, data: ImagePart) -> None:
    if spec.class_names and parts.class_names and list(spec.class_names) != list(parts.class_names):
        raise ConfigError("the classes of the data are not those of the classifier")
    cost.split = "test" if parts.test is not None else "validation"
    scored = [_features(run, parts.test if parts.test is not None else parts.validation, spec, data) for run in runs]
    right = [(s.values["embedding"].argmax(1) == s.labels).double().mean().item() for s in scored]
    cost.accuracy, cost.num_scored = {"top-1": (right[0], right[1])}, len(scored[0].labels)


def _features(run: Run, dataset: Dataset[Sample] | None, spec: GraphSpec, data: ImagePart) -> Features:
    """The last output (embedding or logits) of the images that have a label."""
    assert dataset is not None
    values, labels = [], []
    for batch in batches(dataset, BATCH):
        values.append(run(_input(batch["pixel_values"], spec, data))[-1])
        labels.append(batch["labels"])
    known = torch.cat(labels) != IGNORE_LABEL
    if not known.any():
        raise DataError("the images have no labels (data.label_column)")
    return Features({"embedding": torch.cat(values)[known]}, torch.cat(labels)[known])


def _input(pixels: Tensor, spec: GraphSpec, data: ImagePart) -> Tensor:
    """The file's input: normalised pixels, or uint8 images [B, height, width, C]."""
    if spec.mean is None:
        return pixels
    raw = (pixels * data.std + data.mean) * 255
    return raw.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
