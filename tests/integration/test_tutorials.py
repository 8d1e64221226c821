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
from nextembed.comparison.configs import known_objectives

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs/tutorials/own_images.md"
COMPARISON = ROOT / "docs/tutorials/compare_images.md"
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))
FENCE = re.compile(r"^```(\w+)(?: title=\"[^\"]+\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)
TINY = ["train.batch_size=8", "model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=32",
        "model.num_hidden_layers=1", "model.image_size=16", "model.patch_size=4", "data.num_workers=0"]  # fmt: skip
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


def test_the_tutorial_of_comparisons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands, with a budget of two steps and one layer: what it says lies in the folder does, and starts a
    classifier."""
    monkeypatch.chdir(tmp_path)
    for name, colour in (("animals", "red"), ("faces", "green"), ("food", "blue")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (24 + number, 24), colour).save(f"photos/{name}/{number}.png")
    text = COMPARISON.read_text(encoding="utf-8")
    text = text.replace("\\\n", " ")
    lines = [line for language, block in FENCE.findall(text) if language == "sh" for line in block.splitlines()]
    first, full, _, tuned, longer = (shlex.split(line)[1:] for line in lines)
    assert [words[0] for words in (first, full, tuned, longer)] == ["compare", "compare", "train", "train"]
    minutes = first.index("--minutes")
    words = [*first[:minutes], "--images-seen", "16", *first[minutes + 2 :], *TINY]
    names = [words[words.index("--objectives") + 1] for words in (first, full)]
    assert set(",".join(names).split(",")) <= set(known_objectives())
    words[words.index("--objectives") + 1] = "mae"  # the others take as long again
    assert main([*words, "--jobs", "0"]) == 0
    found = json.loads(Path("runs/compare-first/comparison.json").read_text())
    assert {"mae", "untrained", "raw pixels", "from scratch"} <= {row["name"] for row in found["rows"]}
    assert Path("runs/compare-first/comparison.html").is_file()
    pretrained = Path(next(word for word in tuned if word.startswith("model.pretrained=")).partition("=")[2])
    there = Path("runs/compare-first", *pretrained.parts[2:])
    assert there.is_dir() and (there.parent / "report.html").is_file()


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
