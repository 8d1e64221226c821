"""From a view to one self-contained HTML page: its frame, and the sections of every task."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..core.probe_table import SWEPT, TITLES, WEIGHTS, ProbeTable, Row
from ..core.run_folder import data_in_words
from .charts import render_charts
from .style import CSS
from .view import RunView

NUM_SKIPPED = 50


def page(view: RunView, sections: Sequence[str]) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(view.name)} - nextembed</title>"
        f"<style>{CSS}</style></head><body><main>"
        + "\n".join(section for section in sections if section)
        + '<footer class="soft">Written by <code>nextembed report</code>; this file is '
        "self-contained.</footer></main></body></html>\n"
    )


def head(view: RunView, kicker: str, card: str, facts: Sequence[tuple[str, str]]) -> str:
    """The top of the page: what was done on what and when, the card with the result, and figures as (value, name)."""
    facts = [*facts, *common_facts(view)]
    cards = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts)
    return f'<p class="kicker">{escape(kicker)}</p><h1>{escape(view.name)}</h1>{when(view)}{card}' + (
        f'<div class="facts">{cards}</div>' if cards else ""
    )


def common_facts(view: RunView) -> list[tuple[str, str]]:
    """Steps, data and parameters: the same figures on the page of every task."""
    last, data, found = view.last, view.environment.data, []
    if "step" in last:
        total = view.settings.train.max_steps
        found.append((f"{last['step']:,}" + (f" of {total:,}" if total else ""), "optimizer steps"))
    if "documents_seen" in last:
        found.append((f"{last['documents_seen']:,}", "training documents seen"))
    elif "samples_seen" in last:
        found.append((f"{last['samples_seen']:,}", "training samples seen"))
    if data.train is not None:
        classes = f", {data.classes:,} classes" if data.classes else ""
        found.append((f"{data.train:,}", f"training {data.what}{classes}"))
    if sizes := view.environment.parameters:
        found.append((compact(sizes.all), f"parameters, {compact(sizes.trained)} trained"))
    if view.skipped:
        found.append((f"{len(view.skipped):,}", "skipped files or rows"))
    return found


def compact(number: int) -> str:
    """ "24,576" or "2.71 M"."""
    return f"{number:,}" if number < 1e5 else f"{number / 1e6:.2f} M"


def when(view: RunView) -> str:
    """When the run began, and how long it trained."""
    started, seconds = view.environment.started, view.training_seconds
    said = [f"Started {started.day} {started:%B %Y, %H:%M %Z}".rstrip()] if started else []
    said += [f"{'trained' if said else 'Trained'} for {duration(seconds)}"] if seconds else []
    return f'<p class="soft when">{escape(", ".join(said))}</p>' if said else ""


def duration(seconds: float) -> str:
    """ "42 s", "3 min 12 s", "5 h 7 min" or "2 d 3 h"."""
    total = round(seconds)
    if total < 1:
        return f"{seconds:.1f} s"
    for large, small, size in (("d", "h", 3600), ("h", "min", 60), ("min", "s", 1)):
        ratio = 24 if large == "d" else 60
        if total >= size * ratio:
            many, rest = divmod(round(total / size), ratio)
            return f"{many} {large}" + (f" {rest} {small}" if rest else "")
    return f"{total} s"


def verdict_card(view: RunView, more: str = "") -> str:
    """The verdict on the run and its reason. more: further sentences."""
    found = view.verdict
    return (
        f'<div class="card verdict {escape(found.word)}"><b>{escape(found.word.capitalize())}</b>'
        f"<p>{escape(' '.join((found.sentence, more)).strip())}</p></div>"
    )


def missing(view: RunView) -> str:
    return "".join(f'<p class="note">{escape(text)}</p>' for text in view.missing)


def probes(view: RunView) -> str:
    table = view.probes
    if table is None:
        return ""
    num_test = table.images.get("test", 0)
    others = f"on {table.images.get('validation', 0):,} others"
    if table.folds:
        others = f"by {table.folds}-fold cross-validation on these"
    text = (
        "How well simple classifiers read the classes from frozen features. "
        f"Fitted on {table.images.get('train', 0):,} {table.things}; layer, pooling and attention chosen {others}. "
    )
    text += (
        f"The bars are measured on {num_test:,} test {table.things} that were used for no choice (95 % "
        f"range at most ±{100 * 0.98 / num_test**0.5:.1f} points)."
        if num_test
        else (
            "There is no test split: the bars show the validation accuracy that chose the rows, which is "
            "slightly optimistic."
        )
    )
    more = [_grid(table, probe, weights) for probe in SWEPT for weights in WEIGHTS]
    shown = [_grid(table, probe, row.weights) for probe in SWEPT if (row := table.best(probe))]
    bars = "".join(_bars(table, probe) for probe in TITLES)
    return (
        f'<h2>Probes on frozen features</h2><p class="soft">{escape(text)}</p><div class="two">{bars}</div>'
        f'<div class="two">{"".join(shown)}</div>'
        f'<details><summary>Every table: all weights</summary><div class="two">{"".join(more)}</div></details>'
    )


def value_of(row: Row) -> float:
    return row.accuracy if row.accuracy is not None else row.validation_accuracy


def _bars(table: ProbeTable, probe: str) -> str:
    """The best row of each weights, raw pixels and chance, as bars."""
    bars: list[tuple[str, str, float, float | None, str]] = []
    for weights, colour in (("ema", "--c1"), ("raw", "--c1"), ("untrained", "--c2")):
        if row := table.best(probe, weights):
            where = f"layer {row.layer}, {row.pooling}, {row.attention}"
            name = f"trained, {WEIGHTS[weights]}" if weights != "untrained" else weights
            bars.append((name, where, value_of(row), row.spread, colour))
    pixels = table.pixels.get(probe, table.pixels_validation.get(probe))
    if pixels is not None:
        bars.append((table.raw, "", pixels, table.pixels_spread.get(probe), "--c3"))
    bars.append(("largest class", "always guessed", table.chance, None, "--soft"))
    if len(bars) < 2:
        return ""
    rows = "".join(
        f'<span>{escape(name)}<br><span class="soft">{escape(note)}</span></span><div class="value"><div class="bar">'
        f'<i style="--w:{100 * value:.1f}%;--c:var({colour})"></i></div>'
        f"<b>{percent(value, spread)}</b></div>"
        for name, note, value, spread, colour in bars
    )
    return f'<div class="card"><h3>{TITLES[probe]}</h3><div class="bars">{rows}</div></div>'


def _grid(table: ProbeTable, probe: str, weights: str) -> str:
    """Validation accuracy by layer and feature, the best cell outlined."""
    rows = [row for row in table.rows if row.probe == probe and row.weights == weights]
    if not rows:
        return ""
    best, values = table.best(probe, weights), [row.validation_accuracy for row in rows]
    low, high = min(values), max(values)
    columns = list(dict.fromkeys((row.pooling, row.attention) for row in rows if row.layer)) or [
        (row.pooling, row.attention) for row in rows
    ]
    cells = {(row.layer, row.pooling, row.attention): row for row in rows}
    head = "".join(f"<th>{escape(pooling)}<br>{escape(attention)}</th>" for pooling, attention in columns)
    body = ""
    for layer in sorted({row.layer for row in rows}):
        name = {0: "0 latents", table.num_layers: f"{layer} output"}.get(layer, str(layer))
        body += f"<tr><td>{escape(name)}</td>"
        for column in columns:
            row = cells.get((layer, *column))
            if row is None:
                body += "<td></td>"
                continue
            depth = (row.validation_accuracy - low) / max(high - low, 1e-9)
            mark = "cell best" if row is best else "cell"
            body += f'<td class="{mark}" style="--v:{depth:.2f}">{100 * row.validation_accuracy:.1f}</td>'
        body += "</tr>"
    return (
        f'<div class="card"><h3>{TITLES[probe]}, {escape(WEIGHTS.get(weights, weights))}</h3>'
        '<p class="soft">Validation accuracy in %. Rows: layer. Columns: pooling and attention.</p>'
        f'<div class="scroll"><table><tr><th>layer</th>{head}</tr>{body}</table></div></div>'
    )


def curves(view: RunView) -> str:
    cards = render_charts(view.history)
    return f'<h2>Training</h2><div class="grid">{cards}</div>' if cards else ""


def warnings(view: RunView) -> str:
    if not view.history:
        return ""
    spans: dict[str, list[Any]] = {}
    for line in view.history:
        step = line.get("step", 0)
        for text in line.get("warnings", []):
            span = spans.setdefault(text.partition(":")[0], [step, step, 0, text])
            span[1:] = [step, span[2] + 1, text]
    if view.answers is not None and (sentence := view.answers.collapse()):
        step = view.last.get("step", 0)
        spans["same answers"] = [step, step, 1, f"same answers: {sentence}"]
    if not spans:
        return "<h2>Warnings</h2><p>None.</p>"
    rows = "".join(
        f"<tr><td>{escape(kind)}</td><td>{first:,}</td><td>{last:,}</td><td>{count} of {len(view.history)}</td>"
        f'<td class="wrap">{escape(text.partition(": ")[2])}</td></tr>'
        for kind, (first, last, count, text) in spans.items()
    )
    return (
        '<h2>Warnings</h2><div class="card scroll"><table><tr><th>what</th><th>first step</th><th>last '
        f'step</th><th>logged lines</th><th class="left">last message</th></tr>{rows}</table></div>'
    )


def skipped(view: RunView) -> str:
    said = data_in_words(view.history, view.skipped)
    if not view.skipped:
        return f"<h2>Data used</h2><p>{escape(said)}.</p>" if said else ""
    rows = "".join(
        f'<tr><td class="wrap">{escape(str(row.get("key", "")))}</td>'
        f'<td class="wrap">{escape(str(row.get("reason", "")))}</td></tr>'
        for row in view.skipped[:NUM_SKIPPED]
    )
    more = len(view.skipped) - NUM_SKIPPED
    rest = f'<p class="soft">and {more:,} more, in skipped.jsonl</p>' if more > 0 else ""
    return (
        f"<h2>Data used</h2><p>{escape(said)}.</p>"
        '<details><summary>Which</summary><div class="scroll"><table>'
        f'<tr><th>file or row</th><th class="left">why</th></tr>{rows}</table></div>{rest}</details>'
    )


def settings(view: RunView) -> str:
    blocks = [("All settings", _plain(view.config)), ("Environment", _plain(view.listed))]
    shown = "".join(
        f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>" for name, text in blocks if text
    )
    return f"<h2>Settings and environment</h2>{shown}" if shown else ""


def _plain(values: Mapping[str, object], indent: str = "") -> str:
    """Nested values as indented lines."""
    lines: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}:", _plain(value, indent + "  ")]
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            lines.append(f"{indent}{name}: {_short(text)}")
    return "\n".join(lines)


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def percent(value: float, spread: float | None = None) -> str:
    return f"{100 * value:.1f} %" if spread is None else f"{100 * value:.1f} ± {100 * spread:.1f} %"
