"""Reading of clips, and the bundled moving stamps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from videos import write_video

from nextembed.core.types import Loading
from nextembed.data.clips import ClipReader, reader_of
from nextembed.data.images import ImagePart
from nextembed.data.rows import Row
from nextembed.data.transforms import ImageReader, RandomResizedCrop, Unreadable
from nextembed.data.video import even_indices
from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.toys.moving_stamps import DIRECTIONS, MovingStamps
from nextembed.training.banner import model_line

SIZES = {"image_size": 16, "num_channels": 12, "num_latents": 33}


def test_frames_are_evenly_spaced_from_first_to_last() -> None:
    assert even_indices(8, 8) == list(range(8))
    assert even_indices(16, 4) == [0, 5, 10, 15]
    assert even_indices(2, 4) == [0, 0, 1, 1]
    with pytest.raises(Unreadable, match="a single frame is not a clip"):
        even_indices(1, 4)


def test_channels_are_ordered_by_frame() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    reader = reader_of(12, (255, 255, 255), 10**6, 10**6)
    assert isinstance(reader, ClipReader) and type(reader_of(3, (0, 0, 0), 1, 1)) is ImageReader
    read = reader.read(clip)
    assert read.shape == (12, 6, 8) and reader.read_size(clip) == (6, 8)
    assert torch.equal(read[3:6].permute(1, 2, 0), torch.from_numpy(clip[1]))
    with pytest.raises(ConfigError, match="clips have 3 per frame, not 5"):
        reader_of(5, (0, 0, 0), 1, 1)
    for wrong in (clip[0], clip[..., :1], clip[:1], np.zeros((4, 2000, 2000, 3), np.uint8)):
        with pytest.raises(Unreadable):
            reader.read(wrong)


def test_a_crop_is_the_same_in_all_frames() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 20, 20, 3), dtype=np.uint8)
    reader = reader_of(12, (255, 255, 255), 10**6, 10**6)
    crop = reader.read_crop(frame.repeat(4, 0), RandomResizedCrop(8, (0.2, 0.5), flip_rate=0.5), 3)
    assert crop.shape == (12, 8, 8)
    assert all(torch.equal(crop[:3], crop[at : at + 3]) for at in (3, 6, 9))


def test_videos_of_a_table_are_read(tmp_path: Path) -> None:
    write_video(tmp_path / "one" / "clip.mp4", 20, 230)
    write_video(tmp_path / "two" / "clip.mp4", 230, 20)
    names = ["one", "two"]

    class Videos(ImagePart):
        def rows(self, split: str) -> list[Row]:
            return [{"image": tmp_path / name / "clip.mp4", "label": i} for i, name in enumerate(names)]

        def class_names(self) -> list[str]:
            return names

    samples = Videos().eval_samples("train", image_size=16, num_channels=12)
    up, down = (samples[i]["pixel_values"].reshape(4, -1).mean(1) for i in range(2))
    assert up[0] < -0.7 and up[-1] > 0.7 and (up.diff() > 0.3).all()
    assert (down.diff() < -0.3).all()


def test_a_stamp_moves_in_a_straight_line_and_wraps_around() -> None:
    part = MovingStamps(canvas="plain", clip_frames=4, canvas_size=24, speed=(2.0, 2.0), num_clips=200)
    rows = part.rows("train")
    assert part.class_names() == list(DIRECTIONS) and rows.labels() == [rows[i]["label"] for i in range(200)]
    assert set(rows.labels()) == set(range(8))
    for index in range(40):
        clip, label = rows[index]["image"], rows[index]["label"]
        assert np.array_equal(clip, rows[index]["image"])
        angle = label * np.pi / 4
        found = [(y, x) for y in range(-3, 4) for x in range(-3, 4)
                 if np.array_equal(np.roll(clip[0], (y, x), (0, 1)), clip[1])]  # fmt: skip
        assert any(abs(y - 2 * np.sin(angle)) < 1.01 and abs(x - 2 * np.cos(angle)) < 1.01 for y, x in found)
        # every frame has the same pixels, because the motion wraps around
        sums = [sorted(map(tuple, frame.reshape(-1, 3).tolist())) for frame in clip]
        assert all(one == sums[0] for one in sums)
    groups = MovingStamps(label="group")
    assert len(groups.class_names()) == 9 and set(groups.rows("test").labels()) <= set(range(9))


def test_canvases_are_static_or_moving_textures() -> None:
    rows = MovingStamps(clip_frames=3, canvas_size=32, stamp_scale=(0.1, 0.1)).rows("train")
    clips = [rows[index]["image"] for index in range(40)]
    assert all(np.array_equal(clip, rows[index]["image"]) for index, clip in enumerate(clips))
    corners = [len(np.unique(clip[0, :8, :8].reshape(-1, 3), axis=0)) for clip in clips]
    assert sum(number > 1 for number in corners) == 40
    same = [(clip[0] == clip[1]).all(-1).mean() for clip in clips]  # the emoji is 3 x 3 pixels
    assert 8 < sum(share > 0.9 for share in same) < 32
    moved = next(clip for clip, share in zip(clips, same) if share < 0.5)
    ways = [np.roll(moved[0], (y, x), (0, 1)) == moved[1] for y in range(-3, 4) for x in range(-3, 4)]
    assert max(way.all(-1).mean() for way in ways) > 0.9


def test_splits_have_separate_emoji_and_batches_are_clips() -> None:
    part = MovingStamps(clip_frames=4, canvas_size=16, num_clips=20, num_validation=5)
    train = part.train_loader(Loading(3), **SIZES)
    batch = next(iter(train))
    assert batch["pixel_values"].shape == (3, 12, 16, 16) and batch["pixel_values"].abs().max() <= 1
    samples = part.eval_samples("validation", image_size=16, num_channels=12)
    assert len(samples) == 5 and samples[0]["pixel_values"].shape == (12, 16, 16)
    emoji = [len(part.rows(split).emoji) for split in ("train", "validation", "test")]
    assert emoji == [1641, 94, 157]


def test_image_models_reject_clips_and_clip_models_reject_images() -> None:
    with pytest.raises(ConfigError, match="a clip, not an image"):
        MovingStamps(num_clips=20).train_loader(Loading(3), image_size=16, num_channels=3, num_latents=17)
    from nextembed.data.sources import ImageData

    with pytest.raises(ConfigError, match="an image, not a clip"):
        next(iter(ImageData(source="emoji", num_workers=0, cache="off").train_loader(Loading(3), **SIZES)))
    with pytest.raises(ConfigError, match="rand_augment and erase_rate are for images"):
        MovingStamps(num_clips=20, erase_rate=0.5).train_loader(Loading(3), **SIZES)
    with pytest.raises(ConfigError, match="speed"):
        MovingStamps(speed=(9.0, 20.0))


def test_a_clip_model_has_three_axes_and_two_frames_per_latent() -> None:
    torch.manual_seed(0)
    part = NepaModel(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4,
                     num_frames=4, pos_embed_rescale=None, layerscale_value=1.0)  # fmt: skip
    model = part.build().eval()
    pixels = torch.randn(2, 12, 16, 16)
    latents = model.embed({"pixel_values": pixels})
    assert latents.z.shape == (2, 33, 24) and latents.coordinates.shape == (2, 33, 3)
    assert part.loader_arguments(model) == {"image_size": 16, "num_channels": 12, "num_latents": 33}
    assert latents.coordinates[0, 1].tolist() == [-0.5, -0.75, -0.75]
    assert latents.coordinates[0, -1].tolist() == [0.5, 0.75, 0.75]
    later = pixels.clone()
    later[:, 6:] += 1  # frames 3 and 4
    changed = (model.embed({"pixel_values": later}).z - latents.z).abs().sum(-1) > 1e-6
    assert not changed[:, :17].any() and changed[:, 17:].all()
    hidden = model.encode(latents, "causal").last
    assert torch.allclose(model.encode(model.embed({"pixel_values": later}), "causal").last[:, :17], hidden[:, :17])
    assert part.processor() is None
    assert model_line(model, "vit_nepa").endswith("4 frames of 16 px in 16 patches of 4 px")
