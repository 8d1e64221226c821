"""A comparison as one HTML page that needs nothing else."""

from html import escape
from pathlib import Path

from ..core.files import write_text
from ..report.style import CSS
from .table import Comparison


def write_page(found: Comparison, folder: Path) -> Path:
    """comparison.html."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(found.name)} - nextembed</title><style>{CSS}</style></head><body><main>"
        f'<p class="kicker">Objectives at equal cost</p><h1>{escape(found.name)}</h1>'
        f'<div class="card scroll">{found._repr_html_()}</div><ul class="soft">{notes}</ul></main></body></html>\n'
    )
    write_text(folder / "comparison.html", text)
    return folder / "comparison.html"
