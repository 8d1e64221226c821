"""How the studio displays folders, and where it stores generated images."""

from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the studio is an extra")

from nextembed.studio.page import shown
from nextembed.studio.panels.anything import Handlers


def test_folders_are_shown_relative_to_here_or_home(tmp_path, monkeypatch) -> None:
    (tmp_path / "here" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert shown(tmp_path / "here" / "runs") == "runs"
    assert shown(tmp_path / "here") == "."
    assert shown(tmp_path / "other") == "~/other"
    assert shown(Path("/elsewhere")) == "/elsewhere"


def test_generated_images_are_in_the_folder_of_the_server(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert Handlers(None).scratch.parent == tmp_path  # type: ignore[arg-type]  # nothing is asked of it here
