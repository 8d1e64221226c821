"""Videos as written by cameras and editors; each frame encodes its number, so that chosen frames can be checked."""

import fractions
import struct

import numpy as np
import pytest

from nextembed.data.transforms import Unreadable
from nextembed.data.video import VideoReader, clip_indices, frame_indices

av = pytest.importorskip("av")
READER = VideoReader(10**8, 10**6, 600.0)
NUM, WIDTH, HEIGHT, BITS = 40, 96, 64, 6
TICK = fractions.Fraction(1, 1000)


def numbered(number: int, width: int = WIDTH) -> np.ndarray:
    """A frame with six black or white fields for the bits of its number; red at the top left, blue at the bottom."""
    pixels = np.full((HEIGHT, width, 3), 128, np.uint8)
    pixels[:16, :16], pixels[-16:, :16] = (255, 0, 0), (0, 0, 255)
    for bit in range(BITS):
        pixels[24:40, bit * width // BITS : (bit + 1) * width // BITS] = 255 if number >> bit & 1 else 0
    return pixels


def number_of(frame: np.ndarray) -> int:
    height, width = frame.shape[:2]
    at = [round((bit + 0.5) * width / BITS) for bit in range(BITS)]
    return sum(bool(frame[height // 2, x].mean() > 128) << bit for bit, x in enumerate(at))


def is_upright(frame: np.ndarray) -> bool:
    top, bottom = frame[4:8, 4:8].reshape(-1, 3).mean(0), frame[-8:-4, 4:8].reshape(-1, 3).mean(0)
    return bool(top[0] > 150 > top[2] and bottom[2] > 150 > bottom[0])


def written(path, codec="mpeg4", times=None, change=lambda frame: frame, count=NUM, **settings) -> bytes:
    """A video of numbered frames; `times` are in milliseconds, by default 40 apart."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options=settings.pop("options", {}))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, settings.pop("pix_fmt", "yuv420p")
        if times:
            stream.codec_context.time_base = TICK
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for number in range(count):
            frame = change(av.VideoFrame.from_ndarray(numbered(number), "rgb24"))
            frame.pts, frame.time_base = (times or range(0, 40 * NUM, 40))[number], TICK
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path.read_bytes()


def numbers(video, num_frames=8, clip=False) -> list[int]:
    found = (READER.read_clip if clip else READER.read)(video, num_frames).permute(0, 2, 3, 1).numpy()
    assert all(is_upright(frame) for frame in found)
    return [number_of(frame) for frame in found]


WHOLE = frame_indices(NUM, 8)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {"max_b_frames": 2}),
        ("a.mov", {"max_b_frames": 2}),
        ("a.mkv", {"max_b_frames": 2}),
        ("a.avi", {}),
        ("a.mpg", {"codec": "mpeg2video", "max_b_frames": 2}),
        ("a.ts", {"codec": "mpeg2video", "max_b_frames": 2}),
        ("a.mp4", {"codec": "libx264", "options": {"bf": "3", "g": "10", "x264-params": "open-gop=1"}}),
        ("a.mp4", {"options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("a.mkv", {"codec": "ffv1"}),
        ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}),
        ("a.mpg", {"codec": "mpeg2video", "options": {"flags": "+ildct+ilme"}}),  # interlaced
    ],
)
def test_the_right_frames_are_chosen(tmp_path, name, settings):
    data = written(tmp_path / name, **settings)
    assert numbers(data) == WHOLE
    assert numbers(data, 4, clip=True) == [0, 13, 26, 39]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_variable_frame_rates(tmp_path, name):
    """20 frames in 2 seconds, then one every half second: frames are evenly spaced in time, in documents and clips."""
    times = [100 * i if i < 20 else 2000 + 500 * (i - 20) for i in range(NUM)]
    data = written(tmp_path / name, times=times)
    wanted = [max(i for i in range(NUM) if times[i] <= 11500 * at / 39 + 0.5) for at in WHOLE]
    assert numbers(data) == wanted
    assert numbers(data, 4, clip=True) == [0, 23, 31, 39]  # at 0, 3.83, 7.67 and 11.5 s


def test_clips_with_even_times_are_chosen_by_index():
    assert clip_indices([i / 30 for i in range(16)], 4) == [0, 5, 10, 15]
    with pytest.raises(Unreadable, match="a single frame"):
        clip_indices([0.0], 4)


def test_an_edit_list_is_applied(tmp_path):
    """A cut without re-encoding: the first ten frames are stored only as references and not shown."""
    data = bytearray(written(tmp_path / "a.mp4", options={"movflags": "use_editlist"}))
    at = data.index(b"elst") + 4
    assert struct.unpack_from(">BxxxI", data, at) == (0, 1)
    scale = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    duration, start = struct.unpack_from(">Ii", data, at + 8)
    struct.pack_into(">Ii", data, at + 8, duration * 3 // 4, start + scale * 10 // 25)
    assert numbers(bytes(data)) == [10 + i for i in frame_indices(30, 8)]


@pytest.mark.parametrize(
    ("matrix", "turns"), [((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3), ((1, 0, 0, 1), 0)]
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_any_rotation_of_a_phone(tmp_path, name, matrix, turns):
    """Stored frames are rotated by the matrix in the track header."""
    data = bytearray(written(tmp_path / name))
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 0x10000 for value in matrix)
    struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, 2**30)
    shown = READER.read(bytes(data), 8).permute(0, 2, 3, 1).numpy()
    assert shown.shape[1:3] == ((WIDTH, HEIGHT) if turns % 2 else (HEIGHT, WIDTH))
    upright = np.rot90(shown, turns, axes=(1, 2))  # undo the rotation
    assert all(is_upright(frame) for frame in upright) and [number_of(frame) for frame in upright] == WHOLE


@pytest.mark.parametrize(("ratio", "width"), [((2, 1), 192), ((1, 2), 48), ((16, 15), 102)])
def test_pixels_that_are_not_square(tmp_path, ratio, width):
    data = written(tmp_path / "a.mkv", sample_aspect_ratio=fractions.Fraction(*ratio))
    assert READER.read(data, 2).shape[2:] == (HEIGHT, width) and numbers(data) == WHOLE


def test_odd_sizes(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 95, 63
        for number in range(NUM):
            file.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(numbered(number)[:63, :95]), "rgb24"))
            )
        file.mux(stream.encode())
    assert READER.read(tmp_path / "a.mp4", 2).shape[2:] == (63, 95) and numbers(tmp_path / "a.mp4") == WHOLE


def sound_and_cover(path, covered: bool) -> bytes:
    with av.open(str(path), "w") as file:
        sound = file.add_stream("aac", rate=16000, layout="mono")
        cover = file.add_stream("mjpeg", rate=1) if covered else None
        if cover is not None:
            cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            cover.disposition = 1024
            picture = av.VideoFrame.from_ndarray(numbered(0), "rgb24")
            file.mux(cover.encode(picture))
            file.mux(cover.encode())
        samples = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
        frame.sample_rate = 16000
        file.mux(sound.encode(frame))
        file.mux(sound.encode())
    return path.read_bytes()


@pytest.mark.parametrize("covered", [False, True])
def test_audio_with_a_cover_is_not_a_video(tmp_path, covered):
    with pytest.raises(Unreadable, match="a file without video"):
        READER.read(sound_and_cover(tmp_path / "a.mp4", covered), 4)


def test_one_frame(tmp_path):
    data = written(tmp_path / "a.mp4", count=1)
    assert numbers(data, 3) == [0, 0, 0]
    with pytest.raises(Unreadable, match="a single frame"):
        READER.read_clip(data, 4)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("a.mp4", {}, "it has no index .moov., as a file that is cut off"),
        ("a.mp4", {"movflags": "faststart"}, "."),
        ("a.mkv", {}, r"the file is cut off after \d.\d of 1.6 s"),
        ("a.avi", {}, "the file is cut off|not a video that can be decoded"),
    ],
)
def test_a_truncated_video_is_unreadable(tmp_path, name, options, reason):
    data = written(tmp_path / name, options=options)
    with pytest.raises(Unreadable, match=reason) as caught:
        READER.read(data[: len(data) // 2], 4)
    assert "Errno" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("transfer", "luma", "wanted"),
    [
        (16, 0.5807, 255),  # 203 cd/m2 in PQ
        (16, 0.0, 0),
        (16, 0.5081, 186),  # 100 cd/m2
        (16, 0.9, 255),
        (18, 0.75, 255),  # white of HLG
        (18, 0.0, 0),
        (18, 0.5, 137),  # 51 cd/m2
        (1, 0.5, 128),
    ],
)
def test_hdr_is_mapped_to_sdr(transfer, luma, wanted):
    from nextembed.data.frames import as_shown

    frame = av.VideoFrame(16, 16, "yuv420p10le")
    for number, plane in enumerate(frame.planes):
        value = round(64 + 876 * luma) if number == 0 else 512
        plane.update(np.full(plane.buffer_size // 2, value, "<u2").tobytes())
    frame.color_trc, frame.colorspace, frame.color_primaries = transfer, 9, 9
    assert np.abs(as_shown(frame).astype(int) - wanted).max() <= 3
