"""The first tutorial's commands run as they stand, on a small folder with few steps; so do the notebooks."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from nextembed.cli import main

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs/tutorials/own_images.md"
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))
FENCE = re.compile(r"^```(\w+)(?: title=\"[^\"]+\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHORT = ["train.max_steps=2", "train.batch_size=8", "data.num_workers=0"]


def test_the_first_tutorial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    found = FENCE.findall(TUTORIAL.read_text(encoding="utf-8"))
    make, use = [text for language, text in found if language == "python"]
    exec(compile(make, "make_photos.py", "exec"), {})
    for number, file in enumerate(sorted(Path("photos").rglob("*.png"))):
        if number % 8:
            file.unlink()
    lines = [line for language, text in found if language == "sh" for line in text.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("nextembed ")]
    assert [words[0] for words in commands] == ["train", "train", "report", "train", "evaluate"]
    for words in commands:
        small = SHORT if words[0] == "train" and "--dry-run" not in words else []
        assert main([*words, *small]) == 0, words
        if "--dry-run" in words:
            assert "3 classes (animals, faces, food)" in capsys.readouterr().out and not Path("runs/mine").exists()
    assert "top-1" in capsys.readouterr().out and opened
    names: dict[str, Any] = {"picture": Image.new("RGB", (96, 96), "red")}
    exec(compile(use, "docs/tutorials/own_images.md", "exec"), names)
    assert {one["label"] for one in names["classify"](names["picture"])} == {"animals", "faces", "food"}


def cells(notebook: Path) -> list[dict[str, Any]]:
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    plt.switch_backend("Agg")
    names: dict[str, Any] = {}
    for cell in cells(notebook):
        exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
    plt.close("all")
    assert list(Path("runs").iterdir())


def test_notebooks_are_committed_without_outputs() -> None:
    assert len(NOTEBOOKS) == 3
    assert not [
        cell for notebook in NOTEBOOKS for cell in cells(notebook) if cell["outputs"] or cell["execution_count"]
    ]
