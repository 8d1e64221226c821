"""Random restyling of a picture: colours, flat areas, lines, rotation, an occlusion."""

import math

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from ..data.draws import Draws

MAX_TURN = 12.0  # degrees
WHITE = 250  # brighter pixels stay unchanged


def restyled(pixels: Tensor, draw: Draws, ground: tuple[int, int, int]) -> Tensor:
    """Another style of a picture, uint8 [3, H, W]; each change is drawn independently."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if draw.share() < 0.4:
        picture = lines(picture, draw)
    if draw.share() < 0.3:
        picture = picture.quantize(4 + draw.below(9), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        picture = picture.convert("RGB")
    if draw.share() < 0.8:
        picture = colours(picture, draw)
    if draw.share() < 0.5:
        turn = (2 * draw.share() - 1) * MAX_TURN
        picture = picture.rotate(turn, Image.Resampling.BILINEAR, fillcolor=ground)
    found = np.array(picture)
    if draw.share() < 0.25:
        cover(found, draw, ground)
    return torch.from_numpy(found).permute(2, 0, 1)


def lines(picture: Image.Image, draw: Draws) -> Image.Image:
    """Lines thicker, thinner, smoother or sharper."""
    kind = draw.below(4)
    if kind == 3:
        return ImageEnhance.Sharpness(picture).enhance(2 + 2 * draw.share())
    return picture.filter((ImageFilter.MinFilter(3), ImageFilter.MaxFilter(3), ImageFilter.MedianFilter(3))[kind])


def colours(picture: Image.Image, draw: Draws) -> Image.Image:
    """Another hue, saturation, contrast and brightness of all pixels that are not white."""
    values = np.asarray(picture).astype(np.float32)
    grey = values.mean(-1, keepdims=True)
    turn = (2 * draw.share() - 1) * math.pi / 8
    about = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], np.float32) / math.sqrt(3)  # the axis of greys
    rotation = np.eye(3, dtype=np.float32) + math.sin(turn) * about + (1 - math.cos(turn)) * about @ about
    changed = grey + (0.6 + 0.8 * draw.share()) * (values - grey) @ rotation.T
    gain = 0.85 + 0.3 * np.array([draw.share() for _ in range(3)], np.float32)
    changed = (changed - 128) * (0.75 + 0.5 * draw.share()) + 128
    changed = np.where(values.min(-1, keepdims=True) >= WHITE, values, changed * gain)
    return Image.fromarray(changed.clip(0, 255).round().astype(np.uint8))


def cover(picture: np.ndarray, draw: Draws, ground: tuple[int, int, int]) -> None:
    """A rectangle in the colour of the background, up to a third of each side."""
    height, width, _ = picture.shape
    tall, wide = 1 + draw.below(max(1, height // 3)), 1 + draw.below(max(1, width // 3))
    top, left = draw.below(height - tall + 1), draw.below(width - wide + 1)
    picture[top : top + tall, left : left + wide] = ground
