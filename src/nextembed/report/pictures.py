"""The model's view and predictions of real images: attention, similarity of predictions, nearest patches.

Patch p (0 first, raster order) is predicted from the hidden state at sequence position p, which has read the begin
token and the patches before p.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

MAX_LOOKED_AT = 2000  # nearest patches from which different-looking ones are chosen
FLAT = 0.01  # contrast below which a patch counts as one colour
MAX_SIDE = 160  # pixels an image is shown with at most; it is stored in the page


@dataclass
class Scene:
    """Images with latents, predictions and attention of the model. N images, P patches, D width, H heads.

    images [N, 3, height, width] in [0, 1]; grid: rows and columns of patches.
    latents, predictions [N, P, D]: of unit length, at the patch they belong to.
    attention: for some images by number, one [H, P + 1, P + 1] per layer; empty if the model does not give any.
    """

    images: Tensor
    grid: tuple[int, int]
    latents: Tensor
    predictions: Tensor
    attention: dict[int, list[Tensor]]

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def spread(self, num: int) -> list[int]:
        """Numbers of `num` images, evenly spread over all, which are in the order of the data."""
        return sorted({i * len(self.images) // num for i in range(num)})

    def box(self, patch: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a patch, in grid cells."""
        return patch % self.grid[1], patch // self.grid[1], 1, 1

    def patch(self, image: int, patch: int) -> Tensor:
        """Pixels [3, h, w] of a patch."""
        rows, columns = self.grid
        h, w = self.images.shape[-2] // rows, self.images.shape[-1] // columns
        top, left = patch // columns * h, patch % columns * w
        return self.images[image, :, top : top + h, left : left + w]

    def contrast(self) -> Tensor:
        """Standard deviation of the pixels in each patch, [N, P]."""
        rows, columns = self.grid
        size = (self.images.shape[-2] // rows, self.images.shape[-1] // columns)
        return F.unfold(self.images, size, stride=size).std(dim=1)


@torch.no_grad()
def build_scene(model: Any, pixels: Tensor, mean: float, std: float, causal: bool, num_attention: int = 2) -> Scene:
    """Runs the model (a backbone) on pixels [N, C, height, width], normalised with mean and std."""
    attention = "causal" if causal else "full"
    device = next(model.parameters()).device
    latents, predictions = [], []
    for part in pixels.split(64):
        z = model.embed({"pixel_values": part.to(device)})
        hidden = model.encode(z, attention=attention).last
        latents.append(F.normalize(z.z[:, 1:].float(), dim=-1).cpu())
        predictions.append(F.normalize(hidden[:, :-1].float(), dim=-1).cpu())
    height, width = pixels.shape[-2:]
    patch_height, patch_width = model.config.patch_shape
    images = (pixels.float() * std + mean).clamp(0, 1)
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    grid = (height // patch_height, width // patch_width)
    scene = Scene(images, grid, torch.cat(latents), torch.cat(predictions), {})
    if model.config._attn_implementation == "eager":
        chosen = scene.spread(num_attention)
        out = model(pixels[chosen].to(device), is_causal=causal, output_attentions=True)
        for i, image in enumerate(chosen):
            scene.attention[image] = [weights[i].float().cpu() for weights in out.attentions]
    return scene


@dataclass
class Ranks:
    """How well predictions find their patch among all patches of the same image, over a scene.

    median: place of the true next patch (1 = nearest). hit, copy: share of predictions whose nearest patch is the
    true next one, the current one. chance: share that guessing would hit.
    """

    median: float
    hit: float
    copy: float
    chance: float
    num_predictions: int


def ranks(scene: Scene) -> Ranks:
    """Left out are the first patch, since only the begin token precedes it, and patches of one flat colour, which
    equal each other, unless all are flat."""
    seen = scene.contrast() > FLAT  # [N, P]
    seen[:, 0] = False
    if not seen.any():
        seen[:, 1:] = True
    similarity = scene.predictions @ scene.latents.transpose(1, 2)  # [N, predicted patch, any patch]
    own = similarity.diagonal(dim1=1, dim2=2)
    place = (1 + (similarity > own[..., None]).sum(-1))[seen]
    current = similarity.diagonal(offset=-1, dim1=1, dim2=2)  # patch p - 1 for the prediction of p, from p = 1
    copied = F.pad(current, (1, 0)) >= similarity.max(-1).values
    return Ranks(
        median=place.float().median().item(),
        hit=(place == 1).float().mean().item(),
        copy=copied[seen].float().mean().item(),
        chance=1 / scene.num_patches,
        num_predictions=place.numel(),
    )


def striking(scene: Scene, image: int, num: int = 3) -> list[int]:
    """The patch with the most contrast in each of `num` equal parts of the raster, the first patch excepted."""
    contrast = scene.contrast()[image].clone()
    contrast[0] = -1
    edges = np.linspace(0, scene.num_patches, min(num, scene.num_patches - 1) + 1).astype(int)
    chosen = [int(a + contrast[a:b].argmax()) for a, b in pairwise(edges)]
    return [patch for patch in dict.fromkeys(chosen) if patch > 0]


def neighbours(scene: Scene, image: int, patch: int, num: int = 6) -> list[tuple[int, int]]:
    """(image, patch) of the latents nearest to the prediction of a patch, in other images; equal patches once."""
    similarity = scene.latents @ scene.predictions[image, patch]  # [N, P]
    similarity[image] = -2
    found: list[tuple[int, int]] = []
    seen: set[bytes] = set()
    for index in similarity.flatten().argsort(descending=True)[:MAX_LOOKED_AT].tolist():
        place = divmod(index, scene.num_patches)
        look = (scene.patch(*place) * 255).round().byte().numpy().tobytes()
        if place[0] != image and look not in seen:
            seen.add(look)
            found.append(place)
        if len(found) == num:
            break
    return found


def heat(
    values: Tensor,
    grid: tuple[int, int],
    low: float | None = None,
    cmap: str = "viridis",
    high: float | None = None,
) -> np.ndarray:
    """A map of values [P] as RGBA uint8 [rows, columns, 4]; from `low` to `high` (default: least, greatest value)."""
    low = values.min().item() if low is None else low
    high = values.max().item() if high is None else high
    scaled = (values - low) / max(high - low, 1e-9)
    return (colormaps[cmap](scaled.view(grid).numpy()) * 255).round().astype(np.uint8)


def to_array(image: Tensor) -> np.ndarray:
    """[3, H, W] in [0, 1] -> uint8 [H, W, 3], at most 160 pixels a side."""
    if max(image.shape[-2:]) > MAX_SIDE:
        scale = MAX_SIDE / max(image.shape[-2:])
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


def data_uri(pixels: np.ndarray) -> str:
    """uint8 [H, W, 3 or 4] as a PNG in a data URI."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


class Tiles:
    """Draws tiles as small SVG pictures; every photograph is stored once and used by name."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.used: dict[int, str] = {}

    def tile(
        self,
        image: int | None,
        overlay: np.ndarray | None = None,
        dim: bool = False,
        hide_from: int | None = None,
        marks: Sequence[tuple[str, int]] = (),
        label: str = "",
    ) -> str:
        """image: number in the scene, None for no photograph. overlay: RGBA [rows, columns, 4] over it; dim: the
        photograph in dark grey, so that the overlay shines through. hide_from: patches from this one on are
        veiled. marks: (CSS class, patch), outlined."""
        rows, columns = self.scene.grid
        parts = [f'<svg class="tile{" dim" * dim}" viewBox="0 0 {columns} {rows}" role="img" aria-label="{label}">']
        if image is not None:
            self.used.setdefault(image, f"image{image}")
            parts.append(f'<use href="#{self.used[image]}"/>')
        if overlay is not None:
            parts.append(_picture(data_uri(overlay), columns, rows, 'class="over" '))
        if hide_from is not None:
            parts += [f'<rect class="veil" {_rect(*box)}/>' for box in self._rest(hide_from)]
        parts += [f'<rect class="mark {name}" {_rect(*self.scene.box(patch), inset=0.08)}/>' for name, patch in marks]
        return "".join(parts) + "</svg>"

    def patch(self, image: int, patch: int, label: str = "", mark: str = "") -> str:
        """One patch, large. mark: CSS class beside."""
        pixels = to_array(self.scene.patch(image, patch))
        return f'<img class="patch {mark}" alt="{label}" src="{data_uri(pixels)}">'

    def definitions(self) -> str:
        """The photographs that tiles use; must stand before them in the page."""
        rows, columns = self.scene.grid
        images = [
            f'<g id="{name}">{_picture(data_uri(to_array(self.scene.images[i])), columns, rows)}</g>'
            for i, name in self.used.items()
        ]
        return f'<svg class="hidden" aria-hidden="true"><defs>{"".join(images)}</defs></svg>'

    def _rest(self, first: int) -> list[tuple[int, int, int, int]]:
        """The patches from `first` on, as two boxes: the rest of its row, and all rows below."""
        rows, columns = self.scene.grid
        row, column = divmod(first, columns)
        boxes = [(column, row, columns - column, 1), (0, row + 1, columns, rows - row - 1)]
        return [box for box in boxes if box[2] > 0 and box[3] > 0]


def _picture(uri: str, width: int, height: int, extra: str = "") -> str:
    return f'<image {extra}href="{uri}" width="{width}" height="{height}" preserveAspectRatio="none"/>'


def _rect(left: int, top: int, width: int, height: int, inset: float = 0.0) -> str:
    return f'x="{left + inset}" y="{top + inset}" width="{width - 2 * inset}" height="{height - 2 * inset}"'
