"""How good a fine-tuned classifier is: top-1 and what stands behind it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.columns import Columns
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor

from ..core.types import IGNORE_LABEL
from ..errors import ConfigError, DataError
from .features import Precision, batches, evaluating

MAX_ROWS = 30  # classes that the terminal shows
METRIC = "eval/accuracy"  # what the best weights of a run are chosen by


@dataclass
class ClassScores:
    """A classifier's answers to labelled images, counted.

    confusion[i][j]: images of class i that were called j. top1, top5 in [0, 1]; loss: mean cross-entropy.
    num_unlabelled: images without a label, left out. weights: "raw" or "ema"; step: of the weights, None if unknown;
    errors: the surest wrong answers, as {"key", "label", "answer", "probability", "index"}, the last one its place in
    the split's samples.
    """

    split: str
    num_images: int
    top1: float
    top5: float
    loss: float
    class_names: list[str]
    confusion: list[list[int]]
    num_unlabelled: int = 0
    weights: str = "raw"
    step: int | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    task: str = "classification"

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        values = asdict(self) | {"sentence": self.sentence(), "range": self.range}
        text = json.dumps(values | {"confusion": None}, indent=1, ensure_ascii=False)
        confusion = json.dumps(self.confusion)  # on one line: of 1,000 classes it has a million numbers
        path.write_text(text.replace('"confusion": null', f'"confusion": {confusion}', 1) + "\n", encoding="utf-8")
        return path

    @property
    def range(self) -> tuple[float, float]:
        """The 95 % range of top-1 (Wilson's score interval, which also holds for few images and near 0 and 1)."""
        z2, n = 1.96**2, max(1, self.num_images)
        centre = (self.top1 + z2 / (2 * n)) / (1 + z2 / n)
        half = (z2 * (self.top1 * (1 - self.top1) / n + z2 / (4 * n * n))) ** 0.5 / (1 + z2 / n)
        return max(0.0, centre - half), min(1.0, centre + half)

    @property
    def counts(self) -> list[int]:
        """Images of each class."""
        return [sum(row) for row in self.confusion]

    @property
    def recalls(self) -> list[float | None]:
        """Share of each class that was called by its name; None for a class without images."""
        return [row[i] / n if n else None for i, (row, n) in enumerate(zip(self.confusion, self.counts))]

    def confusions(self, num: int = 10) -> list[tuple[int, int, int]]:
        """(class, what it was called, how often): the most frequent mistakes."""
        wrong = [(i, j, n) for i, row in enumerate(self.confusion) for j, n in enumerate(row) if i != j and n]
        return sorted(wrong, key=lambda c: (-c[2], c[0], c[1]))[:num]

    def render(self) -> RenderableType:
        """For the terminal: accuracy of each class, worst first, beside the most frequent confusions."""
        classes = Table(title=f"Top-1 {self.top1:.1%}   top-5 {self.top5:.1%}", title_justify="left")
        for name, side in (("class", "left"), ("images", "right"), ("right", "right")):
            classes.add_column(name, justify=side)  # type: ignore[arg-type]
        rows = [(r, i) for i, r in enumerate(self.recalls) if r is not None]
        for recall, i in sorted(rows)[:MAX_ROWS]:
            classes.add_row(self.class_names[i], f"{self.counts[i]:,}", f"{100 * recall:.1f} %")
        if len(rows) > MAX_ROWS:
            classes.caption = f"the {MAX_ROWS} worst of {len(rows)} classes"
        mistakes = Table(title="Most frequent confusions", title_justify="left")
        for name, side in (("class", "left"), ("called", "left"), ("images", "right")):
            mistakes.add_column(name, justify=side)  # type: ignore[arg-type]
        for label, answer, count in self.confusions():
            mistakes.add_row(self.class_names[label], self.class_names[answer], f"{count:,}")
        return Columns([classes, mistakes])

    def sentence(self) -> str:
        """The result in plain words."""
        largest = max(self.counts, default=0) / max(1, self.num_images)
        low, high = self.range
        text = (
            f"Top-1 {100 * self.top1:.1f} % (95 % range {100 * low:.1f} to {100 * high:.1f} %) on {self.num_images:,} "
            f"{self.split} images of {len(self.class_names)} classes; always guessing the largest class: "
            f"{100 * largest:.1f} %."
        )
        if self.step is not None:
            averaged = ", averaged (EMA)" if self.weights == "ema" else ""
            text += f" The weights are those of step {self.step:,}{averaged}, the best on validation"
            text += ", so the figure is a little too high." if self.split == "validation" else "."
        if self.num_unlabelled:
            text += f" {self.num_unlabelled:,} images without a known label were left out."
        return text


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
    model: Any, samples: Any, split: str, batch_size: int = 256, precision: Precision = "float32"
) -> ClassScores:
    """Scores on all labelled samples (`samples.class_names` says what their labels mean).

    Raises ConfigError for classes that the model does not know; DataError if there are no labels, or one is no class.
    """
    ids = torch.tensor(ids_by_name(model, samples.class_names))
    logits, labels = logits_of(model, samples, batch_size, precision=precision)
    known = labels != IGNORE_LABEL
    if not known.any():
        raise DataError(f"the {split} images have no labels")
    num_classes = logits.shape[1]
    if int(labels.max()) >= len(ids):
        raise DataError(f"label {int(labels.max())} of the {split} images is not one of the {len(ids)} classes")
    places = known.nonzero()[:, 0]
    logits, labels = logits[known], ids[labels[known]]
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
        class_names=[str(model.config.id2label[i]) for i in range(num_classes)],
        num_unlabelled=int((~known).sum()),
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

    def __init__(self, samples: Any, batch_size: int = 256, precision: Precision = "float32"):
        self.samples, self.batch_size, self.precision = samples, batch_size, precision

    def __call__(self, model: Any) -> dict[str, float]:
        logits, labels = logits_of(model, self.samples, self.batch_size, precision=self.precision)
        right = (logits.argmax(1) == labels)[labels != IGNORE_LABEL]
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL)
        return {METRIC: right.double().mean().item(), "eval/loss": loss.item()}


def ids_by_name(model: Any, class_names: list[str]) -> list[int]:
    """The model's class id of each class of the data, by name; a model or data without names goes by number.

    Raises ConfigError for a class of the data that the model does not know.
    """
    own = [str(model.config.id2label[i]) for i in sorted(model.config.id2label)]
    if not class_names or own == [f"LABEL_{i}" for i in range(len(own))]:
        return list(range(len(own)))
    strange = [name for name in class_names if name not in own]
    if strange:
        raise ConfigError(
            f"the data has {len(strange)} of {len(class_names)} classes that the model does not know "
            f"({', '.join(strange[:4])}); it knows {len(own)}: {', '.join(own[:4])}{', ...' if len(own) > 4 else ''}"
        )
    return [own.index(name) for name in class_names]
