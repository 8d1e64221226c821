"""Sliding windows: full coverage, agreement with the whole image, averaging, padding."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextembed.nn.windows import sliding_logits, window_starts


@given(length=st.integers(1, 60), window=st.integers(1, 30), stride=st.integers(1, 30))
def test_starts_cover_everything_and_stay_inside(length, window, stride):
    stride = min(stride, window)
    starts = window_starts(length, window, stride)
    covered = {i for start in starts for i in range(start, start + window)}
    assert set(range(length)) <= covered
    assert starts[0] == 0 and starts[-1] == max(0, length - window)
    assert all(b - a <= stride for a, b in pairwise(starts))


def local(pixels):
    """Logits that depend only on their own pixel."""
    return torch.stack((pixels.sum(1), pixels[:, 0] ** 2), dim=1)


@pytest.mark.parametrize("shape", [(8, 8), (8, 20), (21, 13), (5, 30), (3, 4)])
@pytest.mark.parametrize("stride", [8, 5, 1])
def test_a_local_network_gives_the_same_logits_as_on_the_whole_image(shape, stride):
    pixels = torch.randn(2, 3, *shape)
    logits = sliding_logits(local, pixels, (8, 8), (stride, stride))
    torch.testing.assert_close(logits, local(pixels), atol=1e-5, rtol=1e-5)


def test_overlapping_windows_are_averaged():
    seen = []

    def constant(pixels):
        seen.append(1)
        return torch.full((1, 1, 1, 1), float(len(seen)))

    logits = sliding_logits(constant, torch.zeros(1, 3, 4, 6), (4, 4), (2, 2))
    assert logits[0, 0, 0].tolist() == [1, 1, 1.5, 1.5, 2, 2]


def test_one_window_is_bit_identical_to_the_whole_image():
    pixels = torch.randn(1, 3, 8, 8)
    assert torch.equal(sliding_logits(local, pixels, (8, 8), (4, 4)), local(pixels))


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_leaves_gaps_is_an_error(stride):
    with pytest.raises(ValueError, match="stride"):
        sliding_logits(local, torch.zeros(1, 3, 16, 16), (8, 8), (stride, stride))
