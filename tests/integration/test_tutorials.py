"""The commands of the tutorials run as written, on small folders with few steps; so do the notebooks."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from nextembed.cli import main
from nextembed.comparison.configs import known_objectives

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs/tutorials/own_images.md"
SENSOR, PAINT, CLUSTER = (ROOT / f"docs/tutorials/{name}.md" for name in ("sensor", "paint", "cluster"))
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
    """Its commands, with a budget of two steps and one layer, create the documented files, which can start a
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
    words[words.index("--objectives") + 1] = "mae"  # more objectives only take more time
    assert main([*words, "--jobs", "0"]) == 0
    found = json.loads(Path("runs/compare-first/comparison.json").read_text())
    assert {"mae", "untrained", "raw pixels", "from scratch"} <= {row["name"] for row in found["rows"]}
    assert Path("runs/compare-first/comparison.html").is_file()
    pretrained = Path(next(word for word in tuned if word.startswith("model.pretrained=")).partition("=")[2])
    there = Path("runs/compare-first", *pretrained.parts[2:])
    assert there.is_dir() and (there.parent / "report.html").is_file()


def parts(page: Path) -> tuple[list[list[str]], list[str]]:
    """The commands (without `nextembed`) and the Python blocks of a page."""
    found = FENCE.findall(page.read_text(encoding="utf-8").replace("\\\n", " "))
    lines = [line for language, text in found if language == "sh" for line in text.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("nextembed ")]
    return commands, [text for language, text in found if language == "python"]


def test_the_tutorial_of_a_sensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands, (make, cut, test) = parts(SENSOR)
    exec(compile(make.replace("range(45)", "range(15)"), "make_machine.py", "exec"), {})
    exec(compile(cut, "windows.py", "exec"), {})
    assert "z: offset 9.81, scale 0.3" in capsys.readouterr().out  # as on the page
    assert [words[0] for words in commands] == ["train", "train", "probe"]
    tiny = ["model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2"]
    for words in commands:
        small = [*SHORT, *tiny] if words[0] == "train" and "--dry-run" not in words else []
        assert main([*words, *small]) == 0, words
    assert "raw signal" in capsys.readouterr().out
    exec(compile(test, "test_windows.py", "exec"), {})
    assert "of 36 test windows are right" in capsys.readouterr().out


def test_the_tutorial_of_painting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small stages on the images of the page; each uses the output of the previous one."""
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    commands, (make, use) = parts(PAINT)
    exec(compile(make.replace(".to_pylist()", ".to_pylist()[:40]"), "make_pairs.py", "exec"), {})
    names = ["encoder", "language", "pairs_emu", "painter"]
    trains = [words for words in commands if words[0] == "train"]
    assert [word for words in trains for word in words if word.startswith("name=")] == [f"name={n}" for n in names]
    small = [*SHORT, "train.batch_size=4", "train.save_steps=2", "train.probe_steps=null", "probe.enabled=false"]
    for words in commands:
        fast = {
            "generate": ["--steps", "2"] if "-o" in words else [],
            "evaluate": ["num_inference_steps=2", "draws=20"],
        }
        assert main([*words, *(small if words[0] == "train" else fast[words[0]])]) == 0, words
    exec(compile(use.replace("steps=20", "steps=2"), "docs/tutorials/paint.md", "exec"), {})
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"apple.png", "bolder.png", "again.png", "from_python.png"} and Path("painted").is_dir()


def test_the_tutorial_of_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts that run on a laptop; test_distributed and test_machines test ranks and restarts."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(24):
        Image.new("RGB", (40 + number, 40), (10 * number, 50, 100)).save(f"photos/{number}.png")
    commands, _ = parts(CLUSTER)
    assert [words[0] for words in commands] == [
        "train",
        "report",
        "plan",
        "shard",
        "train",
        "report",
        "studio",
        "embed",
    ]
    for words in commands[:5]:
        small = ["data.num_workers=0", "probe.enabled=false"] if words[0] == "train" else []
        assert main([*words, *small]) == 0, words
    words = [word.replace("runs/base", "runs/streamed") for word in commands[-1]]
    assert main(words) == 0 and list(Path("features").glob("*.parquet"))
    (script,) = re.findall(
        r'^```sh title="train.slurm"\n(.*?)^```', CLUSTER.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert script.splitlines()[0] == "#!/bin/bash" and "--nnodes" in script


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
