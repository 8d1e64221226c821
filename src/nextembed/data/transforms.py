"""From an image file to the pixels a model sees: safe decoding, random resized crop, flip, normalisation.

Pixels are uint8 [C, H, W] up to `normalize`. Nothing here draws from a global random generator: every random
number comes from the sample's own seed, so it depends on neither workers nor ranks nor batch size.
"""

import contextlib
import io
import math
import os
import re
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from pydantic import Field
from torch import Tensor

from ..core.pictures import orientation, plain_picture
from ..core.sizes import COLOURS
from .draws import uniform

# Formats with harmless decoders: no PostScript, no vector graphics, nothing that starts another program.
Image.init()
with contextlib.suppress(ImportError):  # the extra "heic": photographs of phones
    import pillow_heif

    pillow_heif.register_heif_opener()
FORMATS: list[str] = [
    f for f in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF") if f in Image.OPEN
]

SIZ = re.compile(rb"\xff\x4f\xff\x51.{4}(.{32})", re.DOTALL)  # where a JPEG 2000 codestream begins
SMALL = 64  # pixels a side up to which a whole batch is cropped at once
NO_IMAGE = "a clip, not an image; for clips set model.num_frames, e.g. 8"
VIDEO_STARTS = (b"\x1aE\xdf\xa3", b"FLV\1", b"0&\xb2u\x8ef\xcf\x11", b"\0\0\1\xba", b"\0\0\1\xb3")
NUM_TRIES = 10  # of a random crop that fits, as torchvision's RandomResizedCrop
GAP = 1.4  # a reduced scale keeps this many times the required pixels; what that costs: docs/performance.md

Byte = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]  # RGB


class Box(NamedTuple):
    """Part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Unreadable(Exception):
    """One image that cannot be decoded within the limits; the text is the reason."""


class WrongKind(Unreadable):
    """A clip instead of an image, or an image instead of a clip."""


@dataclass(frozen=True)
class ImageReader:
    """Decodes one image to uint8 [C, H, W], or raises `Unreadable`.

    num_channels: 1 (grey, ITU-R 601 luma) or 3 (RGB). background: RGB in 0..255, laid under transparent
    pixels. max_pixels: of the decoded image, checked in the header before anything is decoded. max_bytes: of
    the file.

    An image is bytes, a path, a PIL image, or a uint8 array [H, W] or [H, W, C]. Applied: EXIF rotation,
    palettes, alpha, CMYK; 16-bit grey is scaled to 8 bit; of an animation the first frame is taken.
    """

    num_channels: int = 3
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 64_000_000
    max_bytes: int = 100_000_000

    @property
    def mode(self) -> str:
        return "RGB" if self.num_channels == 3 else "L"

    def read(self, image: object) -> Tensor:
        """The whole image, uint8 [C, H, W]."""
        with _unreadable():
            return _to_tensor(self._convert(self._open(self._load(image))))

    def read_size(self, image: object) -> tuple[int, int]:
        """(height, width) after EXIF rotation, from the header alone."""
        with _unreadable():
            return _upright_size(self._open(self._load(image)))

    def read_crop(self, image: object, crop: "RandomResizedCrop", seed: int) -> Tensor:
        """A random crop, resized to uint8 [C, size, size], perhaps flipped.

        A large JPEG is decoded at a reduced scale (1/2, 1/4, 1/8, inside the decoder's inverse DCT) at which the crop
        still has `GAP` times the pixels wanted, so large photos cost a fraction of a full decode and look the same.
        """
        with _unreadable():
            img = self._open(self._load(image))
            height, width = _upright_size(img)
            (box,), (flip,) = crop.draw([(height, width)], [seed])
            size = crop.size
            scale = max(s for s in (1, 2, 4, 8) if s == 1 or min(box.height, box.width) >= s * size * GAP)
            if scale > 1:
                img.draft(self.mode, (img.width // scale, img.height // scale))
            img = self._convert(img)
            x, y = img.width / width, img.height / height  # 1, or less if decoded at a reduced scale
            edges = (box.left * x, box.top * y, (box.left + box.width) * x, (box.top + box.height) * y)
            if x == y == 1:
                pixels = resize(_to_tensor(img.crop(edges)), size)  # torch's resize is faster than Pillow's
            else:
                pixels = _to_tensor(img.resize((size, size), Image.Resampling.BILINEAR, box=edges))
            return pixels.flip(-1) if flip else pixels

    def load(self, file: object) -> bytes:
        """The bytes of a file, given as such or by its path. Raises Unreadable, for more than `max_bytes`, too."""
        with _unreadable():
            found = self._load(file)
        if not isinstance(found, bytes):
            raise Unreadable("it is not a file")
        return found

    def _load(self, image: object) -> bytes | Image.Image:
        """The file's bytes, or what is an image already; within `max_bytes`."""
        if isinstance(image, Unreadable):  # of a row that could not be read
            raise image
        if isinstance(image, np.ndarray):
            if image.ndim == 4:
                raise WrongKind(NO_IMAGE)
            image = Image.fromarray(image.squeeze(-1) if image.ndim == 3 and image.shape[-1] == 1 else image)
        if isinstance(image, (str, os.PathLike)):
            image = self._read_file(Path(image))
        if not isinstance(image, (bytes, Image.Image)):
            raise Unreadable("no image" if image is None else f"not an image: {type(image).__name__}")
        if isinstance(image, bytes) and not image:
            raise Unreadable("empty file")
        if isinstance(image, bytes) and len(image) > self.max_bytes:
            raise Unreadable(f"{len(image)} bytes, more than max_bytes={self.max_bytes}")
        return image

    def _open(self, data: bytes | Image.Image) -> Image.Image:
        """A PIL image of which only the header has been read; within `max_pixels`."""
        if not isinstance(data, bytes):
            self._check(data.height, data.width)
            return data
        try:
            img = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            if is_video(data):
                raise WrongKind(NO_IMAGE) from None
            raise
        self._check(img.height, img.width)
        if (room := _decoder_pixels(img, data)) > self.max_pixels:
            raise Unreadable(f"its decoder needs room for {room} pixels, more than max_pixels={self.max_pixels}")
        _check_jpegs(img, data)
        return img

    def _check(self, height: int, width: int) -> None:
        if width * height > self.max_pixels:
            raise Unreadable(f"{width}x{height} pixels, more than max_pixels={self.max_pixels}")

    def _read_file(self, path: Path) -> bytes:
        if not path.is_file():
            raise Unreadable("no such file")
        if path.stat().st_size > self.max_bytes:
            raise Unreadable(f"{path.stat().st_size} bytes, more than max_bytes={self.max_bytes}")
        return path.read_bytes()

    def _convert(self, img: Image.Image) -> Image.Image:
        """Decoded, upright, opaque, in `mode`."""
        img = plain_picture(img, self.background)
        return img if img.mode == self.mode else img.convert(self.mode)


class _unreadable:
    """Turns whatever a decoder raises on broken input into `Unreadable` with a one-line reason."""

    def __enter__(self) -> None:
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("ignore")  # of large images, for which there is our own limit, and of broken EXIF data

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        self.warnings.__exit__(None, None, None)
        if isinstance(err, Exception) and not isinstance(err, Unreadable):
            lines = str(err).strip().splitlines()
            reason = lines[0] if lines else type(err).__name__
            if "cannot identify image" in reason:
                reason = "not an image file of a known format"
            raise Unreadable(reason[:200]) from None


def is_video(data: bytes) -> bool:
    """Whether a file that is no image of a known format is a video, by its first bytes."""
    moves = data[4:8] in (b"moov", b"mdat", b"wide") or (
        data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"hevc", b"M4A ")
    )
    return moves or data.startswith(VIDEO_STARTS) or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")


