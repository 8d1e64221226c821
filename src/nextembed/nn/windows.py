"""Inference on images of any size with a network that takes windows: predictions of overlapping windows are
averaged."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along an axis: every `stride`, the last one flush with the end."""
    last = max(0, length - window)
    return sorted({*range(0, last, stride), last})


def sliding_logits(
    predict: Callable[[Tensor], Tensor], pixels: Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Logits [B, C, H, W], float32, of pixels [B, channels, H, W]: the mean over all windows that cover a pixel.

    predict: pixels of a window [B, channels, *window] -> logits [B, C, h, w] of any resolution, which are resized to
    the window, bilinear. window, stride: (height, width) in pixels. An image smaller than the window is padded with
    zeros at its right and lower edge, and the padding cut off again.
    Raises ValueError for a stride below 1 or above the window, which would leave gaps.
    """
    if not all(0 < step <= side for step, side in zip(stride, window)):
        raise ValueError(f"stride {stride} is not between 1 and the window {window}")
    height, width = pixels.shape[-2:]
    right, below = max(0, window[1] - width), max(0, window[0] - height)
    padded = F.pad(pixels, (0, right, 0, below))
    total: Tensor | None = None
    count = torch.zeros(padded.shape[-2:], device=pixels.device)
    for top in window_starts(padded.shape[-2], window[0], stride[0]):
        for left in window_starts(padded.shape[-1], window[1], stride[1]):
            here = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            logits = F.interpolate(predict(padded[here]).float(), window, mode="bilinear", align_corners=False)
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *padded.shape[-2:])
            total[here] += logits
            count[here] += 1
    assert total is not None
    return (total / count)[..., :height, :width]
