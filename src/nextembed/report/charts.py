"""Curves as inline SVG that follows the page's colours, light or dark."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .axes import Curve, hover, step_limits, tick, value_limits

MAX_POINTS = 400
SIZE = (4.0, 2.15)  # of a chart, inches
DIGIT = 0.084  # width of one in its labels, inches

# Placeholder colours for matplotlib; the page's CSS replaces them.
INK, GRID, SERIES = "#010101", "#020202", ("#0a0101", "#0a0202", "#0a0303", "#0a0404")
COLOURS = {INK: "var(--soft)", GRID: "var(--line)"} | {c: f"var(--c{i + 1})" for i, c in enumerate(SERIES)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "path.simplify": True,
}
FEW_POINTS = 12  # that are marked
DASHES: tuple[object, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


@dataclass(frozen=True)
class Chart:
    """One card of curves. series: label by metric name; text: how to read it; limits: of the y axis, None = free."""

    title: str
    series: Mapping[str, str]
    text: str
    limits: tuple[float | None, float | None] = (None, None)
    zero: bool = False
    percent: bool = False


CHARTS = (
    Chart("Loss", {"loss": "loss"}, "What training minimises. A low value alone proves little."),
    Chart(
        "PSNR of decoded pixels",
        {"psnr": "decoder", "psnr_flat": "each patch's mean colour"},
        "How well pixels are decoded from codes or frozen latents, in dB; above the line of flat "
        "patches, structure within patches is decoded as well.",
    ),
    Chart(
        "Codes in use",
        {"code_perplexity": "by entropy", "codes_revived": "revived"},
        "Perplexity of the codes in a batch: as if so many were used evenly; and how many unused ones were moved last.",
        (0, None),
    ),
    Chart(
        "Accuracy",
        {"eval/accuracy": "validation", "eval/ema_accuracy": "validation, EMA", "train_accuracy": "training"},
        "Training images are cropped, augmented and mixed, so that curve may lie below the others.",
        percent=True,
    ),
    Chart(
        "Validation loss",
        {"eval/loss": "raw", "eval/ema_loss": "EMA"},
        "Cross-entropy, not smoothed. If it rises while accuracy stays the same, the model grows overconfident.",
    ),
    Chart(
        "Cosine of the prediction",
        {"cos_next": "next", "cos_current": "current", "cos_neighbours": "copying would score"},
        "Cosine of the prediction with the next and with the current latent. Learning means that next is on top and "
        "above what plain copying would score.",
    ),
    Chart(
        "Gap",
        {"cos_gap": "next - current"},
        "Above zero the prediction is nearer to the next latent than to the current one; at or below zero it copies.",
        zero=True,
    ),
    Chart(
        "Copy-win",
        {"copy_win": "share"},
        "Share of positions whose prediction is nearer to the current latent. Half or more is a warning.",
        (0, None),
        percent=True,
    ),
    Chart(
        "Effective rank",
        {"latent_rank": "latents", "hidden_rank": "hidden states"},
        "Effective rank: the number of directions in use. A fall is a partial collapse that the loss does not show.",
        (0, None),
    ),
    Chart(
        "Spread",
        {"latent_std": "latents", "hidden_std": "hidden states"},
        "1: directions are as different as possible; near 0: all latents point the same way, a collapse.",
        (0, 1.02),
    ),
    Chart(
        "Text loss",
        {"text_loss": "training", "eval/text_loss": "validation"},
        "Cross-entropy of the next token, nats; the mean over all text targets.",
        (0, None),
    ),
    Chart(
        "Token accuracy",
        {"text_accuracy": "training", "eval/text_accuracy": "validation"},
        "Share of text targets that score highest of all tokens.",
        percent=True,
    ),
    Chart(
        "Latent regression",
        {"regression_loss": "training", "eval/regression_loss": "validation"},
        "Distance between the predicted next visual latent and the true one; the mean over all of them.",
    ),
    Chart(
        "Variance explained",
        {"explained": "hidden patches", "changes_explained": "changes within a clip"},
        "Share of the variance of what is predicted (pixels, or what a teacher sees) that the model explains: 0 % is "
        "no better than a mean, below it is worse.",
        percent=True,
    ),
    Chart(
        "Information from visible patches",
        {"context_gain": "hidden patches"},
        "By how much the visible patches lower the error of predicting hidden ones; 0 % is as good as without them.",
        percent=True,
    ),
    Chart(
        "Token accuracy",
        {"token_top1": "top-1", "token_chance": "most frequent token"},
        "Share of the predicted tokens that are correct.",
        percent=True,
    ),
    Chart(
        "Contrastive accuracy",
        {"contrast_top1": "top-1", "contrast_chance": "chance"},
        "Share of cases in which the true patch scores highest among the candidates.",
        percent=True,
    ),
    Chart(
        "Crops of an image",
        {"view_agreement": "cosine of two crops", "embedding_spread": "spread over images"},
        "Crops of one image should agree; a spread near 0 is collapse: all images have the same vector.",
    ),
    Chart(
        "Probes while training",
        {
            "probe/linear": "linear, output",
            "probe/linear_middle": "linear, middle layer",
            "probe/knn": "kNN, output",
            "probe/knn_middle": "kNN, middle layer",
        },
        "Quick probes on a few labelled validation images: do the features become more useful?",
        percent=True,
    ),
    Chart(
        "Validation mIoU",
        {"eval/miou": "raw weights", "eval/ema_miou": "averaged (EMA)"},
        "Intersection over union, mean over classes; the weights with the highest value are kept.",
        percent=True,
    ),
    Chart(
        "Pixel accuracy",
        {
            "eval/pixel_accuracy": "validation, raw weights",
            "eval/ema_pixel_accuracy": "validation, averaged",
            "train_pixel_accuracy": "training",
        },
        "Share of labelled pixels that are classified correctly; large classes count most.",
        percent=True,
    ),
    Chart(
        "Gradient norm",
        {"grad_norm": "before clipping"},
        "Spikes that grow are the first sign of a learning rate that is too high.",
        (0, None),
    ),
    Chart("Learning rate", {"learning_rate": "base"}, "Warm-up, then the schedule.", (0, None)),
    Chart(
        "Speed",
        {"images_per_second": "samples/s"},
        "Images, clips or documents a second, all devices together.",
        (0, None),
    ),
)


BY_MODALITY = {
    "cos_next": Chart(
        "Next latent, by modality",
        {},
        "Cosine of the prediction with the next latent, by its modality; begin: the latents that start a "
        "segment. Compare each modality with itself over time only: they differ in how predictable they "
        "are.",
    ),
    "top1": Chart(
        "Top-1 accuracy, by modality",
        {},
        "Share of tokens and begin latents for which the nearest row of the table is the true one.",
        percent=True,
    ),
}


def render_charts(history: Sequence[Mapping[str, object]]) -> str:
    """Cards for every chart that has data; history: lines of metrics.jsonl, oldest first."""
    charts = [*CHARTS[:1], *modality_charts(history), *CHARTS[1:]]
    steps = [float(row["step"]) for row in history if _number(row.get("step"))]  # type: ignore[arg-type]
    ends = step_limits(steps) if steps else (0.0, 1.0)
    cards = [_card(chart, number, history, ends) for number, chart in enumerate(charts)]
    return "".join(card for card in cards if card)


def modality_charts(history: Sequence[Mapping[str, object]]) -> list[Chart]:
    """Charts of the metrics that are there for each modality of a model; at most as many curves in one as colours."""
    found = []
    for prefix, split in (("", ""), ("eval/", " (validation)")):
        for metric, chart in BY_MODALITY.items():
            start = f"{prefix}{metric}/"
            names = list(dict.fromkeys(key for row in history for key in row if key.startswith(start)))
            for first in range(0, len(names), len(SERIES)):
                series = {name: name.removeprefix(start) for name in names[first : first + len(SERIES)]}
                found.append(replace(chart, title=chart.title + split, series=series))
    return found


def points(history: Sequence[Mapping[str, Any]], name: str) -> Curve:
    """Steps and values of a metric, thinned to at most 400 points, the last one kept."""
    rows = [(row["step"], row[name]) for row in history if _number(row.get(name)) and _number(row.get("step"))]
    stride = -(-len(rows) // MAX_POINTS) or 1
    rows = rows[::-1][::stride][::-1]
    return [float(step) for step, _ in rows], [float(value) for _, value in rows]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")


def _card(chart: Chart, number: int, history: Sequence[Mapping[str, object]], ends: tuple[float, float]) -> str:
    found = {name: xy for name in chart.series if (xy := points(history, name))[0]}
    if not found:
        return ""
    names = list(chart.series)
    chips = [
        f'<span class="chip"><i style="--c:var(--c{names.index(name) + 1})" class="d{names.index(name)}"></i>'
        f"{escape(chart.series[name])} <b>{_show(ys[-1], chart.percent)}</b></span>"
        for name, (_, ys) in found.items()
    ]
    return (
        f'<figure class="card"><h3>{escape(chart.title)}</h3><div class="chips">{"".join(chips)}</div>'
        f"{_svg(chart, number, found, ends)}<figcaption>{escape(chart.text)}</figcaption></figure>"
    )


def _show(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.1f} %"
    return f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:.4g}"


def _svg(chart: Chart, number: int, found: Mapping[str, Curve], ends: tuple[float, float]) -> str:
    """ends: of the step axis, the same for all charts of a run."""
    style = STYLE | {"svg.hashsalt": f"chart{number}"}  # ids differ between charts and not between runs
    curves = {list(chart.series).index(name): curve for name, curve in found.items()}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE, dpi=72)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _set_up(axes, chart, [value for _, ys in found.values() for value in ys], ends)
        for i, (xs, ys) in curves.items():
            marker = "o" if len(xs) <= FEW_POINTS else None
            axes.plot(xs, ys, color=SERIES[i], linestyle=DASHES[i], linewidth=1.7, marker=marker, markersize=4,
                      clip_on=False)  # fmt: skip
        _fit_margins(figure, axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        strips = hover(axes, 72 * SIZE[1], curves, lambda value: _show(value, chart.percent))
    return _inline(out.getvalue(), chart.title).replace("</svg>", f"{strips}</svg>")


def drawn(title: str, salt: str, draw: Callable[[Axes], None]) -> str:
    """What `draw` puts into the axes as an SVG in the page's colours; the y axis shows shares in percent.

    salt: of the ids, which differ between the charts of a page and not between runs.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}):
        figure = Figure(figsize=SIZE, dpi=72)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for spine in ("top", "right", "left"):
            axes.spines[spine].set_visible(False)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        draw(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        _fit_margins(figure, axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), title)


