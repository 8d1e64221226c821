"""Plot of a comparison: scores of the features of each objective, with the baselines.

python benchmarks/comparison_plot.py runs/compare-mine/comparison.json comparison.png
"""

import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nextembed import Comparison
from nextembed.comparison.table import TableRow
from nextembed.core.files import replacing

INK, SOFT, LINE, OURS, OTHERS = "#1b2330", "#5b6675", "#d5dae2", "#d55e00", "#0072b2"
PANELS = {"linear": "linear probe", "finetune_1": "fine-tuned, 1 % of the labels", "finetune_10": "fine-tuned, 10 %"}


def comparison_figure(found: Comparison) -> Figure:
    """One chart per kind of score in the comparison, best objective on top; baselines are dashed lines."""
    rows = [row for row in found.rows if row.kind != "baseline"]
    names = [name for name in PANELS if any(name in row.cells for row in rows)]
    figure = Figure(figsize=(3.1 * len(names) + 0.6, 0.27 * len(rows) + 1.3), dpi=150, facecolor="white",
                    layout="constrained")  # fmt: skip
    FigureCanvasAgg(figure)
    baselines = [row for row in found.rows if row.kind == "baseline"]
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        _panel(axes, name, [row for row in rows if name in row.cells], [row for row in baselines if name in row.cells])
    num = max(row.num for row in rows)
    seeds = f"{num} seeds, bars are one standard deviation" if num > 1 else "one seed"
    figure.suptitle(f"{found.budget}; {seeds}", fontsize=8.5, color=SOFT)
    return figure


def write_comparison(found: Comparison, path: str | Path) -> Path:
    """Writes the plot as a PNG file with reproducible bytes and returns its path."""
    with replacing(path) as file:
        comparison_figure(found).savefig(file, format="png", metadata={"Software": None})
    return Path(path)


def _panel(axes: Any, name: str, rows: list[TableRow], baselines: list[TableRow]) -> None:
    rows = sorted(rows, key=lambda row: row.cells[name].mean)
    for place, row in enumerate(rows):
        cell = row.cells[name]
        colour = OURS if row.name == "nepa" else OTHERS
        axes.errorbar(100 * cell.mean, place, xerr=100 * (cell.sd or 0), fmt="o", markersize=4.5, color=colour,
                      elinewidth=1.4)  # fmt: skip
    for row, style in zip(baselines, ((0, (3, 2)), (0, (1, 1.5)), "solid")):
        axes.axvline(100 * row.cells[name].mean, color=SOFT, linewidth=1, linestyle=style, label=row.name)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_title(PANELS[name], fontsize=9, color=INK, loc="left")
    axes.tick_params(labelsize=8, colors=SOFT, length=0)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel("top-1 accuracy, %", fontsize=8, color=SOFT)
    if baselines:
        axes.legend(fontsize=7, loc="lower right", facecolor="white", framealpha=0.9)


if __name__ == "__main__":
    write_comparison(Comparison.load(sys.argv[1]), sys.argv[2])
