"""Time series to patches and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextembed.modalities import MODALITIES
from nextembed.modalities.series import Series


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 4),
    patch=st.integers(1, 5),
    steps=st.integers(1, 17),
    scale=st.floats(0.1, 9),
    seed=st.integers(0, 99),
)
def test_series_round_trip(channels, patch, steps, scale, seed):
    value = torch.randn(channels, steps, generator=torch.Generator().manual_seed(seed)) * scale + 3
    series = Series(16, channels, patch, offset=3.0, scale=scale)
    values, coordinates, shape = series.patches(value)
    num = -(-steps // patch)
    assert shape == (num, steps) and values.shape == (num, channels * patch) and series.value_size == values.shape[1]
    assert torch.allclose(series.signal(values, shape), value, atol=1e-4)
    assert coordinates[:, 0].tolist() == list(range(num)) and not coordinates[:, 1:].any()
    assert torch.equal(coordinates, series.places(shape))
    assert series.signal(values, (num,)).shape == (channels, num * patch)  # as for a generated series
    short = num * patch - steps
    tail = values.view(num, channels, patch)[-1, :, patch - short - 1 :]
    assert torch.equal(tail, tail[:, :1].expand(-1, short + 1))  # padded with its last step


def test_a_patch_is_ordered_by_channel():
    values = Series(8, channels=2, patch_size=2).patches(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])).values
    assert values.tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]


def test_each_channel_has_its_offset_and_scale():
    series = Series(8, channels=2, patch_size=1, offset=[1.0, 10.0], scale=[2.0, 5.0])
    value = torch.tensor([[1.0, 3.0], [10.0, 20.0]])
    values, _, shape = series.patches(value)
    assert values.tolist() == [[0, 0], [1, 2]]
    assert torch.equal(series.signal(values, shape), value)


def test_normalisation_by_sample_removes_offset_and_scale():
    series = Series(8, channels=2, patch_size=3, normalise="sample")
    value = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    one, two = (series.patches(x).values for x in (value, 7 * value - 100))
    assert torch.allclose(one, two, atol=1e-4)
    back = series.signal(one, (4, 12))
    assert back.mean(1).abs().max() < 1e-5 and back.std(1, correction=0).allclose(torch.ones(2), atol=1e-5)
    assert series.patches(torch.full((2, 6), 5.0)).values.abs().max() == 0  # constant series: no division by zero


def test_lists_arrays_and_single_channels_are_accepted():
    series = Series(8, patch_size=2)
    want = series.patches(torch.tensor([[1.0, 2.0, 3.0]])).values
    read_only = np.array([1, 2, 3], dtype=np.int16)
    read_only.setflags(write=False)
    for value in ([1, 2, 3], [[1, 2, 3]], read_only, np.array([[1, 2, 3]]), torch.tensor([1, 2, 3]),
                  torch.tensor([[1.0, 2, 3]], requires_grad=True)):  # fmt: skip
        assert torch.equal(series.patches(value).values, want)


def test_a_fixed_length_is_the_default_shape():
    assert Series(8, patch_size=4).default_shape() is None
    assert Series(8, patch_size=4, length=10).default_shape() == (3, 10)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3, 4), r"a series is \[2, T\], not \[3, 4\]"),
        (torch.zeros(4), r"not \[1, 4\]"),
        (torch.zeros(2, 0), r"not \[2, 0\]"),
        (torch.zeros(1, 2, 4), r"not \[1, 2, 4\]"),
        (torch.tensor([[0.0, float("inf")]] * 2), "values that are not numbers"),
        (torch.zeros(2, 11), "a series of 11 steps; max_length is 10"),
        ("abc", r"numbers \[2, T\], not str"),
        (None, "a series is"),
        ({"a": 1}, "not dict"),
        ([[1, 2], [3]], "not list"),
    ],
    ids=str,
)
def test_invalid_series(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        Series(8, channels=2, max_length=10).patches(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "whole numbers from 1"),
        ({"patch_size": 0}, "whole numbers from 1"),
        ({"normalise": "batch"}, "normalise is 'none' or 'sample'"),
        ({"channels": 2, "offset": [1.0]}, "offset has 1 numbers, for 2 channels"),
        ({"channels": 2, "scale": [1.0, 0.0]}, "scale: nothing can be divided by 0"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Series(8, **settings)


def test_embedding_is_one_linear_map():
    torch.manual_seed(0)
    series = MODALITIES.build("touch", {"kind": "series", "channels": 2, "patch_size": 2}, 16)
    values = series.patches(torch.randn(2, 6)).values
    z = series.embed(values)
    assert torch.allclose(z, values @ series.projection.weight.T + series.projection.bias, atol=1e-6)
