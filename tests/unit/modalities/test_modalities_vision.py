"""Images to patches and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextembed.modalities import MODALITIES
from nextembed.modalities.vision import Image, as_bytes, as_pixels
from nextembed.nn.positions import patch_coordinates


def picture(size=8, channels=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (channels, size, size), dtype=np.uint8))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(patch=st.sampled_from([2, 4, 8]), channels=st.sampled_from([1, 3, 4]), seed=st.integers(0, 99))
def test_images_round_trip(patch, channels, seed):
    image = Image(16, image_size=8, patch_size=patch, num_channels=channels)
    value = picture(channels=channels, seed=seed)
    values, coordinates, shape = image.patches(value)
    side = 8 // patch
    assert shape == (side, side) == image.default_shape()
    assert values.shape == (side**2, channels * patch**2) and values.shape[1] == image.value_size
    assert values.dtype == torch.float32 and values.abs().max() <= 1
    assert torch.equal(image.signal(values, shape), value)
    assert torch.equal(coordinates, image.places(shape)) and not coordinates[:, 0].any()
    assert torch.equal(coordinates[:, 1:], patch_coordinates(side, side))


def test_patches_are_in_raster_order():
    image = Image(16, image_size=4, patch_size=2, num_channels=1)
    values = image.patches(torch.arange(16, dtype=torch.uint8).view(1, 4, 4)).values
    back = ((values + 1) * 127.5).round().int().tolist()
    assert back == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_the_projection_is_a_convolution_with_kernel_equal_to_stride():
    image = Image(16, image_size=8, patch_size=4)
    value = picture()
    kernel = image.projection.weight.view(16, 3, 4, 4)
    convolved = torch.nn.functional.conv2d(value[None].float() / 127.5 - 1, kernel, image.projection.bias, stride=4)
    assert torch.allclose(image.embed(image.patches(value).values), convolved[0].flatten(1).T, atol=1e-5)


def test_other_sizes_are_resized():
    image = Image(16, image_size=8, patch_size=4)
    for shape in ((3, 30, 5), (3, 1, 1), (3, 8, 9), (1, 12, 12)):
        value = torch.full(shape, 51, dtype=torch.uint8)
        values, _, found = image.patches(value)
        assert torch.allclose(values, torch.full((4, 48), 51 / 127.5 - 1), atol=1e-6)
        assert torch.equal(image.signal(values, found), torch.full((3, 8, 8), 51, dtype=torch.uint8))


def test_values_are_centred_and_scaled_and_round_trip():
    plain, image = Image(16, 8, 4), Image(16, 8, 4, mean=0.5, std=0.6)
    values, _, shape = image.patches(picture())
    assert torch.allclose(values, (plain.patches(picture()).values - 0.5) / 0.6, atol=1e-6)
    assert torch.equal(image.signal(values, shape), picture())
    for wrong in ({"mean": 128}, {"std": 0}, {"std": 58}):
        with pytest.raises(ValueError, match=r"of pixels in \[-1, 1\]"):
            Image(16, 8, 4, **wrong)


def test_normalised_pixels_and_arrays_are_accepted():
    image = Image(16, image_size=8, patch_size=4)
    value = picture()
    for same in (value.float() / 127.5 - 1, value.numpy(), value.numpy()[:, ::-1][:, ::-1]):
        assert torch.equal(image.patches(same).values, image.patches(value).values)


def test_predicted_values_are_clipped():
    assert as_bytes(torch.tensor([-3.0, -1.0, 0.0, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]
    assert Image(8, 8, 4).signal(torch.zeros(2, 48), (1, 2)).shape == (3, 4, 8)


def test_leading_axes_are_kept():
    pixels = as_pixels(torch.zeros(2, 5, 1, 6, 4, dtype=torch.uint8), 3, 8)
    assert pixels.shape == (2, 5, 3, 8, 8) and (pixels == -1).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(4, 8, 8), "an image of 4 channels; the model takes 3"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "an image of 8 channels"),
        (torch.zeros(8, 8), r"an image is a tensor \[C, H, W\], not torch.Size\(\[8, 8\]\)"),
        (torch.zeros(3, 0, 8), r"a tensor \[C, H, W\]"),
        ("a.png", "not str"),
        (None, "not NoneType"),
    ],
)
def test_invalid_images(value, message):
    with pytest.raises(ValueError, match=message):
        Image(16, image_size=8, patch_size=4).patches(value)


@pytest.mark.parametrize("settings", [{"patch_size": 5}, {"patch_size": 0}, {"image_size": 0}, {"num_channels": 0}])
def test_invalid_sizes(settings):
    with pytest.raises(ValueError, match=r"patch_size 5 does not divide|whole numbers from 1"):
        Image(16, **settings)


def test_patches_need_no_weights():
    image = MODALITIES.without_weights({"image": {"image_size": 8, "patch_size": 4}})["image"]
    value = picture()
    assert image.projection.weight.device.type == "meta"
    assert torch.equal(image.patches(value).values, Image(16, 8, 4).patches(value).values)
