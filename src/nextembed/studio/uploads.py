"""Files that are dropped into the page: of a kind that is asked for, within limits, read as data are."""

from pathlib import Path

from PIL import Image

from ..data.transforms import ImageReader, Unreadable
from ..errors import DataError
from ..inference.signals import SUFFIXES, kind_of
from .settings import StudioSettings

IMAGES = [*SUFFIXES["image"], ".gif"]


def read_image(file: str | None, settings: StudioSettings) -> Image.Image:
    """The RGB picture of a file that was dropped.

    Raises:
        DataError: no file, another kind of file, too large, or not to be decoded.
    """
    path = checked(file, IMAGES, settings)
    try:
        pixels = ImageReader(3, max_pixels=settings.max_pixels, max_bytes=settings.max_upload_mb * 10**6).read(path)
    except Unreadable as err:
        raise DataError(f"{path.name} cannot be read: {err}") from None
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def checked(file: str | None, endings: list[str] | tuple[str, ...], settings: StudioSettings) -> Path:
    """A file that was dropped. Raises DataError where there is none, or it is of another kind or too large."""
    if not file:
        raise DataError("drop a file first")
    path = Path(file)
    if path.suffix.lower() not in endings:
        what = kind_of(path) or "a file of an unsupported type"
        raise DataError(f"{path.name} is {what}; wanted is one of {', '.join(endings)}")
    if not path.is_file() or path.stat().st_size > settings.max_upload_mb * 10**6:
        raise DataError(f"{path.name} is larger than {settings.max_upload_mb} MB")
    return path
