"""Sections of generative runs: reconstructions of a tokenizer, and samples of an objective."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor

from ..core.files import first_line
from ..core.objective import Objective
from ..core.types import IGNORE_LABEL, Backbone
from ..errors import DataError
from ..nn.tokenizer import ImageTokenizer
from .pictures import data_uri, to_array

NUM_GIVEN_BACK = 8  # images
MOST_CLASSES, EACH = 10, 8  # rows of samples, and images in a row
WORK = 5e11  # weights times positions times images that a page may cost
MOST_STEPS = 6  # rows from training
MOST_IMAGES = 1000  # of a row


class Codes(NamedTuple):
    """Codes of images on one map: its side as text, number of used codes, and effective number (perplexity)."""

    side: str
    used: int
    perplexity: float


class GivenBack(NamedTuple):
    """images [N, C, H, W] in [0, 1]; back: the same after each map; shares [K]: of each code; psnr: dB, of all."""

    images: Tensor
    back: list[Tensor]
    codes: list[Codes]
    shares: Tensor
    psnr: float


@torch.no_grad()
def give_back(tokenizer: ImageTokenizer, pixels: Tensor, mean: float, std: float) -> GivenBack:
    """Reconstructions by a tokenizer of images [N, C, H, W], normalised by mean and std: with one map, with two, ..."""
    ids, sizes = tokenizer.encode(pixels), tokenizer.quantizer.sizes
    counts = [part.flatten().bincount(minlength=tokenizer.shape.num_codes) for part in ids.split(sizes, 1)]
    codes = [
        Codes(f"{rows} x {columns}", int((count > 0).sum()), perplexity(count))
        for (rows, columns), count in zip(tokenizer.shape.maps, counts, strict=True)
    ]
    total = torch.stack(counts).sum(0)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    error = (tokenizer.decode(ids) - pixels).square().mean()
    few = torch.arange(min(NUM_GIVEN_BACK, len(pixels))) * len(pixels) // min(NUM_GIVEN_BACK, len(pixels))
    back = [plain(tokenizer.decode(ids[few, :end]), mean, std) for end in ends]
    psnr = float(10 * torch.log10(4 / error.clamp(min=1e-10)))
    return GivenBack(plain(pixels[few], mean, std), back, codes, total / total.sum(), psnr)


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of counts [K]."""
    return float(torch.special.entr(counts / counts.sum()).sum().exp())


def plain(pixels: Tensor, mean: float, std: float) -> Tensor:
    """Normalised pixels in [0, 1]."""
    return (pixels.float().cpu() * std + mean).clamp(0, 1)


def reconstructions(found: GivenBack, split: str) -> str:
    """Images with their reconstructions, and how often each code is used."""
    named = [("image", found.images)]
    several = len(found.back) > 1
    for code, images in zip(found.codes, found.back, strict=True):
        named.append((f"{'up to ' * several}{code.side}", images))
    total, num = perplexity(found.shares), len(found.shares)
    rows = "".join(
        f"<tr><td>{code.side}</td><td>{code.used:,}</td><td>{code.perplexity:.1f}</td></tr>" for code in found.codes
    )
    used = int((found.shares > 0).sum())
    rows += f"<tr><td>all</td><td>{used:,}</td><td>{total:.1f}</td></tr>" if several else ""
    return (
        f'<h2>Reconstructed images</h2><p class="soft">Images of the {escape(split)} data, and below them their '
        f"reconstructions from codes{', with an increasing number of maps' * several}. PSNR "
        f"{found.psnr:.1f} dB, for pixels in [-1, 1].</p>"
        f'<div class="card scroll">{grid(named)}</div>'
        '<h2>Codes in use</h2><div class="two">'
        f'<div class="card">{histogram(found.shares)}<p class="soft">Share of each of the {num:,} codes, the most '
        "frequent first; the line: uniform use.</p></div>"
        '<div class="card"><table><tr><th>map</th><th>codes used</th><th>by entropy</th></tr>'
        f'{rows}</table><p class="soft">By entropy: the number of equally used codes with the same entropy.'
        "</p></div></div>"
    )


