"""What the shell offers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nextembed.cli.completing import offer_recipes, offer_runs, offer_settings


def test_settings_and_the_words_they_may_be() -> None:
    assert [word for word, _ in offer_settings("train.max")] == ["train.max_steps="]
    assert [word for word, _ in offer_settings("train.precision=")] == [
        "train.precision=float32",
        "train.precision=bf16",
    ]
    assert [word for word, _ in offer_settings("train.precision=b")] == ["train.precision=bf16"]
    assert offer_settings("zzz") == []


def test_recipes() -> None:
    assert ("nepa_demo", "NEPA on the bundled emoji pictures, 32 px: minutes on two CPU cores.") in offer_recipes(
        "nepa_d"
    )


def test_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "mine-2", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert [word for word, _ in offer_runs("")] == ["runs/mine", "runs/mine-2", "runs/other"]
    assert [word for word, _ in offer_runs("runs/m")] == ["runs/mine", "runs/mine-2"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells(shell: str, tmp_path: Path) -> None:
    line = "nextembed train nepa_dem"
    words = {
        "COMP_WORDS": line,
        "COMP_CWORD": "2",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    env = {**os.environ, **words, "_NEXTEMBED_COMPLETE": f"complete_{shell}"}
    code = "import sys; sys.argv = ['nextembed']; from nextembed_cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "nepa_demo" in done.stdout and "Traceback" not in done.stderr
