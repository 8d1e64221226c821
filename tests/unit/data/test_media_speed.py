"""Reading sounds and videos does nothing twice, and what it does by itself gives what PyAV's own tools give."""

import numpy as np
import pytest
import torch
from sounds import film

from nextembed.data.audio import SAMPLE_RATE
from nextembed.data.clips import ClipReader
from nextembed.data.containers import Containers
from nextembed.data.frames import as_shown
from nextembed.data.transforms import RandomResizedCrop
from nextembed.data.video import VideoReader

av = pytest.importorskip("av")


def sound_frames(rate: int, sample_format: str, layout: str) -> list:
    """Noise in frames of 1,000 samples."""
    frames, rng = [], np.random.default_rng(0)
    for number in range(12):
        noise = rng.integers(-20_000, 20_000, (1, 1_000 * len(av.AudioLayout(layout).channels)), dtype=np.int16)
        frame = av.AudioFrame.from_ndarray(noise, format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, 1_000 * number
        frames += av.AudioResampler(format=sample_format, layout=layout, rate=rate).resample(frame)
    return frames


def resampled(resampler, frames: list) -> np.ndarray:
    return np.concatenate([part.to_ndarray() for f in [*frames, None] for part in resampler.resample(f)], axis=1)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize(
    ("sample_format", "layout"), [("s16", "mono"), ("s16", "stereo"), ("fltp", "stereo"), ("s32", "5.1")]
)
def test_resampled_as_by_pyav(rate, sample_format, layout):
    ours = resampled(Containers("sound", 1).resampler(SAMPLE_RATE), sound_frames(rate, sample_format, layout))
    theirs = av.AudioResampler(format="fltp", rate=SAMPLE_RATE)
    assert ours.shape[1] >= 12_000 * SAMPLE_RATE // rate - 1
    frames = sound_frames(rate, sample_format, layout)
    flush = [] if (sample_format, rate) == ("fltp", SAMPLE_RATE) else [None]  # frames that pass are not flushed
    np.testing.assert_array_equal(
        ours, np.concatenate([p.to_ndarray() for f in [*frames, *flush] for p in theirs.resample(f)], axis=1)
    )


def test_resampler_refuses_another_rate():
    resampler = Containers("sound", 1).resampler(SAMPLE_RATE)
    resampler.resample(sound_frames(8_000, "s16", "mono")[0])
    with pytest.raises(ValueError, match="changes"):
        resampler.resample(sound_frames(44_100, "s16", "mono")[0])


@pytest.mark.parametrize("width", [16, 24, 48])
def test_converted_as_by_pyav(width):
    convert = Containers("video", 1).converter()
    for shade in (0, 90, 255):  # one converter for frames of all colours
        frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), shade, np.uint8), "rgb24").reformat(format="yuv420p")
        np.testing.assert_array_equal(as_shown(frame, width / 16, convert), as_shown(frame, width / 16))


def test_video_is_opened_once(monkeypatch):
    video, opened, times = film(9), av.open, []
    monkeypatch.setattr(av, "open", lambda *args, **options: times.append(1) or opened(*args, **options))
    assert len(VideoReader(10**7, 10**6, 600.0).read(video, 4)) == 4
    assert len(times) == 1


@pytest.mark.parametrize("side", [20, 90])
def test_clips_are_cropped_frame_by_frame(side):
    clip = np.random.default_rng(0).integers(0, 256, (9, side, side + 7, 3), dtype=np.uint8)
    crop, reader = RandomResizedCrop(16), ClipReader(12)
    whole = reader.read(clip)
    for seed in range(8):
        found = reader.read_crop(clip, crop, seed)
        wanted = [crop.one(frame, seed) for frame in whole.unflatten(0, (-1, 3))]
        assert torch.equal(found, torch.cat(wanted)) and torch.equal(crop.one(whole, seed), found)
