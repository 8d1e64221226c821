"""Converts Pillow's many image modes into the two that models read, in the same way for training and inference."""

import contextlib
import ctypes
import io
import logging
import warnings
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageOps, _imaging

# Errors are raised; Pillow would also log them and libtiff print them.
logging.getLogger("PIL").addHandler(logging.NullHandler())
with contextlib.suppress(OSError, AttributeError):  # a Pillow without libtiff
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        getattr(ctypes.CDLL(_imaging.__file__), name)(None)


MOST_PROFILE = 2**23  # bytes of a colour profile; those of printers have up to two megabytes


def plain_picture(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """The picture decoded, upright, opaque, in mode "RGB" or, where it is grey, "L".

    EXIF rotation and colour profiles are applied, palettes and CMYK become RGB, 16-bit grey is scaled to 8 bit,
    transparent pixels lie on `background`. Raises ValueError for pixels of unknown range (mode F, or I beyond 16 bits).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e.g. "palette images with transparency": handled below
        image.load()
        if orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            image = eight_bit(image)
        image = in_srgb(image)
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.new("RGBA", rgba.size, (*background, 255))
            image.alpha_composite(rgba)
        return image if image.mode in ("RGB", "L") else image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 (upright) to 8."""
    # Pillow rotates TIFF itself. Others are only asked if the header has the tag: otherwise they would be decoded here.
    return image.getexif().get(0x0112, 1) if "exif" in image.info and image.format != "TIFF" else 1


def in_srgb(image: Image.Image) -> Image.Image:
    """An RGB, palette or CMYK picture converted to sRGB by its colour profile (Display P3, Adobe RGB, a printer's);
    unchanged without a profile, with sRGB or with a broken one."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "P") or len(profile) > MOST_PROFILE:
        return image
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    transform = to_srgb(profile, image.mode, "RGB" if image.mode == "CMYK" else image.mode)
    return image if transform is None else transform.apply(image)


@lru_cache(16)
def to_srgb(profile: bytes, mode: str, wanted: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None if there is nothing to change."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        said = ImageCms.getProfileDescription(source)
        if "srgb" in said.lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, wanted)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey (modes I;16 and I) scaled, not clipped as by Pillow: 65535 becomes 255.

    Raises ValueError for pixels whose range nothing tells, such as those of 32 bits in a TIFF.
    """
    values = np.asarray(image)
    of_32_bits = image.format == "TIFF" and image.mode == "I"  # older Pillow versions read 16-bit PNG in this mode
    if of_32_bits or values.dtype.kind == "f" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError(f"pixels of mode {image.mode} have no known range")
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