def _decoder_pixels(img: Image.Image, data: bytes) -> int:
    """Memory that a decoder allocates for a file, in pixels, regardless of the size of the image; 0 if the size
    decides. A TIFF has tiles of any size. A JPEG 2000 of up to 65,535 tiles takes about 1,000 pixels for each, and the
    codestream contains its size once more.
    """
    if isinstance(img, TiffImageFile):
        return int(img.tag_v2.get(322, 0)) * int(img.tag_v2.get(323, 0))
    most = 0
    for found in SIZ.finditer(data) if img.format == "JPEG2000" else ():
        right, bottom, left, top, width, height, x, y = struct.unpack(">8I", found[1])
        tiles = math.ceil(max(0, right - x) / max(1, width)) * math.ceil(max(0, bottom - y) / max(1, height))
        most = max(most, max(0, right - left) * max(0, bottom - top), 1000 * tiles)
    return most


def _check_jpegs(img: Image.Image, data: bytes) -> None:
    """Raises Unreadable for a TIFF of JPEGs that are smaller than their strips or tiles: libtiff leaves uncovered
    memory uninitialised, so that pixels differ each time and may come from other images."""
    tags = img.tag_v2 if isinstance(img, TiffImageFile) else {}
    if tags.get(259) != 7:
        return
    tiled = 322 in tags
    width, height = (tags[322], tags[323]) if tiled else (img.width, min(tags.get(278, img.height), img.height))
    starts, lengths = (tags[324], tags[325]) if tiled else (tags[273], tags[279])
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        rows = height if tiled else min(height, img.height - number % math.ceil(img.height / height) * height)
        with Image.open(io.BytesIO(data[start : start + length]), formats=["JPEG"]) as part:
            if part.width < width or part.height < rows:
                raise Unreadable(
                    f"a JPEG of {part.width}x{part.height} pixels is in it where {width}x{rows} are expected"
                )


def _upright_size(img: Image.Image) -> tuple[int, int]:
    turned = orientation(img) in (5, 6, 7, 8)
    return (img.width, img.height) if turned else (img.height, img.width)


