"""Videos as tubelets: patches of a few frames."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.positions import patch_coordinates
from ..nn.readout import to_image, to_patches
from .base import MODALITIES, Modality, Patches
from .vision import as_bytes, as_pixels


@MODALITIES.register("video")
class Video(Modality):
    """Videos, frames squashed to `image_size` pixels a side, in tubelets of `tube_size` frames by `patch_size` pixels.

    A tubelet's values, P = tube_size * C * patch_size^2, are in the order frame, channel, row, column, in [-1, 1]. Time
    in coordinates is the tubelet's, not seconds: choose frames at one rate. A video whose length is not a multiple of
    the tubelet is padded with its last frame; `signal` cuts this off. max_frames: of a video; a longer one is an error.
    num_frames: of generated videos, if fixed. Source: tubelets as in ViViT (arXiv 2103.15691).
    """

    def __init__(
        self,
        hidden_size: int,
        image_size: int = 64,
        patch_size: int = 8,
        tube_size: int = 2,
        num_channels: int = 3,
        max_frames: int = 256,
        num_frames: int | None = None,
    ):
        super().__init__()
        if min(image_size, patch_size, tube_size, num_channels, max_frames, num_frames or 1) < 1:
            raise ValueError("the sizes of a video are whole numbers from 1")
        if image_size % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide image_size {image_size}")
        self.image_size, self.patch_size, self.tube_size = image_size, patch_size, tube_size
        self.num_channels, self.max_frames, self.num_frames = num_channels, max_frames, num_frames
        self.value_size = tube_size * num_channels * patch_size**2
        self.projection = nn.Linear(self.value_size, hidden_size)

    def patches(self, value: Tensor | np.ndarray) -> Patches:
        """value: uint8 [F, C, H, W]. shape: (tubelets in time, rows, columns, frames)."""
        if not isinstance(value, Tensor | np.ndarray) or value.ndim != 4:
            given = list(value.shape) if isinstance(value, Tensor | np.ndarray) else type(value).__name__
            raise ValueError(f"a video is a tensor [F, C, H, W]; this is {given}")
        if len(value) > self.max_frames:
            raise ValueError(f"a video of {len(value)} frames; max_frames is {self.max_frames}")
        pixels = as_pixels(value, self.num_channels, self.image_size)
        shape = self._shape(len(pixels))
        short = shape[0] * self.tube_size - len(pixels)
        pixels = torch.cat((pixels, pixels[-1:].expand(short, -1, -1, -1)))
        found = to_patches(pixels, (self.patch_size, self.patch_size))  # [F, rows * columns, C * h * w]
        found = found.unflatten(0, (-1, self.tube_size)).transpose(1, 2)  # [tubelets, cells, frames, C * h * w]
        return Patches(found.reshape(-1, self.value_size), self.places(shape), shape)

    def signal(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """uint8 [F, C, S, S]; shape without frames: all that the tubelets hold."""
        found = values.view(shape[0], shape[1] * shape[2], self.tube_size, -1).transpose(1, 2).flatten(0, 1)
        pixels = to_image(found, (shape[1], shape[2]), (self.patch_size, self.patch_size))
        return as_bytes(pixels[: shape[3] if len(shape) > 3 else None])

    def default_shape(self) -> tuple[int, ...] | None:
        return None if self.num_frames is None else self._shape(self.num_frames)

    def places(self, shape: tuple[int, ...]) -> Tensor:
        """One time per tubelet, with its patches over height and width."""
        plane = F.pad(patch_coordinates(shape[1], shape[2]), (1, 0)).repeat(shape[0], 1)
        plane[:, 0] = torch.arange(shape[0]).repeat_interleave(shape[1] * shape[2])
        return plane

    def _shape(self, num_frames: int) -> tuple[int, int, int, int]:
        side = self.image_size // self.patch_size
        return (-(-num_frames // self.tube_size), side, side, num_frames)
