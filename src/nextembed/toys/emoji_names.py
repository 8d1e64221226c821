"""Emoji in changed drawing styles, each to be told by its name: what an encoder learns from before it meets text."""

from collections.abc import Sequence

from pydantic import Field

from ..core.config import DATA
from ..core.types import Role
from ..data.draws import sample_seed
from ..data.images import ImagePart
from ..data.rows import Row, Rows
from .emoji_documents import EmojiDocuments, name_of


@DATA.register("emoji_names")
class EmojiNames(ImagePart):
    """Images of emoji, shifted, scaled and restyled; the class of an image is the emoji's name.

    Every split is made of the same emoji, since names that were never seen cannot be known: training has `versions` of
    each, validation and test one each, changed by other random numbers.

    Attributes:
        source: "emoji", the sample that comes with the package, or a folder like it: see `EmojiDocuments`.
        vendor: keeps the pictures of one, or of some; null: all.
        versions: images made of each picture for training.
        max_shift: random shift, as a share of the side, on a white ground.
        max_scale: random change of the size, as a share.
        restyle_rate: share of the images whose style is changed: colours, flat areas, lines, a turn, something covered.
        version_seed: seed of all images; an image depends on it, its picture, its split and its number alone.
    """

    source: str = "emoji"
    vendor: str | list[str] | None = None
    versions: int = Field(24, gt=0, le=100_000)
    max_shift: float = Field(0.1, ge=0, lt=1)
    max_scale: float = Field(0.1, ge=0, lt=1)
    restyle_rate: float = Field(0.7, ge=0, le=1)
    version_seed: int = Field(0, ge=0, lt=2**63)
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    flip_rate: float = Field(0.0, ge=0, le=1)  # a left arrow is not a right arrow
    num_workers: int = Field(0, ge=0, le=256)

    def rows(self, split: Role) -> Rows:
        """The images of a split. Raises ConfigError for a source that is not like the sample."""
        return Versions(self, split)

    def class_names(self) -> list[str]:
        """The names, in alphabetical order."""
        return Versions(self, "train").names

    def documents(self) -> EmojiDocuments:
        """The pictures as documents, which know how they are changed."""
        return EmojiDocuments(
            source=self.source,
            vendor=self.vendor,
            background=self.background,
            max_shift=self.max_shift,
            max_scale=self.max_scale,
            restyle_rate=self.restyle_rate,
        )


class Versions:
    """The images of a split, made when asked for. names: the classes."""

    def __init__(self, part: EmojiNames, split: Role):
        self.part, self.split, self.documents = part, split, part.documents()
        self.pictures = self.documents.rows("train")
        called = [name_of(self.pictures[i]) for i in range(len(self.pictures))]
        self.names = sorted(set(called))
        number = {name: i for i, name in enumerate(self.names)}
        self.classes = [number[name] for name in called]
        self.versions = part.versions if split == "train" else 1

    def __len__(self) -> int:
        return len(self.classes) * self.versions

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        at, version = index // self.versions, index % self.versions
        seed = sample_seed(self.part.version_seed, version, f"{self.split} {at}")
        picture = self.documents.picture(self.pictures[at], seed)["value"]
        return {
            "image": picture.permute(1, 2, 0).numpy(),
            "label": self.classes[at],
            "key": f"{self.split} {self.names[self.classes[at]]} {version}",
        }

    def labels(self) -> Sequence[int]:
        """Of all images, without making them."""
        return [label for label in self.classes for _ in range(self.versions)]
