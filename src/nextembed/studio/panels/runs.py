"""Runs: all of them, live, and the chosen ones over each other."""

from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from urllib.parse import quote

import gradio as gr
import torch
from torch import Tensor

from ...errors import NextEmbedError, NotGenerative
from ...inference.samples import Sampler, sheet
from ..curves import Drawn, curves
from ..runs_page import details, log, probes, table
from ..shared import Shared
from ..snippets import runs_python
from ..ui import charts, empty, fragment, listen, python, sent, stops
from ..working import Work, streamed

AT_ONCE = 8  # images of a batch
MOST = 8  # runs over each other: as many as there are colours
Shown = tuple[str, list[Drawn], str, str, str, str]


def shown(shared: Shared, chosen: Sequence[str]) -> Shown:
    """List, curves, details, probes, log and Python of the chosen runs as they are now."""
    views, broken = shared.reader.views()
    states = shared.reader.states(views)
    own = {name: views[name] for name in chosen if name in views}
    place = str(next(iter(own.values())).dir) if own else "runs/nepa_demo"
    return (
        table(views, states, list(own), broken, shared.folders.look().left_out),
        curves({name: view.history for name, view in own.items()}),
        details(own, states),
        probes(own) if own else empty("Choose runs above."),
        log(own),
        runs_python(place),
    )


def toggled(chosen: Sequence[str], name: str) -> list[str]:
    """The chosen runs after a click on one; the oldest goes where there are too many."""
    return [one for one in chosen if one != name] if name in chosen else [*chosen, name][-MOST:]


def first_choice(shared: Shared) -> list[str]:
    """What is shown at the start: the run that was written last."""
    views, _ = shared.reader.views()
    return list(views)[:1]


def frame(shared: Shared, chosen: Sequence[str]) -> str:
    """The report of the run that was chosen last and is still there, as a frame of the page."""
    there = [name for name in chosen if name in shared.folders.look().run]
    if not there:
        return empty("Choose a run above.")
    address = f"studio/report?run={quote(there[-1])}"
    return f'<iframe src="{address}" title="Report of {escape(there[-1], quote=True)}" sandbox=""></iframe>'


def sampled(shared: Shared, chosen: Sequence[str], num: float, seed: float) -> Iterator[tuple[object, object]]:
    """New images from the run that was chosen last, some at a time, and a line about them."""
    if not chosen:
        yield None, "Choose a run above."
        return
    place = shared.folders.get("run", chosen[-1])

    def work(show: Work[tuple[object, str]]) -> None:
        sampler = shared.models.get(("sampler", str(place)), lambda: Sampler(place), chosen[-1])
        labels, parts = sampler.labels(int(num)), list[Tensor]()
        for number, part in enumerate(labels.split(AT_ONCE)):
            parts.append(sampler(part, seed=int(seed) + number))
            images = torch.cat(parts)
            show.show((sheet(images), f"{len(images)} of {len(labels)} images from {chosen[-1]}, seed {int(seed)}"))

    yield gr.skip(), "Generating …"
    try:
        for part in streamed(work):
            yield (gr.skip(), gr.skip()) if part is None else part
    except NotGenerative as err:
        yield None, f"No new images: {err}. Its report shows its predictions."
    except NextEmbedError as err:
        yield None, f"No new images: {err}"


def build(shared: Shared) -> None:
    """The panel, in the tab that is open."""
    chosen, before = gr.State([]), gr.State(())
    rows = fragment()
    with gr.Tabs():
        with gr.Tab("Curves"):
            about, plots = fragment(), charts()
        with gr.Tab("Probes"):
            grid = fragment()
        with gr.Tab("Samples"):
            with gr.Row(equal_height=True):
                num = gr.Slider(1, 64, 16, step=1, label="Images")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                draw = gr.Button("Generate images", variant="primary")
                stop = gr.Button("Stop", variant="stop")
            line = gr.Markdown("For objectives that generate images. The report of other runs shows their predictions.")
            picture = gr.Image(show_label=False, format="png", interactive=False, buttons=["download", "fullscreen"])
        with gr.Tab("Log and data"):
            lines = fragment()
        with gr.Tab("Report") as report:
            page = gr.HTML(elem_classes=["nx-frame"])
    code = python(runs_python("runs/nepa_demo"))
    outputs = [rows, plots, about, grid, lines, code]

    def refresh(names: list[str], last: tuple[object, ...]) -> list[object]:
        now = shown(shared, names)
        same = [gr.skip() if i < len(last) and last[i] == hash(repr(one)) else one for i, one in enumerate(now)]
        return [tuple(hash(repr(one)) for one in now), *same]

    def choose(names: list[str], event: gr.EventData) -> list[object]:
        _, name = sent(event)
        names = toggled(names, name)
        now = shown(shared, names)
        return [names, tuple(hash(repr(one)) for one in now), *now]

    def start() -> list[object]:
        names = first_choice(shared)
        now = shown(shared, names)
        return [names, tuple(hash(repr(one)) for one in now), *now]

    everything = [chosen, before, *outputs]
    listen(shared.page.load, start, None, everything, group="runs")
    clicked = listen(rows.select, choose, [chosen], everything, group="runs")
    listen(clicked.then, partial(frame, shared), [chosen], [page], group="runs")
    listen(report.select, partial(frame, shared), [chosen], [page], group="runs")
    timer = gr.Timer(shared.settings.refresh_seconds)
    listen(timer.tick, refresh, [chosen, before], [before, *outputs], group="runs")
    stops(stop, listen(draw.click, partial(sampled, shared), [chosen, num, seed], [picture, line], heavy=True))
