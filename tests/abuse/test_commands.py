"""Every option of every command with invalid values: exit code 1 or 2 and one line, never "unexpected"."""

import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from nextembed.cli import main
from nextembed.cli.app import app
from nextembed.core.config import to_yaml
from nextembed.core.sizes import usable_device
from nextembed.errors import ConfigError
from nextembed.models.nepa.settings import NepaModel
from nextembed.recipes import load

ODD = ["", ".", "folder", "/dev/null", "/nope/x", "x" * 5000, "nan", "-1", "1e30", "9" * 30, "\udc80", "ü [", "a:b"]
OUTPUTS = {"output", "target", "json_file", "dry_run"}  # tested with outputs

COMMANDS: dict[str, list[str]] = {
    "train": ["nepa_demo_tiny", "data.nope=1"],
    "recipes": ["nepa_demo_tiny"],
    "probe": ["run", "probe.nope=1"],
    "evaluate": ["run", "probe.nope=1"],
    "report": ["nope"],
    "embed": ["run", "nope"],
    "search": ["nope.parquet", "i.png"],
    "generate": ["run/model", "a cat"],
    "chat": ["run/model"],
    "visualize": ["run", "nope.png"],
    "export": ["nope", "-o", "m.pt2"],
    "convert": ["nope", "new"],
    "push": ["nope", "a/b", "--dry-run", "card"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a minimal run."""
    root = tmp_path_factory.mktemp("commands") / "deep" / "down"
    (root / "folder").mkdir(parents=True)
    run = root / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(load("nepa_demo_tiny")))
    (run / "environment.json").write_text(json.dumps({"packages": {}}))
    NepaModel(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4).build(
    ).save_pretrained(run / "model")  # fmt: skip
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(root / "i.png")
    return root


def call(words: list[str]) -> tuple[Any, str, float]:
    said, start = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    return code, said.getvalue().strip(), time.monotonic() - start


def tries(command: str, words: list[str]) -> list[list[str]]:
    """Variants of the command with an invalid value for each of its arguments and options."""
    found, place = [], 0
    whole = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    for param in whole.get_params(whole.context_class(whole)):
        if param.name == "help":
            continue
        if param.name in OUTPUTS or getattr(param, "is_flag", False):
            continue
        for odd in ODD:
            if param.param_type_name == "option":
                found.append([command, *words, param.opts[0], odd])
            elif param.nargs == -1:
                found.append([command, *words, odd])
            else:
                found.append([command, *words[:place], odd, *words[place + 1 :]])
        place += param.param_type_name == "argument"
    return found


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_invalid_arguments_are_one_line_errors(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for words in tries(command, COMMANDS[command]):
        code, said, seconds = call(words)
        shown = " ".join(word[:30] for word in words)
        assert code in (0, 1, 2), shown
        assert "unexpected" not in said and "Traceback" not in said, f"{shown}: {said}"
        assert code == 0 or (said.count("\n") == 0 and said.startswith("nextembed:") and len(said) < 2200), shown
        assert seconds < 60, shown


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--memory", "nan"), ("--memory", "inf"), ("--memory", "-1"), ("--utilisation", "nan"), ("--utilisation", "2"),
        ("--devices", "0"), ("--devices", "9" * 30), ("--classes", "9999999999"), ("--samples", "-1"),
        ("--peak-tflops", "nan"), ("--peak-tflops", "x" * 5000), ("--json", "."), ("--json", "/nope\0"),
        ("--memory", "x"),
    ],
)  # fmt: skip
def test_an_invalid_plan_is_a_one_line_error(
    option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, _ = call(["plan", "nepa_demo_tiny", option, value])
    assert code == 2
    assert "unexpected" not in said and "\n" not in said and len(said) < 1000


@pytest.mark.parametrize("name", ["", ".", "nan", "0", "cuda:99", "cpu:x", "\udc80", "meta:9999999999"])
def test_a_missing_device_is_reported(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no device"):
        usable_device(name)
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("err", "says"),
    [
        (FileNotFoundError(2, "No such file or directory", "x.png"), "nextembed: x.png: No such file or directory"),
        (MemoryError(), "nextembed: too large for this machine's memory: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "nextembed: too large for this machine's memory: CUDA"),
        (KeyError("x"), "nextembed: unexpected KeyError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_system_errors_are_reported_plainly(err: Exception, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise err

    monkeypatch.setattr("nextembed.recipes.load", fails)
    code, said, _ = call(["plan", "nepa_demo_tiny"])
    assert code == 1
    assert said.startswith(says) and "\n" not in said
