"""Videos to tubelets and back."""

import pytest
import torch
from torchvision.transforms.v2.functional import resize

from nextembed.modalities.base import MODALITIES
from nextembed.modalities.video import Video
from nextembed.modalities.vision import Image
from nextembed.nn.positions import patch_coordinates

SMALL = {"image_size": 16, "patch_size": 4, "tube_size": 2}


def clip(num_frames=4, height=16, width=16, channels=3):
    shape = (num_frames, channels, height, width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_frames", [1, 2, 5, 6])
@pytest.mark.parametrize("settings", [SMALL, {**SMALL, "tube_size": 3}, {**SMALL, "patch_size": 16}], ids=str)
def test_round_trip_is_exact(num_frames, settings):
    video = Video(8, **settings)
    values, coordinates, shape = video.patches(clip(num_frames))
    side, tubes = 16 // settings["patch_size"], -(-num_frames // settings["tube_size"])
    assert shape == (tubes, side, side, num_frames)
    assert values.shape == (tubes * side**2, video.value_size) and values.dtype == torch.float32
    assert values.min() == -1 and values.max() == 1
    assert coordinates.shape == (len(values), 3) and torch.equal(coordinates, video.places(shape))
    assert video.embed(values).shape == (len(values), 8)
    assert torch.equal(video.signal(values, shape), clip(num_frames))
    assert len(video.signal(values, shape[:3])) == tubes * settings["tube_size"]


def test_each_latent_matches_its_coordinates():
    frames = clip(6)
    values, coordinates, _ = Video(8, **SMALL).patches(frames)
    assert coordinates[:, 0].tolist() == [t for t in range(3) for _ in range(16)]
    assert torch.equal(coordinates[16:32, 1:], patch_coordinates(4, 4))
    expected = frames[2:4, :, 4:8, 8:12].float() / 127.5 - 1  # second tubelet, row 1, column 2
    torch.testing.assert_close(values[16 + 6], expected.flatten())


def test_odd_counts_repeat_the_last_frame():
    values, _, _ = Video(8, **SMALL).patches(clip(5))
    last = values[-16:].unflatten(1, (2, -1))
    assert torch.equal(last[:, 0], last[:, 1])
    assert not torch.equal(values[0].view(2, -1)[0], values[0].view(2, -1)[1])


def test_tubelets_of_one_frame_equal_image_patches():
    frames = clip(1, 20, 12)
    video, image = Video(8, **{**SMALL, "tube_size": 1}), Image(8, image_size=16, patch_size=4)
    found, wanted = video.patches(frames), image.patches(frames[0])
    assert torch.equal(found.values, wanted.values) and torch.equal(found.coordinates, wanted.coordinates)


def test_other_sizes_are_resized_as_torchvision_does():
    frames = clip(2, 40, 24)
    video = Video(8, **SMALL)
    values, _, shape = video.patches(frames)
    back = video.signal(values, shape)
    assert back.shape == (2, 3, 16, 16)
    assert (back.int() - resize(frames, [16, 16], antialias=True).int()).abs().max() <= 1


def test_grey_becomes_colour():
    video = Video(8, **SMALL)
    values, _, shape = video.patches(clip(channels=1))
    assert torch.equal(video.signal(values, shape), clip(channels=1).expand(-1, 3, -1, -1))


def test_length_of_generated_videos():
    assert Video(8, **SMALL).default_shape() is None
    assert Video(8, **SMALL, num_frames=5).default_shape() == (3, 4, 4, 5)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (clip(4)[0], r"\[F, C, H, W\]; this is \[3, 16, 16\]"),
        ("film.mp4", "this is str"),
        (clip(9), "9 frames; max_frames is 8"),
        (clip(2, channels=2), "of 2 channels; the model takes 3"),
        (clip(0), "tensor"),
    ],
)
def test_invalid_videos(value, words):
    with pytest.raises(ValueError, match=words):
        Video(8, **SMALL, max_frames=8).patches(value)


@pytest.mark.parametrize("settings", [{"patch_size": 5}, {"tube_size": 0}, {"num_frames": -1}], ids=str)
def test_invalid_settings(settings):
    with pytest.raises(ValueError, match=r"does not divide|whole numbers from 1"):
        Video(8, **{**SMALL, **settings})


def test_makes_patches_without_weights():
    meta = MODALITIES.without_weights({"film": {"kind": "video", **SMALL}})["film"]
    values, _, shape = meta.patches(clip())
    assert torch.equal(meta.signal(values, shape), clip())
