"""Plot of a calibration: expected against actual cosines, and the coverage of the heaviest components."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nextembed.core.files import replacing

INK, SOFT, LINE, ACTUAL, EXPECTED = "#1b2330", "#5b6675", "#d5dae2", "#0072b2", "#d55e00"


def calibration_figure(found: Mapping[str, Any]) -> Figure:
    """Two charts. found: the content of the file that `calibration.Calibration.save` writes."""
    figure = Figure(figsize=(8.6, 3.9), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    metrics = {metric["name"]: metric["value"] for metric in found["metrics"]}
    _reliability(left, found["bins"], metrics)
    _coverage(right, found["coverage"])
    figure.suptitle(
        f"{found['num_positions']:,} positions of {found['num_documents']:,} documents, width {found['dim']}; negative "
        f"log-likelihood {metrics['nll']:.2f} nats (chance 0); {100 * metrics['region_90']:.0f} % of the truth lies in "
        "90 % regions",
        fontsize=8.5,
        color=SOFT,
    )
    return figure


def write_calibration(found: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the plot as a PNG file with reproducible bytes and returns its path."""
    with replacing(path) as file:
        calibration_figure(found).savefig(file, format="png", metadata={"Software": None})
    return Path(path)


def _reliability(axes: Any, bins: list[Mapping[str, Any]], metrics: Mapping[str, float]) -> None:
    expected, actual = [b["expected"] for b in bins], [b["cosine"] for b in bins]
    low = min(0.0, *expected, *(b["low"] for b in bins))
    axes.plot([low, 1], [low, 1], color=SOFT, linewidth=1, linestyle=(0, (3, 2)), label="perfect")
    axes.vlines(expected, [b["low"] for b in bins], [b["high"] for b in bins], color=ACTUAL, linewidth=1.2, alpha=0.6)
    axes.plot(expected, actual, color=ACTUAL, marker="o", markersize=4, linewidth=1.6, label="actual, 95 % interval")
    error, chance = metrics["calibration_error"], metrics["calibration_error_of_samples"]
    _dress(axes, f"Calibration error {error:.3f} (chance leaves {chance:.3f})")
    axes.set_xlabel("expected cosine with the next latent")
    axes.set_ylabel("actual cosine")


def _coverage(axes: Any, coverage: list[Mapping[str, Any]]) -> None:
    places = range(len(coverage))
    shares = [c["share"] for c in coverage]
    axes.bar(places, shares, width=0.55, color=ACTUAL, alpha=0.85, label="nearest to one of them")
    axes.vlines(places, [c["low"] for c in coverage], [c["high"] for c in coverage], color=INK, linewidth=1.2)
    weights = [c["weight"] for c in coverage]
    axes.plot(places, weights, "D", color=EXPECTED, markersize=6, markeredgecolor="white", label="their weight")
    axes.set_xticks(places, [str(c["k"]) for c in coverage])
    axes.set_xlim(-0.6, len(coverage) - 0.4)
    axes.set_ylim(0, 1.3)  # room for the legend
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    _dress(axes, "Coverage of the heaviest components")
    axes.set_xlabel("components")
    axes.set_ylabel("share of true latents")


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9.5, color=INK, loc="left")
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set(visible=name == "bottom", edgecolor=LINE)
    axes.tick_params(labelsize=8, length=0, colors=SOFT)
    axes.xaxis.label.set(fontsize=8.5, color=SOFT)
    axes.yaxis.label.set(fontsize=8.5, color=SOFT)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
