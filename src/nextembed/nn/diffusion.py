"""Diffusion as pure functions: adding noise, prediction targets, and weights of noise levels.

Shapes: B images, C channels; `signal` [B] is the share of signal variance left (alpha-bar of DDPM, arXiv 2006.11239),
in [0, 1]: 1 is the clean image, 0 is noise alone.
"""

from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]


def add_noise(clean: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """sqrt(signal) clean + sqrt(1 - signal) noise, [B, C, H, W]. Source: DDPM, equation 4."""
    kept, added = _scales(signal, clean)
    return kept * clean + added * noise


def diffusion_target(clean: Tensor, noise: Tensor, signal: Tensor, prediction: Prediction) -> Tensor:
    """The prediction target for `add_noise(clean, noise, signal)`, [B, C, H, W].

    "epsilon": the noise; "sample": the clean image; "v_prediction": sqrt(signal) noise - sqrt(1 - signal) clean (arXiv
    2202.00512). Raises ValueError for another name.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return clean
    if prediction == "v_prediction":
        kept, added = _scales(signal, clean)
        return kept * noise - added * clean
    raise ValueError(f"prediction is epsilon, v_prediction or sample, not {prediction}")


def clean_estimate(found: Tensor, noisy: Tensor, signal: Tensor, prediction: Prediction) -> Tensor:
    """The clean image that a prediction for `noisy` stands for, [B, C, H, W]; undefined for "epsilon" at signal 0."""
    if prediction == "sample":
        return found
    kept, added = _scales(signal, noisy)
    if prediction == "epsilon":
        return (noisy - added * found) / kept.clamp(min=1e-4)
    return kept * noisy - added * found


def min_snr_weight(signal: Tensor, prediction: Prediction, gamma: float) -> Tensor:
    """Weight [B] of a noise level: its error, counted in clean pixels, weighs min(SNR, gamma).

    signal in [0, 1); SNR is signal / (1 - signal). Source: Min-SNR (arXiv 2303.09556), gamma 5 there.
    """
    signal = signal.float()
    clipped = torch.minimum(signal, gamma * (1 - signal))  # min(SNR, gamma) x (1 - signal): finite at both ends
    if prediction == "epsilon":
        return clipped / signal.clamp(min=1e-12)
    return clipped if prediction == "v_prediction" else clipped / (1 - signal)


def _scales(signal: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (-1, *[1] * (like.ndim - 1))
    return signal.sqrt().view(shape).to(like.dtype), (1 - signal).sqrt().view(shape).to(like.dtype)
