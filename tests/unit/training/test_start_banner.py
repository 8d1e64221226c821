"""Messages before the first step."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nextembed.core.files import next_folder
from nextembed.data.mixture import Mixture
from nextembed.data.pairs import TextData
from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError, DataError
from nextembed.models.nepa.settings import NepaModel
from nextembed.run import reads_clips
from nextembed.toys.emoji_documents import EmojiDocuments
from nextembed.toys.moving_stamps import MovingStamps
from nextembed.training.banner import ModelOf, Pace, busy, class_words, found_data, minutes, odd, place_line, short_side
from nextembed.training.folder import opened


def test_the_run_folder_and_existing_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Path("runs/mine")
    assert next_folder(mine) == mine
    for name in ("mine", "mine-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert next_folder(mine) == Path("runs/mine-3")
    assert place_line(mine, mine, False) == "Run:     runs/mine"
    assert place_line(Path("runs/mine-3"), mine, False) == "Run:     runs/mine-3 (runs/mine exists)"
    assert place_line(mine, mine, True) == "Run:     runs/mine, resumed"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], ", without classes"),
        (["cat"], " in 1 class (cat)"),
        (["cat", "dog"], " in 2 classes (cat, dog)"),
        (list("abcdef"), " in 6 classes (a, b, c, d, ...)"),
    ],
)
def test_classes(names: list[str], words: str) -> None:
    assert class_words(names) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.1, "about 1 second"),
        (49.0, "about 49 seconds"),
        (61.0, "about 1 minute"),
        (540.0, "about 9 minutes"),
        (7200.0, "about 2.0 hours"),
        (86400 * 3.0, "about 3.0 days"),
    ],
)
def test_times(seconds: float, words: str) -> None:
    assert minutes(seconds) == words


@pytest.mark.parametrize(
    ("num", "side", "batch", "size", "words"),
    [
        (3, 64, 2, 32, ["3 images are very few"]),
        (100, 255, 100, 32, []),
        (100, 256, 100, 32, ["images of about 256 px are shrunk to 32 px, which loses details below 8 px"]),
        (100, 64, 128, 32, ["train.batch_size=128 is larger than the data: each step sees every image 1.3 times"]),
        (100, 3000, 64, None, []),
    ],
)
def test_unusual_data_is_noted(num: int, side: int, batch: int, size: int | None, words: list[str]) -> None:
    rows = [{"image": Image.new("L", (side + 10, side))}] * num
    found = odd(rows, batch, ModelOf(size))
    assert [line[: len(word)] for line, word in zip(found, words, strict=True)] == words


def test_sizes_are_read_from_any_kind_of_image(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30))
    picture.save(tmp_path / "a.png")
    for image in (picture, tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), np.zeros((30, 40, 3), np.uint8)):
        assert short_side(image) == 30
    assert short_side(b"no image") is None and short_side(None) is None


def test_the_data_is_counted(tmp_path: Path) -> None:
    for role, num in (("train", 3), ("val", 2)):
        for name in ("cats", "dogs"):
            (tmp_path / role / name).mkdir(parents=True)
            for i in range(num):
                Image.new("RGB", (20, 20), (i, 9, 9)).save(tmp_path / role / name / f"{i}.png")
    first, *others = found_data(ImageData(source=str(tmp_path), num_workers=0), 4, ModelOf(16))[0]
    assert first.endswith(": 6 images for training in 2 classes (cats, dogs); validation 4; test none")
    assert others == ["         6 images are very few: the model will memorise them and not generalise"]
    (line,) = found_data(TextData(source="glosses"), 4)[0]
    assert line.startswith("Data:    glosses: ") and line.endswith(" documents for training")


def test_the_pace_is_reported_once_and_excludes_the_first_step() -> None:
    said: list[str] = []
    pace = Pace(said.append, after=0.0, steps=5)
    for step in range(1, 9):
        pace.stepped(SimpleNamespace(step=step, max_steps=100))  # type: ignore[arg-type]
    assert len(said) == 1 and "for the other 98 steps" in said[0]


def test_no_pace_is_reported_at_the_end() -> None:
    said: list[str] = []
    pace = Pace(said.append, after=0.0)
    for step in (1, 2):
        pace.stepped(SimpleNamespace(step=step, max_steps=2))  # type: ignore[arg-type]
    assert said == []


def test_slow_phases_are_reported() -> None:
    said: list[str] = []
    with busy("reading", said.append, after=0.02, every=0.05):
        end = time.monotonic() + 30
        while len(said) < 2 and time.monotonic() < end:
            time.sleep(0.01)
    assert said[0] == "reading ..." and said[1].startswith("reading (0 s")
    with busy("quick", said.append, after=5.0):
        pass
    assert "quick ..." not in said


def test_data_of_videos_is_counted_in_clips(tmp_path: Path) -> None:
    data = MovingStamps(num_clips=3, num_validation=2, num_test=1)
    (first, *others), counts = found_data(data, 4, ModelOf(32, reads_clips=True))
    assert first.startswith("Data:    moving_stamps: 3 clips for training in 8 classes") and counts.what == "clips"
    assert "3 clips are very few" in others[0] and "sees every clip 1.3 times" in others[1]
    assert reads_clips(NepaModel(num_frames=8, num_attention_heads=4, hidden_size=48, image_size=32, patch_size=8))
    assert not reads_clips(NepaModel(hidden_size=48, num_attention_heads=4, image_size=32, patch_size=8))


def test_a_mixture_lists_its_sources(tmp_path: Path) -> None:
    data = Mixture(sources=[TextData(source="glosses"), EmojiDocuments()])
    (line, *_), counts = found_data(data, 4)
    assert line.startswith("Data:    a mixture of glosses, emoji: ") and counts.what == "documents"


def test_a_rejected_run_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="damaged"), opened(tmp_path / "runs/mine", resume=False) as folder:
        (folder / "skipped.jsonl").write_text("")
        raise DataError("damaged")
    assert not (tmp_path / "runs/mine").exists()


@pytest.mark.parametrize("role", ["validation", "test"])
def test_a_mistyped_split_of_images_is_an_error(tmp_path: Path, role: str) -> None:
    """Split names given in the settings must exist; default names may be missing."""
    for number in range(4):
        folder = tmp_path / "train" / "cat"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number}.png")
    _, counts = found_data(ImageData(source=str(tmp_path)), 2)
    assert (counts.train, counts.validation, counts.test) == (4, 0, 0)
    with pytest.raises(ConfigError, match=rf"data\.{role}: split 'tset' is not known"):
        found_data(ImageData.model_validate({"source": str(tmp_path), role: "tset"}), 2)


@pytest.mark.parametrize("role", ["validation", "test"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_mistyped_split_of_documents_is_an_error(tmp_path: Path, role: str, mixed: bool) -> None:
    (tmp_path / "train.txt").write_text("one\ntwo\nthree\n")
    found_data(TextData(source=str(tmp_path)), 2)
    settings = {"kind": "text", "source": str(tmp_path), role: "tset"}
    data = Mixture.model_validate({"sources": [settings]}) if mixed else TextData.model_validate(settings)
    with pytest.raises(ConfigError, match=rf"data\.{role}: split 'tset' is not known"):
        found_data(data, 2)