def _to_tensor(img: Image.Image) -> Tensor:
    """uint8 [H, W] or [H, W, C] -> [C, H, W]."""
    array = torch.from_numpy(np.array(img))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Random boxes and flips, distributed as torchvision's RandomResizedCrop and RandomHorizontalFlip.

    size: output pixels a side. scale: share of the area. ratio: width / height. flip_rate: probability.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_rate: float = 0.5

    def draw(self, shapes: Sequence[Sequence[int]], seeds: Sequence[int]) -> tuple[list[Box], list[bool]]:
        """Boxes and flips. shapes: (height, width) of each image. seeds: 64-bit; equal ones draw the same."""
        boxes = [self._box(seed, *shape) for seed, shape in zip(seeds, shapes)]
        return boxes, [uniform(seed, 0) < self.flip_rate for seed in seeds]

    def _box(self, seed: int, height: int, width: int) -> Box:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for i in range(1, 4 * NUM_TRIES, 4):
            area = height * width * (self.scale[0] + uniform(seed, i) * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + uniform(seed, i + 1) * (high - low))
            box_w, box_h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < box_w <= width and 0 < box_h <= height:
                top, left = uniform(seed, i + 2) * (height - box_h + 1), uniform(seed, i + 3) * (width - box_w + 1)
                return Box(int(top), int(left), box_h, box_w)
        # None fits: the largest centred box of an allowed ratio.
        box_w = max(1, min(width, round(height * self.ratio[1])))
        box_h = max(1, min(height, round(width / self.ratio[0])))
        return Box((height - box_h) // 2, (width - box_w) // 2, box_h, box_w)

    def one(self, image: Tensor, seed: int) -> Tensor:
        """A crop of a decoded image, uint8 [C, size, size], or of a clip [F, C, H, W]."""
        (box,), (flip,) = self.draw([image.shape[-2:]], [seed])
        pixels = resize(image, self.size, box)
        return pixels.flip(-1) if flip else pixels

    def apply(self, images: Sequence[Tensor], boxes: Sequence[Box], flips: Sequence[bool]) -> Tensor:
        """Decoded images [C, H, W], cut and resized: [B, C, size, size] in 0..255, uint8 or whole float32."""
        shape = images[0].shape
        if max(*shape[1:], self.size) <= SMALL and all(image.shape == shape for image in images):
            return crop_and_resize(torch.stack(list(images)), boxes, flips, self.size)
        out = []
        for image, box, flip in zip(images, boxes, flips):
            pixels = resize(image, self.size, box)
            out.append(pixels.flip(-1) if flip else pixels)
        return torch.stack(out)


def crop_and_resize(images: Tensor, boxes: Sequence[Box], flips: Sequence[bool], size: int) -> Tensor:
    """Crops of images of one size, each with its own box, as whole-valued float32 [B, C, size, size] in 0..255.

    images [B, C, H, W], uint8. Antialiased bilinear, within one level of torchvision's `resized_crop`. It is two
    batched matrix products, which for small images is far cheaper than one call per image.
    """
    box = torch.tensor(boxes, dtype=torch.float32)  # [B, 4]
    rows = _resize_weights(box[:, 0], box[:, 2], images.shape[-2], size)  # [B, size, H]
    columns = _resize_weights(box[:, 1], box[:, 3], images.shape[-1], size)  # [B, size, W]
    columns = torch.where(torch.tensor(flips)[:, None, None], columns.flip(1), columns)
    out = rows[:, None] @ images.float() @ columns[:, None].mT
    return out.round_().clamp_(0, 255)


def _resize_weights(start: Tensor, length: Tensor, width: int, size: int) -> Tensor:
    """Triangle-filter weights [B, size, width]: pixels start ... start + length to `size` pixels."""
    step = (length / size)[:, None, None]  # [B, 1, 1]
    centre = start[:, None, None] + (torch.arange(size)[:, None] + 0.5) * step  # [B, size, 1]
    pixel = torch.arange(width) + 0.5  # [width]
    weight = (1 - (pixel - centre).abs() / step.clamp(min=1)).clamp_(min=0)
    inside = (pixel > start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weight *= inside
    return weight / weight.sum(-1, keepdim=True)


def resize(pixels: Tensor, size: int, box: Box | None = None) -> Tensor:
    """uint8 [C, H, W], or the box of it -> [C, size, size], antialiased bilinear; the aspect ratio may change.

    A clip [F, C, H, W] likewise.
    """
    if box is not None:
        pixels = pixels[..., box.top : box.top + box.height, box.left : box.left + box.width]
    if (stacked := pixels.ndim == 3) and len(pixels) > COLOURS and len(pixels) % COLOURS == 0:
        frames = pixels.unflatten(0, (-1, COLOURS))  # torch's vectorised uint8 kernel takes up to four channels
    else:
        frames = pixels[None] if stacked else pixels
    # A packed copy with channels last: that kernel is then twice as fast as on a view.
    packed = frames.contiguous(memory_format=torch.channels_last)
    resized = torch.nn.functional.interpolate(packed, (size, size), mode="bilinear", antialias=True)
    return resized.flatten(0, 1) if stacked else resized


def normalize(pixels: Tensor, mean: float, std: float) -> Tensor:
    """(pixels / 255 - mean) / std as float32; mean and std of 0.5 give [-1, 1]."""
    return pixels.float().mul_(1 / (255 * std)).sub_(mean / std)
