"""A comparison as one self-contained HTML page."""

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes

from ..core.files import write_text
from ..report.charts import INK, SERIES, drawn
from ..report.style import CSS
from .scores import ACCURACIES, COLUMNS, Point, RunScores
from .table import Comparison, TableRow, shown

SHOWN = ("linear", "knn", "finetune_1", "finetune_10")  # as bars
COLOURS = {"objective": "var(--c1)", "run": "var(--c1)", "baseline": "var(--c3)"}


def write_page(found: Comparison, folder: Path) -> Path:
    """comparison.html."""
    write_text(folder / "comparison.html", page(found))
    return folder / "comparison.html"


def page(found: Comparison) -> str:
    """The whole page."""
    sections = [
        f'<p class="kicker">Objectives at equal cost</p><h1>{escape(found.name)}</h1>{facts(found)}',
        bars(found),
        curves(found, "Accuracy over time", "minutes"),
        curves(found, "Accuracy over images seen", "images"),
        tables(found),
        verdicts(found),
        trials(found),
        notes(found),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(found.name)} - nextembed</title><style>{CSS}</style></head><body><main>"
        + "\n".join(section for section in sections if section)
        + '<footer class="soft">Written by <code>nextembed compare</code>; this file is '
        "self-contained.</footer></main></body></html>\n"
    )


def facts(found: Comparison) -> str:
    """The comparison in figures."""
    rows = [row for row in found.rows if row.kind != "baseline"]
    known = [("objectives" if found.name != "runs" else "rows", f"{len(rows)}")]
    known += [("runs of each", f"{max((row.num for row in rows), default=0)}"), ("budget of a run", found.budget)]
    best = max((row for row in rows if "linear" in row.cells), key=lambda row: row.cells["linear"].mean, default=None)
    if best is not None:
        known.append(("best linear probe", f"{best.name}, {shown('linear', best.cells['linear'])} %"))
    cards = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in known)
    return f'<div class="facts">{cards}</div>'


def bars(found: Comparison) -> str:
    """Accuracies with their spread, the best on top."""
    cards = ""
    for name in SHOWN:
        rows = sorted((row for row in found.rows if name in row.cells), key=lambda row: -row.cells[name].mean)
        if rows:
            lines = "".join(bar(row, name) for row in rows)
            cards += (
                f'<div class="card"><h3>{escape(COLUMNS[name].title)}</h3><p class="soft">{escape(COLUMNS[name].text)}'
                f'</p><div class="classes">{lines}</div></div>'
            )
    if not cards:
        return ""
    spread = " The thin line is one standard deviation to each side." if any(r.num > 1 for r in found.rows) else ""
    return (
        "<h2>What was learned</h2>"
        f'<p class="soft">Accuracy in %; baselines are green.{spread}</p><div class="two">{cards}</div>'
    )


def bar(row: TableRow, name: str) -> str:
    cell = row.cells[name]
    whisker = ""
    if cell.sd is not None:
        low, high = 100 * max(0.0, cell.mean - cell.sd), 100 * min(1.0, cell.mean + cell.sd)
        whisker = f'<u style="--l:{low:.2f}%;--r:{high - low:.2f}%"></u>'
    colour = COLOURS.get(row.kind, "var(--c1)")
    return (
        f'<span>{escape(row.name)}</span><div class="bar"><i style="--w:{100 * cell.mean:.2f}%;background:{colour}">'
        f'</i>{whisker}</div><span class="value">{escape(shown(name, cell))}</span>'
    )


class Curve(NamedTuple):
    """Means over seeds, and standard deviations; [] where there is one seed."""

    x: list[float]
    y: list[float]
    sd: list[float]


def curve_of(runs: Sequence[RunScores], axis: str, threads: int, on_cpu: bool) -> Curve:
    """Mean curves of one row: quick probes are at the same fractions of every run."""
    num = min((len(run.curve) for run in runs), default=0)
    points = [[run.curve[i] for run in runs] for i in range(num)]
    points = [own for own in points if all(place(point, axis, threads, on_cpu) is not None for point in own)]
    x = [statistics.mean(place(point, axis, threads, on_cpu) or 0.0 for point in own) for own in points]
    y = [statistics.mean(point.linear for point in own) for own in points]
    sd = [statistics.stdev(point.linear for point in own) for own in points] if len(runs) > 1 else []
    return Curve(x, y, sd)


