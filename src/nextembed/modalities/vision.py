"""Images as patches."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.positions import patch_coordinates
from ..nn.readout import to_image, to_patches
from .base import MODALITIES, Modality, Patches


@MODALITIES.register("image")
class Image(Modality):
    """Square images, squashed to `image_size` pixels a side, in patches of `patch_size`.

    The projection is NEPA's patch embedding (a convolution whose kernel is its stride) written as a matrix. Patches are
    (x - mean) / std of pixels x in [-1, 1]. The defaults leave x as it is. If your images share a background, give
    their mean and deviation: otherwise all latents share its direction, and cosines between them say little.
    """

    def __init__(
        self,
        hidden_size: int,
        image_size: int = 32,
        patch_size: int = 4,
        num_channels: int = 3,
        mean: float = 0.0,
        std: float = 1.0,
    ):
        super().__init__()
        if not (-1 <= mean <= 1 and 0 < std <= 1):
            raise ValueError(f"mean {mean} and std {std} of pixels in [-1, 1] lie in [-1, 1] and (0, 1]")
        if min(image_size, patch_size, num_channels) < 1:
            raise ValueError("the sizes of an image are whole numbers from 1")
        if image_size % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide image_size {image_size}")
        self.image_size, self.patch_size, self.num_channels = image_size, patch_size, num_channels
        self.value_size, self.mean, self.std = num_channels * patch_size**2, mean, std
        self.projection = nn.Linear(self.value_size, hidden_size)

    def patches(self, value: Tensor) -> Patches:
        """value: uint8 [C, H, W], or float32 [C, S, S] that is normalised already."""
        pixels = as_pixels(value, self.num_channels, self.image_size)
        side = self.image_size // self.patch_size
        found = to_patches(pixels[None], (self.patch_size, self.patch_size))[0]
        return Patches((found - self.mean) / self.std, self.places((side, side)), (side, side))

    def signal(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """uint8 [C, height, width]."""
        pixels = to_image(
            (values * self.std + self.mean)[None], (shape[0], shape[1]), (self.patch_size, self.patch_size)
        )[0]
        return as_bytes(pixels)

    def default_shape(self) -> tuple[int, ...]:
        side = self.image_size // self.patch_size
        return (side, side)

    def places(self, shape: tuple[int, ...]) -> Tensor:
        """All at one time, over height and width."""
        return F.pad(patch_coordinates(shape[0], shape[1]), (1, 0))


def as_pixels(value: Tensor | np.ndarray, num_channels: int, size: int) -> Tensor:
    """Images [..., C, H, W], uint8 or in [-1, 1], as float32 [..., C, size, size] in [-1, 1]. Raises ValueError."""
    value = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
    if not isinstance(value, Tensor) or value.ndim < 3 or 0 in value.shape:
        given = value.shape if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"an image is a tensor [C, H, W], not {given}")
    if value.shape[-3] == 1 and num_channels == 3:
        value = value.expand(*value.shape[:-3], 3, *value.shape[-2:])
    if value.shape[-3] != num_channels:
        raise ValueError(f"an image of {value.shape[-3]} channels; the model takes {num_channels}")
    pixels = value.float() / 127.5 - 1 if value.dtype == torch.uint8 else value.float()
    if pixels.shape[-2:] != (size, size):
        flat = pixels.flatten(0, -4) if pixels.ndim > 3 else pixels[None]
        flat = F.interpolate(flat, (size, size), mode="bilinear", antialias=True, align_corners=False)
        pixels = flat.view(*pixels.shape[:-2], size, size)
    return pixels


def as_bytes(pixels: Tensor) -> Tensor:
    """[-1, 1] to uint8."""
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
