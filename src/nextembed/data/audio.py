"""Sound files as one waveform: any format and rate in, mono at 16 kHz out."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..core.types import Segment
from .containers import Containers
from .cut_files import WHOLE, is_cut
from .transforms import Unreadable

if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer

SAMPLE_RATE = 16_000  # Hz
GUESSING = {"mp3", "aac", "ac3", "amr", "wav", "caf", "w64"}  # formats whose length follows from the size of the file


class AudioReader:
    """Decodes the sound of a file, or raises `Unreadable`.

    max_bytes: of the file; max_seconds: of the sound. FLAC, OGG, WAV, MP3 and the other formats that PyAV decodes, the
    sound of videos too. Channels are averaged, other sample rates resampled. Raises MissingExtra without PyAV.
    """

    def __init__(self, max_bytes: int = 100_000_000, max_seconds: float = 600.0):
        self.files, self.max_seconds = Containers("sound", max_bytes), max_seconds

    def read(self, sound: object) -> Tensor:
        """The waveform at 16 kHz, float32 [N] in [-1, 1]. sound: bytes, a path, or {"bytes", "path"}."""
        data = self.files.load(sound)
        with self.files.open(data) as container:
            parts = self._decode(container)
            said = said_seconds(container)
        there = sum(len(part) for part in parts) / SAMPLE_RATE
        if there and (there < WHOLE * said or is_cut(data)):
            raise Unreadable(f"the file is cut off after {there:.1f} s of sound")
        samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        if not len(samples):
            raise Unreadable("a sound without samples")
        if not np.isfinite(samples).all():
            raise Unreadable("a sound with samples that are not finite")
        return torch.from_numpy(samples.clip(-1, 1))  # a lossy codec may leave the range

    def _decode(self, container: "InputContainer") -> list[np.ndarray]:
        if not container.streams.audio:
            raise Unreadable("a file without sound")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise Unreadable("a sound of an unknown codec")
        stream.codec_context.thread_count = 1  # starting threads takes longer than decoding a short sound
        resampler = self.files.resampler(SAMPLE_RATE)
        parts: list[np.ndarray] = []
        num_samples = 0
        for frame in container.decode(stream):
            num_samples += frame.samples
            # Before resampling, which a wrong rate could make huge.
            if num_samples > self.max_seconds * frame.sample_rate:
                raise Unreadable(f"longer than max_seconds={self.max_seconds:g}")
            parts += [mixed(part) for part in resampler.resample(frame)]
        if parts:
            parts += [mixed(part) for part in resampler.resample(None)]
        return parts


def said_seconds(container: "InputContainer") -> float:
    """Length of a sound according to its file; 0 if unknown, or only estimated from the size of the file."""
    stream = container.streams.audio[0]
    if GUESSING & set(container.format.name.split(",")):
        return 0.0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if len(container.streams) == 1 and container.duration is not None else 0.0


def mixed(frame: "AudioFrame") -> np.ndarray:
    """Mean of a frame's channels, float32 [N]."""
    channels: np.ndarray = frame.to_ndarray()
    if len(channels) == 1:
        return channels[0]
    # What `mean` gives, without its overhead, which is most of it for such short frames.
    mean: np.ndarray = np.add.reduce(channels, axis=0) / np.float32(len(channels))
    return mean


def audio(samples: Tensor, loss: bool = True) -> Segment:
    return {"kind": "audio", "value": samples, "loss": loss}
