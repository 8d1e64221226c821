"""The result of a probe sweep: rows, JSON, a terminal table and plain sentences."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .console import PlainConsole
from .files import write_json
from .saved import Count, Number, Share, load

ProbeName = Literal["linear", "knn", "attentive"]

TITLES = {"linear": "Linear probe", "knn": "Nearest neighbours", "attentive": "Attentive probe"}
SWEPT = ("linear", "knn")  # fitted for every feature; an attentive probe reads one layer
WEIGHTS = {"raw": "raw weights", "ema": "EMA weights", "untrained": "untrained"}
SEEDS_MEAN = (
    "linear and kNN are fitted on a different random 80 % of the training images, attentive is "
    "re-initialised and reshuffled"
)


@dataclass
class Row:
    """One probe of one feature. Accuracies are in [0, 1]; `accuracy` is on test images, None if not measured.

    spread: standard deviation of `accuracy`, which is then the mean over `ProbeTable.seeds` seeds. penalty: of the
    linear probe; weight decay of an attentive one, learning_rate beside it. default: the choice made without
    validation: output layer, mean over patches, the model's own attention.
    """

    probe: ProbeName
    weights: str
    layer: Count
    pooling: str
    attention: str
    validation_accuracy: Share
    accuracy: Share | None = None
    penalty: Number | None = None
    default: bool = False
    spread: Share | None = None
    learning_rate: Number | None = None


@dataclass
class ProbeTable:
    """All rows of a sweep, its baselines, and on how many images it was measured.

    pixels, pixels_validation, pixels_spread: accuracy of each probe on raw pixels, and its standard deviation. chance:
    share of the largest class. seeds: over how many a test accuracy is the mean. notes: further remarks. raw, things:
    names of the raw signal and of the samples, if another modality than images was probed. folds: of the
    cross-validation that chose, 0 where validation rows did; "validation" is then its accuracy.
    """

    rows: list[Row]
    pixels: dict[str, Share] = field(default_factory=dict)
    pixels_validation: dict[str, Share] = field(default_factory=dict)
    images: dict[str, Count] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    chance: Share = 0.0
    num_layers: Count = 0
    k: Count = 20
    pixels_spread: dict[str, Share] = field(default_factory=dict)
    seeds: Count = 1
    notes: list[str] = field(default_factory=list)
    raw: str = "raw pixels"
    things: str = "images"
    folds: Count = 0

    @property
    def chosen_on(self) -> str:
        return f"{self.folds}-fold cross-validation" if self.folds else "validation"

    def best(self, probe: str | None = None, weights: str | None = None) -> Row | None:
        """The row with the highest validation accuracy; of trained weights unless `weights` names others."""
        rows = [row for row in self.rows if probe in (None, row.probe)]
        rows = [row for row in rows if (row.weights == weights if weights else row.weights != "untrained")]
        return max(rows, key=lambda row: row.validation_accuracy, default=None)

    def save(self, path: str | Path) -> Path:
        """Writes probe.json."""
        best = self.best()
        values = asdict(self) | {"best": asdict(best) if best else None, "chosen_on": self.chosen_on}
        write_json(path, values)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "ProbeTable":
        """Reads probe.json. Raises ConfigError, one line that names the file and the value that is wrong."""
        return load(cls, path)

    def render(self) -> RenderableType:
        """For the terminal: a grid for each probe (validation, best weights), then the comparison with the
        baselines."""
        parts: list[RenderableType] = []
        for probe, title in TITLES.items():
            best = self.best(probe) or self.best(probe, "untrained")
            if best and probe in SWEPT:
                parts.append(self._grid(best, title))
        return Group(*parts, self._summary())

    def answer(self) -> Table:
        """For the terminal: each probe on the trained network, the untrained one and raw values."""
        table = Table(title=f"Accuracy, rows chosen by {self.chosen_on}", title_justify="left")
        trained = self.best()
        name = WEIGHTS.get(trained.weights, trained.weights) if trained is not None else "trained"
        for column in ("probe", f"trained ({name})", "untrained", self.raw, "feature"):
            table.add_column(column, justify="left" if column in ("probe", "feature") else "right")
        for probe, title in TITLES.items():
            best, untrained = self.best(probe), self.best(probe, "untrained")
            if best is None:
                continue
            raw = self.pixels.get(probe, self.pixels_validation.get(probe))
            numbers = _measured(best), _measured(untrained) if untrained else "-", percent(raw)
            table.add_row(title, *numbers, feature_name(best, self.num_layers))
        return table

    def __str__(self) -> str:
        console = PlainConsole(width=110, no_color=True)
        with console.capture() as capture:
            console.print(self.render())
        return capture.get()

    def _grid(self, best: Row, title: str) -> Table:
        rows = [row for row in self.rows if row.probe == best.probe and row.weights == best.weights]
        columns = list(dict.fromkeys((row.pooling, row.attention) for row in rows if row.layer))
        cells = {(row.layer, row.pooling, row.attention): row for row in rows}
        name = WEIGHTS.get(best.weights, best.weights)
        table = Table(title=f"{title}: {self.chosen_on} accuracy in %, {name}", title_justify="left")
        table.add_column("layer", justify="right")
        for pooling, attention in columns:
            table.add_column(f"{pooling}\n{attention}", justify="right")
        for layer in sorted({row.layer for row in rows}):
            label = {0: "0 (latents)", self.num_layers: f"{layer} (output)"}.get(layer, str(layer))
            line = [cells.get((layer, *column)) for column in columns]
            table.add_row(label, *(_cell(row, row is best) for row in line))
        return table

    def _summary(self) -> Table:
        table = Table(title=f"Rows chosen by {self.chosen_on}, then measured once on test" if self.folds else
                      "Rows chosen on validation, then measured once on test", title_justify="left")  # fmt: skip
        for name in ("probe", "weights", "feature"):
            table.add_column(name)
        for name in ("cross-validation" if self.folds else "validation", "test"):
            table.add_column(name, justify="right")
        for probe, title in TITLES.items():
            for weights in dict.fromkeys(row.weights for row in self.rows):
                best = self.best(probe, weights)
                rows = [row for row in self.rows if (row.probe, row.weights) == (probe, weights)]
                default = next((row for row in rows if row.default), None)
                for row, note in ((best, "best"), (default, "default")):
                    if row and not (note == "default" and row is best):
                        place = f"{feature_name(row, self.num_layers)} ({note})"
                        numbers = percent(row.validation_accuracy), percent(row.accuracy, row.spread)
                        table.add_row(title, WEIGHTS.get(weights, weights), place, *numbers)
            if probe in self.pixels_validation:
                spread = self.pixels_spread.get(probe)
                numbers = percent(self.pixels_validation[probe]), percent(self.pixels.get(probe), spread)
                table.add_row(title, "-", self.raw, *numbers, end_section=True)
        return table


def sentence(table: ProbeTable) -> list[str]:
    """The result in sentences: the best row compared with the same network untrained and with raw pixels."""
    lines = []
    for probe, title in TITLES.items():
        best = table.best(probe)
        if best is None:
            continue
        weights = WEIGHTS.get(best.weights, best.weights)
        parts = [f"{title} {_measured(best)} ({feature_name(best, table.num_layers)}, {weights})"]
        if untrained := table.best(probe, "untrained"):
            parts.append(f"the same network untrained {_measured(untrained)}")
        if probe in table.pixels_validation:
            value = table.pixels.get(probe, table.pixels_validation[probe])
            parts.append(f"{table.raw} {percent(value, table.pixels_spread.get(probe))}")
        lines.append(", ".join(parts) + ".")
    num_test, num_validation = table.images.get("test", 0), table.images.get("validation", 0)
    row = table.best()
    how = f"by {table.chosen_on} on the training {table.things}" if table.folds else f"on {num_validation:,} others"
    if row and num_test and row.accuracy is not None:
        spread = 1.96 * (row.accuracy * (1 - row.accuracy) / num_test) ** 0.5
        lines.append(
            f"Measured on {num_test:,} test {table.things} (95 % range about ±{100 * spread:.1f} points); layer, "
            f"pooling and attention were chosen {how}. "
            f"Always guessing the largest class: {percent(table.chance)}."
        )
        if table.seeds > 1:
            means = SEEDS_MEAN.replace("images", table.things)
            lines.append(f"± is the standard deviation over {table.seeds} seeds: {means}.")
    elif row:
        same = f"by {table.chosen_on}" if table.folds else f"on the same {num_validation:,} validation {table.things}"
        lines.append(
            f"Measured {same} that chose the row (there is no test split), so slightly optimistic. Always "
            f"guessing the largest class: {percent(table.chance)}."
        )
    return lines + [f"Note: {note}." for note in table.notes]


def feature_name(row: Row, num_layers: int) -> str:
    """For example "layer 3 of 6, mean, full attention"."""
    return f"layer {row.layer} of {num_layers}, {row.pooling}, {row.attention} attention"


def percent(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if spread is None else f"{100 * value:.1f} ± {100 * spread:.1f} %"


def _measured(row: Row) -> str:
    return percent(row.accuracy if row.accuracy is not None else row.validation_accuracy, row.spread)


def _cell(row: Row | None, best: bool) -> Text:
    text = "" if row is None else f"{100 * row.validation_accuracy:.1f}"
    return Text(text, style="bold green" if best else "")
