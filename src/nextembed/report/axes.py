"""The axes of a curve, also for one point and constant values, and its values under the pointer."""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

MAX_STRIPS = 60  # places on a chart that show their values

Curve = tuple[list[float], list[float]]  # steps, values


def step_limits(steps: Sequence[float]) -> tuple[float, float]:
    """Both ends of the step axis; a single step is in the middle."""
    first, last = min(steps), max(steps)
    room = 0.01 * (last - first) or 1.0
    return first - room, last + room


def value_limits(
    values: Sequence[float], limits: tuple[float | None, float | None], percent: bool
) -> tuple[float, float]:
    """Both ends of the value axis. limits: those that the chart asks for, None is free; percent: values in [0, 1]."""
    least, most = min(values), max(values)
    room = 0.06 * (most - least)
    if room < 1e-9 * max(abs(least), abs(most), 1e-300):  # constant
        room = 0.05 if percent else 0.1 * abs(most) or 1.0
    low, high = least - room, most + room
    if percent and least >= 0 and most <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    low = low if limits[0] is None else min(limits[0], least)
    high = high if limits[1] is None else max(limits[1], most)
    return (low, high) if high > low else (low, low + 1.0)


def tick(value: float) -> str:
    """A number beside an axis: "0.00025", "6e−5", "12000"."""
    if value == 0:
        return "0"
    return re.sub(r"e([+-])0*", lambda found: "e" + found[1].replace("+", ""), f"{value:.5g}").replace("-", "−")


def hover(axes: Any, height: float, curves: Mapping[int, Curve], show: Any) -> str:
    """SVG strips over a drawn chart; each shows its step and values when the pointer, or a finger, is on it.

    axes: drawn at 72 dots an inch, so that its places are those of the SVG. height: of the chart, points. curves: by
    number of their colour. show: a value in words.
    """
    steps = sorted({step for xs, _ in curves.values() for step in xs})
    stride = -(-len(steps) // MAX_STRIPS)
    steps = steps[::-1][::stride][::-1]
    (left, bottom), (right, top) = axes.bbox.min, axes.bbox.max
    places = [axes.transData.transform((step, 0))[0] for step in steps]
    edges = [left, *((a + b) / 2 for a, b in pairwise(places)), right]
    out = []
    for step, place, start, end in zip(steps, places, edges, edges[1:]):
        marks, words = "", ""
        for number, (xs, ys) in curves.items():
            at = bisect_left(xs, step)
            if at < len(xs) and xs[at] == step:
                y = height - axes.transData.transform((step, ys[at]))[1]
                marks += f'<circle class="s{number + 1}" cx="{place:.1f}" cy="{y:.1f}" r="2.6"/>'
                words += f' <tspan class="s{number + 1}">{escape(show(ys[at]))}</tspan>'
        anchor, x = ("end", right) if place > (left + right) / 2 else ("start", left)
        out.append(
            f'<g class="at"><rect x="{start:.1f}" y="0" width="{end - start:.1f}" height="{height:.0f}"/>'
            f'<path d="M{place:.1f} {height - top:.1f}V{height - bottom:.1f}"/>{marks}'
            f'<text x="{x:.1f}" y="9" text-anchor="{anchor}">step {step:,.0f}{words}</text></g>'
        )
    return "".join(out)
