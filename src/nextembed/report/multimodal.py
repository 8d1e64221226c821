"""Sections of a run on interleaved documents: both losses, collapse of latents, and generated text."""

from collections.abc import Iterator
from contextlib import suppress
from html import escape
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ..core.answers import Answer, Answers
from ..core.config import Part
from ..core.types import Document, DocumentSource, Role
from ..errors import ConfigError
from .page import head, verdict_card
from .pictures import data_uri, to_array
from .view import RunView, looking

NUM_DOCUMENTS = 12
MAX_TRIED = 200
MAX_TOKENS = 32
MAX_PICTURES = 8  # of a document


class DocumentRun(Protocol):
    """The part of a run that is needed to generate text (`runs.Run`)."""

    dir: Path

    def source(self) -> Part: ...
    def model(self, weights: str | None = None, **options: Any) -> PreTrainedModel: ...
    def processor(self, weights: str | None = None) -> ProcessorMixin: ...


def header(view: RunView) -> str:
    """What was trained, the verdict on its latents, the last step's figures."""
    last = view.last
    facts: list[tuple[str, str]] = []
    if "text_loss" in last:
        facts.append((f"{last['text_loss']:.3f}", "text loss, nats a token"))
    if "text_accuracy" in last:
        facts.append((f"{100 * last['text_accuracy']:.1f} %", "token accuracy"))
    for name in names_of(view):
        if f"top1/{name}" in last:
            facts.append((f"{100 * last[f'top1/{name}']:.1f} %", f"top-1, {name}"))
        elif f"cos_next/{name}" in last:
            facts.append((f"{last[f'cos_next/{name}']:.3f}", f"cosine with the next latent, {name}"))
    if last.get("regression_loss"):
        facts.append((f"{last['regression_loss']:.4g}", "distance to the next latent"))
    if "psnr" in last:
        facts.append((f"{last['psnr']:.1f} dB", "PSNR of images cleaned in one step"))
    what = _listed(names_of(view)) or "Text and images"
    return head(view, f"{what} on {view.settings.data.source or 'its documents'}", verdict_card(view), facts)


def names_of(view: RunView) -> list[str]:
    """The modalities of an Omni run; none of another one."""
    return list(view.settings.model.modalities or {})


def _listed(names: list[str]) -> str:
    *others, last = names or [""]
    return (f"{', '.join(others)} and {last}" if others else last).capitalize()


def spoken(answers: Answers | None) -> str:
    """Documents up to their last target text after an image, the model's output there, and the target."""
    if answers is None or not answers.rows:
        return ""
    cards = "".join(
        f'<div class="card">{"".join(picture(src) for src in row.pictures)}'
        f'<p class="soft">{escape(row.before) or "&nbsp;"}</p>'
        f'<p class="said{" same" if row.said == row.true else ""}">{escape(row.said) or "(nothing)"}</p>'
        f'<p class="soft">true: {escape(row.true)}</p></div>'
        for row in answers.rows
    )
    return (
        f'<h2>Generated text</h2><p class="soft">Documents of the {escape(answers.split)} split, cut before their last '
        "learned text; the model continues them by greedy decoding. Green: exactly the true text.</p>"
        f'<div class="spoken">{cards}</div>'
    )


def picture(src: str) -> str:
    return f'<img alt="" src="{escape(src)}">'


def answers_of(run: DocumentRun) -> Answers:
    """The model's output for some documents of its data. Raises ConfigError if it cannot be run on them."""
    with looking(run.dir):
        model, processor = run.model("raw"), run.processor("raw")
        documents, split = documents_of(run.source())
        rows: list[Answer] = []
        for document in documents:
            place = place_of_answer(document)
            if place is not None:
                with suppress(ValueError):  # one that the model cannot read
                    rows.append(continued(model, processor, document, place))
            if len(rows) == NUM_DOCUMENTS:
                break
        return Answers(split, rows)


def documents_of(data: Part) -> tuple[Iterator[Document], str]:
    """The first documents of the validation split, or of the training split where there is no other; and the split."""
    if not isinstance(data, DocumentSource):
        raise ConfigError(f"data of kind {data.kind} gives no documents")
    splits: tuple[Role, ...] = ("validation", "train")
    for split in splits:
        try:
            found = iter(data.documents(split))
            first = next(found, None)
        except ConfigError:
            if split == "train":
                raise
            continue
        return islice(chain([] if first is None else [first], found), MAX_TRIED), split
    raise AssertionError


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
def continued(model: Any, processor: Any, document: Document, place: int) -> Answer:
    """The model's text after the first `place` segments of a document, and the true continuation."""
    before = document["segments"][:place]
    ids = model.generate(**processor([dict(s) for s in before]), max_new_tokens=MAX_TOKENS, do_sample=False)
    shown = [s for s in before if s["kind"] != "text"]
    images = [one for s in shown for one in ([s["value"]] if s["kind"] == "image" else s["value"])]
    return Answer(
        before=" ".join(s["value"].strip() for s in before if s["kind"] == "text"),
        said=processor.batch_decode(ids)[0].partition("\n")[0].strip(),
        true=document["segments"][place]["value"].strip(),
        pictures=[data_uri(to_array(x.expand(3, -1, -1) / 255)) for x in images[:MAX_PICTURES]],
    )
