"""Emoji that move over textures with another motion: generated clips for models of clips."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from ..core.config import DATA
from ..core.types import Role
from ..data.draws import Draws, sample_seed
from ..data.images import ImagePart
from ..data.labels import labels_of
from ..data.rows import Row, Rows
from ..data.sources import ImageData
from .scenes import RgbaReader

DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")


@DATA.register("moving_stamps")
class MovingStamps(ImagePart):
    """Clips of one emoji that moves straight on, one of 8 ways, at a speed of its own; what leaves at an edge comes in
    at the other side.

    So a single frame says nothing of the way it moves: that class is learned from time alone. Splits have emoji of
    their own. Behind it is a texture of random colours, from a gradient to noise, that in half of the clips rests and
    in the others moves on its own way, so that patches of a clip do not share one colour.

    Attributes:
        label: the class of a clip is the direction of the emoji, or its group.
        canvas: "textured", or "plain": one colour.
        clip_frames: frames of a clip.
        canvas_size: side in pixels.
        stamp_scale: the emoji's side, as a share of the canvas.
        speed: pixels a frame, [slowest, fastest], drawn for each clip.
        num_clips: clips for training.
        num_validation: clips for validation.
        num_test: clips for testing.
        clip_seed: seed of all clips; a clip depends on it, its split and its number alone.
    """

    becomes: ClassVar[Mapping[str, str]] = {"source": "images"}  # data.source=path/to/videos

    label: Literal["direction", "group"] = "direction"
    canvas: Literal["textured", "plain"] = "textured"
    clip_frames: int = Field(8, ge=2, le=1024)
    canvas_size: int = Field(32, ge=8, le=4096)
    stamp_scale: tuple[float, float] = (0.35, 0.55)
    speed: tuple[float, float] = (1.5, 3.0)
    num_clips: int = Field(4000, gt=0, le=1_000_000_000)
    num_validation: int = Field(500, gt=0, le=1_000_000_000)
    num_test: int = Field(1000, gt=0, le=1_000_000_000)
    clip_seed: int = Field(0, ge=0)
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    flip_rate: float = Field(0.0, ge=0, le=1)
    num_workers: int = Field(0, ge=0, le=256)

    @model_validator(mode="after")
    def _ranges(self) -> "MovingStamps":
        if not 0 < self.stamp_scale[0] <= self.stamp_scale[1] <= 1:
            raise ValueError(f"stamp_scale {list(self.stamp_scale)} should be [smallest, largest], in (0, 1]")
        if not 0 < self.speed[0] <= self.speed[1] < self.canvas_size / 2:
            raise ValueError(f"speed {list(self.speed)} should be [slowest, fastest], below half of canvas_size")
        return self

    def rows(self, split: Role) -> Rows:
        """The clips of a split."""
        return Clips(self, split)

    def class_names(self) -> list[str]:
        return list(DIRECTIONS) if self.label == "direction" else ImageData(source="emoji").class_names()


class Clips:
    """The clips of a split, made when asked for."""

    def __init__(self, part: MovingStamps, split: Role):
        self.part, self.split = part, split
        rows = ImageData(source="emoji").rows(split)
        assert isinstance(rows, Rows)  # it is not streamed
        self.emoji, self.groups, self.reader = rows, labels_of(rows), RgbaReader()
        self.num = {"train": part.num_clips, "validation": part.num_validation, "test": part.num_test}[split]

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self.num:
            raise IndexError(index)
        draw, direction, emoji = self._begin(index)
        label = direction if self.part.label == "direction" else self.groups[emoji]
        image = self._clip(draw, direction * math.pi / 4, self.reader.read_rgba(self.emoji[emoji]["image"]))
        return {"image": image, "label": label, "key": f"{self.split} clip {index}"}

    def labels(self) -> list[int]:
        """Of all clips, without making them."""
        found = [self._begin(index)[1:] for index in range(self.num)]
        return [direction if self.part.label == "direction" else self.groups[emoji] for direction, emoji in found]

    def _begin(self, index: int) -> tuple[Draws, int, int]:
        """The random numbers of a clip, its direction and its emoji."""
        draw = Draws(sample_seed(self.part.clip_seed, index, f"{self.split} clip"))
        return draw, draw.below(len(DIRECTIONS)), draw.below(len(self.emoji))

    def _clip(self, draw: Draws, angle: float, picture: Image.Image) -> np.ndarray:
        """uint8 [F, S, S, 3]."""
        size, (small, large), (slow, fast) = self.part.canvas_size, self.part.stamp_scale, self.part.speed
        side = max(2, round(size * (small + draw.share() * (large - small))))
        resized = picture.convert("RGBa").resize((side, side), Image.Resampling.BILINEAR)
        stamp = Image.new("RGBa", (size, size))
        stamp.paste(resized)
        path = Path(slow + draw.share() * (fast - slow), angle, draw.share() * size, draw.share() * size)
        if self.part.canvas == "textured":
            behind, angle = texture(draw, size), draw.share() * 2 * math.pi
            rests = draw.below(2) == 0
            way = Path(0.0 if rests else draw.share() * fast, angle, 0.0, 0.0)
        else:
            behind = np.full((size, size, 3), [draw.below(256) for _ in range(3)], np.uint8)
            way = Path(0.0, 0.0, 0.0, 0.0)
        above = np.asarray(stamp, np.uint16)
        return np.stack([over(np.roll(above, path.at(t), (0, 1)), np.roll(behind, way.at(t), (0, 1)))
                         for t in range(self.part.clip_frames)])  # fmt: skip


class Path(NamedTuple):
    """A straight motion. speed: pixels per frame; angle: radians; top, left: start."""

    speed: float
    angle: float
    top: float
    left: float

    def at(self, time: int) -> tuple[int, int]:
        """Rows and columns from the corner, at a frame."""
        far = self.speed * time
        return round(self.top + far * math.sin(self.angle)), round(self.left + far * math.cos(self.angle))


def over(above: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """A picture, uint16 [S, S, 4], colours times alpha, on an opaque one, uint8 [S, S, 3]."""
    alpha = above[..., 3:]
    return (above[..., :3] + (behind * (255 - alpha) + 127) // 255).clip(max=255).astype(np.uint8)


def texture(draw: Draws, size: int) -> np.ndarray:
    """Random colours at 2 to S / 4 points per side, interpolated between them and across the edges, uint8 [S, S, 3]: a
    smooth gradient of two, noise of many."""
    num = 2 ** (1 + draw.below(int(math.log2(size)) - 2))
    colours = np.array([draw.share() for _ in range(num * num * 3)]).reshape(num, num, 3)
    at = np.arange(size) * num / size
    low, share = np.floor(at).astype(int), at % 1
    weights = np.zeros((size, num))
    weights[np.arange(size), low] += 1 - share
    weights[np.arange(size), (low + 1) % num] += share
    return np.rint(255 * np.einsum("yi,xj,ijc->yxc", weights, weights, colours, optimize=True)).astype(np.uint8)
