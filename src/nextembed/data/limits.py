"""What every kind of data has: names of its splits, and limits on what it decodes."""

from pydantic import Field

from ..core.config import Config
from .transforms import Colour


class Limits(Config):
    """How pictures are decoded, and how much of the data may be unreadable.

    background: RGB under transparent pixels. max_pixels, max_bytes: an image or a file above is unreadable, unread.
    max_skipped_rate: share of unreadable samples above which a run stops. num_workers: processes a rank that read and
    decode; 0 is none but this one.
    """

    background: Colour = (255, 255, 255)
    max_pixels: int = Field(64_000_000, gt=0)
    max_bytes: int = Field(100_000_000, gt=0)
    max_skipped_rate: float = Field(0.01, ge=0, le=1)
    num_workers: int = Field(2, ge=0, le=256)
