"""A folder is listed once for all roles, and again after files are added, removed or become inaccessible."""

import os
from pathlib import Path

import pytest
from PIL import Image

from nextembed.data import origins
from nextembed.data.grouping import by_folders
from nextembed.data.listing import File
from nextembed.data.sources import ImageData
from nextembed.training.banner import found_data


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders listed so far. New folders count as settled at once."""
    seen: list[str] = []
    real = origins.listed

    def noted(folder: Path, hidden: bool, folders: list[str]) -> list[File]:
        seen.append(folder.name)
        return real(folder, hidden, folders)

    monkeypatch.setattr(origins, "listed", noted)
    monkeypatch.setattr(origins, "SETTLED", 0)
    return seen


def photos(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / name)
    return folder


def test_all_roles_and_the_banner_list_a_folder_once(tmp_path: Path, listings: list[str]) -> None:
    photos(tmp_path / "own", "train/a/1.png", "train/b/2.png", "val/a/3.png")
    lines, counts = found_data(ImageData(source=str(tmp_path / "own")), 2)
    assert (counts.validation, counts.test, counts.classes) == (1, 0, 2) and "2 images for training" in lines[0]
    assert listings == ["own"]


@pytest.mark.parametrize("name", ["a/new.png", "empty/new.png", "train2/deep/new.png"])
def test_a_file_added_anywhere_is_found(tmp_path: Path, listings: list[str], name: str) -> None:
    source = str(photos(tmp_path / "own", "a/1.png", "b/2.png"))
    (tmp_path / "own/empty").mkdir()
    used = [ImageData(source=source, folders="classes").summary("train").used for _ in range(2)]
    assert used == [2, 2] and listings == ["own"]
    photos(tmp_path / "own", name)
    assert ImageData(source=source, folders="classes").summary("train").used == 3 and listings == ["own", "own"]


def test_a_removed_file_is_dropped(tmp_path: Path, listings: list[str]) -> None:
    data = ImageData(source=str(photos(tmp_path / "own", "a/1.png", "b/2.png", "b/3.png")))
    assert data.summary("train").used == 3
    (tmp_path / "own/b/3.png").unlink()
    assert data.summary("train").used == 2


def test_the_target_of_a_link_may_appear_later(tmp_path: Path, listings: list[str]) -> None:
    data = ImageData(source=str(photos(tmp_path / "own", "a/1.png", "b/2.png")))
    os.symlink(tmp_path / "later.png", tmp_path / "own/a/link.png")
    assert data.summary("train").used == 2
    photos(tmp_path, "later.png")
    assert data.summary("train").used == 3


def test_a_recently_changed_folder_is_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageData(source=str(photos(tmp_path / "own", "a/1.png", "b/2.png")))
    for number in range(5):  # each may have the same time stamp as the previous listing
        photos(tmp_path / "own", f"a/new{number}.png")
        assert data.summary("train").used == 3 + number


def test_names_that_begin_with_a_slash_have_classes() -> None:
    files = [File(f"/{name}/1.png", name, "image") for name in ("cat", "dog")]  # as in some archives
    assert by_folders(files, None, None)[1] == {"cat": "cat", "dog": "dog"}
