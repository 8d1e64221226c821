"""Folders and archives of videos: splits, classes and missing files as for images; and data of the wrong kind."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from videos import write_video

from nextembed import fit
from nextembed.core.config import DATA, apply_overrides
from nextembed.core.types import Loading
from nextembed.data.listing import listed
from nextembed.data.sources import ImageData
from nextembed.data.transforms import is_video
from nextembed.errors import ConfigError
from nextembed.recipes import load

CLIPS = {"image_size": 16, "num_channels": 12, "num_latents": 33}
IMAGES = {"image_size": 16, "num_channels": 3, "num_latents": 17}
NAMES = ("train/wave/a.mp4", "train/wave/b.mov", "train/jump/c.mkv", "train/jump/deep/d.avi", "val/wave/e.mp4")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        write_video(tmp_path / "own" / name, 20 + number)
    return tmp_path / "own"


def data_of(source: Path, **settings: object) -> ImageData:
    return ImageData.model_validate({"source": str(source), "num_workers": 0, **settings})


def test_video_folders_have_splits_and_classes_like_images(videos: Path) -> None:
    data = data_of(videos)
    assert data.class_names() == ["jump", "wave"]
    rows = list(data.rows("train"))
    assert [(row["key"], row["label"]) for row in rows] == [
        ("train/jump/c.mkv", 0), ("train/jump/deep/d.avi", 0), ("train/wave/a.mp4", 1), ("train/wave/b.mov", 1),
    ]  # fmt: skip
    assert len(data.rows("validation")) == 1
    batch = next(iter(data.train_loader(Loading(4), **CLIPS)))
    assert batch["pixel_values"].shape == (4, 12, 16, 16)
    whole = data.eval_samples("validation", image_size=16, num_channels=12)[0]["pixel_values"]
    assert (whole.reshape(4, -1).mean(1).diff() > 0.3).all()  # frames get brighter


def test_videos_can_be_streamed(videos: Path) -> None:
    batch = next(iter(data_of(videos, streaming=True).train_loader(Loading(4), **CLIPS)))
    assert batch["pixel_values"].shape == (4, 12, 16, 16)


def test_videos_in_zip_and_tar_archives(videos: Path, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "videos"), "zip", videos)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name in NAMES[:4]:
            tar.add(videos / name, name.removeprefix("train/"))
    for source in (Path(packed), tmp_path / "train.tar"):
        data = data_of(source)
        assert data.class_names() == ["jump", "wave"] and len(data.rows("train")) == 4
        assert next(iter(data.train_loader(Loading(4), **CLIPS)))["pixel_values"].shape == (4, 12, 16, 16)


def test_unreadable_files_are_listed(videos: Path) -> None:
    (videos / "train/wave/broken.mp4").write_bytes(b"no video")
    (videos / "train/wave/lost.webm").symlink_to(videos / "nowhere.webm")
    data = data_of(videos, max_skipped_rate=0.5)
    assert data.left_out("train") == {"train/wave/lost.webm": "a broken link"}
    loader = data.train_loader(Loading(6), **CLIPS)
    next(iter(loader))
    assert set(loader.log.reasons) == {"train/wave/broken.mp4", "train/wave/lost.webm"}
    assert loader.log.reasons["train/wave/broken.mp4"].startswith("not a video that can be decoded")


def test_images_take_precedence_over_videos(videos: Path) -> None:
    for name in ("x", "y"):
        Image.new("RGB", (20, 20)).save(videos / f"train/wave/{name}.png")
    data = data_of(videos)
    assert [row["key"] for row in data.rows("train")] == ["train/wave/x.png", "train/wave/y.png"]
    assert data.summary("train").beside == {".mp4": 2, ".avi": 1, ".mkv": 1, ".mov": 1}
    assert len(data_of(videos, format="videos").rows("train")) == 4
    with pytest.raises(ConfigError, match=r"x\.png: an image, not a clip; .*data\.format=videos"):
        data.train_loader(Loading(2), **CLIPS)


def test_videos_may_have_metadata(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / "train" / f"{name}.mp4")
    rows = '{"file_name": "a.mp4", "label": "wave"}\n{"file_name": "b.mp4", "label": "jump"}\n'
    (tmp_path / "train" / "metadata.jsonl").write_text(rows)
    data = data_of(tmp_path)
    assert data.class_names() == ["jump", "wave"] and [row["label"] for row in data.rows("train")] == [1, 0]
    assert next(iter(data.train_loader(Loading(2), **CLIPS)))["pixel_values"].shape == (2, 12, 16, 16)


@pytest.mark.parametrize("streaming", [False, True])
def test_data_of_the_wrong_kind_is_a_one_line_error(videos: Path, tmp_path: Path, streaming: bool) -> None:
    with pytest.raises(ConfigError, match=r"^data: .*: a clip, not an image; for clips set model\.num_frames"):
        next(iter(data_of(videos, streaming=streaming, cache="off").train_loader(Loading(2), **IMAGES)))
    for number in range(5):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), number, np.uint8)).save(tmp_path / "images" / f"{number}.png")
    images = data_of(tmp_path / "images", streaming=streaming, cache="off")
    with pytest.raises(ConfigError, match=r"^data: .*: an image, not a clip; for images set model\.num_frames=1"):
        next(iter(images.train_loader(Loading(2), **CLIPS)))


def test_a_still_image_among_clips_is_unreadable(videos: Path) -> None:
    Image.new("RGB", (20, 20)).save(videos / "train/wave/a.mp4", format="PNG")
    data = data_of(videos, max_skipped_rate=0.5)
    loader = data.train_loader(Loading(4), **CLIPS)
    next(iter(loader))
    assert list(loader.log.reasons) == ["train/wave/a.mp4"]


def test_videos_are_recognised_by_their_first_bytes(videos: Path) -> None:
    assert all(is_video((videos / name).read_bytes()) for name in NAMES)
    assert not is_video(b"") and not is_video(b"RIFF\0\0\0\0WAVEfmt ") and not is_video(b"\0\0\0\x1cftypavif")
    assert {file.kind for file in listed(videos)} == {"video"}


def test_a_custom_source_replaces_moving_stamps(videos: Path) -> None:
    found = DATA.parse({"kind": "moving_stamps", "source": str(videos), "num_clips": 9, "flip_rate": 0.0})
    assert isinstance(found, ImageData) and found.flip_rate == 0 and found.kind == "images"
    assert DATA.parse({"kind": "moving_stamps", "num_clips": 9}).kind == "moving_stamps"


def test_the_documented_command_trains_on_a_folder_of_videos(videos: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/families/vjepa.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("nextembed train vjepa_demo data.source="))
    settings = line.replace("path/to/videos", str(videos)).split()[3:]
    run = fit(apply_overrides(load("vjepa_demo_tiny"), [*settings, f"output_dir={tmp_path}", "probe.enabled=false"]))
    assert run.config.data.kind == "images" and run.metrics["data_rows"] == 4


def test_a_classifier_of_videos_starts_from_the_teacher(videos: Path, tmp_path: Path) -> None:
    own = [f"data.source={videos}", f"output_dir={tmp_path}"]
    config = apply_overrides(load("vjepa_demo_tiny"), [*own, "probe.enabled=false"])
    teacher = fit(config).saved().folder("teacher")
    settings = [*own, f"model.pretrained={teacher}", "train.max_steps=1", "train.batch_size=2"]
    run = fit(apply_overrides(load("finetune"), [*settings, "train.device=cpu", "data.num_workers=0"]))
    assert run.config.model.kind == "vit_nepa_classifier" and run.config.model.processor() is None
    assert run.task.usage(run, "RUN") == "nextembed evaluate RUN"
    assert run.metrics["top1"] in (0.0, 1.0)  # accuracy on one clip
