"""Settings of every kind of data: names of splits, and limits of decoding."""

from typing import Protocol, runtime_checkable

from pydantic import Field

from ..core.config import Config
from ..core.types import Role
from .found import Found
from .transforms import Colour


class Limits(Config):
    """How pictures are decoded, and how much of the data may be unreadable.

    Attributes:
        background: RGB colour under transparent pixels.
        max_pixels: largest image in pixels; a larger one counts as unreadable and is not decoded.
        max_bytes: largest file in bytes; a larger one counts as unreadable and is not read.
        max_skipped_rate: share of unreadable samples above which a run stops.
        num_workers: processes of each rank that read and decode; 0 reads in the main process.
    """

    background: Colour = (255, 255, 255)
    max_pixels: int = Field(64_000_000, gt=0)
    max_bytes: int = Field(100_000_000, gt=0)
    max_skipped_rate: float = Field(0.01, ge=0, le=1)
    num_workers: int = Field(2, ge=0, le=256)

    def left_out(self, split: Role) -> dict[str, str]:
        """Files that may be rows of a split and cannot be used, each with the reason."""
        return {}

    def around(self) -> Found:
        """Other files of the source, and its splits."""
        return Found("", None)


def expression_of(part: Limits, split: Role) -> str:
    """A split in the notation of the settings: "train[:-50]"."""
    return part.expression(split) if isinstance(part, Expressed) else split


@runtime_checkable
class Expressed(Protocol):
    """Settings with the names of the splits."""

    def expression(self, split: Role) -> str: ...
