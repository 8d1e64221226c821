"""Run to HTML: one function a section, each empty where the run has nothing to show."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from ..core.probe_table import SWEPT, TITLES, WEIGHTS, ProbeTable, Row
from . import multimodal, scores
from .answers import answered
from .charts import render_charts
from .inside_page import inside_sections
from .overlays import overlay_sections, segment_header, segment_training
from .pictures import Scene, Tiles, heat, neighbours, ranks, striking
from .run_view import RunView
from .style import CSS

WORDS = {
    "learning": "Learning",
    "copying": "Copying",
    "collapsed": "Collapsed",
    "undecided": "Not decided yet",
    "decoder": "A decoder",
}
NUM_IMAGES = 4  # shown with similarity maps
NUM_FOUND = 8  # with nearest patches
NUM_SKIPPED = 50


def render(view: RunView) -> str:
    """The whole page."""
    if view.task == "multimodal":
        kind = view.settings.objective.kind
        sections = [
            multimodal.header(view, WORDS),
            _missing(view),
            multimodal.spoken(view) if kind == "emu" else "",
            answered(view) if kind == "next_embedding" else "",
            _probes(view),
            _curves(view),
            _warnings(view),
            _skipped(view),
            _settings(view),
        ]
        return _page(view, sections)
    if view.task != "pretraining":
        sections = [
            scores.before_curves(view),
            _curves(view),
            scores.what_was_trained(view),
            _skipped(view),
            _settings(view),
        ]
        return _page(view, sections)
    pictures = _pictures(view)
    sections = [
        _header(view) if view.overlays is None else segment_header(view, view.name),
        _missing(view),
        _probes(view),
        overlay_sections(view),
        _curves(view),
        _warnings(view),
        pictures,
        segment_training(view),
        _skipped(view),
        _settings(view),
    ]
    return _page(view, sections)


def _page(view: RunView, sections: list[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(view.name)} - nextembed</title>"
        f"<style>{CSS}{scores.CSS}{multimodal.CSS}</style></head><body><main>"
        + "\n".join(section for section in sections if section)
        + '<footer class="soft">Written by <code>nextembed report</code>; this file needs nothing else.</footer>'
        "</main></body></html>\n"
    )


def is_decoder(view: RunView) -> bool:
    """Whether the run trained a decoder on a frozen model."""
    return view.settings.objective.kind == "latent_decoder"


def _header(view: RunView) -> str:
    found = view.verdict
    model, last = view.model_config, view.history[-1] if view.history else {}
    facts: list[tuple[str, str]] = []
    if "step" in last:
        total = view.settings.train.max_steps
        facts.append((f"{last['step']:,}" + (f" of {total:,}" if total else ""), "optimizer steps"))
    if "samples_seen" in last:
        facts.append((f"{last['samples_seen']:,}", "images seen"))
    if "loss" in last:
        facts.append((f"{last['loss']:.4f}", "last loss"))
    if model is not None:
        facts.append(
            (
                f"{view.num_parameters / 1e6:.2f} M",
                f"parameters: {model.num_hidden_layers} layers x {model.hidden_size}",
            )
        )
        size, patch = model.image_shape[0], model.patch_shape[0]
        facts.append((f"{size} px / {patch} px", f"image / patch: {(size // patch) ** 2} patches"))
    if view.probes and (best := view.probes.best()):
        facts.append((_percent(_value(best)), f"best {TITLES[best.probe].lower()}"))
    cards = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts)
    task = "Latent decoder" if is_decoder(view) else "Next-embedding pretraining"
    source = str(view.settings.data.source or "its data")
    return (
        f'<p class="kicker">{task} on {escape(source)}</p><h1>{escape(view.name)}</h1>'
        f'<div class="card verdict {escape(found.word)}"><b>{escape(WORDS.get(found.word, found.word))}</b>'
        f"<p>{escape(found.sentence)}</p></div>" + (f'<div class="facts">{cards}</div>' if cards else "")
    )


def _missing(view: RunView) -> str:
    return "".join(f'<p class="note">{escape(text)}</p>' for text in view.missing)


def _probes(view: RunView) -> str:
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
        f"The bars are measured on {num_test:,} test {table.things} that no choice has seen (95 % range at most "
        f"±{100 * 0.98 / num_test**0.5:.1f} points)."
        if num_test
        else "There is no test split: the bars show the accuracy that chose, a little too high for the chosen rows."
    )
    more = [_grid(table, probe, weights) for probe in SWEPT for weights in WEIGHTS]
    shown = [_grid(table, probe, row.weights) for probe in SWEPT if (row := table.best(probe))]
    bars = "".join(_bars(table, probe) for probe in TITLES)
    return (
        f'<h2>What was learned</h2><p class="soft">{escape(text)}</p><div class="two">{bars}</div>'
        f'<div class="two">{"".join(shown)}</div>'
        f'<details><summary>Every table: all weights</summary><div class="two">{"".join(more)}</div></details>'
    )


def _value(row: Row) -> float:
    return row.accuracy if row.accuracy is not None else row.validation_accuracy


def _bars(table: ProbeTable, probe: str) -> str:
    """The best row of each weights, raw pixels and chance, as bars."""
    bars: list[tuple[str, str, float, float | None, str]] = []
    for weights, colour in (("ema", "--c1"), ("raw", "--c1"), ("untrained", "--c2")):
        if row := table.best(probe, weights):
            where = f"layer {row.layer}, {row.pooling}, {row.attention}"
            name = f"trained, {WEIGHTS[weights]}" if weights != "untrained" else weights
            bars.append((name, where, _value(row), row.spread, colour))
    pixels = table.pixels.get(probe, table.pixels_validation.get(probe))
    if pixels is not None:
        bars.append((table.raw, "", pixels, table.pixels_spread.get(probe), "--c3"))
    bars.append(("largest class", "always guessed", table.chance, None, "--soft"))
    if len(bars) < 2:
        return ""
    rows = "".join(
        f'<span>{escape(name)}<br><span class="soft">{escape(note)}</span></span><div class="value"><div class="bar">'
        f'<i style="--w:{100 * value:.1f}%;--c:var({colour})"></i></div>'
        f"<b>{_percent(value, spread)}</b></div>"
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


def _curves(view: RunView) -> str:
    cards = render_charts(view.history)
    return f'<h2>Training</h2><div class="grid">{cards}</div>' if cards else ""


def _warnings(view: RunView) -> str:
    if not view.history:
        return ""
    spans: dict[str, list[Any]] = {}
    for line in view.history:
        step = line.get("step", 0)
        for text in line.get("warnings", []):
            span = spans.setdefault(text.partition(":")[0], [step, step, 0, text])
            span[1:] = [step, span[2] + 1, text]
    if not spans:
        return "<h2>Warnings</h2><p>None fired.</p>"
    rows = "".join(
        f"<tr><td>{escape(kind)}</td><td>{first:,}</td><td>{last:,}</td><td>{count} of {len(view.history)}</td>"
        f'<td class="wrap">{escape(text.partition(": ")[2])}</td></tr>'
        for kind, (first, last, count, text) in spans.items()
    )
    return (
        '<h2>Warnings</h2><div class="card scroll"><table><tr><th>what</th><th>first step</th><th>last step</th>'
        f'<th>logged lines</th><th class="left">the last time it fired</th></tr>{rows}</table></div>'
    )


def _pictures(view: RunView) -> str:
    if view.scene is None:
        return ""
    tiles = Tiles(view.scene)
    inside = inside_sections(view.inside, view.inside_images, tiles)
    if is_decoder(view):  # its model is shown in the report of the run that trained it
        return tiles.definitions() + inside
    parts = _similarity(view, tiles) + _retrieval(view, tiles) + _attention(view, tiles) + inside
    target = view.settings.objective.target
    note = (
        ""
        if target == "latents"
        else f'<p class="note">This run predicts {escape(target)}, not the input latents; the pictures '
        "compare its predictions with the input latents all the same.</p>"
    )
    return tiles.definitions() + note + parts


def _similarity(view: RunView, tiles: Tiles) -> str:
    scene: Scene = tiles.scene
    cards = []
    for image in scene.spread(NUM_IMAGES):
        for patch in striking(scene, image):
            scores = scene.latents[image] @ scene.predictions[image, patch]
            place = 1 + int((scores > scores[patch]).sum())
            marks = [("current", patch - 1), ("next", patch)]
            cards.append(
                '<div class="card"><div class="pair">'
                + tiles.tile(image, hide_from=patch, marks=marks, label="what was read")
                + tiles.tile(None, overlay=heat(scores, scene.grid), marks=marks, label="similarity")
                + f"</div><p>Next patch: {_nth(place)} nearest of {scene.num_patches}, cosine {scores[patch]:.2f}; "
                f"current {scores[patch - 1]:.2f}, greatest {scores.max():.2f}.</p></div>"
            )
    found = ranks(scene)
    return (
        "<h2>What it predicts</h2>"
        '<p class="soft">Left: what the model has read; the rest is veiled. Right: cosine of its prediction with the '
        'latent of every patch of the image, also those it has not read (<span class="ramp viridis"></span> low to '
        'high, each map on its own scale). <span class="key next"></span> the true next patch, '
        f'<span class="key current"></span> the current one. Images are from the {escape(view.split)} data; in each '
        "third of an image, the patch with the most contrast is shown.</p>"
        f"<p>Over {found.num_predictions:,} predictions in {len(scene.images)} images (flat patches left out), the "
        f"nearest patch of the image is the true next one in <b>{_percent(found.hit)}</b> (guessing: "
        f"{_percent(found.chance)}) and the current one in <b>{_percent(found.copy)}</b>; the true one is "
        f"{_nth(round(found.median))} nearest of {scene.num_patches} in the median.</p>"
        f'<div class="strips">{"".join(cards)}</div>'
    )


def _retrieval(view: RunView, tiles: Tiles) -> str:
    scene = tiles.scene
    rows = []
    for number, image in enumerate(scene.spread(NUM_FOUND)):
        patches = striking(scene, image)
        patch = patches[number % len(patches)] if patches else 0
        found = neighbours(scene, image, patch)
        if patch and found:
            rows.append(
                tiles.tile(image, hide_from=patch, marks=[("next", patch)], label="what was read")
                + tiles.patch(image, patch, "true next patch", "true")
                + "<span></span>"
                + "".join(tiles.patch(*place, "nearest patch") for place in found)
                + "<span></span>" * (6 - len(found))
            )
    if not rows:
        return ""
    head = '<span class="name">read</span><span class="name">true next</span><span></span>'
    head += '<span class="name wide">nearest to the prediction</span>'
    half = -(-len(rows) // 2)
    cards = "".join(
        f'<div class="card scroll"><div class="found">{head}{"".join(part)}</div></div>'
        for part in (rows[:half], rows[half:])
        if part
    )
    return (
        "<h2>What the predictions look like</h2>"
        f'<p class="soft">A prediction is no image. These are the patches of {len(scene.images) - 1:,} other images '
        "whose latents are nearest to it, nearest first; patches that look exactly alike are shown once.</p>"
        f'<div class="two">{cards}</div>'
    )


def _attention(view: RunView, tiles: Tiles) -> str:
    scene = tiles.scene
    if not scene.attention:
        return ""
    maps = next(iter(scene.attention.values()))
    layers = list(dict.fromkeys([0, len(maps) // 2, len(maps) - 1]))
    shown = range(min(3, len(maps[0])))
    width = f"minmax(84px, 1.4fr) repeat({len(layers) * len(shown)}, minmax(46px, 1fr))"
    head = "<span></span>" + "".join(
        f'<span class="name" style="grid-column: span {len(shown)}">layer {layer + 1}, heads 1-{len(shown)}</span>'
        for layer in layers
    )
    cells = ""
    for image, maps in scene.attention.items():
        for patch in striking(scene, image, 2):
            cells += tiles.tile(image, marks=[("next", patch)], label="where attention is read")
            for layer in layers:
                for number in shown:
                    weights = maps[layer][number, patch + 1, 1:]  # the begin token is left out
                    overlay = heat(weights, scene.grid, low=0.0, cmap="inferno")
                    cells += tiles.tile(image, overlay, dim=True, marks=[("next", patch)], label="attention")
    return (
        "<h2>Where it looks</h2>"
        '<p class="soft">Attention weights of one patch (<span class="key next"></span>) to all patches, for some '
        'layers and heads (<span class="ramp inferno"></span> none to most, each map on its own scale; the begin '
        "token is left out). Under causal attention a patch sees itself and what comes before it.</p>"
        '<div class="card scroll">'
        f'<div class="attention" style="grid-template-columns: {width}">{head}{cells}</div></div>'
    )


def _skipped(view: RunView) -> str:
    if not view.skipped:
        return ""
    rows = "".join(
        f'<tr><td class="wrap">{escape(str(row.get("key", "")))}</td>'
        f'<td class="wrap">{escape(str(row.get("reason", "")))}</td></tr>'
        for row in view.skipped[:NUM_SKIPPED]
    )
    more = len(view.skipped) - NUM_SKIPPED
    rest = f'<p class="soft">and {more:,} more, in skipped.jsonl</p>' if more > 0 else ""
    return (
        f"<h2>Skipped files</h2><p>{len(view.skipped):,} could not be read and were left out.</p>"
        '<details><summary>Which</summary><div class="scroll"><table>'
        f'<tr><th>file or row</th><th class="left">why</th></tr>{rows}</table></div>{rest}</details>'
    )


def _settings(view: RunView) -> str:
    blocks = [("All settings", _plain(view.config)), ("Environment", _plain(view.listed))]
    shown = "".join(
        f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>" for name, text in blocks if text
    )
    return f"<h2>How it was made</h2>{shown}" if shown else ""


def _plain(values: Mapping[str, Any], indent: str = "") -> str:
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


def _percent(value: float, spread: float | None = None) -> str:
    return f"{100 * value:.1f} %" if spread is None else f"{100 * value:.1f} ± {100 * spread:.1f} %"


def _nth(place: int) -> str:
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"
