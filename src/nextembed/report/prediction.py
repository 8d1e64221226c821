"""Sections of a pretraining run: predictions on real images, attention, and what happens inside."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..core.config import Part
from ..core.objective import ReadFeatures
from ..core.probe_table import TITLES
from ..core.types import AttentionMode, Role, reads_clips
from ..data.images import ImagePart
from ..errors import ConfigError, MissingSplit
from ..models.nepa import ViTNepaConfig
from ..objectives.latent_decoder import load_decoder
from .inside import Inside, Look, look_inside
from .inside_page import feature_section, inside_sections
from .page import head, percent, value_of, verdict_card
from .pictures import Scene, Tiles, build_scene, heat, neighbours, ranks, striking
from .view import RunView

KINDS = {
    "": "Next-embedding pretraining",
    "next_embedding": "Next-embedding pretraining",
    "latent_decoder": "Latent decoder",
    "tokenizer": "Image tokenizer",
    "llamagen": "Next-code pretraining (LlamaGen)",
    "var": "Next-scale pretraining (VAR)",
    "mar": "Masked autoregression (MAR)",
    "aim": "Next-patch pretraining (AIM)",
    "mae": "Masked autoencoder (MAE)",
    "igpt": "Next-token pretraining (iGPT)",
    "igpt_bert": "Masked-token pretraining (iGPT)",
    "beit": "Masked-token pretraining (BEiT)",
    "ijepa": "Joint-embedding prediction (I-JEPA)",
    "vjepa": "Joint-embedding prediction (V-JEPA)",
    "cpc": "Contrastive prediction (CPC)",
    "simsiam": "Joint embedding of crops (SimSiam)",
    "lejepa": "Joint embedding of crops (LeJEPA)",
}
NEXT_LATENT = ("", "next_embedding")  # objectives whose hidden states are predictions of the next input latent
GENERATIVE = ("llamagen", "var", "mar")  # whose hidden states are no predictions of the latents of an image's pixels
NUM_IMAGES = 128  # drawn from validation: the pool in which patches are looked up
NUM_INSIDE = 4  # of which the inside is shown
NUM_SHOWN = 4  # with similarity maps
NUM_FOUND = 8  # with nearest patches


@dataclass
class Looked:
    """Results of a model on images of its data. inside_images: numbers of the scene's images that `inside` shows."""

    config: PretrainedConfig
    split: str
    scene: Scene
    inside: Inside | None = None
    inside_images: list[int] = field(default_factory=list)


def is_decoder(view: RunView) -> bool:
    """Whether the run trained a decoder on a frozen model."""
    return view.settings.objective.kind == "latent_decoder"


def look(
    model: PreTrainedModel,
    data: Part,
    causal: bool,
    decoders: Sequence[str | Path],
    read: ReadFeatures | None = None,
) -> Looked:
    """Runs a model on real images.

    Args:
        model: with eager attention, which alone gives its weights.
        data: the run's.
        causal: whether the run predicts in order.
        decoders: runs of the recipe latent_decoder, for latents as pixels.
        read: where features come from, see `Objective.read`; None: the model itself.

    Raises:
        ConfigError: the data gives no images.
    """
    if not isinstance(data, ImagePart):
        raise ConfigError(f"data of kind {data.kind} gives no images to look at")
    if reads_clips(model.config):
        raise ConfigError("the model reads clips, but pictures need an image model")
    pixels, split = images_of(data, model.config)
    scene = build_scene(model, pixels, data.mean, data.std, causal)
    looked = Looked(model.config, split, scene)
    looked.inside_images = scene.spread(NUM_INSIDE)
    loaded = [load_decoder(folder) for folder in decoders]
    mode: AttentionMode = "causal" if causal else "full"
    wanted = Look(mode, decoders=loaded, read=read)
    looked.inside = look_inside(model, pixels[looked.inside_images], data.mean, data.std, wanted)
    return looked


