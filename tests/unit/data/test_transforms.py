import io
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as TF

from nextembed.data.draws import uniform
from nextembed.data.transforms import (
    Box,
    ImageReader,
    RandomResizedCrop,
    Unreadable,
    crop_and_resize,
    normalize,
    resize,
)

RGB = ImageReader(3)


def as_tensor(img):
    return torch.from_numpy(np.array(img.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_common_formats_decode_like_pillow(format, make_picture, encode):
    data = encode(make_picture(), format)
    expected = as_tensor(Image.open(io.BytesIO(data)))
    assert torch.equal(RGB.read(data), expected)


def test_bytes_path_array_and_pil_are_the_same(tmp_path, make_picture, encode):
    img = make_picture()
    (tmp_path / "a.png").write_bytes(encode(img))
    for image in (encode(img), tmp_path / "a.png", str(tmp_path / "a.png"), np.array(img), img):
        assert torch.equal(RGB.read(image), as_tensor(img))
    assert RGB.read(np.zeros((4, 5), dtype=np.uint8)).shape == (3, 4, 5)
    assert RGB.read(np.zeros((4, 5, 1), dtype=np.uint8)).shape == (3, 4, 5)


def test_grey_model_gets_luma(make_picture, encode):
    img = make_picture()
    out = ImageReader(1).read(encode(img))
    assert torch.equal(out[0], torch.from_numpy(np.array(img.convert("L"))))


@pytest.mark.parametrize("num_channels", [1, 3])
def test_16_bit_is_scaled_not_clipped(num_channels, encode):
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    out = ImageReader(num_channels).read(encode(Image.fromarray(ramp)))
    expected = torch.from_numpy(np.rint(ramp / 257).astype(np.int64))
    assert (out[0].long() - expected).abs().max() <= 1
    assert out.max() == 255 and out.min() == 0


def test_16_bit_rgb_png():
    rows = b"".join(b"\0" + struct.pack(">6H", 65535, 32896, 0, 257, 514, 65535) for _ in range(2))
    out = RGB.read(raw_png(2, 2, 16, 2, zlib.compress(rows)))
    assert out[:, 0, 0].tolist() == [255, 128, 0] and out[:, 0, 1].tolist() == [1, 2, 255]


def raw_png(width, height, depth, color, data):
    def part(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", data) + part(b"IEND", b"")


def test_palette(make_picture, encode):
    img = make_picture().quantize(16)
    assert torch.equal(RGB.read(encode(img)), as_tensor(img))


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30)])
def test_transparency_is_composited_on_the_background(background, encode):
    reader = ImageReader(3, background)
    clear, half = Image.new("RGBA", (4, 4), (9, 9, 9, 0)), Image.new("RGBA", (4, 4), (100, 0, 50, 128))
    assert reader.read(encode(clear))[:, 0, 0].tolist() == list(background)
    mixed = [round(c * 128 / 255 + b * 127 / 255) for c, b in zip((100, 0, 50), background)]
    assert (reader.read(encode(half))[:, 0, 0] - torch.tensor(mixed)).abs().max() <= 1
    grey = Image.new("LA", (4, 4), (77, 0))
    assert reader.read(encode(grey))[:, 0, 0].tolist() == list(background)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 1, 2, 3] + [0] * 762)
    assert reader.read(encode(palette, transparency=1))[:, 0, 0].tolist() == list(background)
    assert reader.read(encode(palette))[:, 0, 0].tolist() == [1, 2, 3]


def test_cmyk_is_not_inverted(make_picture, encode):
    img = make_picture().convert("CMYK")
    out = RGB.read(encode(img, "JPEG", quality=95))
    assert (out.float() - as_tensor(img).float()).abs().mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(40, 60), (400, 600)])  # the larger image is decoded at reduced scale
