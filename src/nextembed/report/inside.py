"""What happens inside a model on given images: attention, cosine maps, surprise, PCA of features, pixels read back.

Patches are numbered in raster order, 0 first. `predictions[p]` is the prediction *of* patch p, made after reading the
patches before p; so a query (current) patch q has read itself and predicts patch q + 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..core.objective import ReadFeatures
from ..core.types import AttentionMode, Backbone, Batch
from ..errors import ConfigError
from ..nn.losses import negative_cosine
from ..objectives.latent_decoder import LoadedDecoder
from .readouts import Length, Readout, Sequences, read_out, roll_out


@dataclass
class Inside:
    """N images, with features and attention of a model of L layers and H heads.

    images [N, 3, height, width] in [0, 1]; grid: rows and columns of patches.
    latents [N, P, D]; predictions [N, P + 1, D]: number P follows the last patch. Both as they are, any length.
    layers: features [N, P, D] by layer (0: latents, L: output). attention: weights [N, H, P + 1, P + 1] by layer from
    1, position 0 being the begin token. num_known: patches that the rollout starts from. notes: sentences to be read
    with it.
    """

    images: Tensor
    grid: tuple[int, int]
    latents: Tensor
    predictions: Tensor
    layers: dict[int, Tensor]
    attention: dict[int, Tensor]
    mode: AttentionMode
    num_layers: int
    num_known: int
    readouts: list[Readout] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def surprise(self) -> Tensor:
        """1 - cosine of each patch's latent with its prediction, [N, P], in [0, 2]; its mean is 1 + NEPA's loss."""
        return 1 + negative_cosine(self.predictions[:, :-1], self.latents)

    def cosines(self, patch: int, image: int = 0) -> Tensor:
        """Cosine of what the query patch predicts with the latent of every patch, [P]."""
        return F.cosine_similarity(self.predictions[image, patch + 1, None], self.latents[image], dim=-1)

    def colours(self, layer: int, foreground: bool = False) -> Tensor:
        """The features of a layer as colours [N, P, 3]; see `pca_colours`."""
        return pca_colours(self.layers[layer], self.grid, foreground)


def pca_colours(features: Tensor, grid: tuple[int, int], foreground: bool = False) -> Tensor:
    """First three principal components of features [N, P, D], all images together, as red, green, blue in [0, 1].

    Each component spans the colours from its 1st to its 99th percentile; its sign is the one in which the largest
    loading is positive, so the same features give the same colours. foreground: the first component splits patches at
    its mean; the side that holds less of the images' borders is coloured by components of its own, the rest is white.
    """
    num, patches, _ = features.shape
    rows = features.detach().cpu().double().flatten(0, 1)  # [N * P, D]
    if not foreground:
        return _span(_components(rows)).view(num, patches, 3)
    rows_at, columns_at = torch.arange(patches) // grid[1], torch.arange(patches) % grid[1]
    border = (rows_at == 0) | (rows_at == grid[0] - 1) | (columns_at == 0) | (columns_at == grid[1] - 1)
    inside = _components(rows)[:, 0] > 0
    at_border = border.repeat(num)
    if inside[at_border].float().mean() > 0.5:
        inside = ~inside
    colours = torch.ones(num * patches, 3)
    if inside.sum() > 1:
        colours[inside] = _span(_components(rows[inside]))
    return colours.view(num, patches, 3)


def _components(rows: Tensor) -> Tensor:
    """Scores [R, 3] on the first three principal components of rows [R, D]; 0 where there are fewer."""
    rows = rows - rows.mean(0)
    _, _, vt = torch.linalg.svd(rows, full_matrices=False)
    vt = vt[:3]
    largest = vt.gather(1, vt.abs().argmax(1, keepdim=True))
    scores = rows @ (vt * torch.where(largest < 0, -1.0, 1.0)).T
    return F.pad(scores, (0, 3 - scores.shape[1]))


def _span(scores: Tensor) -> Tensor:
    low, high = (torch.quantile(scores, q, dim=0) for q in (0.01, 0.99))
    return ((scores - low) / (high - low).clamp(min=1e-9)).clamp(0, 1).float()


@dataclass(frozen=True)
class Look:
    """What is computed. mode: attention. layers: whose features are kept (None: latents, middle, output).
    attention_layers: whose attention weights are, which needs a model with eager attention. num_known: patches that the
    rollout starts from; None is the top half. read: where features come from, see `Objective.read`; None: the model
    itself. Negative layers count from the end."""

    mode: AttentionMode = "causal"
    layers: Sequence[int] | None = None
    attention_layers: Sequence[int] = ()
    num_known: int | None = None
    decoders: Sequence[LoadedDecoder] = ()
    length: Length = "mean"
    read: ReadFeatures | None = None


@torch.no_grad()
def look_inside(model: PreTrainedModel, pixels: Tensor, mean: float, std: float, look: Look | None = None) -> Inside:
    """Runs a model (`core.types.Backbone`) on pixels [N, C, height, width], normalised with mean and std.

    look: what is asked for; None: the defaults.
    Raises ConfigError for a layer or number that the model does not have, and for a decoder that does not fit.
    """
    look = look or Look()
    backbone, device = cast(Backbone, model), next(model.parameters()).device
    height, width = pixels.shape[-2:]
    grid = (height // model.config.patch_shape[0], width // model.config.patch_shape[1])
    num_patches = grid[0] * grid[1]
    num_known = grid[0] // 2 * grid[1] if look.num_known is None else look.num_known
    if not 0 <= num_known < num_patches:
        raise ConfigError(f"num_known {num_known} is not in 0..{num_patches - 1}: the image has {num_patches} patches")
    batch: Batch = {"pixel_values": pixels.to(device)}
    latents = backbone.embed(batch)
    hidden = backbone.encode(latents, look.mode, output_layers=True)
    features = hidden if look.read is None else look.read(backbone, batch, look.mode, True)
    num_layers = len(features.layers) - 1
    middle = [0, num_layers // 2, num_layers]
    wanted = check_layers(middle if look.layers is None else look.layers, num_layers, 0)
    weights = attention_weights(model, batch["pixel_values"], look, num_layers)

    def to_images(values: Tensor) -> Tensor:
        values = (values.float().cpu() * std + mean).clamp(0, 1)
        return values.expand(-1, 3, -1, -1) if values.shape[1] == 1 else values

    inside = Inside(
        images=to_images(batch["pixel_values"]),
        grid=grid,
        latents=latents.z[:, 1:].float().cpu(),
        predictions=hidden.last.float().cpu(),
        layers={layer: features.layers[layer][:, 1:].float().cpu() for layer in wanted},
        attention=weights,
        mode=look.mode,
        num_layers=num_layers,
        num_known=num_known,
    )
    if look.read is not None:
        inside.notes.append("Features are those that its objective reads, not the model's own.")
    rolled = roll_out(model, batch["pixel_values"], num_known, num_patches)
    if rolled is None:
        inside.notes.append("No rollout: this model has none.")
    read = Sequences(inside.latents, inside.predictions[:, :-1], rolled, num_known, grid)
    inside.readouts, notes = read_out(model, read, inside.images, to_images, look.decoders, look.length)
    inside.notes += notes
    return inside


def attention_weights(model: PreTrainedModel, pixels: Tensor, look: Look, num_layers: int) -> dict[int, Tensor]:
    """By layer, [N, H, P + 1, P + 1]."""
    if not look.attention_layers:
        return {}
    out = model(pixels, is_causal=look.mode == "causal", output_attentions=True)
    layers = check_layers(look.attention_layers, num_layers, 1)
    return {layer: out.attentions[layer - 1].float().cpu() for layer in layers}


def check_layers(layers: Sequence[int], num_layers: int, first: int) -> list[int]:
    """Layers as numbers from `first` on, each once. Raises ConfigError for one that is not there."""
    found = []
    for layer in layers:
        number = layer + num_layers + 1 if layer < 0 else layer
        if not first <= number <= num_layers:
            what = "0 = latents" if first == 0 else "1 = the first"
            raise ConfigError(f"layer {layer} is not in {first}..{num_layers} ({what}, {num_layers} = output)")
        found.append(number)
    return list(dict.fromkeys(found))
