"""Images are read as viewers show them: upright, in the colours of their profiles, the first frame, opaque."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from nextembed.core.pictures import plain_picture
from nextembed.data.transforms import FORMATS, ImageReader

READER = ImageReader()
WIDTH, HEIGHT = 64, 32
CORNERS = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
CORNERS[:16, :32], CORNERS[:16, 32:], CORNERS[16:, :32], CORNERS[16:, 32:] = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))  # fmt: skip
STORED = {  # how an image is stored, by EXIF orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def saved(image, format, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def turned(way: int) -> Image.Image:
    image = Image.fromarray(CORNERS)
    return image if STORED[way] is None else image.transpose(STORED[way])


def exif(way: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = way
    return tags


def pixels(data: bytes) -> np.ndarray:
    return READER.read(data).permute(1, 2, 0).numpy().astype(int)


def is_corners(data: bytes) -> bool:
    found = pixels(data)
    assert READER.read_size(data) == found.shape[:2]
    return found.shape == CORNERS.shape and np.abs(found - CORNERS).mean() < 12


@pytest.mark.parametrize("way", STORED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_images_are_upright_in_every_format(format, way):
    image = turned(way)
    if format == "TIFF":
        assert is_corners(saved(image, "TIFF", tiffinfo={274: way}))
    else:
        assert is_corners(saved(image, format, exif=exif(way), **({"lossless": True} if format == "WEBP" else {})))


@pytest.mark.parametrize("way", STORED)
def test_heic_is_not_rotated_twice(way):
    """Phones store the rotation in the container (irot, imir) and in EXIF; only the container counts."""
    pytest.importorskip("pillow_heif")
    data = saved(turned(way), "HEIF", exif=exif(way).tobytes(), quality=100)
    assert (b"irot" in data or b"imir" in data) == (way > 1) and b"Exif" in data
    assert is_corners(data)
    told = saved(turned(1), "HEIF", quality=100, exif=exif(1).tobytes())
    at = told.index(b"II*\0" if b"II*\0" in told else b"MM\0*")
    order = "little" if told[at : at + 2] == b"II" else "big"
    place = at + 8 + 2 + 8  # the value of the first tag
    assert int.from_bytes(told[place : place + 2], order) == 1
    lying = told[:place] + way.to_bytes(2, order) + told[place + 2 :]  # rotated only in EXIF
    assert is_corners(lying)


# -- profiles


def s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(s15, values))


def profile(space: bytes, kind: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 2.4."""
    name = b"a test\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78), b"wtpt": xyz(0.9642, 1, 0.8249),
            b"cprt": b"text\0\0\0\0none\0"} | tags  # fmt: skip
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        value += bytes(-len(value) % 4)
        table += tag + struct.pack(">II", start + len(body), len(value))
        body += value
    head = struct.pack(">I", start + len(body)) + b"test" + bytes([2, 0x40, 0, 0]) + kind + space + pcs + bytes(12)
    head += b"acsp" + bytes(28) + s15(0.9642) + s15(1) + s15(0.8249) + bytes(48)
    return head + table + body


CURVE = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256))
PRIMARIES = {  # Display P3 and Adobe RGB (1998), adapted to D50
    "P3": [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)],
    "Adobe": [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)],
}
SRGB = np.array([(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)]).T


def of_primaries(name: str) -> bytes:
    tags = {tag: xyz(*value) for tag, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), PRIMARIES[name])}
    return profile(b"RGB ", b"mntr", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), CURVE))