def place(point: Point, axis: str, threads: int, on_cpu: bool) -> float | None:
    """The x value of a point: thousands of images, or minutes as the budget counts them."""
    if axis == "images":
        return point.images / 1000
    seconds = point.cpu if on_cpu else point.wall
    return None if seconds is None else seconds / 60 / (threads if on_cpu else 1)


def curves(found: Comparison, title: str, axis: str) -> str:
    """A small chart of each row, the others grey behind it."""
    threads, on_cpu = int(found.settings.get("threads", 1)), bool(found.settings.get("on_cpu", False))
    rows = [row.name for row in found.rows if row.kind != "baseline"]
    lines = {
        name: curve_of([run for run in found.runs if run.row == name and run.curve], axis, threads, on_cpu)
        for name in rows
    }
    lines = {name: line for name, line in lines.items() if line.x}
    if not lines:
        return ""
    unit = "thousand images" if axis == "images" else "minutes of the budget"
    cards = "".join(
        f'<figure class="card"><h3>{escape(name)}</h3>{chart(name, lines, f"{axis}{number}", unit)}</figure>'
        for number, name in enumerate(lines)
    )
    text = (
        f"Quick linear probes on validation images while training, over {unit}: the better of output and middle layer, "
        "mean over seeds, bars of one standard deviation. The others are grey."
    )
    return f'<h2>{escape(title)}</h2><p class="soft">{escape(text)}</p><div class="grid">{cards}</div>'


def chart(name: str, lines: dict[str, Curve], salt: str, unit: str) -> str:
    def draw(axes: Axes) -> None:
        for other, line in lines.items():
            if other != name:
                axes.plot(line.x, line.y, color=INK, alpha=0.3, linewidth=1)
        own = lines[name]
        axes.errorbar(own.x, own.y, own.sd or None, color=SERIES[0], linewidth=2, elinewidth=1.1, marker="o",
                      markersize=3.2)  # fmt: skip
        axes.set_xlim(left=0)
        axes.set_xlabel(unit, color=INK)

    return drawn(f"{name}: linear probe over {unit}", salt, draw)


def tables(found: Comparison) -> str:
    """Every figure: accuracies, then costs."""
    shares = [name for name in found.columns if name in ACCURACIES]
    costs = [name for name in found.columns if name not in ACCURACIES]
    parts = [
        f'<div class="card scroll"><h3>{title}</h3>{found.html(names)}</div>'
        for title, names in (("Accuracy, %", shares), ("Cost", costs))
        if names
    ]
    return "<h2>All figures</h2>" + "<br>".join(parts)


def verdicts(found: Comparison) -> str:
    """The verdicts of each objective, and the choices of the probes."""
    rows = ""
    for run in found.runs:
        if run.kind != "baseline":
            chosen = "; ".join(f"{probe}: {what}" for probe, what in run.chosen.items())
            rows += (
                f"<tr><td>{escape(run.row)}</td><td>{run.seed}</td><td>{run.steps:,}</td><td>{escape(run.verdict)}</td>"
                f'<td class="wrap">{escape(run.sentence)}</td><td class="wrap">{escape(chosen)}</td></tr>'
            )
    if not rows:
        return ""
    titles = ("row", "seed", "steps", "verdict", "why", "read at")
    head = "".join(f'<th class="left">{title}</th>' for title in titles)
    return (
        f"<details><summary>Verdict of every run</summary>"
        f'<div class="card scroll"><table><tr>{head}</tr>{rows}</table></div></details>'
    )


def trials(found: Comparison) -> str:
    if not found.trials:
        return ""
    rows = ""
    for one in found.trials:
        tried = ", ".join(f"{name} x {value:.2g}" for name, value in one.tuned.items())
        score = f"{100 * one.values['linear']:.1f} %" if "linear" in one.values else one.failed or "-"
        rows += f'<tr><td>{escape(one.row)}</td><td class="left">{escape(tried)}</td><td>{escape(score)}</td></tr>'
    head = '<tr><th>objective</th><th class="left">settings</th><th>linear, validation</th></tr>'
    return (
        f"<details><summary>Settings that were tried</summary>"
        f'<div class="card scroll"><table>{head}{rows}</table></div></details>'
    )


def notes(found: Comparison) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    return f'<h2>How to read it</h2><ul class="soft">{items}</ul>' if items else ""
