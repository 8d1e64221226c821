"""Shell completion."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from nextembed.cli import app
from nextembed.cli.completing import offer_data_settings, offer_models, offer_recipes, offer_runs, offer_settings


def test_settings_and_their_choices() -> None:
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


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/ with mine, mine-2 and other; mine has a model and a checkpoint."""
    folder = tmp_path / "runs"
    for name in ("mine", "mine-2", "other"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").touch()
    for name in ("model", "ema", "checkpoints/step-000080"):
        (folder / "mine" / name).mkdir(parents=True)
        (folder / "mine" / name / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    return folder


def words(offers: list[tuple[str, str]]) -> list[str]:
    return [word for word, _ in offers]


def test_runs(runs: Path) -> None:
    assert words(offer_runs("")) == ["runs/mine", "runs/mine-2", "runs/other"]
    assert words(offer_runs("runs/m")) == ["runs/mine", "runs/mine-2"]


def test_models_of_runs(runs: Path) -> None:
    assert words(offer_models("runs/m")) == words(offer_models("runs/mine")) == ["runs/mine", "runs/mine-2"]
    assert words(offer_models("runs/mine/")) == [
        "runs/mine/model",
        "runs/mine/ema",
        "runs/mine/checkpoints/step-000080",
    ]
    assert words(offer_models("runs/mine/c")) == ["runs/mine/checkpoints/step-000080"]
    assert words(offer_settings("model.pretrained=runs/mine/e")) == ["model.pretrained=runs/mine/ema"]


def test_settings_of_the_data_alone() -> None:
    assert all(word.startswith("data.") for word in words(offer_data_settings("")))
    assert words(offer_data_settings("data.split_c")) == ["data.split_column="]
    assert offer_data_settings("train.") == []


COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
MODELS = ("MODEL", "RUN", "RUN_OR_CHECKPOINT", "CHECKPOINT")


def offered(command: str, metavar: str, incomplete: str) -> list[str]:
    """Completions of a command for its argument or option with this metavar."""
    context = COMMANDS[command].context_class(COMMANDS[command], resilient_parsing=True)
    (one,) = [one for one in COMMANDS[command].get_params(context) if one.metavar == metavar]
    return [item.value for item in one.shell_complete(context, incomplete)]


def test_every_command_offers_runs_where_it_takes_a_model(runs: Path) -> None:
    found = {
        (name, one.metavar)
        for name, command in COMMANDS.items()
        for one in command.get_params(command.context_class(command))
        if one.metavar in MODELS
    }
    models = "probe evaluate report embed search generate sample chat visualize export push"
    assert {name for name, _ in found} == {*models.split(), "train"}
    for name, metavar in [*found, ("convert", "SOURCE")]:
        assert offered(name, metavar, "runs/m") == ["runs/mine", "runs/mine-2"], name


@pytest.mark.parametrize(
    ("name", "metavar"), [("train", "RECIPE | KEY=VALUE"), ("recipes", "RECIPE"), ("plan", "RECIPE")]
)
def test_recipes_are_offered_where_one_is_expected(name: str, metavar: str) -> None:
    assert "nepa_demo" in offered(name, metavar, "nepa_d")


@pytest.mark.parametrize("name", ["train", "recipes", "plan", "probe", "evaluate"])
def test_settings_are_offered_where_they_are_expected(name: str) -> None:
    metavar = "RECIPE | KEY=VALUE" if name == "train" else "KEY=VALUE"
    assert "train.precision=bf16" in offered(name, metavar, "train.precision=")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells(shell: str, tmp_path: Path) -> None:
    line = "nextembed train nepa_dem"
    given = {
        "COMP_WORDS": line,
        "COMP_CWORD": "2",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    env = {**os.environ, **given, "_NEXTEMBED_COMPLETE": f"complete_{shell}"}
    code = "import sys; sys.argv = ['nextembed']; from nextembed_cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "nepa_demo" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("nextembed train nepa_demo train.precision = b", "bf16"),
        ("nextembed train nepa_demo train.precision =", "float32 bf16"),
        ("nextembed probe runs/mine model.pretrained = runs/o", "runs/other"),
        ("nextembed embed runs/mine photos data.split_c", "data.split_column="),
        ("nextembed generate runs/o", "runs/other"),
        ("nextembed expo", "export"),
    ],
)
def test_bash_splits_words_at_the_equals_sign(
    line: str, offered: str, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, value in {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_NEXTEMBED_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit):
        app([], prog_name="nextembed")
    assert capsys.readouterr().out.split() == offered.split()
