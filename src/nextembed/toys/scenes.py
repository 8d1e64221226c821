"""Emoji pasted on backgrounds, with a mask of their groups: a generated segmentation task."""

import hashlib
from collections import OrderedDict

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from ..core.config import DATA
from ..core.types import Role
from ..data.draws import Draws, sample_seed
from ..data.masks import MaskPart
from ..data.rows import Row, Rows, row_key
from ..data.sources import ImageData
from ..data.transforms import ImageReader, Unreadable, _unreadable
from ..errors import ConfigError, MissingSplit

BACKGROUND = "background"
SHARES = {"train": 8, "validation": 1, "test": 1}  # of backgrounds that come without such a split
OPAQUE = 128  # smallest alpha (of 255) of a pixel that belongs to an emoji
CACHE_BYTES = 256 * 2**20


@DATA.register("emoji_scenes")
class EmojiScenes(MaskPart):
    """Scenes of 1 to 5 emoji of random size, place, turn and flip on a background. Class 0 is the background, then come
    the groups of the emoji; of overlapping emoji the one on top counts.

    Attributes:
        emoji: "emoji" (the sample that comes with the package), or a Parquet folder with the columns image and group.
        backgrounds: a folder or Parquet files of pictures; null: plain colours. Splits of both stay apart: no emoji and
            no picture is in two of them. Backgrounds without a test (validation) split share out those of validation
            (train) by their names.
        scene_size: side in pixels.
        num_scenes: scenes for training.
        num_validation: scenes for validation.
        num_test: scenes for testing.
        max_emoji: emoji of a scene, at most.
        emoji_scale: their side, as a share of the scene's.
        max_turn: degrees, to either side.
        scene_seed: seed of all scenes; a scene depends on it, its split and its number alone.
    """

    emoji: str = "emoji"
    backgrounds: str | None = None
    scene_size: int = Field(64, gt=0, le=8192)
    num_scenes: int = Field(4000, gt=0, le=1_000_000_000)
    num_validation: int = Field(400, gt=0, le=1_000_000_000)
    num_test: int = Field(800, gt=0, le=1_000_000_000)
    max_emoji: int = Field(5, gt=0, le=10_000)
    emoji_scale: tuple[float, float] = (0.25, 0.65)
    max_turn: float = Field(40.0, ge=0, le=180)
    scene_seed: int = Field(0, ge=0)
    scale_range: tuple[float, float] = (1.0, 1.0)
    max_class_rate: float = Field(1.0, gt=0, le=1)
    distort_colours: bool = False
    num_workers: int = Field(0, ge=0, le=256)

    @model_validator(mode="after")
    def _emoji_have_a_size(self) -> "EmojiScenes":
        if not 0 < self.emoji_scale[0] <= self.emoji_scale[1] <= 4:
            raise ValueError(f"emoji_scale {list(self.emoji_scale)} should be [smallest, largest], in (0, 4]")
        return self

    def rows(self, split: Role) -> Rows:
        """The scenes of a split. Raises ConfigError if the emoji or backgrounds cannot be read."""
        return Scenes(self, split)

    def class_names(self) -> list[str]:
        return [BACKGROUND, *self._emoji().class_names()]

    def _emoji(self) -> ImageData:
        return ImageData(source=self.emoji, label_column="group")

    def backdrops(self, split: Role) -> tuple[Rows, list[int]]:
        """Rows of pictures, and the numbers of those that belong to a split; none for plain colours."""
        if self.backgrounds is None:
            return [], []
        found: dict[Role, Rows] = {}
        roles: tuple[Role, ...] = ("train", "validation", "test")
        for role in roles:
            try:
                rows = ImageData(source=self.backgrounds).rows(role)
            except MissingSplit:
                if role == "train":
                    raise
            else:
                assert isinstance(rows, Rows)
                found[role] = rows
        home: dict[Role, Role] = {"train": "train"}
        home["validation"] = "validation" if "validation" in found else "train"
        home["test"] = "test" if "test" in found else home["validation"]
        rows = found[home[split]]
        sharing = [role for role in roles if home[role] == home[split]]
        if len(sharing) == 1:
            return rows, list(range(len(rows)))
        owners = [role for role in sharing for _ in range(SHARES[role])]
        numbers = [i for i in range(len(rows)) if owners[_number(row_key(rows[i], i)) % len(owners)] == split]
        if not numbers:
            raise ConfigError(f"data.backgrounds: {self.backgrounds} has too few pictures to keep the splits apart")
        return rows, numbers


def _number(key: str) -> int:
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16)


