"""Videos are read as players show them: rotated, mirrored, opaque, and by frame times."""

import fractions
import struct

import numpy as np
import pytest

from nextembed.data.video import VideoReader, as_shown, spread_indices

av = pytest.importorskip("av")
READER = VideoReader(10**8, 10**8, 600.0)
ONE = 0x10000
# Red above green; blue in the right half.
FRAME = np.zeros((32, 64, 3), np.uint8)
FRAME[:16, :, 0], FRAME[16:, :, 1], FRAME[:, 32:, 2] = 255, 255, 255


def clip(path, pts, frames=None, pix_fmt="yuv420p"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, pix_fmt
        stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for number, time in enumerate(pts):
            pixels = FRAME if frames is None else np.full((32, 64, 3), frames[number], np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = time, fractions.Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path.read_bytes()


def turned(data, a, b, c, d):
    """The same video with another matrix in its track header."""
    at = data.index(b"tkhd")
    version = data[at + 4]
    place = at + 4 + (52 if version else 40)
    assert struct.unpack(">9i", data[place : place + 36]) == (ONE, 0, 0, 0, ONE, 0, 0, 0, 2**30)
    matrix = struct.pack(">9i", a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 2**30)
    return data[:place] + matrix + data[place + 36 :]


@pytest.mark.parametrize(
    ("matrix", "wanted"),
    [
        ((1, 0, 0, 1), FRAME),
        ((0, 1, -1, 0), np.rot90(FRAME, -1)),  # a phone in portrait orientation
        ((-1, 0, 0, -1), np.rot90(FRAME, 2)),
        ((0, -1, 1, 0), np.rot90(FRAME, 1)),
        ((-1, 0, 0, 1), FRAME[:, ::-1]),
        ((1, 0, 0, -1), FRAME[::-1]),
    ],
)
def test_rotation_is_applied(tmp_path, matrix, wanted):
    data = clip(tmp_path / "a.mp4", [0, 100, 200])
    found = READER.read(turned(data, *matrix), 2)[0].permute(1, 2, 0).numpy()
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean() < 30


def test_frames_by_their_times(tmp_path):
    shades = [0, 40, 80, 120, 160, 200]
    data = clip(tmp_path / "a.mp4", [0, 100, 200, 5000, 5100, 9000], shades)
    found = READER.read(data, 4).float().mean((1, 2, 3))
    # Frames are requested at 0.0, 1.8, 3.6 and 7.2 of 9 seconds; shades 80 and 160 are shown for most of the time.
    moments = [0, 1, 2, 4]
    wanted = [shades[max(i for i, t in enumerate([0, 0.1, 0.2, 5.0, 5.1, 9.0]) if t <= 1.8 * m)] for m in moments]
    np.testing.assert_allclose(found, wanted, atol=4)


def test_evenly_timed_frames_are_chosen_by_index():
    assert spread_indices([i / 30 for i in range(90)], 8) == [5, 16, 27, 38, 49, 61, 72, 83]
    assert spread_indices([0.0, 0.033, 0.067, 0.1, 0.133], 4) == [0, 1, 2, 3]
    assert spread_indices([0.0], 3) == [0, 0, 0]
    assert spread_indices([0.0, 0.0], 2) == spread_indices([0.0, 1.0], 2)


def test_transparent_pixels_are_on_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[:2, :, 3], rgba[2:, :, 3] = 200, 255, 0
    found = as_shown(av.VideoFrame.from_ndarray(rgba, "rgba"))
    assert found[0, 0].tolist() == [200, 0, 0] and found[3, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("format", "white", "black"), [("yuv420p10le", 940, 64), ("yuv420p12le", 3760, 256)])
def test_higher_bit_depths_keep_their_range(format, white, black):
    for luma, wanted in ((white, 255), (black, 0)):
        frame = av.VideoFrame(16, 16, format)
        for number, plane in enumerate(frame.planes):
            value = luma if number == 0 else {"yuv420p10le": 512, "yuv420p12le": 2048}[format]
            plane.update(np.full(plane.buffer_size // 2, value, "<u2").tobytes())
        assert np.abs(as_shown(frame).astype(int) - wanted).max() <= 2
