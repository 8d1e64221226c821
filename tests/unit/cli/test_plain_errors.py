"""A command that cannot do something prints one line that says what to use instead."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nextembed import recipes
from nextembed.cli import main
from nextembed.cli.stages import say_stages, train_stages
from nextembed.recipes import missing_stages
from nextembed.runs import RunConfig
from nextembed.training.watch import Interrupted


def fails(line: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one-line error of a command that fails."""
    assert main(line) == 2
    err: str = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err
    return err


def model(folder: Path, kind: str, cls: str) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "architectures": [cls]}))
    return str(folder)


def test_an_omni_does_not_chat(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    omni = model(tmp_path / "omni", "omni", "OmniForPreTraining")
    assert f"is an Omni model, which cannot chat; nextembed generate {omni}" in fails(["chat", omni], capsys)


def test_an_emu_is_evaluated_on_a_task(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    emu = model(tmp_path / "emu", "emu", "EmuForConditionalGeneration")
    said = fails(["evaluate", emu, "--data", "emoji"], capsys)
    assert "it is an Emu: nextembed evaluate RUN --task caption --data SOURCE" in said


def test_a_plan_needs_the_parts_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("nextembed.core.pretrained.unreachable", lambda: "the hub is away")
    said = fails(["plan", "emu_pretrain"], capsys)
    assert "it is neither a local folder nor in the download cache, and the hub is away; give a local folder" in said


def test_a_command_line_without_typer_says_what_to_install() -> None:
    code = (
        "import sys\nsys.modules['typer'] = None\nimport nextembed_cli\n"
        "code = nextembed_cli.main()\nprint(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1 False\n"
    assert done.stderr == "nextembed: the package typer is missing here: pip install typer\n"


def test_ctrl_c_during_imports_prints_one_line() -> None:
    code = (
        "import sys, nextembed_cli\n"
        "class Pressed:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "sys.exit(nextembed_cli.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "nextembed: stopped\n")


# -- stages


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The last of four stages, none of which is trained yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nextembed", "train", "emu_emoji", "train.max_steps=7", "name=my run"])
    return recipes.load("emu_emoji")


def test_ctrl_c_in_a_stage_prints_the_command_that_resumes(
    chain: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trained: list[str] = []

    def fit_stage(stage: RunConfig) -> None:
        trained.append(stage.name)
        if len(trained) == 2:
            raise Interrupted("stopped and saved; resume with: nextembed train --resume runs/x", 2)

    monkeypatch.setattr("nextembed.run.fit_stage", fit_stage)
    with pytest.raises(Interrupted) as stopped:
        train_stages(missing_stages(chain))
    assert trained == ["nepa_demo", "emu_emoji_encoder"] and stopped.value.exit_code == 130
    assert str(stopped.value) == (
        "stopped and saved in stage 2 of 4; to resume, run the same command again: "
        "nextembed train emu_emoji train.max_steps=7 'name=my run'"
    )
    said = capsys.readouterr().out
    assert said == "Stage 1 of 4: nepa_demo\nStage 2 of 4: emu_emoji_encoder\n"


def test_stages_are_listed_and_settings_apply_to_the_last(
    chain: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("nextembed.recipes.stage_times.stage_seconds", lambda chain: iter([60.0] * len(chain)))
    say_stages([*missing_stages(chain), chain], ["train.max_steps=7"])
    said = capsys.readouterr().out
    assert "4 stages are trained in this order" in said
    assert "  1 of 4  nepa_demo: " in said and "  4 of 4  emu_emoji: " in said
    assert "The settings of this command (train.max_steps=7) apply to emu_emoji only." in said


def test_finished_stages_are_not_trained_again(chain: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    monkeypatch.setattr("nextembed.run.fit_stage", lambda stage: trained.append(stage.name))
    Path("runs/nepa_demo/model").mkdir(parents=True)
    train_stages(missing_stages(chain))
    assert trained == ["emu_emoji_encoder", "emu_emoji_language"]
    shutil.rmtree("runs")