def expected(name: str, colour: tuple[int, int, int]) -> np.ndarray:
    """The sRGB colour from the definitions of the colour spaces."""
    light = np.linalg.inv(SRGB) @ np.array(PRIMARIES[name]).T @ (np.array(colour) / 255) ** 2.2
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("name", PRIMARIES)
@pytest.mark.parametrize(
    ("format", "mode"),
    [*((name, "RGB") for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")), ("PNG", "RGBA"), ("PNG", "P")],
)
def test_colours_of_a_profile(name, format, mode):
    if format not in FORMATS:
        pytest.skip("needs pillow-heif")
    for colour in ((200, 100, 50), (30, 160, 90), (128, 128, 128)):
        image = Image.new("RGB", (16, 16), colour)
        image = image.quantize(8) if mode == "P" else image.convert(mode)
        found = pixels(saved(image, format, icc_profile=of_primaries(name)))[8, 8]
        np.testing.assert_allclose(found, expected(name, colour), atol=5)
    assert np.abs(expected(name, (200, 100, 50)) - (200, 100, 50)).max() > 10  # the profile changes the colours


def of_ink() -> bytes:
    """A printer profile: lightness is 100 without ink, 0 with full CMY, and 40 with black only."""
    corners = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(-1, 4)
    light = (1 - corners[:, :3].mean(1)) * (1 - 0.6 * corners[:, 3])
    table = np.stack([light * 255, np.full(16, 128), np.full(16, 128)], 1).round().astype(np.uint8)
    line = bytes(range(256))
    matrix = b"".join(map(s15, np.eye(3).reshape(-1)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + line * 4 + table.tobytes() + line * 3
    return profile(b"CMYK", b"prtr", b"Lab ", {b"A2B0": lut})


@pytest.mark.parametrize(
    ("ink", "lightness"), [((0, 0, 0, 0), 100), ((0, 0, 0, 255), 40), ((255, 255, 255, 0), 0), ((128, 128, 128, 0), 50)]
)
def test_cmyk_with_a_profile(ink, lightness):
    luminance = ((lightness + 16) / 116) ** 3 if lightness > 8 else lightness / 903.3
    grey = 255 * (1.055 * luminance ** (1 / 2.4) - 0.055 if luminance > 0.0031308 else 12.92 * luminance)
    for format in ("JPEG", "TIFF"):
        data = saved(Image.new("CMYK", (16, 16), ink), format, icc_profile=of_ink())
        np.testing.assert_allclose(pixels(data)[8, 8], grey, atol=6)


def test_neutral_and_broken_profiles():
    from PIL import ImageCms

    image = Image.fromarray(CORNERS)
    for own in (
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        b"broken",
        of_primaries("P3")[:200],
    ):
        assert is_corners(saved(image, "PNG", icc_profile=own))
    assert is_corners(saved(image, "PNG", icc_profile=of_ink()))  # a profile for another number of channels


def test_transparency_is_kept_with_a_profile():
    image = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    image.info["icc_profile"] = of_primaries("P3")
    assert np.asarray(plain_picture(image, (1, 2, 3)))[4, 4].tolist() == [1, 2, 3]
    keyed = saved(Image.new("RGB", (8, 8), (9, 9, 9)), "PNG", transparency=(9, 9, 9), icc_profile=of_primaries("P3"))
    assert pixels(keyed)[4, 4].tolist() == [255, 255, 255]


# -- depth, frames and alpha


def png(width, height, depth, kind, rows: bytes) -> bytes:
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "values", "wanted"), [
    (2, (65535, 32896, 257), (255, 128, 1)),  # 16-bit colour
    (6, (65535, 0, 0, 65535), (255, 0, 0)), (6, (65535, 0, 0, 0), (255, 255, 255)),  # with alpha
    (0, (32896,), (128, 128, 128)),  # grey
    (4, (0, 32896), (127, 127, 127)), (4, (20560, 65535), (80, 80, 80)),  # grey with alpha, on white
])  # fmt: skip
def test_png_of_16_bits(kind, values, wanted):
    row = b"\0" + struct.pack(f">{len(values)}H", *values) * 4
    np.testing.assert_allclose(pixels(png(4, 4, 16, kind, row * 4))[2, 2], wanted, atol=1)


@pytest.mark.parametrize(("format", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("AVIF", {}),
                                                 ("TIFF", {})])  # fmt: skip
def test_the_first_frame_of_an_animation(format, options):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    np.testing.assert_allclose(pixels(data)[8, 8], (255, 0, 0), atol=4)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_grey_with_alpha_is_composited_on_the_background(format):
    image = Image.merge("LA", [Image.new("L", (8, 8), 60), Image.new("L", (8, 8), 0)])
    image.paste((60, 255), (0, 0, 4, 8))
    found = pixels(saved(image, format, **({"lossless": True} if format == "WEBP" else {})))
    assert found[4, 1].tolist() == [60, 60, 60] and found[4, 6].tolist() == [255, 255, 255]
