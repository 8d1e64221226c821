"""Any modality in, any out: documents of an Omni from uploads, samples of what comes next, and scores."""

import secrets
from collections import Counter
from collections.abc import Sequence
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
from .uploads import checked, read_frames, read_pixels
from .working import Work

FILES = [suffix for kind in SUFFIXES.values() for suffix in kind]
OTHERS = ("text", "image", "video")  # kinds that are not plotted
MOST_POINTS = 1000  # of a curve
ALIKE = "All samples are identical: only a model with a density (model.density) can sample anything but text."
SHOWN = 24  # series in the plot


class Sampled(NamedTuple):
    """One sample of what comes next. kind: of its modality."""

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
            raise DataError(f"{path.name}: unsupported file type")
        found.append({name_of(kind, kinds): read_limited(kind, path, settings)})
    if not found:
        raise ConfigError("enter text, draw, record or upload a file first")
    return found


def read_limited(kind: str, path: Path, settings: StudioSettings) -> object:
    """The signal of a file, within the studio's limits. Raises DataError for what cannot be read."""
    if kind == "image":
        return read_pixels(str(path), settings)
    if kind == "video":
        return read_frames(path, settings)
    piece = read_signal(kind, path)
    return next(iter(piece.values())) if isinstance(piece, dict) else piece


def samples(
    model: OmniForPreTraining, pieces: list[Piece], target: str | None, num: int, options: dict[str, float],
    work: Work[list[Sampled]],
) -> None:  # fmt: skip
    """Shows what may come next, one sample more each time. Raises ConfigError for what the model cannot do."""
    kinds, found = kinds_of(model), list[Sampled]()
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
                on_latent=work.check,
            )
        except ValueError as err:
            raise ConfigError(str(err).splitlines()[0]) from None
        if made is not None:
            found.append(Sampled(made.kind, kinds[made.kind], made.value))
        work.show(list(found))


def shown(found: Sequence[Sampled]) -> str:
    """All samples: texts with how often each came, images with their mean and standard deviation."""
    if not found:
        return '<p class="line">The model ends the document here: nothing follows.</p>'
    parts = []
    if texts := [str(one.value) for one in found if one.kind == "text"]:
        parts.append(
            bars([(text, count / len(texts)) for text, count in Counter(texts).most_common()], "Share of the samples")
        )
    films = [one.value for one in found if one.kind == "video" and isinstance(one.value, Tensor)]
    pictures = [one.value for one in found if one.kind == "image" and isinstance(one.value, Tensor)]
    pictures += [film[0] for film in films]
    if films:
        parts.append('<p class="line">First frames:</p>')
    boxes = [(picture(one), f"sample {number + 1}", "") for number, one in enumerate(pictures)]
    if len(pictures) > 1:
        stack = torch.stack(pictures).float()
        boxes.append((picture(stack.mean(0).round().byte()), "mean", ""))
        spread = stack.std(0).mean(0)
        wide = (spread / spread.max().clamp(min=1) * 255).byte().expand(3, -1, -1)
        boxes.append((picture(wide), "uncertainty", f"standard deviation, at most {spread.max():.0f} of 255"))
        if not spread.any():
            parts.append(f'<p class="line">{ALIKE}</p>')
    if boxes:
        parts.append(f'<div class="large">{tiles(boxes)}</div>')
    return "".join(parts)


def series(found: Sequence[Sampled]) -> list[Drawn]:
    """Sampled series over each other: where they diverge, the model is uncertain."""
    own = [one for one in found if one.kind not in OTHERS and isinstance(one.value, Tensor)]
    traces: list[Trace] = []
    for number, one in enumerate(own[:SHOWN]):
        assert isinstance(one.value, Tensor)
        every = max(1, one.value.shape[-1] // MOST_POINTS)
        channels = one.value.reshape(-1, one.value.shape[-1])[:8, ::every].tolist()
        for channel, values in enumerate(channels):
            name = f"sample {number + 1}" + f", channel {channel + 1}" * (len(channels) > 1)
            steps = [float(i * every) for i in range(len(values))]
            dash = "dot" if channel else "solid"
            traces.append(Trace(name=name, x=steps, y=values, colour=number, dash=dash, error=[]))
    if not traces:
        return []
    y = [value for trace in traces for value in trace["y"]]
    room = 0.06 * (max(y) - min(y)) or 1.0
    ends = [0.0, max(trace["x"][-1] for trace in traces) or 1.0]
    return [Drawn(title="Samples", text="Samples overlaid: where they diverge, the model is uncertain.",
                  percent=False, zero=False, ends=ends, limits=[min(y) - room, max(y) + room], x_title="step",
                  traces=traces)]  # fmt: skip


def written(found: Sequence[Sampled], kind: str, ending: str, folder: Path) -> str | None:
    """The first sound or video, as a file to be played; None where there is none."""
    own = next((one for one in found if one.kind == kind), None)
    if own is None:
        return None
    file = folder / f"{secrets.token_hex(8)}{ending}"  # one for each user
    write_signal(kind, own.value, file)
    return str(file)


def scored(model: OmniForPreTraining, pieces: list[Piece], candidates: Sequence[str]) -> str:
    """Candidates by how well each continues the document, minus its score without one, as bars. Raises ConfigError for
    none."""
    name, words = name_of("text", kinds_of(model)), [one.strip() for one in candidates if one.strip()]
    if not words:
        raise ConfigError("enter candidates, one per line")
    try:
        scores = model.score(pieces, [{name: one} for one in words], against=[[]])
    except ValueError as err:
        raise ConfigError(str(err).splitlines()[0]) from None
    shares = scores.cpu().double().softmax(0).tolist()
    ranked = sorted(zip(words, shares, scores.tolist()), key=lambda one: -one[1])
    return bars(
        [(f"{word}  ({score:+.2f})", share) for word, share, score in ranked],
        "Probability among these candidates (score)",
    )


def bars(rows: Sequence[tuple[str, float]], what: str) -> str:
    """Shares as bars."""
    lines = "".join(
        f'<span>{escape(word) or "(empty)"}</span><div class="value"><div class="bar">'
        f'<i style="--w:{100 * share:.1f}%;--c:var(--c1)"></i></div><b>{100 * share:.1f} %</b></div>'
        for word, share in rows
    )
    return f'<div class="card"><p class="line">{escape(what)}</p><div class="bars">{lines}</div></div>'
