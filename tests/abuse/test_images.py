"""Images with false sizes, and images for which a C library would write to the terminal."""

import contextlib
import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from nextembed.data.transforms import ImageReader, RandomResizedCrop, Unreadable
from nextembed.errors import ConfigError
from nextembed.models.nepa.settings import NepaModel
from nextembed.objectives.next_embedding import NextEmbeddingSettings

FORMATS = [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("WEBP", {}), ("BMP", {}),
           ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}), ("PPM", {}),
           ("AVIF", {}), ("JPEG2000", {})]  # fmt: skip
READER, CROP = ImageReader(3), RandomResizedCrop(32)


def picture(side: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def broken_files():
    """Files that are truncated or have altered bytes."""
    draw = random.Random(0)
    for kind, options in FORMATS:
        whole = saved(picture(), kind, **options)
        for number in range(40):
            data = bytearray(whole[: draw.randrange(1, len(whole))] if number % 4 == 0 else whole)
            for _ in range(number % 4 * 8):
                data[draw.randrange(len(data))] = draw.randrange(256)
            yield bytes(data)


@pytest.mark.filterwarnings("error")
def test_broken_files_write_nothing_to_the_terminal(capfd):
    for data in broken_files():
        for read in (READER.read, lambda one: READER.read_crop(one, CROP, 0)):
            with contextlib.suppress(Unreadable):
                read(data)
    assert capfd.readouterr() == ("", "")


def test_training_and_evaluation_read_the_same_files():
    """Files are read identically as a whole and with a crop."""
    full = RandomResizedCrop(48, (1.0, 1.0), (1.0, 1.0), 0.0)
    readable = 0
    for data in broken_files():
        try:
            whole = READER.read(data)
        except Unreadable as err:
            with pytest.raises(Unreadable) as caught:
                READER.read_crop(data, full, 0)
            assert str(caught.value) == str(err)
            continue
        readable += 1
        if whole.shape[1:] == (48, 48):
            assert torch.equal(READER.read_crop(data, full, 0), whole)
    assert readable > 50


def tiled_tiff(side: int) -> bytes:
    """A TIFF of 64 x 64 pixels in one tile of the given side."""
    data = zlib.compress(b"\0" * 100_000)
    tags = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 3, 134), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3),
            (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 140), (325, 4, 1, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<IHHH", 0, 8, 8, 8) + data


def codestream(side: int, tile: int, stated: int | None = None) -> bytes:
    """A tiled JPEG 2000 file of the given side, whose header claims `stated`."""
    data = saved(Image.new("RGB", (64, 64)), "JPEG2000")
    at, header = data.index(b"\xff\x4f\xff\x51") + 8, data.index(b"ihdr") + 4
    size = struct.pack(">8I", side, side, 0, 0, tile, tile, 0, 0)
    data = data[:at] + size + data[at + 32 :]
    return data[:header] + struct.pack(">II", stated or side, stated or side) + data[header + 8 :]


@pytest.mark.parametrize(
    "data",
    [
        tiled_tiff(20_000),
        codestream(20_000, 20_000),
        codestream(20_000, 20_000, 10),  # the file header claims 10 x 10, the codestream 20,000 x 20,000
        codestream(255, 1),  # 65,025 tiles
        saved(Image.new("P", (9000, 9000)), "GIF")[:6] + b"\1\0\1\0" + saved(Image.new("P", (9000, 9000)), "GIF")[10:],
        b"P6\n60000 60000\n255\n" + bytes(100),
        b"P3\n60000 60000\n255\n" + b"0 " * 100,
        b"P4\n60000 60000\n" + bytes(100),
    ],
    ids=["tiff tile", "jpeg 2000", "jpeg 2000 header", "jpeg 2000 tiles", "gif", "ppm", "plain ppm", "pbm"],
)
def test_sizes_are_limited_before_anything_is_decoded(data):
    for read in (READER.read, READER.read_size, lambda one: READER.read_crop(one, CROP, 0)):
        with pytest.raises(Unreadable, match=r"pixels, more than max_pixels=64000000|exceeds limit of [0-9]+ pixels"):
            read(data)


def test_valid_files_of_these_kinds_are_read():
    for kind in ("TIFF", "JPEG2000", "GIF"):
        assert READER.read(saved(Image.new("RGB", (300, 200)), kind)).shape == (3, 200, 300)
    tiled = saved(picture(256), "JPEG2000", tile_size=(64, 64))
    assert READER.read(tiled).shape == (3, 256, 256) and READER.read(tiled_tiff(64)).shape == (3, 64, 64)


def test_an_image_of_one_patch_cannot_be_trained_on():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8}
    for settings in (NextEmbeddingSettings(), NextEmbeddingSettings(shift=False)):
        with pytest.raises(ConfigError, match=r"an image of one patch has no next patch; set model.patch_size to half"):
            settings.build(NepaModel(**small, patch_size=8).build())
        settings.build(NepaModel(**small, patch_size=4).build())


@pytest.mark.parametrize("height, width", [(40, 48), (48, 43)])
def test_a_tiff_whose_jpeg_is_smaller_than_its_strip_is_unreadable(height, width):
    """Otherwise the pixels that it does not cover would be uninitialised memory."""
    data = saved(picture(), "TIFF", compression="jpeg")
    assert READER.read(data).shape == (3, 48, 48)
    whole = b"\xff\xc0\x00\x11\x08\x00\x30\x00\x30"  # the frame header with the size
    assert whole in data
    data = data.replace(whole, whole[:5] + struct.pack(">HH", height, width))
    with pytest.raises(Unreadable, match=f"a JPEG of {width}x{height} pixels is in it where 48x48 are expected"):
        READER.read(data)