class Scenes:
    """The scenes of a split, composed when asked for; the last ones are kept."""

    def __init__(self, part: EmojiScenes, split: Role):
        self.part, self.split = part, split
        emoji = part._emoji().rows(split)
        assert isinstance(emoji, Rows)  # it is not streamed
        self.emoji = emoji
        self.backdrops, self.numbers = part.backdrops(split)
        self.reader = RgbaReader(3, part.background, part.max_pixels, part.max_bytes)
        self.num = {"train": part.num_scenes, "validation": part.num_validation, "test": part.num_test}[split]
        self.kept: OrderedDict[int, Row] = OrderedDict()
        self.pictures: dict[tuple[str, int], Image.Image] = {}
        self.groups: dict[int, int] = {}
        self.bytes_left = CACHE_BYTES

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self.num:
            raise IndexError(index)
        if index not in self.kept:
            image, mask = self.compose(index)
            self.kept[index] = {"image": image, "mask": mask, "key": f"{self.split} scene {index}"}
            if len(self.kept) > CACHE_BYTES // (4 * mask.size):
                self.kept.popitem(last=False)
        return self.kept[index]

    def compose(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Scene number `index`: pixels uint8 [S, S, 3] and class ids uint8 [S, S]."""
        draw = Draws(sample_seed(self.part.scene_seed, index, f"{self.split} scene"))
        size = self.part.scene_size
        scene = self._backdrop(draw)
        mask = np.zeros((size, size), dtype=np.uint8)
        low, high = self.part.emoji_scale
        for _ in range(1 + draw.below(self.part.max_emoji)):
            picture, group = self._emoji(draw.below(len(self.emoji)))
            side = max(4, round(size * (low + draw.share() * (high - low))))
            pasted = _turned(picture, side, (2 * draw.share() - 1) * self.part.max_turn, draw.below(2) == 1)
            left = draw.below(size) - pasted.width // 2  # its centre is in the scene; its edges may be outside
            top = draw.below(size) - pasted.height // 2
            scene.alpha_composite(
                pasted.crop((max(0, -left), max(0, -top), pasted.width, pasted.height)), (max(0, left), max(0, top))
            )
            layer = Image.new("L", (size, size))
            layer.paste(pasted.getchannel("A"), (left, top))
            mask[np.asarray(layer) >= OPAQUE] = 1 + group
        return np.asarray(scene.convert("RGB")), mask

    def _emoji(self, number: int) -> tuple[Image.Image, int]:
        """An emoji and its group. Raises ConfigError if it cannot be used."""
        if number not in self.groups:
            row = self.emoji[number]
            self.groups[number] = row.get("label", -1)
            if self.groups[number] < 0:
                raise ConfigError(f"data.emoji: {row_key(row, number)} has no group")
        try:
            return self._picture("emoji", self.emoji, number), self.groups[number]
        except Unreadable as err:
            raise ConfigError(f"data.emoji: {row_key(self.emoji[number], number)}: {err}") from None

    def _picture(self, kind: str, rows: Rows, number: int) -> Image.Image:
        """A decoded picture, premultiplied by its alpha; kept while there is room. Raises Unreadable."""
        if (kind, number) in self.pictures:
            return self.pictures[kind, number]
        picture = self.reader.read_rgba(rows[number].get("image")).convert("RGBa")
        size = 4 * picture.width * picture.height
        if size <= self.bytes_left:
            self.bytes_left -= size
            self.pictures[kind, number] = picture
        return picture

    def _backdrop(self, draw: Draws) -> Image.Image:
        """A plain colour, or a random square of a picture if there are pictures."""
        size = self.part.scene_size
        plain = Image.new("RGBA", (size, size), (draw.below(256), draw.below(256), draw.below(256), 255))
        if not self.numbers:
            return plain
        first = draw.below(len(self.numbers))
        for step in range(len(self.numbers)):
            try:
                picture = self._picture("backdrop", self.backdrops, self.numbers[(first + step) % len(self.numbers)])
            except Unreadable:
                continue  # replaced permanently by the next one
            side = min(picture.size) * (0.5 + 0.5 * draw.share())
            left, top = (draw.share() * (length - side) for length in picture.size)
            box = (left, top, min(left + side, picture.width), min(top + side, picture.height))
            square = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
            plain.alpha_composite(square.convert("RGBA"))
            return plain
        raise ConfigError(f"data.backgrounds: none of the pictures of {self.part.backgrounds} can be read")


class RgbaReader(ImageReader):
    """Reads a picture with its transparency."""

    def read_rgba(self, image: object) -> Image.Image:
        """RGBA. Raises Unreadable for anything but a picture within the limits."""
        with _unreadable():
            opened = self._open(self._load(image))
            opened.load()
            return opened.convert("RGBA")


def _turned(picture: Image.Image, side: int, angle: float, flip: bool) -> Image.Image:
    """A premultiplied emoji, resized and rotated, as RGBA."""
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    return picture.rotate(angle, Image.Resampling.BILINEAR, expand=True).convert("RGBA")
