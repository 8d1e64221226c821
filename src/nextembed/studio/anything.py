"""Any modality in, any out: documents for an Omni from the inputs, samples of the output, and scores."""

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..inference.generate import load_omni
from ..inference.signals import SUFFIXES, kind_of, picture, read_signal, write_signal
from ..models.omni import OmniForPreTraining
from ..models.omni.processing_omni import Piece
from .curves import Drawn, Trace
from .pictures import tiles
from .settings import StudioSettings
from .uploads import checked

FILES = [suffix for kind in SUFFIXES.values() for suffix in kind]
OTHERS = ("text", "image", "video", "audio")  # kinds other than series
ALIKE = "All samples are identical: only a model with a density (model.density) can sample anything but text."
SHOWN = 24  # series that are drawn


class Draw(NamedTuple):
    """One possible output. kind: of its modality."""

    name: str
    kind: str
    value: str | Tensor


def open_omni(path: Path) -> OmniForPreTraining:
    """Raises ConfigError for other models."""
    return load_omni(path)


def kinds_of(model: OmniForPreTraining) -> dict[str, str]:
    """The kind of each modality of a model."""
    return {name: str(settings.get("kind", name)) for name, settings in (model.config.modalities or {}).items()}


def name_of(kind: str, kinds: dict[str, str]) -> str:
    """The model's modality of a kind. Raises ConfigError where it has none."""
    found = next((name for name, own in kinds.items() if own == kind), None)
    if found is None:
        raise ConfigError(f"the model reads {', '.join(kinds)}, but not {kind}")
    return found


def pieces_of(
    model: OmniForPreTraining, text: str, drawing: np.ndarray | None, files: Sequence[str], settings: StudioSettings
) -> list[Piece]:
    """A document: the words, then the drawing, then the files. Raises ConfigError for an empty one, and for a modality
    that the model does not have; DataError for files that cannot be read."""
    kinds, found = kinds_of(model), list[Piece]()
    if text:
        found.append({name_of("text", kinds): text})
    if drawing is not None:
        rgb = torch.from_numpy(np.ascontiguousarray(drawing[..., :3])).permute(2, 0, 1)
        found.append({name_of("image", kinds): rgb})
    for file in files:
        path = checked(file, FILES, settings)
        kind = kind_of(path)
        if kind is None:
            raise DataError(f"{path.name}: no modality of this name")
        found.append(read_signal(kind, path, name_of(kind, kinds)))
    if not found:
        raise ConfigError("give some text, a drawing, a sound or a file")
    return found


def draws(
    model: OmniForPreTraining, pieces: list[Piece], target: str | None, num: int, options: dict[str, float]
) -> Iterator[list[Draw]]:
    """Samples of the output, one more each time. Raises ConfigError for an output that the model does not support."""
    kinds, found = kinds_of(model), list[Draw]()
    for number in range(num):
        try:
            made = model.generate(
                pieces,
                target,
                max_latents=int(options["max_latents"]),
                temperature=options["temperature"],
                top_k=int(options["top_k"]),
                guidance=options["guidance"],
                seed=int(options["seed"]) + number,
            )
        except ValueError as err:
            raise ConfigError(str(err).splitlines()[0]) from None
        if made is not None:
            found.append(Draw(made.kind, kinds[made.kind], made.value))
        yield found


def shown(found: Sequence[Draw]) -> str:
    """All samples: texts with their counts, pictures with the differences between them."""
    if not found:
        return '<p class="line">The model ends the document here.</p>'
    parts = []
    if texts := [str(one.value) for one in found if one.kind == "text"]:
        parts.append(
            bars([(text, count / len(texts)) for text, count in Counter(texts).most_common()], "of the samples")
        )
    pictures = [one.value for one in found if one.kind == "image" and isinstance(one.value, Tensor)]
    boxes = [(picture(one), f"draw {number + 1}", "") for number, one in enumerate(pictures)]
    if len(pictures) > 1:
        stack = torch.stack(pictures).float()
        boxes.append((picture(stack.mean(0).round().byte()), "mean", ""))
        spread = stack.std(0).mean(0)
        wide = (spread / spread.max().clamp(min=1) * 255).byte().expand(3, -1, -1)
        boxes.append((picture(wide), "uncertainty", f"spread up to {spread.max():.0f} of 255"))
        if not spread.any():
            parts.append(f'<p class="line">{ALIKE}</p>')
    if boxes:
        parts.append(f'<div class="large">{tiles(boxes)}</div>')
    return "".join(parts)


def series(found: Sequence[Draw]) -> list[Drawn]:
    """Sampled series, over each other: their spread is the uncertainty."""
    own = [
        one for one in found if one.kind not in ("text", "image", "video", "audio") and isinstance(one.value, Tensor)
    ]
    traces: list[Trace] = []
    for number, one in enumerate(own[:SHOWN]):
        assert isinstance(one.value, Tensor)
        for channel, values in enumerate(one.value.reshape(-1, one.value.shape[-1])[:8].tolist()):
            name, steps = f"sample {number + 1}, channel {channel + 1}", [float(i) for i in range(len(values))]
            dash = "dot" if channel else "solid"
            traces.append(Trace(name=name, x=steps, y=values, colour=number, dash=dash, error=[]))
    if not traces:
        return []
    y = [value for trace in traces for value in trace["y"]]
    room = 0.06 * (max(y) - min(y)) or 1.0
    ends = [0.0, max(trace["x"][-1] for trace in traces) or 1.0]
    return [Drawn(title="What comes next", text="Samples overlaid: where they diverge, the model is uncertain.",
                  percent=False, zero=False, ends=ends, limits=[min(y) - room, max(y) + room], x_title="step",
                  traces=traces)]  # fmt: skip


def written(found: Sequence[Draw], kind: str, ending: str, folder: Path) -> str | None:
    """The first sound or video, as a file to be played; None where there is none."""
    own = next((one for one in found if one.kind == kind), None)
    if own is None:
        return None
    file = folder / f"drawn{ending}"
    write_signal(kind, own.value, file)
    return str(file)


def scored(model: OmniForPreTraining, pieces: list[Piece], candidates: Sequence[str]) -> str:
    """Candidates by their score, minus the score without context, as bars. Raises ConfigError without candidates."""
    name, words = name_of("text", kinds_of(model)), [one.strip() for one in candidates if one.strip()]
    if not words:
        raise ConfigError("write candidates, one a line")
    try:
        scores = model.score(pieces, [{name: one} for one in words], against=[[]])
    except ValueError as err:
        raise ConfigError(str(err).splitlines()[0]) from None
    shares = scores.cpu().double().softmax(0).tolist()
    ranked = sorted(zip(words, shares, scores.tolist()), key=lambda one: -one[1])
    return bars([(f"{word}  ({score:+.2f})", share) for word, share, score in ranked], "among these")


def bars(rows: Sequence[tuple[str, float]], what: str) -> str:
    """Shares as bars."""
    lines = "".join(
        f'<span>{escape(word)}</span><div class="value"><div class="bar">'
        f'<i style="--w:{100 * share:.1f}%;--c:var(--c1)"></i></div><b>{100 * share:.1f} %</b></div>'
        for word, share in rows
    )
    return f'<div class="card"><p class="line">Share {escape(what)}</p><div class="bars">{lines}</div></div>'
