"""Every audio sample format decodes to the same sine wave at the right amplitude."""

import io
import struct

import av
import numpy as np
import pytest
from sounds import tone

from nextembed.data.audio import AudioReader

WAVES = {  # name: (WAVE format tag, bytes per sample, samples in [-1, 1] to bytes)
    "unsigned 8 bit": (1, 1, lambda x: (x * 127 + 128).round().astype("u1").tobytes()),
    "16 bit": (1, 2, lambda x: (x * 32767).round().astype("<i2").tobytes()),
    "24 bit": (1, 3, lambda x: (x * (2**23 - 1)).round().astype("<i4").view("u1").reshape(-1, 4)[:, :3].tobytes()),
    "32 bit": (1, 4, lambda x: (x * (2**31 - 1)).round().astype("<i4").tobytes()),
    "float32": (3, 4, lambda x: x.astype("<f4").tobytes()),
    "float64": (3, 8, lambda x: x.astype("<f8").tobytes()),
}


def wave_file(name: str, channels: list[np.ndarray], rate: int) -> bytes:
    """A WAVE file with interleaved channels."""
    tag, size, packed = WAVES[name]
    data = packed(np.ascontiguousarray(np.stack(channels, 1)).reshape(-1))
    count = len(channels)
    head = struct.pack("<HHIIHH", tag, count, rate, rate * size * count, size * count, 8 * size)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def encoded(channels: list[np.ndarray], codec: str, container: str, samples: str, rate: int, layout: str) -> bytes:
    """An encoded file; the sample format `samples` ends with p for planar channels."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        stream.format = samples
        frame = av.AudioFrame.from_ndarray(np.stack(channels).astype(np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=samples, layout=layout, rate=rate, frame_size=1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


def check(data: bytes, atol: float, hertz: float = 440.0) -> None:
    """Checks that a file decodes to the sine wave at half scale, for any sample rate."""
    found = AudioReader().read(data).numpy()
    assert abs(len(found) - 8000) <= 1
    wanted = tone(0.5, hertz=hertz)[: len(found)]
    middle = slice(400, 7600)  # away from resampling artefacts at the edges
    np.testing.assert_allclose(found[middle], wanted[middle], atol=atol)


@pytest.mark.parametrize("name", WAVES)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_samples_of_wave_files(name, rate, channels):
    data = wave_file(name, [tone(0.5, rate)] * channels, rate)
    check(data, atol=0.012 if name == "unsigned 8 bit" else 0.003)


@pytest.mark.parametrize("codec", ["pcm_mulaw", "pcm_alaw"])
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_companded_samples(codec, layout):
    channels = [tone(0.5, 8_000)] * (1 if layout == "mono" else 2)
    check(encoded(channels, codec, "wav", "s16", 8_000, layout), atol=0.02)


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
@pytest.mark.parametrize(
    ("codec", "container", "samples", "atol"),
    [("flac", "flac", "s16", 0.003), ("flac", "flac", "s32", 0.003), ("alac", "mov", "s16p", 0.003),
     ("alac", "mov", "s32p", 0.003), ("wavpack", "wv", "u8p", 0.012), ("wavpack", "wv", "fltp", 0.003),
     ("pcm_s16be", "aiff", "s16", 0.003), ("pcm_f64be", "au", "dbl", 0.003)],
)  # fmt: skip
def test_interleaved_and_planar_samples(codec, container, samples, atol, layout):
    channels = [tone(0.5, 48_000)] * {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    check(encoded(channels, codec, container, samples, 48_000, layout), atol)


def test_channels_are_weighted_equally():
    """One active channel of six gives a sixth of its amplitude, in any position."""
    for place in range(6):
        channels = [tone(0.5) if number == place else np.zeros(8000) for number in range(6)]
        found = AudioReader().read(wave_file("float32", channels, 16_000)).numpy()
        np.testing.assert_allclose(found, tone(0.5) / 6, atol=1e-4)
