"""Audio from magnitudes: the result matches them, and better with more iterations."""

import pytest
import torch
from scipy.optimize import nnls

from nextembed.nn.griffin_lim import griffin_lim, linear_from_mel, stft

WINDOW = torch.hann_window(100)
HOP, FFT = 40, 128


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def chirps(num=4000):
    time = torch.arange(num) / 4000
    return 0.4 * torch.sin(300 * time + 400 * time**2) + 0.3 * torch.sin(3000 * time)


def misfit(waveform, magnitude):
    found = stft(waveform, WINDOW, HOP, FFT).abs()[:, : magnitude.shape[1]]
    return ((found - magnitude).norm() / magnitude.norm()).item()


def test_magnitudes_are_recovered():
    magnitude = stft(chirps(), WINDOW, HOP, FFT).abs()[:, :100]
    fits = [
        misfit(griffin_lim(magnitude, WINDOW, HOP, 4000, steps, generator=draw()), magnitude) for steps in (1, 8, 60)
    ]
    assert fits[0] > 1.5 * fits[1] > 2 * fits[2] and fits[2] < 0.08


def test_momentum_helps():
    magnitude = stft(chirps(), WINDOW, HOP, FFT).abs()[:, :100]
    slow, fast = (
        misfit(griffin_lim(magnitude, WINDOW, HOP, 4000, 60, momentum, draw()), magnitude) for momentum in (0.0, 0.99)
    )
    assert fast < 0.8 * slow


def test_correct_phases_are_kept():
    """A consistent spectrum is a fixed point: an iteration does not change it."""
    found = stft(chirps(), WINDOW, HOP, FFT)
    back = torch.istft(found, FFT, HOP, len(WINDOW), WINDOW, length=4000)
    torch.testing.assert_close(back, chirps(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_samples", [1, 39, 41, 2000, 3999])
def test_length_is_as_requested(num_samples):
    num_frames = -(-num_samples // HOP)
    magnitude = torch.rand(65, num_frames, generator=draw())
    waveform = griffin_lim(magnitude, WINDOW, HOP, num_samples, 3, generator=draw())
    assert waveform.shape == (num_samples,) and waveform.isfinite().all() and waveform.any()


def test_the_same_generator_gives_the_same_audio():
    magnitude = torch.rand(65, 20, generator=draw())
    one, again, other = (griffin_lim(magnitude, WINDOW, HOP, 800, 3, generator=draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.allclose(one, other)


def test_silence_is_silent():
    assert not griffin_lim(torch.zeros(65, 10), WINDOW, HOP, 400, 3, generator=draw()).any()
    assert not linear_from_mel(torch.zeros(8, 3), torch.rand(33, 8, generator=draw())).any()


def test_linear_powers_are_close_to_non_negative_least_squares():
    filters = torch.zeros(33, 8)
    for band in range(8):  # overlapping triangles
        centre = 2 + 4 * band
        filters[:, band] = (1 - (torch.arange(33.0) - centre).abs() / 5).clamp(min=0)
    mel = torch.rand(8, 6, generator=draw()) ** 4 * torch.tensor([1e-4, 1.0, 100.0, 3.0, 1e-2, 10.0])
    power = linear_from_mel(mel, filters, 300)
    assert power.shape == (33, 6) and (power >= 0).all()
    for frame in range(1, 6):
        _, best = nnls(filters.T.double().numpy(), mel[:, frame].double().numpy())
        error = (filters.T @ power[:, frame] - mel[:, frame]).norm().item()
        assert error <= best + 0.02 * mel[:, frame].norm().item()


def test_more_steps_never_increase_the_error():
    filters = torch.rand(33, 8, generator=draw())
    mel = torch.rand(8, 6, generator=draw(1))
    errors = [(filters.T @ linear_from_mel(mel, filters, steps) - mel).norm().item() for steps in (1, 3, 10, 100)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]
