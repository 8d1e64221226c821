"""How good a fine-tuned classifier is: top-1 and what stands behind it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.types import IGNORE_LABEL
from ..errors import ConfigError, DataError
from .features import Precision, batches, evaluating

METRIC = "eval/accuracy"  # what the best weights of a run are chosen by


@dataclass
class ClassScores:
    """A classifier's answers to labelled images, counted.

    confusion[i][j]: images of class i that were called j. top1, top5 in [0, 1]; loss: mean cross-entropy.
    weights: "raw" or "ema"; step: of the weights, None if unknown; errors: the surest wrong answers, as
    {"key", "label", "answer", "probability"}.
    """

    split: str
    num_images: int
    top1: float
    top5: float
    loss: float
    class_names: list[str]
    confusion: list[list[int]]
    weights: str = "raw"
    step: int | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    task: str = "classification"

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        values = asdict(self) | {"sentence": self.sentence()}
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @property
    def margin(self) -> float:
        """Half the 95 % range of top-1."""
        return 1.96 * (self.top1 * (1 - self.top1) / max(1, self.num_images)) ** 0.5

    def sentence(self) -> str:
        """The result in plain words."""
        counts = [sum(row) for row in self.confusion]
        largest = max(counts, default=0) / max(1, self.num_images)
        chosen = f"the weights of step {self.step}, the best on validation, " if self.step is not None else ""
        averaged = "averaged (EMA)" if self.weights == "ema" else "not averaged"
        return (
            f"Top-1 {self.top1:.1%} (± {self.margin:.1%}) on {self.num_images:,} {self.split} images, "
            f"{len(self.class_names)} classes; {chosen}{averaged}. Always guessing the largest class: {largest:.1%}."
        )


@torch.no_grad()
def logits_of(
    model: Any, samples: Any, batch_size: int = 256, num_workers: int = 0, precision: Precision = "float32"
) -> tuple[Tensor, Tensor]:
    """Logits [N, C], float32, and labels [N] of a map-style dataset, on the CPU. The model comes back in its mode."""
    device = next(model.parameters()).device
    logits, labels = [], []
    with evaluating(model):
        for batch in batches(samples, batch_size, num_workers):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                logits.append(model(pixel_values=batch["pixel_values"].to(device)).logits.float().cpu())
            labels.append(batch["labels"])
    return torch.cat(logits), torch.cat(labels)


def score_classifier(
    model: Any,
    samples: Any,
    class_names: list[str],
    split: str,
    batch_size: int = 256,
    precision: Precision = "float32",
) -> ClassScores:
    """Scores on all labelled samples. Raises DataError if there are none, or a label is not one of the classes."""
    logits, labels = logits_of(model, samples, batch_size, precision=precision)
    known = labels != IGNORE_LABEL
    if not known.any():
        raise DataError(f"the {split} images have no labels")
    num_classes = logits.shape[1]
    if int(labels.max()) >= num_classes:
        raise DataError(f"label {int(labels.max())} of the {split} images is not one of the {num_classes} classes")
    places = known.nonzero()[:, 0]
    logits, labels = logits[known], labels[known]
    answers = logits.argmax(1)
    wrong = (answers != labels).nonzero()[:, 0]
    sure = logits.softmax(1).amax(1)
    surest = wrong[sure[wrong].argsort(descending=True)][:12]
    return ClassScores(
        split=split,
        num_images=len(labels),
        top1=(answers == labels).double().mean().item(),
        top5=(logits.topk(min(5, num_classes)).indices == labels[:, None]).any(1).double().mean().item(),
        loss=F.cross_entropy(logits, labels).item(),
        class_names=list(class_names),
        confusion=(labels * num_classes + answers).bincount(minlength=num_classes**2).view(num_classes, -1).tolist(),
        errors=[
            {
                "index": int(places[i]),
                "label": int(labels[i]),
                "answer": int(answers[i]),
                "probability": round(float(sure[i]), 4),
            }
            for i in surest.tolist()
        ],
    )


class QuickScore:
    """Called with a classifier during training: "eval/accuracy" and "eval/loss" on validation images."""

    def __init__(self, samples: Any, batch_size: int = 256):
        self.samples, self.batch_size = samples, batch_size

    def __call__(self, model: Any) -> dict[str, float]:
        logits, labels = logits_of(model, self.samples, self.batch_size)
        right = (logits.argmax(1) == labels)[labels != IGNORE_LABEL]
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL)
        return {METRIC: right.double().mean().item(), "eval/loss": loss.item()}


def check_same_classes(model: Any, class_names: list[str]) -> None:
    """Raises ConfigError unless a classifier's classes are those of the data."""
    own = [str(model.config.id2label[i]) for i in sorted(model.config.id2label)]
    if own != list(class_names):
        raise ConfigError(
            f"the model knows {len(own)} classes ({', '.join(own[:4])}, ...), the data has {len(class_names)} "
            f"({', '.join(list(class_names)[:4])}, ...): they have to be the same, in the same order"
        )
