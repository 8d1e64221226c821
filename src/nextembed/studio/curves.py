"""Curves of one run, or of several over each other, as plain values that the page draws."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from ..core.run_folder import Line
from ..report.axes import step_limits, value_limits
from ..report.charts import CHARTS, Chart, modality_charts, points

DASHES = ("solid", "dash", "dot", "dashdot")


class Trace(TypedDict):
    """One curve. colour: number of a colour of the page. error: one standard deviation of each point, or []."""

    name: str
    x: list[float]
    y: list[float]
    colour: int
    dash: str
    error: list[float]


class Drawn(TypedDict):
    """One chart. ends, limits: of the x and y axis."""

    title: str
    text: str
    percent: bool
    zero: bool
    ends: list[float]
    limits: list[float]
    x_title: str
    traces: list[Trace]


def curves(histories: Mapping[str, Sequence[Line]]) -> list[Drawn]:
    """Every chart that some run has data for. histories: lines by the name of the run.

    Of one run each metric has its colour; of several each run has, and metrics differ by dashes.
    """
    lines = [line for history in histories.values() for line in history]
    charts = [*CHARTS[:1], *modality_charts(lines), *CHARTS[1:]]
    found = [(chart, _traces(chart, histories)) for chart in charts]
    steps = [step for _, traces in found for trace in traces for step in trace["x"]]
    ends = list(step_limits(steps)) if steps else [0.0, 1.0]
    return [_chart(chart, traces, ends) for chart, traces in found if traces]


def _chart(chart: Chart, traces: list[Trace], ends: list[float]) -> Drawn:
    values = [value for trace in traces for value in trace["y"]] + [0.0] * chart.zero
    limits = list(value_limits(values, chart.limits, chart.percent))
    return Drawn(title=chart.title, text=chart.text, percent=chart.percent, zero=chart.zero, ends=ends, limits=limits,
                 x_title="optimizer steps", traces=traces)  # fmt: skip


def _traces(chart: Chart, histories: Mapping[str, Sequence[Line]]) -> list[Trace]:
    several, traces = len(histories) > 1, []
    for number, (run, history) in enumerate(histories.items()):
        for place, (metric, label) in enumerate(chart.series.items()):
            x, y = points(history, metric)
            if not x:
                continue
            words = [run] * several + [label] * (not several or len(chart.series) > 1)
            dash = DASHES[place % len(DASHES)]
            traces.append(
                Trace(name=", ".join(words), x=x, y=y, colour=number if several else place, dash=dash, error=[])
            )
    return traces


def differences(settings: Mapping[str, Mapping[str, object]]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs: (dotted name, value of each run in their order).

    settings: config.yaml's values by run. A setting that a run does not have is "-".
    """
    flat = [_flat(values) for values in settings.values()]
    names = list(dict.fromkeys(name for values in flat for name in values))
    rows = [(name, [values.get(name, "-") for values in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _flat(values: Mapping[str, object], above: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = str(value)[:200]
    return found
