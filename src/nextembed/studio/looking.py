"""Looks inside a model on one image: computed once, then shown for any patch, layer and head."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..core.run_folder import find_saved
from ..core.types import AttentionMode, Backbone, Batch
from ..data.images import EvalSamples
from ..data.transforms import ImageReader, normalize, resize
from ..evaluation.features.encoder import Encoder
from ..models.loading import model_type
from ..models.omni.images import OmniImages
from ..report.figures import as_bytes, glow, photograph
from ..report.inside import Inside, Look, look_inside
from ..report.pictures import heat
from ..report.visualize import Opened, default_patch, eager, opened_model
from .pictures import address, tiles

NUM_BANK = 64  # images that are searched for near patches
NUM_NEAR = 12


@dataclass
class Looker:
    """The model. opened: a NEPA; omni: an Omni, of which less can be shown."""

    opened: Opened | None
    omni: OmniImages | None
    cannot: str

    @property
    def net(self) -> PreTrainedModel | OmniImages:
        """The network itself."""
        found = self.opened.net if self.opened is not None else self.omni
        assert found is not None
        return found


def open_looker(path: Path) -> Looker:
    """A NEPA, or an Omni that reads images. Raises ConfigError for any other model."""
    if model_type(find_saved(path).folder()) == "omni":
        encoder = Encoder(path)
        assert isinstance(encoder.trunk, OmniImages)
        return Looker(
            None, encoder.trunk, "For an Omni, attention maps and rollout are not available here; see Any to any."
        )
    return Looker(opened_model(path, find_saved(path).name_of(find_saved(path).folder())), None, "")


def pixels_of(looker: Looker, image: Image.Image) -> Tensor:
    """The picture as the model sees it, [1, C, S, S]."""
    config = looker.net.config
    whole = resize(ImageReader(config.num_channels).read(image), config.image_shape[0])
    mean, std = looker.opened.mean_std if looker.opened is not None else (0.5, 0.5)
    return normalize(whole, mean, std)[None]


def look(looker: Looker, pixels: Tensor, num_known: int | None = None) -> Inside:
    """All layers and heads on pixels [1, C, S, S]. num_known: patches that the rollout starts from."""
    if looker.omni is not None:
        return look_omni(looker.omni, pixels)
    assert looker.opened is not None
    net, mean_std = looker.opened.net, looker.opened.mean_std
    num = net.config.num_hidden_layers
    mode: AttentionMode = "causal" if net.config.is_causal else "full"
    with eager(net):
        how = Look(mode, range(num + 1), range(1, num + 1), num_known, (), "mean", looker.opened.read)
        return look_inside(net, pixels, *mean_std, how)


@torch.no_grad()
def look_omni(omni: OmniImages, pixels: Tensor) -> Inside:
    """Latents, predictions and features of a document of one image."""
    latents = omni.embed({"pixel_values": pixels})
    hidden = omni.encode(latents, "causal", output_layers=True)
    num = latents.z.shape[1] - 1
    side = round(num**0.5)
    images = (pixels * 0.5 + 0.5).clamp(0, 1)
    return Inside(
        images=images.expand(-1, 3, -1, -1), grid=(side, num // side), latents=latents.z[:, 1:].float(),
        predictions=hidden.last.float(), layers={i: one[:, 1:].float() for i, one in enumerate(hidden.layers)},
        attention={}, mode="causal", num_layers=len(hidden.layers) - 1, num_known=0,
    )  # fmt: skip


def query(inside: Inside, patch: int | None) -> int:
    """The query patch; None takes one with high contrast."""
    return default_patch(inside) if patch is None else max(0, min(patch, inside.num_patches - 1))


def clickable(inside: Inside, patch: int) -> str:
    """The image with a button on each patch: mouse, finger, Tab and arrow keys."""
    rows, columns = inside.grid
    buttons = "".join(
        f'<button type="button" data-send="patch" data-value="{number}" data-key="p{number}" '
        f'tabindex="{0 if number == patch else -1}" aria-label="row {number // columns + 1}, column '
        f'{number % columns + 1}" class="{"query" if number == patch else "next" if number == patch + 1 else ""}">'
        "</button>"
        for number in range(inside.num_patches)
    )
    return (
        f'<div class="patches" data-columns="{columns}" style="--columns:{columns};--ratio:{columns}/{rows}">'
        f'<img alt="the image" src="{address(photograph(inside.images[0]))}"><div>{buttons}</div></div>'
        f'<p class="line">Patch {patch} of {inside.num_patches}: click another, or move with the arrow keys. Dashed: '
        "the query; orange: the next patch.</p>"
    )


def maps(inside: Inside, patch: int, layer: int, head: int, foreground: bool = False) -> str:
    """Attention, similarity of the prediction, surprise and PCA as a grid of pictures."""
    found = []
    layer = max(0, min(layer, inside.num_layers))
    if layer in inside.attention:
        weights = inside.attention[layer][0]
        row = (weights.mean(0) if head < 1 else weights[min(head, len(weights)) - 1])[patch + 1]
        shown = glow(inside.images[0], heat(row[1:], inside.grid, low=0.0, cmap="inferno"))
        who = "all heads" if head < 1 else f"head {head}"
        found.append((shown, "attention", f"layer {layer}, {who}; begin token {row[0]:.0%}"))
    cosines = inside.cosines(patch)
    found.append((heat(cosines, inside.grid), "prediction", f"cosine {cosines.min():.2f} to {cosines.max():.2f}"))
    surprise = glow(inside.images[0], heat(inside.surprise[0], inside.grid, low=0.0, cmap="inferno"))
    found.append((surprise, "surprise", f"mean {inside.surprise[0].mean():.3f}"))
    features = F.normalize(inside.layers[layer][0], dim=-1)
    alike = features @ features[patch]
    found.append((heat(alike, inside.grid), "similarity", f"of features, layer {layer}"))
    colours = as_bytes(inside.colours(layer, foreground)[0].view(*inside.grid, 3).numpy())
    found.append((colours, "PCA", f"layer {layer}"))
    return f'<div class="large">{tiles(found)}</div>' + "".join(
        f'<p class="line">{escape(note)}</p>' for note in inside.notes
    )


def rollout(inside: Inside) -> str:
    """Given patches, and the rest as the model predicts it."""
    found = [(photograph(one.rollout[0]), "rollout", one.name) for one in inside.readouts if one.rollout is not None]
    predicted = [(photograph(one.predicted[0]), "predicted", one.name) for one in inside.readouts]
    if not found:
        return '<p class="line">No rollout for this model.</p>'
    image = (photograph(inside.images[0]), "image", "")
    known = f"{inside.num_known} of {inside.num_patches} patches are given"
    return f'<p class="line">{known}.</p><div class="large">{tiles([image, *found, *predicted])}</div>'


@torch.no_grad()
def near_patches(looker: Looker, samples: EvalSamples, inside: Inside, patch: int, layer: int) -> str:
    """Patches of other images whose features are nearest to the query's, with what surrounds them."""
    num = min(NUM_BANK, len(samples))
    pixels = torch.stack([samples[i]["pixel_values"] for i in range(num)])
    backbone = cast(Backbone, looker.net)
    batch: Batch = {"pixel_values": pixels}
    hidden = backbone.encode(backbone.embed(batch), inside.mode, output_layers=True)
    features = F.normalize(hidden.layers[layer][:, 1:].float(), dim=-1)  # [N, P, D]
    cosines = features @ F.normalize(inside.layers[layer][0, patch], dim=-1)
    best = cosines.flatten().topk(min(NUM_NEAR, cosines.numel()))
    mean, std = looker.opened.mean_std if looker.opened is not None else (0.5, 0.5)
    images = (pixels * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)
    height, width = images.shape[-2] // inside.grid[0], images.shape[-1] // inside.grid[1]
    found = []
    for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        image, number = divmod(place, inside.num_patches)
        top, left = number // inside.grid[1] * height, number % inside.grid[1] * width
        around = images[image, :, max(0, top - height) : top + 2 * height, max(0, left - width) : left + 2 * width]
        found.append((photograph(around), f"{value:.3f}", f"image {image}, patch {number}"))
    return f'<p class="line">Nearest among {num} images, layer {layer}.</p>{tiles(found)}'
