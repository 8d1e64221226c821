"""Scores of a fine-tuned model: written to scores.json, shown in the terminal and in the report."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from rich.columns import Columns
from rich.console import RenderableType
from rich.table import Table

from .files import to_json, write_json, write_text
from .saved import Count, Number, Share, load

MAX_ROWS = 30  # classes that the terminal shows


@dataclass
class Mistake:
    """A wrong answer. label, answer: class ids. index: position in the split; key: name of the sample."""

    label: Count
    answer: Count
    probability: Share
    index: Count | None = None
    key: str = ""


@dataclass
class ClassScores:
    """Counts of a classifier's answers to labelled images. confusion[i][j]: images of class i that were classified as
    j. top1, top5 in [0, 1]; loss: mean cross-entropy, None if it is not finite. num_unlabelled: images without a label,
    left out. weights: "raw" or "ema"; step: of the weights, None if unknown; errors: the most confident wrong answers.
    """

    split: str
    num_images: Count
    top1: Share
    top5: Share
    loss: Number | None
    class_names: list[str]
    confusion: list[list[Count]]
    num_unlabelled: Count = 0
    weights: str = "raw"
    step: Count | None = None
    errors: list[Mistake] = field(default_factory=list)
    task: Literal["classification"] = "classification"

    def __post_init__(self) -> None:
        num = len(self.class_names)
        if len(self.confusion) != num or any(len(row) != num for row in self.confusion):
            raise ValueError(f"confusion should have {num} rows and columns, one for each of class_names")
        if any(max(error.label, error.answer) >= num for error in self.errors):
            raise ValueError(f"errors should name classes below {num}")

    def save(self, path: str | Path) -> Path:
        values = asdict(self) | {"sentence": self.sentence(), "range": self.range}
        text = to_json(values | {"confusion": None}, indent=1)
        confusion = to_json(self.confusion)  # on one line: with 1,000 classes it has a million numbers
        write_text(path, text.replace('"confusion": null', f'"confusion": {confusion}', 1) + "\n")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "ClassScores":
        """Reads scores.json. Raises ConfigError, one line that names the file and the value that is wrong."""
        return load(cls, path)

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
        """Accuracy of each class; None for a class without images."""
        return [row[i] / n if n else None for i, (row, n) in enumerate(zip(self.confusion, self.counts))]

    def confusions(self, num: int = 10) -> list[tuple[int, int, int]]:
        """(class, answer, count) of the most frequent confusions."""
        wrong = [(i, j, n) for i, row in enumerate(self.confusion) for j, n in enumerate(row) if i != j and n]
        return sorted(wrong, key=lambda c: (-c[2], c[0], c[1]))[:num]

    def render(self) -> RenderableType:
        """For the terminal: accuracy of each class, worst first, and the most frequent confusions."""
        classes = Table(title=f"Top-1 {self.top1:.1%}   top-5 {self.top5:.1%}", title_justify="left")
        for name, side in (("class", "left"), ("images", "right"), ("accuracy", "right")):
            classes.add_column(name, justify=side)  # type: ignore[arg-type]
        rows = [(r, i) for i, r in enumerate(self.recalls) if r is not None]
        for recall, i in sorted(rows)[:MAX_ROWS]:
            classes.add_row(self.class_names[i], f"{self.counts[i]:,}", f"{100 * recall:.1f} %")
        if len(rows) > MAX_ROWS:
            classes.caption = f"the {MAX_ROWS} worst of {len(rows)} classes"
        mistakes = Table(title="Most frequent confusions", title_justify="left")
        for name, side in (("class", "left"), ("predicted", "left"), ("images", "right")):
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
            text += ", so the figure is slightly optimistic." if self.split == "validation" else "."
        if self.num_unlabelled:
            text += f" {self.num_unlabelled:,} images without a known label were left out."
        return text


@dataclass
class ClassArea:
    """A class of a segmenter. iou: None if the class never occurs; share: of the true pixels."""

    name: str
    iou: Share | None
    share: Share


@dataclass
class SegmentScores:
    """Scores of a segmenter over all labelled pixels of a split. miou: mean over the classes that occur in labels or
    answers; pixel_accuracy: share of right pixels; both in [0, 1]. window, stride: pixels a side. weights, step: "raw"
    or "ema" and the step they are of, if known. skipped: reasons by key.
    """

    split: str
    num_images: Count
    num_pixels: Count
    miou: Share
    pixel_accuracy: Share
    per_class: Annotated[list[ClassArea], Field(min_length=1)]
    window: Count
    stride: Count
    weights: str = "raw"
    step: Count | None = None
    task: Literal["segmentation"] = "segmentation"
    skipped: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        write_json(path, asdict(self) | {"sentence": self.sentence()})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "SegmentScores":
        """Reads scores.json. Raises ConfigError, one line that names the file and the value that is wrong."""
        return load(cls, path)

    @property
    def largest(self) -> ClassArea:
        """The class with the most pixels."""
        return max(self.per_class, key=lambda one: one.share)

    @property
    def guess(self) -> float:
        """mIoU of always predicting the largest class."""
        return self.largest.share / max(1, sum(one.share > 0 for one in self.per_class))

    def metrics(self) -> dict[str, float]:
        """What `Run.metrics` holds."""
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy}

    def render(self) -> RenderableType:
        """A rich table: IoU of every class, best first, and its share of the truth."""
        table = Table(title=f"{self.num_images:,} {self.split} images")
        for name in ("class", "IoU", "share of the pixels"):
            table.add_column(name, justify="left" if name == "class" else "right")
        for one in sorted(self.per_class, key=lambda one: -1.0 if one.iou is None else one.iou, reverse=True):
            table.add_row(one.name, "never seen" if one.iou is None else f"{one.iou:.1%}", f"{one.share:.1%}")
        return table

    def sentence(self) -> str:
        """The result in plain words."""
        chosen = f"the weights of step {self.step}, the best on validation, " if self.step is not None else ""
        averaged = "averaged (EMA)" if self.weights == "ema" else "not averaged"
        left_out = f" {len(self.skipped)} could not be used." if self.skipped else ""
        return (
            f"mIoU {self.miou:.1%} over {sum(one.iou is not None for one in self.per_class)} classes, "
            f"{self.pixel_accuracy:.1%} pixel accuracy, on {self.num_images:,} {self.split} images; "
            f"{chosen}{averaged}. Always guessing '{self.largest.name}': mIoU {self.guess:.1%}, "
            f"{self.largest.share:.1%} of the pixels.{left_out}"
        )


@dataclass
class BestScore:
    """score.json next to a run's best weights: name and step of the weights, and their score on validation."""

    step: Count | None = None
    metric: str = ""
    value: Number | None = None
    weights: str | None = None
