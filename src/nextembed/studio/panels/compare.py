"""Compare: the table of `nextembed compare`, sortable, with its curves."""

from functools import partial
from html import escape
from urllib.parse import quote

import gradio as gr
from gradio.components import Component

from ...comparison.page import curve_of
from ...comparison.scores import COLUMNS
from ...comparison.table import FILE, Comparison, shown
from ...report.axes import step_limits, value_limits
from ..curves import Drawn, Trace
from ..shared import Shared
from ..snippets import compare_python
from ..ui import charts, empty, fragment, listen, model_choice, python_of


def table(found: Comparison, name: str) -> str:
    """All figures; a click on a title sorts."""
    titles = ["", *(COLUMNS[column].title for column in found.columns), "verdict"]
    head = "".join(f'<th><button type="button">{escape(title or "row")}</button></th>' for title in titles)
    body = ""
    for row in found.rows:
        cells = [(row.cells.get(column), column) for column in found.columns]
        values = "".join(
            f'<td class="n" data-v="{"" if cell is None else cell.mean}">{escape(shown(column, cell))}</td>'
            for cell, column in cells
        )
        body += f"<tr><td>{escape(row.name)}</td>{values}<td>{escape(row.verdict)}</td></tr>"
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    link = f'<a href="studio/comparison?name={quote(name)}" target="_blank" rel="noopener">Page</a>'
    return (
        f'<p class="line">Budget of each run: {escape(found.budget)}. {link}</p><div class="card scroll">'
        f'<table class="sortable runs-like"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<ul class="soft">{notes}</ul>'
    )


def curves(found: Comparison) -> list[Drawn]:
    """Quick probes over time and over images, all rows over each other, with their spread."""
    return [chart for axis in ("minutes", "images") if (chart := _chart(found, axis)) is not None]


def _chart(found: Comparison, axis: str) -> Drawn | None:
    threads, on_cpu = int(found.settings.get("threads", 1)), bool(found.settings.get("on_cpu", False))
    traces: list[Trace] = []
    for row in found.rows:
        line = curve_of([run for run in found.runs if run.row == row.name and run.curve], axis, threads, on_cpu)
        if row.kind != "baseline" and line.x:
            traces.append(Trace(name=row.name, x=line.x, y=line.y, colour=len(traces), dash="solid", error=line.sd))
    if not traces:
        return None
    x, y = ([value for trace in traces for value in values(trace)] for values in (lambda t: t["x"], lambda t: t["y"]))
    unit = "thousand images" if axis == "images" else "minutes, as the budget counts them"
    return Drawn(title=f"Linear probe over {axis}", text="On validation images, while training.", percent=True,
                 zero=False, ends=list(step_limits(x)), limits=list(value_limits(y, (None, None), True)), x_title=unit,
                 traces=traces)  # fmt: skip


def build(shared: Shared) -> None:
    """The panel, in the tab that is open."""
    with gr.Row():
        name = model_choice(shared, "Comparison", "comparison")
        show = gr.Button("Show", variant="primary")
    rows = fragment(empty("`nextembed compare` makes a comparison; name its folder, or one above it."))
    plots = charts()
    python_of(shared, name, compare_python, "comparison")

    def opened(which: str) -> list[object]:
        place = shared.folders.get("comparison", which)
        found = Comparison.load(place / FILE)
        return [table(found, which), curves(found)]

    outputs: list[Component] = [rows, plots]
    listen(partial(gr.on, [show.click, name.input]), opened, [name], outputs)
