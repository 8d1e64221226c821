"""The page of a run on interleaved text and images: both losses, whether the latents live, and what the model says."""

import importlib
from collections.abc import Mapping
from html import escape
from typing import Any

import torch
from transformers import AutoModelForPreTraining, AutoProcessor

from ..core.config import DATA
from ..core.quiet import no_progress_bar
from ..core.run_folder import weights_folders
from ..core.types import Document
from ..errors import ConfigError, NextEmbedError
from ..nn.diagnostics import verdict
from .pictures import data_uri
from .run_view import RunView

NUM_DOCUMENTS = 12
MAX_TRIED = 200
MAX_TOKENS = 32

CSS = """
.spoken { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 14px; margin: 12px 0; }
.spoken .card { padding: 12px; } .spoken img { width: 64px; height: 64px; object-fit: contain; border-radius: 6px;
  border: 1px solid var(--line); image-rendering: pixelated; margin-right: 6px; }
.spoken p { margin: 6px 0 0; font-size: .875rem; line-height: 1.4; overflow-wrap: anywhere; }
.spoken .said { font-weight: 600; } .spoken .same { color: var(--good); }
"""


def header(view: RunView, words: Mapping[str, str]) -> str:
    """What was trained, the verdict on its latents, the last step's figures. words: of the verdicts."""
    found = verdict(view.history)
    last = view.history[-1] if view.history else {}
    facts: list[tuple[str, str]] = []
    if "step" in last:
        facts.append((f"{last['step']:,}", "optimizer steps"))
    if "text_loss" in last:
        facts.append((f"{last['text_loss']:.3f}", "text loss, nats a token"))
        facts.append((f"{100 * last['text_accuracy']:.1f} %", "of tokens right"))
    if last.get("regression_loss"):
        facts.append((f"{last['regression_loss']:.4g}", "distance to the next latent"))
    if "psnr" in last:
        facts.append((f"{last['psnr']:.1f} dB", "PSNR of images cleaned in one step"))
    sizes = view.environment.get("parameters") or {}
    if sizes:
        facts.append((f"{sizes['trained'] / 1e6:.2f} M", f"of {sizes['all'] / 1e6:.2f} M parameters trained"))
    cards = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts)
    source = str((view.config.get("data") or {}).get("source", "")) or "its documents"
    return (
        f'<p class="kicker">Text and images on {escape(source)}</p><h1>{escape(view.name)}</h1>'
        f'<div class="card verdict {escape(found.word)}"><b>{escape(words.get(found.word, found.word))}</b>'
        f'<p>{escape(found.sentence)}</p></div><div class="facts">{cards}</div>'
    )


def spoken(view: RunView) -> str:
    """Validation documents up to their first learned text behind an image, what is said there, and what is true."""
    try:
        rows, split = continuations(view)
    except (NextEmbedError, OSError, ValueError) as err:
        return f'<p class="note">There is nothing said: {escape(str(err).splitlines()[0])}.</p>'
    if not rows:
        return ""
    cards = "".join(
        f'<div class="card">{"".join(row["images"])}<p class="soft">{escape(row["before"]) or "&nbsp;"}</p>'
        f'<p class="said{" same" if row["said"] == row["true"] else ""}">{escape(row["said"]) or "(nothing)"}</p>'
        f'<p class="soft">is: {escape(row["true"])}</p></div>'
        for row in rows
    )
    return (
        f'<h2>What it says</h2><p class="soft">Documents of the {escape(split)} split, up to where text that is to be '
        "learned begins; greedy decoding. Green: word for word what stands there.</p>"
        f'<div class="spoken">{cards}</div>'
    )


def continuations(view: RunView) -> tuple[list[dict[str, Any]], str]:
    """Images, text before, what is said and what is true of some documents; and their split."""
    importlib.import_module("..models.emu", __package__)
    importlib.import_module("..data.kinds", __package__)
    folder = weights_folders(view.dir)["raw"]
    with no_progress_bar():
        model = AutoModelForPreTraining.from_pretrained(folder, local_files_only=True).eval()
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    data: Any = DATA.parse(view.config["data"])
    split = "validation"
    try:
        found = iter(data.documents(split))
        first = next(found, None)
    except ConfigError:
        split = "train"
        found = iter(data.documents(split))
        first = next(found, None)
    rows: list[dict[str, Any]] = []
    tried = 0
    while first is not None and len(rows) < NUM_DOCUMENTS and tried < MAX_TRIED:
        tried += 1
        place = place_of_answer(first)
        if place is not None:
            rows.append(continued(model, processor, first, place))
        first = next(found, None)
    return rows, split


def place_of_answer(document: Document) -> int | None:
    """The last learned text that stands behind an image; None where there is none."""
    segments = document["segments"]
    places = [
        i
        for i, segment in enumerate(segments)
        if segment["kind"] == "text" and segment.get("loss", True) and any(s["kind"] != "text" for s in segments[:i])
    ]
    return places[-1] if places else None


@torch.no_grad()
def continued(model: Any, processor: Any, document: Document, place: int) -> dict[str, Any]:
    """What the model says behind the first `place` segments of a document, and how the document goes on."""
    before = document["segments"][:place]
    ids = model.generate(**processor([dict(s) for s in before]), max_new_tokens=MAX_TOKENS, do_sample=False)
    shown = [s for s in before if s["kind"] != "text"]
    images = [one for s in shown for one in ([s["value"]] if s["kind"] == "image" else s["value"])]
    return {
        "images": [f'<img alt="" src="{data_uri(x.permute(1, 2, 0).numpy())}">' for x in images[:8]],
        "before": " ".join(s["value"].strip() for s in before if s["kind"] == "text"),
        "said": processor.batch_decode(ids)[0].partition("\n")[0],
        "true": document["segments"][place]["value"].strip(),
    }
