"""Latents, predictions and rollouts decoded to pixels, by least squares and by trained decoders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..core.types import Backbone
from ..nn.readout import PatchInverse
from ..objectives.latent_decoder import LoadedDecoder

Length = Literal["mean", "true"]

CUTOFF = 0.01  # share of the singular values for inverting predictions; true latents are inverted with all


@dataclass
class Readout:
    """One way from latents to pixels, and what it gives for N images [N, 3, height, width] in [0, 1].

    true: the images' own latents, None if it reads predictions only. predicted: every patch from its prediction, which
    was made from the true patches before it. rollout: the known patches as they are, the rest predicted one from the
    other; None where the model cannot. note: description of the decoding.
    """

    name: str
    note: str
    true: Tensor | None
    predicted: Tensor
    rollout: Tensor | None


@dataclass
class Sequences:
    """What is read out. z [N, P, D]: latents; predictions [N, P, D]: of each patch; rolled [N, P - K, D]: the
    predictions after K known patches, None if there is no rollout."""

    z: Tensor
    predictions: Tensor
    rolled: Tensor | None
    num_known: int
    grid: tuple[int, int]


ToImages = Callable[[Tensor], Tensor]  # normalised pixels -> images in [0, 1]


@runtime_checkable
class RollsOut(Protocol):
    """A model that can continue from the first latents of an image with its own predictions."""

    def rollout(self, pixel_values: Tensor, num_known: int, num_steps: int, match_norm: bool = True) -> Tensor: ...


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images [N, C, H, W] in [0, 1], dB, [N]; at most 100."""
    return -10 * torch.log10((images - others).square().mean((1, 2, 3)).clamp(min=1e-10))


def roll_out(model: object, pixels: Tensor, num_known: int, num_patches: int) -> Tensor | None:
    """Predictions [N, P - K, D] after the first K patches, fed back at the mean length of the known latents."""
    if not isinstance(model, RollsOut) or not num_known < num_patches:
        return None
    return model.rollout(pixels, num_known, num_patches - num_known, match_norm=num_known > 0).float().cpu()


def read_out(
    model: PreTrainedModel,
    read: Sequences,
    images: Tensor,
    to_images: ToImages,
    decoders: Sequence[LoadedDecoder],
    length: Length,
) -> tuple[list[Readout], list[str]]:
    """All readouts that fit the model, and notes about those that do not.

    to_images: normalised pixels -> images in [0, 1]. length: of a prediction before least squares.
    Raises ConfigError for a decoder of another shape.
    """
    found, notes = [], []
    try:
        inverse = PatchInverse(model.get_input_embeddings(), model.config.patch_shape, model.config.num_channels)
    except (ValueError, AttributeError, NotImplementedError, IndexError, RuntimeError):
        notes.append("No least-squares readout: the patch embedding of this model is not a linear map of the pixels.")
    else:
        found.append(_least_squares(inverse, read, images, to_images, length))
    for loaded in decoders:
        if warning := loaded.check(cast(Backbone, model)):
            notes.append(warning[0].upper() + warning[1:] + ": do not trust its pixels.")
        found.append(_decoded(loaded, read, images, to_images))
    return found, notes


def _least_squares(
    inverse: PatchInverse, read: Sequences, images: Tensor, to_images: ToImages, length: Length
) -> Readout:
    lengths = read.z.norm(dim=-1, keepdim=True)  # [N, P, 1]
    wanted = lengths if length == "true" else lengths.mean(dim=1, keepdim=True)
    predicted = inverse(F.normalize(read.predictions, dim=-1) * wanted, read.grid, CUTOFF)
    rollout = None
    if read.rolled is not None:
        known = lengths[:, : read.num_known] if read.num_known else lengths
        rolled = F.normalize(read.rolled, dim=-1) * known.mean(dim=1, keepdim=True)
        latents = torch.cat((read.z[:, : read.num_known], rolled), dim=1)
        rollout = keep_known(images, to_images(inverse(latents, read.grid, CUTOFF)), read)
    kind = (
        f"{inverse.width} numbers per patch determine all {inverse.num_pixels} values of its pixels"
        if inverse.exact
        else f"a projection: {inverse.width} numbers per patch determine {inverse.rank} directions of its "
        f"{inverse.num_pixels} values"
    )
    matched = "the norm of its true latent" if length == "true" else "the mean norm of the image's latents"
    note = (
        f"Least squares: pseudo-inverse of the patch embedding, {kind}. The norm of a prediction is not "
        f"trained (cosine loss), so it is set to {matched}; singular values above {CUTOFF:.0%} of the "
        "largest are used."
    )
    return Readout("least squares", note, to_images(inverse(read.z, read.grid)), to_images(predicted), rollout)


@torch.no_grad()
def _decoded(loaded: LoadedDecoder, read: Sequences, images: Tensor, to_images: ToImages) -> Readout:
    def decode(latents: Tensor) -> Tensor:
        return to_images(loaded.decoder.image(latents, read.grid))

    of_latents = loaded.source == "latents"
    rollout = None
    if read.rolled is not None:
        known = (read.z if of_latents else read.predictions)[:, : read.num_known]
        rollout = keep_known(images, decode(torch.cat((known, read.rolled), dim=1)), read)
    name = f"decoder of {loaded.source}"
    note = (
        f"Decoder {loaded.source[0].upper()} ({loaded.name}): a small network trained on the frozen model's "
        f"{loaded.source}; "
        "it reads directions only, and of each patch only what came before."
    )
    return Readout(name, note, decode(read.z) if of_latents else None, decode(read.predictions), rollout)


def keep_known(images: Tensor, found: Tensor, read: Sequences) -> Tensor:
    """`found` with the known patches as they are in the images."""
    rows, columns = read.grid
    known = (torch.arange(rows * columns) < read.num_known).view(1, 1, rows, columns).float()
    mask = F.interpolate(known, size=images.shape[-2:], mode="nearest").bool()
    return torch.where(mask, images, found)