def _set_up(axes: Axes, chart: Chart, values: Sequence[float], ends: tuple[float, float]) -> None:
    """Spines, grid, limits and ticks."""
    for spine in ("top", "right", "left"):
        axes.spines[spine].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    if chart.zero:
        axes.axhline(0, color=INK, linewidth=0.8)
        values = [*values, 0.0]
    axes.set_xlim(*ends)
    axes.set_ylim(*value_limits(values, chart.limits, chart.percent))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    if ends[1] - ends[0] == 2:  # one step alone
        axes.set_xticks([sum(ends) / 2])
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %" if chart.percent else tick(value))
    axes.set_xlabel("optimizer steps")


def _fit_margins(figure: Figure, axes: Axes) -> None:
    """Room for the longest number beside the axis. matplotlib's own layouts draw everything to find it, which takes
    twice as long as the chart."""
    longest = max(
        map(len, axes.yaxis.get_major_formatter().format_ticks(list(axes.yaxis.get_majorticklocs()))), default=1
    )
    width, height = SIZE
    left = 0.12 + DIGIT * longest
    figure.subplots_adjust(left / width, 0.45 / height, 1 - 0.1 / width, 1 - 0.2 / height)


def _inline(svg: str, title: str) -> str:
    """An SVG file as an element of the page: no header, no fixed size, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    svg = re.sub(r"<svg[^>]*>", head, svg, count=1)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 var(--font)", svg)
    for stand_in, colour in COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg
