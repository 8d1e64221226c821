"""Damaged and odd images: unreadable, or the pixels that Pillow decodes; no output and little memory."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

from nextembed.core.pictures import plain_picture
from nextembed.data.transforms import FORMATS, ImageReader, RandomResizedCrop, Unreadable, resize

from .box import Box, Case
from .damage import DAMAGE

COUNT, SECONDS, MIB = 1000, 10, 200
MAX_PIXELS = 1_000_000
MODES = {"PNG": "1 L LA P RGB RGBA I;16", "JPEG": "L RGB CMYK", "TIFF": "1 L P RGB RGBA CMYK I;16 I F LAB",
         "JPEG2000": "L RGB RGBA I;16", "WEBP": "RGB RGBA", "AVIF": "RGB RGBA", "BMP": "1 L P RGB RGBA", "ICO": "RGB",
         "GIF": "P", "PPM": "1 L RGB I;16", "TGA": "RGB", "PCX": "RGB", "PDF": "RGB", "EPS": "RGB"}  # fmt: skip
KINDS = [
    *((form, mode, {}) for form, modes in MODES.items() for mode in modes.split()),
    *(("JPEG", "RGB", {"turned": way}) for way in range(1, 10)), ("PNG", "RGB", {"turned": 6}),
    *(("TIFF", "RGB", {"compression": how}) for how in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")),
    *((form, mode, {"animated": 3}) for form, mode in (("GIF", "L"), ("WEBP", "RGB"), ("PNG", "RGBA"))),
    ("PNG", "P", {"transparency": 1}), ("PNG", "RGB", {"transparency": (0, 0, 0)}), ("PNG", "RGB", {"interlace": 1}),
    ("JPEG", "RGB", {"progressive": True, "subsampling": 2}), ("JPEG", "RGB", {"comment": b"x" * 60_000}),
    ("JPEG", "RGB", {"icc_profile": b"no profile"}), ("TIFF", "1", {"compression": "group4"}),
    ("TIFF", "RGB", {"tiffinfo": {274: 6}}), ("TIFF", "L", {"tiffinfo": {33000: 1.5}}),
    ("JPEG2000", "RGB", {"no_jp2": True}), ("JPEG2000", "RGB", {"tile_size": (16, 16)}),
    ("WEBP", "RGB", {"lossless": True}), ("WEBP", "RGBA", {"lossless": True}),
]  # fmt: skip
OTHERS = {"text": b"no image", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "zip": b"PK\x03\x04" + bytes(60),
          "elf": b"\x7fELF" + bytes(60), "wav": b"RIFF\x24\0\0\0WAVEfmt "}  # fmt: skip


def picture(mode: str, width: int, height: int, seed: int) -> Image.Image:
    numbers = np.random.default_rng(seed)
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(numbers.integers(0, 65536, (height, width)).astype(kind))
    colours = Image.fromarray(numbers.integers(0, 256, (max(1, height // 4), max(1, width // 4), 4), dtype=np.uint8))
    colours = colours.resize((width, height))
    if mode == "LAB":
        return Image.merge("LAB", colours.split()[:3])
    return colours if mode == "RGBA" else colours.convert("RGB").convert(mode)


def file(kind: tuple, width: int, height: int, seed: int) -> bytes:
    form, mode, given = kind
    options, image, out = dict(given), picture(mode, width, height, seed), io.BytesIO()
    if count := options.pop("animated", None):
        options |= {"save_all": True, "append_images": [picture(mode, width, height, seed + i) for i in range(count)]}
    if way := options.pop("turned", None):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = way
    image.save(out, form, **options)
    return out.getvalue()


def claimed(form: str, data: bytes, rng: Random) -> bytes:
    """A file whose header claims a huge size."""
    size = rng.choice([30_000, 65_500, 2**31 - 1])
    small = min(size, 65_500)
    if form == "PNG":
        chunk = b"IHDR" + struct.pack(">II", size, size) + data[24:29]
        return data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    if form == "GIF":
        return data[:6] + struct.pack("<HH", small, small) + data[10:]
    if form == "BMP":
        return data[:18] + struct.pack("<ii", size, size) + data[26:]
    if form == "PPM":
        return data[:2] + f"\n{size} {size}\n255\n".encode() + data[15:]
    if form == "JPEG" and (at := max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))) > 0:
        return data[: at + 5] + struct.pack(">HH", small, small) + data[at + 9 :]
    if form == "JPEG2000" and (at := data.find(b"\xff\x51")) > 0:  # only the codestream; the box before it stays small
        return data[: at + 6] + struct.pack(">II", 60_000, 60_000) + data[at + 14 :]
    if form == "TIFF":
        for tag in (256, 257):
            at = data.find(struct.pack("<HH", tag, 4))
            data = data[: at + 8] + struct.pack("<I", size) + data[at + 12 :] if at > 0 else data
    return data


def cases(fixtures: Path, rng: Random) -> Iterator[Case]:
    for number in range(COUNT):
        if rng.random() < 0.03:
            name = rng.choice(list(OTHERS))
            yield f"{number} {name}", lambda box, data=OTHERS[name]: read(box, data)
            continue
        kind = KINDS[number % len(KINDS)]
        damage = "claimed" if rng.random() < 0.1 else rng.choice(list(DAMAGE))
        size = rng.choice([(1, 1), (1, 90), (90, 1), (24, 24), (37, 23), (200, 130)])
        words = " ".join([kind[0], kind[1], *kind[2]])
        yield f"{number} {words} {size[0]}x{size[1]} {damage}", lambda box, made=(kind, size, damage): one(box, *made)


def one(box: Box, kind: tuple, size: tuple[int, int], damage: str) -> str | None:
    try:
        data = file(kind, *size, box.rng.randrange(1000))
    except (OSError, ValueError, SystemError, KeyError):
        return None  # this Pillow cannot write such files
    data = claimed(kind[0], data, box.rng) if damage == "claimed" else DAMAGE[damage](data, box.rng)
    (box.folder / "image").write_bytes(data)
    return read(box, data)


def read(box: Box, data: bytes) -> str | None:
    reader = ImageReader(num_channels=box.rng.choice([1, 3]), max_pixels=MAX_PIXELS)
    box.said()
    try:
        found = reader.read(data)
    except Unreadable as err:
        found = str(err)
    try:
        height, width = reader.read_size(data)
    except Unreadable:
        height = width = 0
    try:
        crop = reader.read_crop(
            data, RandomResizedCrop(8, (1, 1), (width / max(1, height),) * 2 if width else (1, 1), 0), 5
        )
    except Unreadable as err:
        crop = str(err)
    if said := box.said():
        return f"printed {said[:150]!r}"
    for value in (found, crop):
        if isinstance(value, str) and ("\n" in value or not value or len(value) > 300):
            return f"no line: {value[:300]!r}"
    expected = decoded(data, reader.mode)
    box.said()  # output of Pillow itself
    if isinstance(found, str):
        if not isinstance(crop, str):
            return f"read_crop reads what read does not: {found}"
        return f"Pillow reads it, but: {found}" if expected is not None else None
    if (
        expected is None
        or found.dtype != torch.uint8
        or not np.array_equal(found.permute(1, 2, 0).squeeze(-1), expected)
    ):
        return "other pixels than Pillow's"
    if found.shape[1:] != (height, width):
        return f"read_size says {height}x{width}, read {tuple(found.shape[1:])}"
    if isinstance(crop, str):
        return f"read reads it, read_crop does not: {crop}"
    if tuple(crop.shape) != (found.shape[0], 8, 8) or crop.dtype != torch.uint8:
        return f"a crop of shape {tuple(crop.shape)}"
    off = (crop.float() - resize(found, 8).float()).abs().mean().item()
    return f"a crop {off:.0f} levels off" if off > 12 and min(height, width) >= 8 else None


def decoded(data: bytes, mode: str) -> np.ndarray | None:
    """The image as decoded by Pillow within the same limits."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            return None
        plain = plain_picture(image)
        return np.asarray(plain if plain.mode == mode else plain.convert(mode))
    except Exception:  # Pillow raises various errors for broken files
        return None
