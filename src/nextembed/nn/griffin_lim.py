"""Sound from magnitudes alone: Griffin-Lim, and linear spectrograms from mel spectrograms.

Shapes: F frequency bins, M mel bands, T frames, N samples. Frame t is centred on sample t * hop; outside is silence.
"""

import torch
from torch import Tensor


def stft(waveform: Tensor, window: Tensor, hop: int, fft_size: int) -> Tensor:
    """Complex spectrogram [F, N // hop + 1] of a waveform [N], with F = fft_size / 2 + 1."""
    return torch.stft(
        waveform, fft_size, hop, len(window), window, center=True, pad_mode="constant", return_complex=True
    )


def griffin_lim(
    magnitude: Tensor,
    window: Tensor,
    hop: int,
    num_samples: int,
    num_steps: int = 32,
    momentum: float = 0.99,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A waveform [num_samples] whose spectrogram has about these magnitudes [F, T].

    Phases begin at random (from `generator`); each step takes the spectrogram of the previous sound, extrapolates its
    change by `momentum`, and restores the given magnitudes. num_samples: at most T * hop. Source: Griffin and Lim
    (1984); with momentum Perraudin, Balazs and Sondergaard, "A fast Griffin-Lim algorithm" (2013), whose alpha is
    `momentum`.
    """
    fft_size = 2 * (len(magnitude) - 1)
    num_frames = magnitude.shape[1]
    phase = torch.rand(magnitude.shape, generator=generator) * (2 * torch.pi)
    found = torch.polar(magnitude, phase.to(magnitude))
    last = torch.zeros_like(found)

    def sound(spectrum: Tensor) -> Tensor:
        return torch.istft(spectrum, fft_size, hop, len(window), window, center=True, length=num_samples)

    for _ in range(num_steps):
        now = stft(sound(found), window, hop, fft_size)[:, :num_frames]
        if now.shape[1] < num_frames:  # num_samples ends before the last frames
            now = torch.nn.functional.pad(now, (0, num_frames - now.shape[1]))
        moved = now + momentum * (now - last)
        found, last = magnitude * torch.sgn(moved), now
    return sound(found)


def linear_from_mel(mel: Tensor, filters: Tensor, num_steps: int = 100) -> Tensor:
    """Powers [F, T] >= 0 of frequency bins whose mel bands are about `mel` [M, T] >= 0; filters [F, M] >= 0.

    Non-negative least squares for all frames at once. Begins at the clipped least-squares solution.
    Source: the multiplicative updates of Lee and Seung (2001), which keep all values >= 0 and never raise the error.
    """
    top = mel.amax().clamp(min=1e-30)
    mel = mel / top
    found = (torch.linalg.pinv(filters.mT) @ mel).clamp(min=1e-8)  # zeros would stay zeros
    wanted, gram = filters @ mel, filters @ filters.mT
    for _ in range(num_steps):
        found = found * wanted / (gram @ found).clamp(min=1e-20)
    return found * top
