"""The scores of one run, as in its scores.json."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..core.files import write_json
from ..core.probe_table import ProbeTable, Row
from ..core.saved import Count, Number, checked, read_json


class Column(NamedTuple):
    """A column of the table. unit: "%" of a share, "" of a plain number, "M" and "GB" of numbers and bytes."""

    title: str
    unit: str = "%"
    text: str = ""


COLUMNS = {
    "linear": Column("linear", text="linear probe, layer, pooling and attention chosen on validation"),
    "knn": Column("kNN", text="nearest neighbours, chosen in the same way"),
    "linear_output": Column("linear, output", text="linear probe of the output layer, mean over patches"),
    "knn_output": Column("kNN, output", text="nearest neighbours there"),
    "finetune_1": Column("1 % labels", text="fine-tuned on 1 % of the labels"),
    "finetune_10": Column("10 % labels", text="fine-tuned on 10 % of the labels"),
    "finetune_100": Column("100 % labels", text="trained on all labels for the same budget"),
    "images_per_second": Column("images/s", "", "of training, by the clock"),
    "peak_memory": Column("memory", "GB", "peak of the training process; on a GPU, of GPU memory"),
    "parameters_backbone": Column("backbone", "M", "parameters"),
    "parameters_objective": Column("objective", "M", "parameters of the objective only"),
    "images_seen": Column("images seen", "", "in training"),
    "cpu_minutes": Column("CPU min", "min", "CPU time of training"),
    "wall_minutes": Column("wall min", "min", "of training, by the clock"),
}
ACCURACIES = [name for name, column in COLUMNS.items() if column.unit == "%"]


@dataclass
class Point:
    """A quick probe while training, on validation. images: seen so far; cpu, wall: seconds of training so far; linear,
    knn: the better of output and middle layer."""

    images: Count
    cpu: Number | None
    wall: Number | None
    linear: Number
    knn: Number


@dataclass
class RunScores:
    """row: of the table. kind: "objective", "baseline" or "run". values: by column, see `COLUMNS`, accuracies in [0, 1]
    on the split that `measured_on` names; validation: accuracies for choices. chosen: layer, pooling and attention, by
    probe. failed: reason if nothing was scored."""

    row: str
    seed: Count = 0
    kind: str = "objective"
    values: dict[str, Number] = field(default_factory=dict)
    validation: dict[str, Number] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    measured_on: str = "test"
    verdict: str = ""
    sentence: str = ""
    steps: Count = 0
    curve: list[Point] = field(default_factory=list)
    tuned: dict[str, Number] = field(default_factory=dict)
    folder: str = ""
    failed: str = ""


def save_scores(file: Path, scores: list[RunScores]) -> None:
    """Written atomically: an existing file means that the job is done."""
    write_json(file, [asdict(one) for one in scores])


def load_scores(file: Path) -> list[RunScores]:
    """Raises ConfigError that names the file and the value that is wrong."""
    found: list[RunScores] = checked(list[RunScores], read_json(file), file)
    return found


def read_probes(table: ProbeTable, weights: str | None, into: RunScores) -> None:
    """The best rows and the plain output rows of a probe table. weights: None: of the trained ones, the best."""
    for probe in ("linear", "knn"):
        best = table.best(probe, weights)
        if best is None:
            continue
        plain = [row for row in table.rows if row.probe == probe and row.weights == best.weights and row.default]
        for name, row in ((probe, best), *((f"{probe}_output", row) for row in plain)):
            into.values[name] = accuracy_of(row)
            into.validation[name] = row.validation_accuracy
        into.chosen[probe] = f"layer {best.layer} of {table.num_layers}, {best.pooling}, {best.attention}"
    into.measured_on = "test" if table.images.get("test") else "validation"


def read_pixels(table: ProbeTable, into: RunScores) -> None:
    """The probes of raw values."""
    into.values |= table.pixels or table.pixels_validation
    into.validation |= table.pixels_validation
    into.measured_on = "test" if table.images.get("test") else "validation"


def accuracy_of(row: Row) -> float:
    return row.accuracy if row.accuracy is not None else row.validation_accuracy
