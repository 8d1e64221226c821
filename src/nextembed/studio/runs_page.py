"""The runs as HTML: a list with their status, and details of the chosen ones."""

from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import quote

from ..core.run_folder import data_in_words
from ..report import page as report
from ..report.view import RunView
from .curves import differences
from .status import Status

NUM_DIFFERENCES = 60
LOGGED = 12  # lines of the log that are shown
PLAIN = ("step", "loss", "learning_rate", "grad_norm", "images_per_second")


def table(views: Mapping[str, RunView], states: Mapping[str, Status], chosen: Sequence[str], broken: Mapping[str, str],
          left_out: Sequence[str] = ()) -> str:  # fmt: skip
    """All runs, one a row. chosen: in the order of their colours. broken: why a run cannot be read, by name."""
    rows = "".join(_row(name, view, states[name], chosen) for name, view in views.items())
    titles = (("run", ""), ("status", ""), ("step", "n"), ("loss", "n"), ("verdict", ""), ("", "why"))
    head = "".join(f'<th class="{kind}"><button type="button">{title}</button></th>' for title, kind in titles)
    notes = [f"{name}: {why}" for name, why in broken.items()] + list(left_out)
    said = "".join(f'<p class="line">Left out: {escape(note)}</p>' for note in notes)
    if not rows:
        return f'<div class="empty">No runs here yet. <code>nextembed train nepa_demo</code> makes one.</div>{said}'
    return (
        f'<div class="card scroll rows"><table class="runs sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{said}"
    )


def _row(name: str, view: RunView, state: Status, chosen: Sequence[str]) -> str:
    on, safe = name in chosen, escape(name, quote=True)
    colour = f"var(--c{chosen.index(name) % 8 + 1})" if on else "var(--line)"
    total = f" of {state.max_steps:,}" if state.max_steps else ""
    kind = "on" if on else ""
    track = f'<div class="track"><i style="--w:{100 * state.share:.1f}%"></i></div>' if state.state == "running" else ""
    loss, verdict = view.last.get("loss"), view.verdict
    return (
        f'<tr class="{kind}"><td><button class="name" type="button" data-send="toggle" data-value="{safe}" '
        f'data-key="{safe}" aria-pressed="{str(on).lower()}"><span class="box" style="--c:{colour}"></span>{safe}'
        f'</button></td><td><span class="state {state.state}">{state.state}</span></td>'
        f'<td class="n" data-v="{state.step}">{state.step:,}{total}{track}</td>'
        f'<td class="n least" data-v="{"" if loss is None else loss}">{"" if loss is None else f"{loss:.4g}"}</td>'
        f'<td><span class="word {escape(verdict.word)}">{escape(verdict.word)}</span></td>'
        f'<td class="why wide">{escape(state.why)}</td></tr>'
    )


def details(views: Mapping[str, RunView], states: Mapping[str, Status]) -> str:
    """Details of the chosen runs, next to their curves."""
    if not views:
        return '<div class="empty">Choose runs above to see their curves; several are overlaid.</div>'
    parts = [_head(name, view, states[name], len(views) > 1) for name, view in views.items()]
    return "".join(parts) + (_differences(views) if len(views) > 1 else "")


def _head(name: str, view: RunView, state: Status, several: bool) -> str:
    """Verdict, facts and links of a run."""
    facts = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in report.common_facts(view)
    )
    link = f'<a href="studio/report?run={quote(name)}" target="_blank" rel="noopener">Report</a>'
    facts = f'<div class="facts">{facts}</div>'
    title = f"<h2>{escape(name)}</h2>" if several else ""
    return (
        f"{title}{report.verdict_card(view)}"
        f'{"" if several else facts}<p class="links"><span>'
        f'<span class="state {state.state}">{state.state}</span> '
        f'<span class="soft">{escape(state.why)}</span></span>{link}</p>{report.missing(view)}'
    )


def _differences(views: Mapping[str, RunView]) -> str:
    """The settings in which runs differ."""
    rows = differences({name: view.config for name, view in views.items()})
    rows = [row for row in rows if row[0] not in ("name", "output_dir")]
    if not rows:
        return '<p class="line">What differs: nothing in their settings.</p>'
    head = "".join(f'<th class="left">{escape(name)}</th>' for name in views)
    body = "".join(
        f"<tr><td>{escape(setting)}</td>" + "".join(f"<td>{escape(value)}</td>" for value in values) + "</tr>"
        for setting, values in rows[:NUM_DIFFERENCES]
    )
    more = f'<p class="line">and {len(rows) - NUM_DIFFERENCES} more</p>' if len(rows) > NUM_DIFFERENCES else ""
    return (
        f'<details><summary>What differs ({len(rows)} settings)</summary><div class="card scroll">'
        f'<table class="differs"><tr><th>setting</th>{head}</tr>{body}'
        f"</table></div>{more}</details>"
    )


def probes(views: Mapping[str, RunView]) -> str:
    """Heat maps of layer x pooling and attention, the chosen cell outlined."""
    shown = [(name, view) for name, view in views.items() if view.probes is not None]
    if not shown:
        return '<div class="empty">No probes: they are measured when a run of images ends.</div>'
    title = len(views) > 1
    return "".join((f"<h2>{escape(name)}</h2>" if title else "") + report.probes(view) for name, view in shown)


def log(views: Mapping[str, RunView]) -> str:
    """Last lines, warnings, and data that was left out."""
    parts = []
    for name, view in views.items():
        title = f"<h2>{escape(name)}</h2>" if len(views) > 1 else ""
        used = report.skipped(view) if data_in_words(view.history, view.skipped) else ""
        parts.append(f"{title}{_lines(view)}{report.warnings(view)}{used}{report.settings(view)}")
    return "".join(parts) or '<div class="empty">Choose a run above.</div>'


def _lines(view: RunView) -> str:
    """The last lines of the log, newest first."""
    names = [name for name in PLAIN if any(name in line for line in view.history)]
    if not names:
        return '<p class="line">Nothing was logged yet.</p>'
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{_number(line.get(name))}</td>" for name in names) + "</tr>"
        for line in view.history[: -LOGGED - 1 : -1]
    )
    return f'<h2>Log</h2><div class="card scroll"><table><tr>{head}</tr>{body}</table></div>'


def _number(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else ""