def histogram(shares: Tensor) -> str:
    """Shares [K], sorted, as bars."""
    values = shares.sort(descending=True).values.tolist()
    top, width = max(values[0], 1e-9), 600 / len(values)
    bars = "".join(
        f'<rect x="{i * width:.2f}" y="{180 - 180 * value / top:.2f}" width="{max(width * 0.85, 0.3):.2f}" '
        f'height="{180 * value / top:.2f}"/>'
        for i, value in enumerate(values)
        if value > 0
    )
    even = 180 - 180 / len(values) / top
    return (
        '<svg class="scale" viewBox="0 -14 600 196" role="img" aria-label="share of each code">'
        f'<text x="0" y="-3">{100 * values[0]:.1f} %</text><g class="top">{bars}</g>'
        f'<line class="guess" x1="0" x2="600" y1="{even:.1f}" y2="{even:.1f}"/></svg>'
    )


def grid(named: Sequence[tuple[str, Tensor]]) -> str:
    """Rows of images [N, C, H, W] in [0, 1], each with its name."""
    columns = max(len(images) for _, images in named)
    cells = ""
    for name, images in named:
        uris = [data_uri(to_array(one.expand(3, -1, -1))) for one in images]
        shown = "".join(f'<img class="read" alt="{escape(name)}" src="{uri}">' for uri in uris)
        cells += f'<span class="name side">{escape(name)}</span>{shown}' + "<span></span>" * (columns - len(images))
    style = f"grid-template-columns: minmax(70px, 110px) repeat({columns}, minmax(40px, 96px))"
    return f'<div class="inside" style="{style}">{cells}</div>'


def draw_rows(
    objective: Objective, backbone: Backbone, class_names: Sequence[str], mean: float, std: float
) -> list[tuple[str, Tensor]]:
    """Images of each class, ten at most, or without a class; fewer where the model is large."""
    cost = sum(parameter.numel() for parameter in cast(torch.nn.Module, backbone).parameters())
    height, width = backbone.config.image_shape
    cost *= (height // backbone.config.patch_shape[0]) * (width // backbone.config.patch_shape[1])
    num = min(MOST_CLASSES, objective.num_classes) or 3
    each = int(max(2, min(EACH, WORK / cost / num)))
    labels = torch.arange(num) if objective.num_classes else torch.full((num,), IGNORE_LABEL)
    device = next(objective.parameters()).device
    told = labels.repeat_interleave(each).to(device)
    drawn = plain(objective.sample(backbone, {"labels": told}, None, torch.Generator().manual_seed(0)), mean, std)
    names = [class_names[i] if i < len(class_names) else str(i) for i in range(num)]
    return list(zip(names if objective.num_classes else [""] * num, drawn.split(each), strict=True))


def samples(rows: Sequence[tuple[str, Tensor]], trained: Sequence[tuple[str, Tensor]]) -> str:
    """What is drawn. trained: rows that were drawn in training, by step."""
    more = ""
    if len(trained) > 1:
        more = (
            '<h2>Samples in training</h2><p class="soft">Samples after so many steps from the same seed, '
            f'with the raw (not averaged) weights.</p><div class="card scroll">{grid(trained)}</div>'
        )
    return (
        '<h2>Samples</h2><p class="soft">New images, drawn without guidance and at temperature 1; '
        "<code>nextembed sample</code> draws others, <code>nextembed evaluate --task samples</code> measures them.</p>"
        f'<div class="card scroll">{grid(rows)}</div>{more}'
    )


def from_training(folder: Path, size: tuple[int, int]) -> list[tuple[str, Tensor]]:
    """Rows of images of a size (height, width) that were drawn at some steps, evenly spread.

    Raises DataError for a file that is no such row.
    """
    files = sorted(file for file in folder.glob("step-*.png") if file.is_file())
    chosen = sorted({round(i * (len(files) - 1) / max(1, MOST_STEPS - 1)) for i in range(MOST_STEPS)}) if files else []
    found = []
    for number in chosen:
        try:
            with Image.open(files[number], formats=["PNG"]) as picture:
                shape = picture.height, picture.width, 3
                if shape[0] != size[0] or shape[1] % size[1] or shape[1] > MOST_IMAGES * size[1]:
                    raise DataError(f"{files[number]} does not contain images of {size[0]} x {size[1]} pixels")
                row = torch.tensor(list(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
            raise DataError(f"{files[number]} is not an image: {first_line(err)}") from None
        images = (row.view(shape).float() / 255).permute(2, 0, 1).split(size[1], 2)
        step = files[number].stem.removeprefix("step-").lstrip("0") or "0"
        found.append((f"step {int(step):,}" if step.isdecimal() else step, torch.stack(images)))
    return found
