"""Uploaded files: of an expected type, within limits, read like data."""

from pathlib import Path

from PIL import Image
from torch import Tensor

from ..data.transforms import ImageReader, Unreadable
from ..data.video import VideoReader
from ..errors import DataError
from ..inference.signals import NUM_FRAMES, SUFFIXES, kind_of
from .settings import StudioSettings

MOST_SECONDS = 3600.0  # of a video
IMAGES = [*SUFFIXES["image"], ".gif"]


def read_image(file: str | None, settings: StudioSettings) -> Image.Image:
    """The RGB picture of an uploaded file.

    Raises:
        DataError: no file, another kind of file, too large, or not to be decoded.
    """
    return Image.fromarray(read_pixels(file, settings).permute(1, 2, 0).numpy())


def read_pixels(file: str | None, settings: StudioSettings) -> Tensor:
    """The same as uint8 [3, H, W]."""
    path = checked(file, IMAGES, settings)
    try:
        return ImageReader(3, max_pixels=settings.max_pixels, max_bytes=settings.max_upload_mb * 10**6).read(path)
    except Unreadable as err:
        raise DataError(f"{path.name} cannot be read: {err}") from None


def read_frames(path: Path, settings: StudioSettings) -> Tensor:
    """Frames spread over a video, uint8 [F, 3, H, W]. Raises DataError if it cannot be read."""
    try:
        reader = VideoReader(settings.max_upload_mb * 10**6, settings.max_pixels, MOST_SECONDS)
        return reader.read(str(path), NUM_FRAMES)
    except Unreadable as err:
        raise DataError(f"{path.name} cannot be read: {err}") from None


def checked(file: str | None, endings: list[str] | tuple[str, ...], settings: StudioSettings) -> Path:
    """An uploaded file. Raises DataError where there is none, or it is of another kind or too large."""
    if not file:
        raise DataError("upload a file first")
    path = Path(file)
    if path.suffix.lower() not in endings:
        what = kind_of(path) or "a file of an unsupported type"
        raise DataError(f"{path.name} is {what}; supported here: {', '.join(endings)}")
    if not path.is_file() or path.stat().st_size > settings.max_upload_mb * 10**6:
        raise DataError(f"{path.name} is larger than {settings.max_upload_mb} MB")
    return path
