"""Clips as images with the channels of all frames, frame by frame, so that they are cropped, cached and probed like
images."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.sizes import COLOURS, TUBELET
from ..errors import ConfigError
from .transforms import FORMATS, Colour, ImageReader, RandomResizedCrop, Unreadable, WrongKind
from .video import VideoReader, even_indices

MAX_SECONDS = 3600.0
NO_CLIP = "an image, not a clip; for images set model.num_frames=1, to use only the videos set data.format=videos"


def reader_of(num_channels: int, background: Colour, max_pixels: int, max_bytes: int) -> ImageReader:
    """The decoder for images of 1 or 3 channels, or clips with 3 per frame. Raises ConfigError for another number."""
    if num_channels in (1, COLOURS):
        return ImageReader(num_channels, background, max_pixels, max_bytes)
    if num_channels % (COLOURS * TUBELET):
        raise ConfigError(f"num_channels: images have 1 (grey) or 3 (RGB), clips have 3 per frame, not {num_channels}")
    return ClipReader(num_channels, background, max_pixels, max_bytes)


@dataclass(frozen=True)
class ClipReader(ImageReader):
    """Decodes frames that lie evenly between the first and the last one to uint8 [3 F, H, W], or raises `Unreadable`.

    num_channels: 3 F. A clip is the bytes or the path of a video, or a uint8 array [N, H, W, 3].
    """

    @property
    def num_frames(self) -> int:
        return self.num_channels // COLOURS

    def read(self, image: object) -> Tensor:
        return self._clip(image).flatten(0, 1).contiguous()

    def _clip(self, image: object) -> Tensor:
        """uint8 [F, 3, H, W]"""
        if isinstance(image, np.ndarray):
            if image.ndim < 4:
                raise WrongKind(NO_CLIP)
            if image.ndim != 4 or image.shape[-1] != COLOURS:
                raise Unreadable(f"not a clip: an array of shape {list(image.shape)}")
            self._check(*image.shape[1:3])
            return torch.from_numpy(image[even_indices(len(image), self.num_frames)]).permute(0, 3, 1, 2)
        data = self._load(image)
        if not isinstance(data, bytes) or is_still(data):
            raise WrongKind(NO_CLIP)
        return VideoReader(self.max_bytes, self.max_pixels, MAX_SECONDS).read_clip(data, self.num_frames)

    def read_size(self, image: object) -> tuple[int, int]:
        height, width = self.read(image).shape[1:]
        return height, width

    def read_crop(self, image: object, crop: RandomResizedCrop, seed: int) -> Tensor:
        return crop.one(self._clip(image), seed).flatten(0, 1)


def is_still(data: bytes) -> bool:
    """Whether a file is a still picture."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as img:
            img.seek(1)
            return False
    except EOFError:
        return True
    except (OSError, ValueError, Image.DecompressionBombError):
        return False  # not a picture; the video decoder reports what is wrong
