"""What an Omni makes of documents that it has not seen: up to their last segment, which it then writes or paints."""

from collections.abc import Iterable
from html import escape
from typing import Any

import torch
from torch import Tensor

from ..core.types import Document, Segment
from ..errors import NextEmbedError
from .multimodal import DocumentRun, documents_of
from .pictures import data_uri
from .view import looking

NUM_EACH = 12
MAX_LATENTS = 32  # of text
NUM_FRAMES = 4  # shown of a video


def answered(run: DocumentRun) -> str:
    """Texts and pictures that the model makes, beside the true ones; empty where its modalities are others."""
    try:
        with looking(run.dir):
            found, split = answers(run)
    except NextEmbedError as err:
        return f'<p class="note">There are no generated samples: {escape(str(err))}.</p>'
    text = (
        f'<p class="soft">Documents of the {escape(split)} split, up to their last segment; the likeliest latent each '
        "time.</p>"
    )
    sections: Any = (
        ("Generated text", text + '<p class="soft">Green: exactly the true text.</p>', written_card),
        ("Generated images", text + '<p class="soft">Left: generated; right: true.</p>', painted_card),
    )
    out = ""
    for (title, note, card), rows in zip(sections, found):
        if rows:
            out += f'<h2>{title}</h2>{note}<div class="spoken">{"".join(card(*row) for row in rows)}</div>'
    return out


Row = tuple[list[Segment], Any, Any]  # what is read, what is made, what is true


def answers(run: DocumentRun) -> tuple[tuple[list[Row], list[Row]], str]:
    """Of some documents of the run: (with texts made, with pictures made), and their split."""
    model: Any = run.model("raw")
    processor: Any = run.processor("raw")
    model.processor = processor
    documents, split = documents_of(run.source())
    kinds = {name: own.get("kind", name) for name, own in processor.modalities.items()}
    texts, images = choose(documents, kinds)
    return (made(model, texts, max_latents=MAX_LATENTS), made(model, images)), split


def choose(documents: Iterable[Document], kinds: dict[str, str]) -> tuple[list[Document], list[Document]]:
    """The first documents that end with text, and those that end with an image, behind something else."""
    found: dict[str, list[Document]] = {"text": [], "image": []}
    for document in documents:
        segments = document["segments"]
        kind = kinds.get(segments[-1]["kind"], "")
        if len(segments) > 1 and len(found.get(kind, [None] * NUM_EACH)) < NUM_EACH:
            found[kind].append(document)
        if all(len(part) == NUM_EACH for part in found.values()):
            break
    return found["text"], found["image"]


def made(model: Any, documents: list[Document], **options: Any) -> list[Row]:
    rows: list[Row] = []
    by_name: dict[str, list[Document]] = {}
    for document in documents:
        by_name.setdefault(document["segments"][-1]["kind"], []).append(document)
    for name, own in by_name.items():
        before = [document["segments"][:-1] for document in own]
        found = model.generate(before, target=name, **options)
        rows += [(b, one.value, d["segments"][-1]["value"]) for b, one, d in zip(before, found, own)]
    return rows


def written_card(before: list[Segment], value: str, true: str) -> str:
    said, true = value.strip(), true.strip()
    same = " same" if said == true else ""
    return (
        f'<div class="card">{shown(before)}<p class="said{same}">{escape(said) or "(nothing)"}</p>'
        f'<p class="soft">true: {escape(true)}</p></div>'
    )


def painted_card(before: list[Segment], value: Tensor, true: Tensor) -> str:
    return f'<div class="card">{shown(before)}{picture(value)}{picture(true)}</div>'


def shown(segments: list[Segment]) -> str:
    """What was read: pictures, then words; of other signals their names."""
    pictures, words = "", []
    for segment in segments:
        value = segment["value"]
        if isinstance(value, str):
            words.append(value.strip())
        elif isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim in (3, 4):
            frames = value if value.ndim == 4 else value[None]
            pictures += "".join(picture(frame) for frame in frames[:: max(1, len(frames) // NUM_FRAMES)][:NUM_FRAMES])
        else:
            words.append(f"({segment['kind']})")
    return f'{pictures}<p class="soft">{escape(" ".join(words)) or "&nbsp;"}</p>'


def picture(value: Tensor) -> str:
    """uint8 [C, H, W] as an image element."""
    pixels = value.expand(3, -1, -1) if value.shape[0] == 1 else value
    return f'<img alt="" src="{data_uri(pixels.permute(1, 2, 0).contiguous().numpy())}">'
