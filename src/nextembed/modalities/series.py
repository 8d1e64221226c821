"""Signals over time of any number of channels: touch, accelerometers, ECG."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .base import MODALITIES, Modality, Patches, in_time


@MODALITIES.register("series")
class Series(Modality):
    """`channels` numbers at each time step, `patch_size` steps per latent.

    normalise: "none" takes values as they are (after `offset` and `scale`); "sample" standardises each channel of each
    series, which loses its mean and standard deviation. offset, scale: value = (raw - offset) / scale, one number or
    one per channel. max_length: steps; longer series are an error. A series whose length is not a multiple of the patch
    is padded with its last step; `signal` cuts this off.
    """

    def __init__(
        self,
        hidden_size: int,
        channels: int = 1,
        patch_size: int = 4,
        normalise: Literal["none", "sample"] = "none",
        offset: float | list[float] = 0.0,
        scale: float | list[float] = 1.0,
        max_length: int = 100_000,
        length: int | None = None,
    ):
        super().__init__()
        if channels < 1 or patch_size < 1:
            raise ValueError(f"channels {channels} and patch_size {patch_size} are whole numbers from 1")
        if normalise not in ("none", "sample"):
            raise ValueError(f"normalise is 'none' or 'sample', not '{normalise}'")
        for what, numbers in (("offset", offset), ("scale", scale)):
            if isinstance(numbers, list) and len(numbers) != channels:
                raise ValueError(f"{what} has {len(numbers)} numbers, for {channels} channels")
        if 0 in (scale if isinstance(scale, list) else [scale]):
            raise ValueError("scale: nothing can be divided by 0")
        self.channels, self.patch_size, self.normalise = channels, patch_size, normalise
        self.offset, self.scale, self.max_length, self.length = offset, scale, max_length, length
        self.value_size = channels * patch_size
        self.projection = nn.Linear(self.value_size, hidden_size)

    def patches(self, value: Tensor) -> Patches:
        """value: [C, T], float; [T] of a single channel."""
        try:
            numbers = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
            series = torch.from_numpy(np.array(numbers, dtype=np.float32))
        except (TypeError, ValueError):
            raise ValueError(f"a series is numbers [{self.channels}, T], not {type(value).__name__}") from None
        if series.ndim == 1:
            series = series[None]
        if series.ndim != 2 or series.shape[0] != self.channels or series.shape[1] == 0:
            raise ValueError(f"a series is [{self.channels}, T], not {list(series.shape)}")
        if series.shape[1] > self.max_length:
            raise ValueError(f"a series of {series.shape[1]} steps; max_length is {self.max_length}")
        if not bool(torch.isfinite(series).all()):
            raise ValueError("a series with values that are not numbers")
        offset, scale = (torch.as_tensor(x, device="cpu").view(-1, 1) for x in (self.offset, self.scale))
        series = (series - offset) / scale
        if self.normalise == "sample":
            series = (series - series.mean(1, keepdim=True)) / series.std(1, keepdim=True, correction=0).clamp(min=1e-6)
        length = series.shape[1]
        short = -length % self.patch_size
        series = torch.cat((series, series[:, -1:].expand(-1, short)), dim=1)
        found = series.unflatten(1, (-1, self.patch_size)).transpose(0, 1).flatten(1)  # [N, C * patch]
        return Patches(found, in_time(len(found)), (len(found), length))

    def signal(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """float32 [C, T]."""
        series = values.unflatten(1, (self.channels, self.patch_size)).transpose(0, 1).flatten(1)
        offset, scale = (torch.as_tensor(x).view(-1, 1).to(series) for x in (self.offset, self.scale))
        return (series * scale + offset)[:, : shape[1] if len(shape) > 1 else None]

    def default_shape(self) -> tuple[int, ...] | None:
        return None if self.length is None else (-(-self.length // self.patch_size), self.length)
