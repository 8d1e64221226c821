"""Diffusion against closed forms."""

import pytest
import torch

from nextembed.nn.diffusion import add_noise, clean_estimate, diffusion_target, min_snr_weight

KINDS = ["epsilon", "v_prediction", "sample"]


def rand(seed):
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


SIGNAL = torch.tensor([0.9, 0.5, 0.04])


def test_noise_keeps_the_variance_of_the_signal():
    clean, noise = rand(0), rand(1)
    noisy = add_noise(clean, noise, SIGNAL)
    torch.testing.assert_close(noisy[2], 0.2 * clean[2] + 0.96**0.5 * noise[2])
    torch.testing.assert_close(add_noise(clean, noise, torch.ones(3)), clean)
    torch.testing.assert_close(add_noise(clean, noise, torch.zeros(3)), noise)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_recovers_the_clean_image(kind):
    clean, noise = rand(0), rand(1)
    target = diffusion_target(clean, noise, SIGNAL, kind)
    torch.testing.assert_close(clean_estimate(target, add_noise(clean, noise, SIGNAL), SIGNAL, kind), clean)


def test_targets_equal_those_of_diffusers_schedulers():
    DDPMScheduler = pytest.importorskip("diffusers").DDPMScheduler
    scheduler, clean, noise = DDPMScheduler(), rand(0), rand(1)
    steps = torch.tensor([3, 500, 999])
    signal = scheduler.alphas_cumprod[steps]
    torch.testing.assert_close(add_noise(clean, noise, signal), scheduler.add_noise(clean, noise, steps))
    expected = scheduler.get_velocity(clean, noise, steps)
    torch.testing.assert_close(diffusion_target(clean, noise, signal, "v_prediction"), expected)


def test_unknown_prediction():
    with pytest.raises(ValueError, match="not flow"):
        diffusion_target(rand(0), rand(1), SIGNAL, "flow")


def test_min_snr_weighs_the_same_error_the_same_for_every_prediction():
    """An error e in clean pixels is e sqrt(SNR) in noise and e / sqrt(1 - signal) in v; the weights compensate."""
    snr = SIGNAL / (1 - SIGNAL)  # 9, 1, 0.0417
    in_pixels = min_snr_weight(SIGNAL, "sample", 5.0)
    torch.testing.assert_close(in_pixels, torch.tensor([5.0, 1.0, 0.04 / 0.96]))
    torch.testing.assert_close(min_snr_weight(SIGNAL, "epsilon", 5.0) * snr, in_pixels)
    torch.testing.assert_close(min_snr_weight(SIGNAL, "v_prediction", 5.0) / (1 - SIGNAL), in_pixels)
    for kind in KINDS[1:]:
        assert min_snr_weight(torch.tensor([0.0]), kind, 5.0).isfinite().all()
