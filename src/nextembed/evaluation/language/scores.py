"""Scores of a model on a task: values with intervals, answers, a table and a file."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from ...core.files import write_json

Answer = dict[str, object]  # of one item: key, prompt, answer, references, and what it scored
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass
class Metric:
    """A value with its 95 % interval (bootstrap over items), in `unit`; None if it has none."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""


@dataclass
class LanguageScores:
    """Scores of a checkpoint on a task. answers: one object per item: key, prompt, answer, references, and scores.
    notes: remarks on the values. settings: of the evaluation. answers_only: {key: answer} if an external grader
    computes the score.
    """

    task: str
    format: str
    checkpoint: str
    data: str
    num_examples: int
    metrics: list[Metric]
    notes: list[str] = field(default_factory=list)
    settings: dict[str, object] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    answers_only: bool = False

    def __getitem__(self, name: str) -> float:
        """The value of a metric. Raises KeyError if there is none of this name."""
        for metric in self.metrics:
            if metric.name == name:
                return metric.value
        raise KeyError(name)

    def save(self, path: str | Path) -> Path:
        """Writes the scores as JSON; for an external grader only {key: answer}, as it reads them."""
        values = {a["key"]: a["answer"] for a in self.answers} if self.answers_only else asdict(self)
        write_json(path, values)
        return Path(path)

    def render(self) -> RenderableType:
        """A table of the metrics."""
        table = Table(title=f"{self.task} of {self.num_examples:,} items", title_justify="left")
        for name in ("metric", "value", "95 % interval"):
            table.add_column(name, justify="left" if name == "metric" else "right")
        for metric in self.metrics:
            unit = metric.unit and f" {metric.unit}"
            interval = "" if metric.low is None else f"{metric.low:.2f} to {metric.high:.2f}{unit}"
            table.add_row(metric.name, f"{metric.value:.2f}{unit}", interval)
        return table

    def sentences(self) -> list[str]:
        """Remarks on the values."""
        lines = [] if self.metrics else [f"{self.num_examples:,} answers; their score is made by an external grader."]
        return lines + [f"Note: {note}." for note in self.notes]


def mean_metric(
    name: str,
    values: Sequence[float] | np.ndarray,
    scale: float = 1.0,
    unit: str = "",
    draws: int = 1000,
    seed: int = 0,
) -> Metric:
    """The mean of one value per item, times `scale`."""
    table = np.asarray(values, dtype=np.float64)[:, None] * scale
    return statistic_metric(name, table, lambda sums: sums[..., 0] / len(table), unit, draws, seed)


def statistic_metric(
    name: str, table: np.ndarray, statistic: Statistic, unit: str = "", draws: int = 1000, seed: int = 0
) -> Metric:
    """A metric that is a function of sums over items. table [items, K]; statistic: sums [..., K] to values [...].

    The interval holds the middle 95 % of `draws` values of as many items drawn with replacement (percentile
    bootstrap); draws=0 leaves it out.
    """
    value = float(statistic(table.sum(0)))
    if draws < 1 or len(table) < 2:
        return Metric(name, value, unit=unit)
    generator = np.random.default_rng(seed)
    uniform = np.full(len(table), 1 / len(table))
    sums = np.stack([generator.multinomial(len(table), uniform) @ table for _ in range(draws)])
    low, high = np.quantile(statistic(sums), (0.025, 0.975))
    return Metric(name, value, float(low), float(high), unit)
