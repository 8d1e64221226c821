"""Output of an Omni on unseen documents: it reads all but the last segment and generates that."""

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.answers import Answer, Answers
from ..core.types import Document, Segment
from ..errors import NextEmbedError
from .multimodal import DocumentRun, documents_of
from .pictures import data_uri
from .view import looking

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NUM_EACH = 12
MAX_LATENTS = 32  # of text
NUM_FRAMES = 4  # shown of a video


def answered(run: DocumentRun) -> str:
    """Pictures that the model generates, next to the true ones; empty without such modalities."""
    try:
        with looking(run.dir):
            model, documents, split = opened(run)
            rows = made(model, documents[1])
    except NextEmbedError as err:
        return f'<p class="note">There are no generated images: {escape(str(err))}.</p>'
    if not rows:
        return ""
    cards = "".join(painted_card(*row) for row in rows)
    return (
        f'<h2>Generated images</h2><p class="soft">Documents of the {escape(split)} split, up to their last segment; '
        f'the likeliest latent each time. Left: generated; right: true.</p><div class="spoken">{cards}</div>'
    )


Row = tuple[list[Segment], Any, Any]  # context, output, target


def written(run: DocumentRun) -> Answers:
    """The texts that the model writes. Raises ConfigError where it cannot be run on documents of its data."""
    with looking(run.dir):
        model, documents, split = opened(run)
        rows = made(model, documents[0], max_latents=MAX_LATENTS)
    found: dict[object, Answer] = {}
    for number, (before, value, true) in enumerate(rows):
        read = tuple(str(one["value"]) if one["kind"] == "text" else number for one in before)  # texts may be the same
        pictures = [data_uri(pixels(frame)) for frame in frames(before)]
        found.setdefault(read, Answer(words(before), value.strip(), true.strip(), pictures))
    return Answers(split, list(found.values()), "omni")


def opened(run: DocumentRun) -> tuple[Any, tuple[list[Document], list[Document]], str]:
    """The model; some documents of the run that end with text, and with an image; and their split."""
    model: Any = run.model("raw")
    processor: Any = run.processor("raw")
    model.processor = processor
    documents, split = documents_of(run.source())
    kinds = {name: own.get("kind", name) for name, own in processor.modalities.items()}
    return model, choose(documents, kinds), split


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


def painted_card(before: list[Segment], value: Tensor, true: Tensor) -> str:
    return f'<div class="card">{shown(before)}{picture(value)}{picture(true)}</div>'


def shown(segments: list[Segment]) -> str:
    """The context: pictures, then text."""
    pictures = "".join(picture(frame) for frame in frames(segments))
    return f'{pictures}<p class="soft">{escape(words(segments)) or "&nbsp;"}</p>'


def words(segments: list[Segment]) -> str:
    """The texts that were read; of signals that are neither text nor pictures their names."""
    found = []
    for segment in segments:
        value = segment["value"]
        if isinstance(value, str):
            found.append(value.strip())
        elif not is_picture(value):
            found.append(f"({segment['kind']})")
    return " ".join(found)


def frames(segments: list[Segment]) -> list[Tensor]:
    """The pictures that were read, uint8 [C, H, W]; a few frames of each video."""
    found: list[Tensor] = []
    for segment in segments:
        value = segment["value"]
        if isinstance(value, Tensor) and is_picture(value):
            own = value if value.ndim == 4 else value[None]
            found += list(own[:: max(1, len(own) // NUM_FRAMES)][:NUM_FRAMES])
    return found


def is_picture(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim in (3, 4)


def pixels(value: Tensor) -> "NDArray[np.uint8]":
    """uint8 [C, H, W] as [H, W, 3]."""
    return (value.expand(3, -1, -1) if value.shape[0] == 1 else value).permute(1, 2, 0).contiguous().numpy()


def picture(value: Tensor) -> str:
    """uint8 [C, H, W] as an image element."""
    return f'<img alt="" src="{data_uri(pixels(value))}">'
