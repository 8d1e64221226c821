"""Sections of the report on what happens inside: surprise, PCA of features, latents as pixels, rollout."""

from collections.abc import Sequence
from html import escape

import numpy as np
from torch import Tensor

from .inside import Inside
from .pictures import Tiles, data_uri, heat, to_array
from .readouts import psnr

Columns = list[tuple[str, list[str]]]  # a heading, and one tile for each image


def inside_sections(inside: Inside | None, numbers: Sequence[int], tiles: Tiles) -> str:
    """All of them; empty without an `Inside`. numbers: its images among those of the tiles."""
    if inside is None:
        return ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in inside.notes)
    return _surprise(inside, numbers, tiles) + _pixels(inside, numbers, tiles, notes) + _rollout(inside, numbers, tiles)


PCA = (
    "PCA: the first three principal components of the patches' features, over these images together, "
    "as red, green and blue: patches of the same colour have similar features."
)


def _surprise(inside: Inside, numbers: Sequence[int], tiles: Tiles) -> str:
    top = max(inside.surprise.max().item(), 1e-6)
    maps = []
    for i, number in enumerate(numbers):
        # One scale for all images: the colours are those of values from 0 to the greatest of them.
        scaled = heat(inside.surprise[i], inside.grid, low=0.0, high=top, cmap="inferno")
        mean = f"surprise, mean {inside.surprise[i].mean():.2f}"
        maps.append(tiles.tile(number, scaled, dim=True, label=mean))
    image, *layers = components(inside, numbers, tiles)
    columns = [image, ("surprise", maps), *layers]
    when = "before it was read" if inside.mode == "causal" else "of it, which under full attention has seen it"
    return (
        "<h2>Surprise and features</h2>"
        f'<p class="soft">Surprise: 1 - cosine of each patch with the prediction made {when} '
        f'(<span class="ramp inferno"></span> 0 to {top:.2f}, the same for all images; the mean is '
        f"{inside.surprise.mean():.3f}, which is 1 + NEPA's loss). {PCA}</p>{_cards(columns, len(numbers))}"
    )


def feature_section(inside: Inside | None, numbers: Sequence[int], tiles: Tiles) -> str:
    """The features of a model that does not predict latents."""
    if inside is None:
        return ""
    columns = components(inside, numbers, tiles)
    return f'<h2>Features</h2><p class="soft">{PCA}</p>{_cards(columns, len(numbers))}'


def components(inside: Inside, numbers: Sequence[int], tiles: Tiles) -> Columns:
    """Images, and the principal components of each layer as colours."""
    columns = [("image", [tiles.tile(number, label="image") for number in numbers])]
    names = {0: "PCA, latents", inside.num_layers: "PCA, output"}
    for layer in inside.layers:
        colours = (inside.colours(layer).view(-1, *inside.grid, 3) * 255).round().byte().numpy()
        found = [tiles.tile(None, overlay=opaque(picture), label="PCA") for picture in colours]
        columns.append((names.get(layer, f"PCA, layer {layer}"), found))
    return columns


def _pixels(inside: Inside, numbers: Sequence[int], tiles: Tiles, notes: str) -> str:
    if not inside.readouts:
        return notes
    columns = [("image", [tiles.tile(number, label="image") for number in numbers])]
    for readout in inside.readouts:
        for words, found in (("latents", readout.true), ("predictions", readout.predicted)):
            if found is not None:
                columns.append((f"{words}, {readout.name}", pictures(found, words)))
    lines = []
    for readout in inside.readouts:
        figures = [
            f"{words} {decibels(psnr(inside.images, found).mean().item())}"
            for words, found in (("latents", readout.true), ("predictions", readout.predicted))
            if found is not None
        ]
        lines.append(f"<li>{escape(readout.note)} PSNR: {escape(', '.join(figures))}.</li>")
    seen = (
        "each patch is predicted from the true patches before it"
        if inside.mode == "causal"
        else "under full attention the model has seen what it predicts"
    )
    return (
        '<h2>Latents as pixels</h2><p class="soft">Pixels decoded from the latents of an image, and from '
        f"the predictions; {seen}.</p>{notes}{_cards(columns, len(numbers))}<ul "
        f'class="soft">{"".join(lines)}</ul>'
    )


def _rollout(inside: Inside, numbers: Sequence[int], tiles: Tiles) -> str:
    shown = [readout for readout in inside.readouts if readout.rollout is not None]
    if not shown:
        return ""
    known = [tiles.tile(number, hide_from=inside.num_known, label="what is given") for number in numbers]
    columns = [("given", known)]
    for readout in shown:
        assert readout.rollout is not None
        columns.append((f"the rest, {readout.name}", pictures(readout.rollout, "rollout")))
    columns.append(("image", [tiles.tile(number, label="image") for number in numbers]))
    return (
        "<h2>Rollout</h2>"
        f'<p class="soft">The model is given {inside.num_known} of {inside.num_patches} patches and continues on '
        "its own: each prediction is fed back, at the mean length of the given latents, as the latent that the next "
        f"one is predicted from.</p>{_cards(columns, len(numbers))}"
    )


def _cards(columns: Columns, num: int) -> str:
    """A table of tiles, one row an image, in two cards side by side where there are few columns."""
    style = f"grid-template-columns: repeat({len(columns)}, minmax(62px, 1fr)); min-width: {70 * len(columns)}px"
    head = "".join(f'<span class="name">{escape(name)}</span>' for name, _ in columns)
    half = -(-num // 2)
    cards = ""
    for rows in (range(half), range(half, num)):
        if rows:
            tiles = "".join(found[row] for row in rows for _, found in columns)
            cards += f'<div class="card scroll"><div class="inside" style="{style}">{head}{tiles}</div></div>'
    return f'<div class="two">{cards}</div>'


def decibels(value: float) -> str:
    return "exact" if value > 99.9 else f"{value:.1f} dB"


def pictures(images: Tensor, label: str) -> list[str]:
    """[N, 3, H, W] in [0, 1] as elements of the page."""
    return [f'<img class="read" alt="{escape(label)}" src="{data_uri(to_array(image))}">' for image in images]


def opaque(pixels: np.ndarray) -> np.ndarray:
    """uint8 [rows, columns, 3] -> [rows, columns, 4]."""
    return np.concatenate((pixels, np.full((*pixels.shape[:2], 1), 255, np.uint8)), axis=-1)