def is_causal(view: RunView, config: PretrainedConfig) -> bool:
    """Whether a run's model only sees earlier patches: by an objective that predicts the next latent, else by the saved
    model."""
    if view.settings.objective.kind in NEXT_LATENT or not isinstance(config, ViTNepaConfig):
        return view.settings.objective.causal
    return bool(config.is_causal)


def images_of(data: ImagePart, config: PretrainedConfig) -> tuple[Tensor, str]:
    """Images [N, C, S, S] of the validation split, or of the training split where there is no other."""
    sizes = {"image_size": config.image_shape[0], "num_channels": config.num_channels}
    split: Role = "validation"
    try:
        samples = data.eval_samples(split, num_samples=NUM_IMAGES, **sizes)
    except MissingSplit:
        split = "train"
        samples = data.eval_samples(split, num_samples=NUM_IMAGES, **sizes)
    return torch.stack([samples[i]["pixel_values"] for i in range(len(samples))]), split


def header(view: RunView, looked: Looked | None) -> str:
    """The verdict and the last figures. looked: results of the model, if it could be loaded."""
    last = view.last
    facts: list[tuple[str, str]] = []
    if "loss" in last:
        facts.append((f"{last['loss']:.4f}", "last loss"))
    if looked is not None:
        model = looked.config
        facts.append((f"{model.num_hidden_layers} x {model.hidden_size}", "layers x width"))
        size, patch = model.image_shape[0], model.patch_shape[0]
        facts.append((f"{size} / {patch} px", f"image / patch, {(size // patch) ** 2} patches"))
    if view.probes and (best := view.probes.best()):
        facts.append((percent(value_of(best)), f"best {TITLES[best.probe].lower()}"))
    task = KINDS.get(view.settings.objective.kind, "Pretraining")
    return head(
        view,
        f"{task} on {view.settings.data.source or view.settings.data.kind or 'its data'}",
        verdict_card(view),
        facts,
    )


def pictures(view: RunView, looked: Looked) -> str:
    """Predictions, their appearance, attention, and what happens inside."""
    if view.settings.objective.kind in GENERATIVE:
        return ""
    tiles = Tiles(looked.scene)
    inside = inside_sections(looked.inside, looked.inside_images, tiles)
    if is_decoder(view):  # its model is shown in the report of the run that trained it
        return tiles.definitions() + inside
    if view.settings.objective.kind in KINDS and view.settings.objective.kind not in NEXT_LATENT:
        return tiles.definitions() + _attention(tiles) + feature_section(looked.inside, looked.inside_images, tiles)
    parts = _similarity(tiles, looked.split) + _retrieval(tiles) + _attention(tiles) + inside
    target = view.settings.objective.target
    note = (
        ""
        if target == "latents"
        else f'<p class="note">This run predicts {escape(target)}, not the input latents; the pictures still '
        "compare its predictions with the input latents.</p>"
    )
    return tiles.definitions() + note + parts


def _similarity(tiles: Tiles, split: str) -> str:
    scene: Scene = tiles.scene
    cards = []
    for image in scene.spread(NUM_SHOWN):
        for patch in striking(scene, image):
            scores = scene.latents[image] @ scene.predictions[image, patch]
            place = 1 + int((scores > scores[patch]).sum())
            marks = [("current", patch - 1), ("next", patch)]
            cards.append(
                '<div class="card"><div class="pair">'
                + tiles.tile(image, hide_from=patch, marks=marks, label="what was read")
                + tiles.tile(None, overlay=heat(scores, scene.grid), marks=marks, label="similarity")
                + f"</div><p>Next patch: {_nth(place)} nearest of {scene.num_patches}, cosine {scores[patch]:.2f}; "
                f"current {scores[patch - 1]:.2f}, greatest {scores.max():.2f}.</p></div>"
            )
    found = ranks(scene)
    return (
        "<h2>Predictions</h2>"
        '<p class="soft">Left: the patches that the model has read; the rest is veiled. Right: cosine of its '
        "prediction with the latent of every patch of the image, also those it has not read "
        '(<span class="ramp viridis"></span> low to '
        'high, each map on its own scale). <span class="key next"></span> the true next patch, '
        f'<span class="key current"></span> the current one. Images are from the {escape(split)} data; in each '
        "third of an image, the patch with the most contrast is shown.</p>"
        f"<p>Over {found.num_predictions:,} predictions in {len(scene.images)} images (flat patches left out), the "
        f"nearest patch of the image is the true next one in <b>{percent(found.hit)}</b> (guessing: "
        f"{percent(found.chance)}) and the current one in <b>{percent(found.copy)}</b>; the true one is "
        f"{_nth(round(found.median))} nearest of {scene.num_patches} in the median.</p>"
        f'<div class="strips">{"".join(cards)}</div>'
    )


