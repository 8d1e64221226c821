"""RandAugment and erasing: a sample and a seed determine the pixels, independent of the rest of the batch."""

import builtins

import numpy as np
import pytest
import torch

from nextembed.core.types import Loading
from nextembed.data.augment import Augment
from nextembed.data.sources import ImageData
from nextembed.errors import MissingExtra

SIZES = {"image_size": 16, "num_channels": 3, "num_latents": 5}


@pytest.fixture
def pixels(make_picture):
    return torch.from_numpy(np.array(make_picture(16, 16))).permute(2, 0, 1)


def test_the_seed_determines_the_result_and_global_state_is_untouched(pixels):
    augment = Augment(16, (9, 0.5), 0.5)
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(0)
    np.random.seed(0)
    first = [augment(pixels, seed) for seed in range(8)]
    found = torch.rand(2), np.random.rand(2)
    assert torch.equal(found[0], expected[0]) and (found[1] == expected[1]).all()
    torch.manual_seed(99)
    assert all(torch.equal(augment(pixels, seed), image) for seed, image in enumerate(first))
    assert len({image.numpy().tobytes() for image in first}) > 5
    assert all(image.shape == pixels.shape and image.dtype == torch.uint8 for image in first)


def test_grey_images_stay_grey_and_floats_stay_integral(pixels):
    augment = Augment(16, (9, 0.5), 0.0)
    for seed in range(6):
        grey = augment(pixels[:1].float(), seed)
        assert grey.shape == (1, 16, 16) and grey.dtype == torch.float32
        assert torch.equal(grey, grey.round()) and grey.min() >= 0 and grey.max() <= 255
        as_colour = augment(pixels[:1].expand(3, -1, -1).contiguous(), seed)
        assert (as_colour[0] - as_colour[1]).eq(0).all() and torch.equal(as_colour[:1].float(), grey)


def test_erasing_makes_a_grey_rectangle_at_its_rate(pixels):
    erased = [Augment(16, None, 0.5)(pixels, seed) for seed in range(200)]
    changed = [(image != pixels).any(0) for image in erased if (image != pixels).any()]
    assert 70 < len(changed) < 130
    for image, mask in zip((e for e in erased if (e != pixels).any()), changed):
        assert image[:, mask].unique().tolist() == [128]
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert 0.01 * 256 <= area <= 0.4 * 256
    assert torch.equal(Augment(16, None, 0.0)(pixels, 0), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_do_not_depend_on_workers_or_batch_size(channels):
    data = ImageData(source="emoji", rand_augment=(9, 0.5), erase_rate=0.5)
    sizes = SIZES | {"num_channels": channels}

    def first(num_workers, size):
        loader = data.model_copy(update={"num_workers": num_workers}).train_loader(Loading(size), **sizes)
        batches = iter(loader)
        return torch.cat([next(batches)["pixel_values"] for _ in range(12 // size)])

    assert torch.equal(first(0, 12), first(2, 4))
    plain = ImageData(source="emoji", num_workers=0).train_loader(Loading(12), **sizes)
    assert not torch.equal(first(0, 12), next(iter(plain))["pixel_values"])


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("timm"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"this needs timm: pip install 'nextembed\[finetune\]'"):
        ImageData(source="emoji", rand_augment=(9, 0.5)).train_loader(Loading(2), **SIZES)
    Augment(16, None, 0.5)
