"""Sound: log-mel frames of 16 kHz mono, several frames per latent; decoded by Griffin-Lim."""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from ..nn.griffin_lim import griffin_lim, linear_from_mel, stft
from .base import MODALITIES, Modality, Patches, in_time

SAMPLE_RATE = 16_000  # Hz
WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms: one frame
FFT_SIZE = 512
MAX_MELS = 80  # with more, some bands would lie between the bins of the spectrum and be empty

# Powers of mel bands in dB, those of waveforms in [-1, 1]. Below the floor is silence: quieter than the noise of nearly
# all recordings. Mean and deviation are between those of speech (-36, 18) and of sound effects (-27, 18).
FLOOR, CEILING = -60.0, 40.0
MEAN, DEVIATION = -31.0, 18.0


@MODALITIES.register("audio")
class Audio(Modality):
    """Sound as log-mel frames, float32 [N] in [-1, 1], mono, 16 kHz.

    A frame is 10 ms (window 25 ms, Hann) in `num_mels` bands from 0 to 8 kHz; a latent is `num_frames` consecutive
    frames, P = num_frames * num_mels values, frame by frame. Values are dB, shifted and scaled by fixed numbers to
    about zero mean and unit variance: loudness is kept. The end is padded with silence.

    max_seconds: of a sound; a longer one is an error. num_steps: of Griffin-Lim, in `signal`.
    Source: mel bands as in Slaney's Auditory Toolbox (1998) and Whisper (arXiv 2212.04356); the fixed scale is ours.
    """

    def __init__(
        self,
        hidden_size: int,
        num_mels: int = 64,
        num_frames: int = 4,
        max_seconds: float = 30.0,
        num_steps: int = 60,
    ):
        super().__init__()
        if not 1 <= num_mels <= MAX_MELS:
            raise ValueError(f"num_mels is {num_mels}; it has to be in 1 to {MAX_MELS}")
        if num_frames < 1 or max_seconds <= 0 or num_steps < 1:
            raise ValueError("num_frames, max_seconds and num_steps have to be above 0")
        self.num_mels, self.num_frames, self.num_steps = num_mels, num_frames, num_steps
        self.max_samples = round(max_seconds * SAMPLE_RATE)
        self.value_size = num_frames * num_mels
        self.projection = nn.Linear(self.value_size, hidden_size)

    def patches(self, value: Any) -> Patches:
        """A sound [N] -> one patch for each started `num_frames` * 10 ms. shape: (patches, started frames)."""
        if not isinstance(value, Tensor) or value.ndim != 1 or not value.is_floating_point():
            found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"a sound is a float tensor [N], mono at 16 kHz; this is {found}")
        if not len(value):
            raise ValueError("a sound without samples")
        if len(value) > self.max_samples:
            seconds = len(value) / SAMPLE_RATE
            raise ValueError(
                f"a sound of {seconds:.1f} s is longer than max_seconds {self.max_samples / SAMPLE_RATE:g}"
            )
        if not value.isfinite().all():
            raise ValueError("a sound with values that are not finite")
        num = math.ceil(len(value) / HOP)
        whole = math.ceil(num / self.num_frames) * self.num_frames
        waveform = value.detach().cpu().float()
        waveform = torch.nn.functional.pad(waveform, (0, whole * HOP - len(value)))
        power = stft(waveform, _window(), HOP, FFT_SIZE)[:, :whole].abs().square()
        level = 10 * (_filters(self.num_mels).mT @ power).clamp(min=10 ** (FLOOR / 10)).log10()  # [M, T]
        values = ((level - MEAN) / DEVIATION).mT.reshape(whole // self.num_frames, -1)
        return Patches(values, in_time(len(values)), (len(values), num))

    def mel_picture(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Levels in dB, float32 [num_mels, frames], low bands first: as plotted, and as `signal` sounds. shape:
        (patches,) or (patches, frames), which leaves out what lies beyond these frames.
        """
        level = (values.detach().cpu().float() * DEVIATION + MEAN).reshape(-1, self.num_mels)
        return level[: shape[1] if len(shape) > 1 else None].mT.clamp(FLOOR, CEILING)

    def signal(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A waveform [frames * 160] in [-1, 1], the same each time: phases are found by Griffin-Lim."""
        level = self.mel_picture(values, shape)
        mel = torch.where(level > FLOOR, 10 ** (level / 10), 0.0)
        magnitude = linear_from_mel(mel, _filters(self.num_mels)).sqrt()
        generator = torch.Generator().manual_seed(0)
        waveform = griffin_lim(magnitude, _window(), HOP, magnitude.shape[1] * HOP, self.num_steps, generator=generator)
        return waveform.clamp(-1, 1)


@lru_cache
def _window() -> Tensor:
    return torch.hann_window(WINDOW, device="cpu")


@lru_cache
def _filters(num_mels: int) -> Tensor:
    """Weights [F, num_mels] of the bins of a power spectrum in each band."""
    filters = mel_filter_bank(
        FFT_SIZE // 2 + 1, num_mels, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return torch.from_numpy(filters).to(torch.float32)