def _retrieval(tiles: Tiles) -> str:
    scene = tiles.scene
    rows = []
    for number, image in enumerate(scene.spread(NUM_FOUND)):
        patches = striking(scene, image)
        patch = patches[number % len(patches)] if patches else 0
        found = neighbours(scene, image, patch)
        if patch and found:
            rows.append(
                tiles.tile(image, hide_from=patch, marks=[("next", patch)], label="what was read")
                + tiles.patch(image, patch, "true next patch", "true")
                + "<span></span>"
                + "".join(tiles.patch(*place, "nearest patch") for place in found)
                + "<span></span>" * (6 - len(found))
            )
    if not rows:
        return ""
    head = '<span class="name">read</span><span class="name">true next</span><span></span>'
    head += '<span class="name wide">nearest to the prediction</span>'
    half = -(-len(rows) // 2)
    cards = "".join(
        f'<div class="card scroll"><div class="found">{head}{"".join(part)}</div></div>'
        for part in (rows[:half], rows[half:])
        if part
    )
    return (
        "<h2>Nearest patches to the predictions</h2>"
        f'<p class="soft">A prediction is a latent, not an image. These are the patches of '
        f"{len(scene.images) - 1:,} other images whose latents are nearest to it, "
        "nearest first; patches that look exactly alike are shown once.</p>"
        f'<div class="two">{cards}</div>'
    )


def _attention(tiles: Tiles) -> str:
    scene = tiles.scene
    if not scene.attention:
        return ""
    maps = next(iter(scene.attention.values()))
    layers = list(dict.fromkeys([0, len(maps) // 2, len(maps) - 1]))
    shown = range(min(3, len(maps[0])))
    width = f"minmax(84px, 1.4fr) repeat({len(layers) * len(shown)}, minmax(46px, 1fr))"
    head = "<span></span>" + "".join(
        f'<span class="name" style="grid-column: span {len(shown)}">layer {layer + 1}, heads 1-{len(shown)}</span>'
        for layer in layers
    )
    cells = ""
    for image, maps in scene.attention.items():
        for patch in striking(scene, image, 2):
            cells += tiles.tile(image, marks=[("query", patch)], label="where attention is read")
            for layer in layers:
                for number in shown:
                    weights = maps[layer][number, patch + 1, 1:]  # the begin token is left out
                    overlay = heat(weights, scene.grid, low=0.0, cmap="inferno")
                    cells += tiles.tile(image, overlay, dim=True, marks=[("query", patch)], label="attention")
    return (
        "<h2>Attention maps</h2>"
        '<p class="soft">Attention weights of one patch (<span class="key query"></span>) to all patches, for some '
        'layers and heads (<span class="ramp inferno"></span> none to most, each map on its own scale; the begin '
        "token is left out). Under causal attention a patch sees itself and what comes before it.</p>"
        '<div class="card scroll">'
        f'<div class="attention" style="grid-template-columns: {width}">{head}{cells}</div></div>'
    )


def _nth(place: int) -> str:
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"
