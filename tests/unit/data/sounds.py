"""Audio and silent videos for tests, written with the standard library and PyAV."""

import io
import wave

import av
import numpy as np


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    """A sine wave, float [N]."""
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def wav(*channels: np.ndarray, rate: int = 16_000) -> bytes:
    """A 16-bit WAV file of channels in [-1, 1]."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(len(channels))
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.stack(channels, 1) * 32767).round().astype("<i2").tobytes())
    return file.getvalue()


def packed(samples: np.ndarray, codec: str, container: str, sample_format: str, rate: int = 16_000) -> bytes:
    """Samples [N] in [-1, 1] encoded in another audio format."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16p", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=sample_format, layout="mono", rate=rate, frame_size=1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


def film(num_frames: int, size: int = 32) -> bytes:
    """An MP4 without sound, whose frames get brighter."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(num_frames):
            grey = np.full((size, size, 3), 255 * i // max(1, num_frames - 1), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        out.mux(stream.encode(None))
    return file.getvalue()
