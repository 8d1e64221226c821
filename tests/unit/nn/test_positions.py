"""Coordinates, their augmentation, and rotary positions against closed forms."""

import math

import pytest
import torch

from nextembed.nn.positions import augment_coordinates, patch_coordinates, rotary_tables, rotate


def test_patch_centres_in_raster_order():
    expected = [(-0.5, -2 / 3), (-0.5, 0), (-0.5, 2 / 3), (0.5, -2 / 3), (0.5, 0), (0.5, 2 / 3)]
    assert torch.allclose(patch_coordinates(2, 3), torch.tensor(expected), atol=1e-7)
    assert torch.equal(patch_coordinates(1, 1), torch.zeros(1, 2))


def test_augmentation_is_off_by_default():
    coordinates = patch_coordinates(3, 4)[None]
    assert torch.equal(augment_coordinates(coordinates), coordinates)


@pytest.mark.parametrize(("name", "bound"), [("shift", 0.3), ("jitter", 1.5), ("rescale", 2.0)])
def test_augmentation_is_shared_by_all_patches_and_bounded(name, bound):
    torch.manual_seed(0)
    # away from zero, so that ratios are defined; 200 independent samples
    coordinates = (patch_coordinates(4, 4) + 2).expand(200, -1, -1)
    moved = augment_coordinates(coordinates, **{name: bound})
    change = moved - coordinates if name == "shift" else moved / coordinates
    assert torch.allclose(change, change[:, :1].expand_as(change), atol=1e-5)
    drawn = change[:, 0]
    low, high = (-bound, bound) if name == "shift" else (1 / bound, bound)
    assert drawn.min() >= low - 1e-5 and drawn.max() <= high + 1e-5
    assert drawn.min() < low + 0.1 * (high - low) and drawn.max() > high - 0.1 * (high - low)
    middle = drawn if name == "shift" else drawn.log()
    assert middle.mean().abs() < 0.1  # symmetric around the identity
    assert torch.allclose(drawn[:, 0], drawn[:, 1], atol=1e-5) == (name == "rescale")  # the same factor for both axes


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_tables_are_the_closed_form(axes):
    width, theta = 12, 50.0
    coordinates = torch.randn(5, axes, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary_tables(coordinates, width, theta)
    assert cos.shape == sin.shape == (5, width) and cos.dtype == torch.float32
    each = width // (2 * axes)
    for t in range(5):
        for axis in range(axes):
            for i in range(each):
                angle = 2 * math.pi * coordinates[t, axis].item() * theta ** (-2 * axes * i / width)
                for half in (0, width // 2):
                    place = half + axis * each + i
                    assert cos[t, place].item() == pytest.approx(math.cos(angle), abs=1e-5)
                    assert sin[t, place].item() == pytest.approx(math.sin(angle), abs=1e-5)


def test_tables_keep_float32_under_autocast():
    coordinates = patch_coordinates(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = rotary_tables(coordinates, 8)
    for one, two in zip(mixed, rotary_tables(coordinates, 8), strict=True):
        assert torch.equal(one, two)


def test_invalid_head_width():
    with pytest.raises(ValueError, match="head width 6 is not a multiple of 4"):
        rotary_tables(torch.zeros(1, 2), 6)


def test_rotation_turns_pairs_of_both_halves():
    angle = torch.tensor([[0.3, 1.2, 0.3, 1.2]])
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    out = rotate(x, angle.cos(), angle.sin())
    for i in range(2):
        turned = complex(x[0, i], x[0, i + 2]) * complex(math.cos(angle[0, i]), math.sin(angle[0, i]))
        assert out[0, i].item() == pytest.approx(turned.real, abs=1e-6)
        assert out[0, i + 2].item() == pytest.approx(turned.imag, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rotation_keeps_dtype_and_input(dtype):
    x = torch.randn(2, 5, 3, 8).to(dtype)
    before = x.clone()
    cos, sin = rotary_tables(torch.randn(5, 2), 8)
    out = rotate(x, cos[:, None], sin[:, None])
    assert out.dtype == dtype and out.shape == x.shape and torch.equal(x, before)