def test_exif_rotation(orientation, size, make_picture, encode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(make_picture(*size), "JPEG", exif=exif, quality=95)
    upright = as_tensor(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert torch.equal(RGB.read(data), upright)
    assert RGB.read_size(data) == tuple(upright.shape[1:])
    whole = RandomResizedCrop(32, (1.0, 1.0), (1e-6, 1e6), flip_rate=0)
    box = whole.draw([upright.shape[1:]], [7])[0][0]
    difference = RGB.read_crop(data, whole, 7).float() - resize(upright, 32, box).float()
    assert difference.abs().mean() < 3


def test_one_pixel(encode):
    data = encode(Image.new("RGB", (1, 1), (1, 2, 3)))
    assert RGB.read(data)[:, 0, 0].tolist() == [1, 2, 3]
    for seed in range(20):
        out = RGB.read_crop(data, RandomResizedCrop(8), seed)
        assert out.shape == (3, 8, 8) and out[:, 5, 5].tolist() == [1, 2, 3]


def test_animated_gif_gives_its_first_frame(encode):
    frames = [Image.new("RGB", (6, 6), color) for color in ("red", "blue", "lime")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert RGB.read(data)[:, 0, 0].tolist() == [255, 0, 0]


def test_unreadable_files_give_a_reason(tmp_path, make_picture, encode):
    jpeg, png = encode(make_picture(), "JPEG"), encode(make_picture())
    crop = RandomResizedCrop(8)
    cases = [
        (b"", "empty file"),
        (b"hello, I am text", "known format"),
        (jpeg[: len(jpeg) // 2], "trunc|incomplete"),
        (jpeg[:-400], "trunc|incomplete"),
        (png[: len(png) // 2], "trunc|broken"),
        (None, "no image"),
        (3.5, "not an image"),
        (tmp_path / "gone.png", "no such file"),
        (tmp_path, "no such file"),
        (encode(Image.fromarray(np.full((3, 3), 1e9, dtype=np.float32)), "TIFF"), "no known range"),
    ]
    for image, reason in cases:
        with pytest.raises(Unreadable, match=f"(?i){reason}"):
            RGB.read(image)
        with pytest.raises(Unreadable, match=f"(?i){reason}"):
            RGB.read_crop(image, crop, 0)


def test_decompression_bombs_are_rejected_by_their_header(tmp_path, encode):
    bomb = raw_png(50_000, 50_000, 8, 2, zlib.compress(b"\0" * 1000))  # 7.5 GB if decoded
    with pytest.raises(Unreadable, match=r"50000x50000|exceeds limit"):
        RGB.read(bomb)
    medium = encode(Image.new("RGB", (300, 300)))
    with pytest.raises(Unreadable, match=r"300x300 pixels, more than max_pixels=80000"):
        ImageReader(3, max_pixels=80_000).read(medium)
    with pytest.raises(Unreadable, match="max_bytes=100"):
        ImageReader(3, max_bytes=100).read(medium)
    (tmp_path / "big.png").write_bytes(medium)
    with pytest.raises(Unreadable, match="max_bytes=100"):
        ImageReader(3, max_bytes=100).read(tmp_path / "big.png")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 400))
def test_garbage_raises_only_unreadable(noise, at):
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (200, 30, 90)).save(file, "JPEG")
    data = file.getvalue()
    for broken in (noise, data[:at] + noise, data[:at] + noise + data[at + len(noise) :]):
        try:
            assert RGB.read(broken).shape[0] == 3
        except Unreadable as err:
            assert "\n" not in str(err)


@pytest.mark.parametrize("height, width, size", [(28, 28, 28), (32, 48, 64), (64, 20, 17), (1, 1, 8), (50, 3, 16)])
def test_batched_crop_equals_torchvision(height, width, size):
    images = torch.randint(0, 256, (16, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(0))
    boxes, flips = RandomResizedCrop(size).draw([(height, width)] * 16, range(16))
    out = crop_and_resize(images, boxes, flips, size)
    for image, box, flip, mine in zip(images, boxes, flips, out):
        expected = TF.resized_crop(image, *box, [size, size], antialias=True)
        expected = expected.flip(-1) if flip else expected
        assert (mine - expected.float()).abs().max() <= 1
        one = crop_and_resize(image[None], [box], [flip], size)[0]
        assert torch.equal(one, mine)  # samples do not depend on their batch
        assert torch.equal(resize(image, size, box), TF.resized_crop(image, *box, [size, size], antialias=True))


def test_batched_and_individual_crops_agree():
    crop = RandomResizedCrop(16)
    small = [torch.randint(0, 256, (1, 20, 20), dtype=torch.uint8) for _ in range(4)]
    mixed = [*small[:3], torch.randint(0, 256, (1, 90, 200), dtype=torch.uint8)]
    seeds = [3, 1, 4, 1]
    a = crop.apply(small, *crop.draw([i.shape[1:] for i in small], seeds))
    b = crop.apply(mixed, *crop.draw([i.shape[1:] for i in mixed], seeds))
    assert a.shape == b.shape == (4, 1, 16, 16)
    assert (a[:3] - b[:3].float()).abs().max() <= 1


@pytest.mark.parametrize("side", [480, 800, 1600])
def test_reduced_scale_looks_the_same(side, make_picture, encode):
    data = encode(make_picture(side, side), "JPEG", quality=95)
    whole, crop = RGB.read(data), RandomResizedCrop(48, flip_rate=0)
    for seed in range(6):
        (box,), _ = crop.draw([(side, side)], [seed])
        error = RGB.read_crop(data, crop, seed).float() - resize(whole, 48, box).float()
        assert 10 * math.log10(255**2 / error.square().mean().item()) > 36  # dB


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**64 - 1))
def test_boxes_lie_inside(height, width, seed):
    (box,), _ = RandomResizedCrop(8).draw([(height, width)], [seed])
    assert 0 <= box.top <= height - box.height and 0 <= box.left <= width - box.width
    assert box.height >= 1 and box.width >= 1


def test_boxes_follow_the_requested_distribution():
    crop = RandomResizedCrop(8, (0.2, 0.6), (0.5, 2.0), flip_rate=0.25)
    boxes, flips = crop.draw([(400, 400)] * 4000, range(4000))
    box = torch.tensor(boxes).double()
    area, ratio = box[:, 2] * box[:, 3] / 160_000, box[:, 3] / box[:, 2]
    assert 0.195 < area.min() < 0.21 and 0.59 < area.max() < 0.605 and abs(area.mean() - 0.4) < 0.01
    assert 0.49 < ratio.min() < 0.52 and 1.9 < ratio.max() < 2.03 and abs(ratio.log().mean()) < 0.03
    assert abs(sum(flips) / 4000 - 0.25) < 0.03
    centre = box[:, 0] + box[:, 2] / 2
    assert abs(centre.mean() - 200) < 3 and centre.std() > 30
    assert crop.draw([(4, 4000)], [0])[0][0] == Box(0, 1996, 4, 8)  # no box of that area fits: a central box is used


def test_uniforms_are_uniform_and_independent():
    u = np.array([[uniform(seed, index) for index in range(20)] for seed in range(3000)])
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
    assert np.abs(np.corrcoef(u.T) - np.eye(20)).max() < 0.1
    assert np.abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.06


def test_normalize():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.allclose(normalize(pixels, 0.5, 0.5), torch.tensor([-1.0, -0.6, 1.0]), atol=1e-6)
    assert torch.allclose(normalize(pixels, 0.2, 0.4), torch.tensor([-0.5, 0.0, 2.0]), atol=1e-6)


def test_an_unreadable_row_keeps_its_reason():
    with pytest.raises(Unreadable, match="text that is not UTF-8"):
        ImageReader().read(Unreadable("text that is not UTF-8"))


@pytest.mark.parametrize("highest", [250, 65535])
def test_32_bit_grey_has_no_known_range(tmp_path, highest):
    Image.fromarray(np.full((4, 4), highest, np.int32)).save(tmp_path / "a.tif")
    Image.fromarray(np.full((4, 4), highest, np.uint16)).save(tmp_path / "b.tif")
    reader = ImageReader()
    with pytest.raises(Unreadable, match="mode I have no known range"):
        reader.read(tmp_path / "a.tif")
    assert reader.read(tmp_path / "b.tif").unique().tolist() == [round(highest * 255 / 65535)]
