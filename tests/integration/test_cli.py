"""The command line end to end: files, output and errors."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nextembed.run
from nextembed.cli import main
from nextembed.cli.doctor import diagnosis
from nextembed.cli.words import check_data, check_model
from nextembed.core.places import NO_RUN, NO_SOURCE
from nextembed.training.watch import Interrupted

# -- fast start-up


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


HELP = [
    *((f"{command} --help", 0) for command in ("", "train", "recipes", "generate", "embed", "plan")),
    ("--version", 0),
]
UNKNOWN = """recipes nepa_dmo
recipes nepa_demo lr=3
train --no-such-option
train nepa_dmo
train nepa_demo --max-steps 10
train nepa_demo max_steps=10
train nepa_demo train.max_stps=10
train nepa_demo --lr 3e-4
train nepa_demo data.source=fotos
train nepa_demo data.source=org/nothing
train nepa_demo model.pretrained=runs/mien
train nepa_demo model.pretrained=org/nothing
train runs/mien/config.yaml
train --resume runs/mien
plan nepa_dmo
plan runs/mien
probe fotos
probe runs/mien
probe runs/mine --data fotos
probe runs/mine probe.layrs=[3]
probe org/nothing
probe org/nothing --data photos
evaluate runs/mien
evaluate org/nothing
evaluate org/nothing --data photos
evaluate org/nothing --task caption --data items.jsonl
report runs/mien
report org/nothing
embed runs/mien photos
embed runs/mine fotos
embed runs/mine photos data.soruce=x
embed org/nothing photos
search fotos.parquet photos
index fotos.parquet
generate runs/mien hello
generate org/nothing hello
chat runs/mien
chat org/nothing
visualize runs/mien photos
visualize runs/mine dgo.png
visualize org/nothing photos
export runs/mien -o model.onnx
export org/nothing -o model.onnx
convert runs/mien out
push runs/mien me/mine
push org/nothing me/mine""".splitlines()


def test_help_lists_and_usage_errors_import_nothing_heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    for folder in ("photos", "runs/mine"):
        (tmp_path / folder).mkdir(parents=True)
    lines = [*HELP, ("recipes", 0), *((line, 2) for line in UNKNOWN)]
    out = in_a_new_process(
        f"import sys, nextembed_cli\nfor line, code in {lines}:\n    sys.argv = ['nextembed', *line.split()]\n"
        "    found = nextembed_cli.main()\n"
        "    heavy = [m for m in ('torch', 'transformers', 'datasets', 'matplotlib') if m in sys.modules]\n"
        "    assert found == code and not heavy, (line, found, heavy)\nprint('all')"
    )
    assert out.splitlines()[-1] == "all"


def test_an_unreachable_hub_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("nextembed.core.hub.unreachable", lambda: "the hub is away")
    for line, what in (("chat org/nothing", NO_RUN), ("train nepa_demo data.source=org/nothing", NO_SOURCE)):
        assert main(line.split()) == 2
        why = "it is not in the download cache, and the hub is away"
        assert capsys.readouterr().err == f"nextembed: {what}: org/nothing ({why})\n"
    (tmp_path / "models--org--nothing").mkdir()
    (tmp_path / "org___nothing").mkdir()
    check_model("org/nothing")
    check_data("org/nothing")


def test_importing_nextembed_imports_nothing_heavy() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules]"
    assert in_a_new_process(f"import sys, nextembed; dir(nextembed); print({heavy})") == "[]\n"


@pytest.mark.parametrize(
    "imports",
    [
        "import nextembed; from transformers import AutoConfig, AutoModel",
        "from transformers import AutoConfig, AutoModel; import nextembed",
    ],
)
def test_importing_nextembed_registers_the_auto_classes(imports: str) -> None:
    sizes = "hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4"
    out = in_a_new_process(
        f"{imports}; config = AutoConfig.for_model('vit_nepa', {sizes}); print(type(AutoModel.from_config(config)))"
    )
    assert "ViTNepaModel" in out


def test_the_command_is_installed() -> None:
    script = Path(sys.executable).with_name("nextembed")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"nextembed \d+\.\d+\.\d+\S*\n", done.stdout)


# -- errors

BANNER = ("Run:  ", "Device:  ", "Data:  ", "Model:  ", "Length:  ", "         ")


def without_banner(err: str) -> str:
    """The output without the lines before the first step."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith(BANNER))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train nepa_dmo", "recipe 'nepa_dmo' is not known. Did you mean 'nepa_demo'?"),
        ("trian nepa_demo", "No such command 'trian'"),
        ("train", "give a recipe"),
        ("train train.max_steps=3", "give a recipe"),
        ("train nepa_demo --resume runs/x", "--resume takes its settings from runs/x"),
        ("train nepa_demo train.max_stps=3", "train: field 'max_stps' is not known. Did you mean 'max_steps'?"),
        ("train nepa_demo model.patch_size=5", "patch_size 5 does not divide image_size 32"),
        ("train nepa_demo model.num_attention_heads=5", "num_attention_heads 5 does not divide hidden_size"),
        ("train nepa_demo objective.distance=cosin", "Did you mean 'cosine'?"),
        (
            "train nepa_demo objective.kind=next_embeding",
            "objective.kind 'next_embeding' is not known. Did you mean 'next_embedding'?",
        ),
        ("train nepa_demo data.source=./no_such_folder", "no such file or folder: ./no_such_folder"),
        ("train nepa_demo data.image_column=picture", "picture"),
        ("train nepa_demo data.crop_scale=[0.9,0.1]", "crop_scale [0.9, 0.1] should be [smallest, largest]"),
        ("train nepa_demo data.crop_ratio=[2,1]", "crop_ratio [2.0, 1.0] should be [smallest, largest]"),
        ("train nepa_demo optim.learning_rate=.inf", "optim.learning_rate: should be a finite number"),
        ("train nepa_demo model.pos_embed_rescale=0.5", "pos_embed_rescale: should be greater than or equal to 1"),
        ("train nepa_demo_tiny probe.layers=[99]", "probe.layers: "),
        ("train nepa_demo_tiny objective.steps_ahead=99", "steps_ahead 99: an image has only 10 latents"),
        ("train nepa_demo steps", "'steps' is not an override; write field.name=value"),
        ("train --resume no/such/run", "no such run or file: no/such/run"),
        ("probe no/such/run --data emoji", "no such run or checkpoint: no/such/run"),
        ("probe . --nope", "No such option: --nope"),
        (
            "train nepa_demo --max-steps 10",
            "nextembed: No such option: --max-steps; did you mean train.max_steps=10?",
        ),
        ("train nepa_demo --lr=3e-4", "nextembed: No such option: --lr; did you mean optim.learning_rate=3e-4?"),
        ("train nepa_demo max_steps=10", "field 'max_steps' is not known; did you mean train.max_steps=10?"),
        ("report no/such/run", "no/such/run"),
        ("recipes nepa_demoo", "Did you mean 'nepa_demo'?"),
    ],
)
def test_wrong_settings_and_usage_are_one_line_and_code_2(
    line: str, words: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    err = without_banner(capsys.readouterr().err)
    assert words in err and err.count("\n") == 1 and "Traceback" not in err


def test_debug_shows_the_traceback_in_any_position(capsys: pytest.CaptureFixture) -> None:
    for line in (["--debug", "train", "nepa_dmo"], ["train", "nepa_dmo", "--debug"]):
        assert main(line) == 2
        err = capsys.readouterr().err
        assert "Traceback" in err and err.splitlines()[-1].startswith("nextembed: recipe 'nepa_dmo' is not known")


def test_an_unexpected_error_is_one_line_and_code_1(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "failing_recipe_of_a_test.py"
    file.write_text("def mine():\n    raise ZeroDivisionError('a\\nb')\n")
    assert main(["train", f"{file}:mine"]) == 1
    assert capsys.readouterr().err == (
        "nextembed: unexpected ZeroDivisionError: a b (run again with --debug to see where)\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Interrupted("stopped and saved; resume with: nextembed train --resume runs/x", 2), 130, "--resume runs/x"),
        (KeyboardInterrupt(), 130, "stopped"),
        (nextembed.TrainingError("step 3: the loss is not a number"), 1, "step 3: the loss is not a number"),
        (nextembed.DataError("5 % of the images are unreadable"), 1, "5 % of the images are unreadable"),
    ],
)
def test_failures_while_running(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(nextembed.run, "fit", fail)
    assert main(["train", "nepa_demo"]) == code
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


# -- a whole run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a tiny run, and the output of the command."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "nextembed_cli", "train", "nepa_demo_tiny", f"output_dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "nepa_demo_tiny", done.stdout


def test_train_leaves_a_complete_run_folder(trained: tuple[Path, str]) -> None:
    run, _ = trained
    names = {file.name for file in run.iterdir()}
    assert names == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "ema",
        "environment.json",
        "metrics.jsonl",
        "model",
        "probe.json",
        "report.html",
        "tensorboard",
    }


def test_train_summarises_what_was_learned(trained: tuple[Path, str]) -> None:
    run, out = trained
    probe = json.loads((run / "probe.json").read_text())
    assert {row["weights"] for row in probe["rows"]} == {"raw", "ema", "untrained"}
    assert re.search(r"Linear probe \d+\.\d % .*the same network untrained \d+\.\d %, raw pixels \d+\.\d %\.", out)
    assert re.search(r"^Verdict: (learning|copying|collapsed|undecided)\. ", out, re.MULTILINE)
    assert f"nextembed report {os.path.relpath(run)} --open" in out
    assert f"nextembed train --resume {os.path.relpath(run)} train.max_steps=4" in out


def test_resume_uses_the_settings_of_the_run(trained: tuple[Path, str], capsys: pytest.CaptureFixture) -> None:
    run, _ = trained
    assert main(["train", "--resume", str(run)]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 2
    assert "Verdict:" in capsys.readouterr().out


def test_saved_config_trains_again(trained: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = trained
    line = ["train", str(run / "config.yaml"), f"output_dir={tmp_path}", "name=again", "probe.enabled=false"]
    assert main([*line, "train.max_steps=1"]) == 0
    assert (tmp_path / "again" / "model" / "model.safetensors").is_file()


def test_probe_prints_the_table_and_saves_it(
    trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, _ = trained
    file = tmp_path / "probe.json"
    line = ["probe", str(run / "model"), "--data", "emoji", "--output", str(file), "probe.layers=[0, -1]"]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "Linear probe" in out and "Nearest neighbours" in out and "raw pixels" in out
    assert {row["layer"] for row in json.loads(file.read_text())["rows"]} == {0, 2}


def test_probe_without_data_needs_a_run(
    tmp_path: Path, trained: tuple[Path, str], capsys: pytest.CaptureFixture
) -> None:
    run, _ = trained
    alone = tmp_path / "model"
    alone.mkdir()
    for file in (run / "model").iterdir():
        (alone / file.name).write_bytes(file.read_bytes())
    assert main(["probe", str(alone)]) == 2
    assert "name labelled images or rows: --data SOURCE" in capsys.readouterr().err


def test_report_is_written_again(trained: tuple[Path, str], capsys: pytest.CaptureFixture) -> None:
    run, _ = trained
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (run / "report.html").stat().st_size > 1000


# -- recipes and doctor


def test_recipes_are_listed_with_a_line_each(capsys: pytest.CaptureFixture) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("nepa_demo ") and lines[0].endswith(".")
    assert main(["recipes", "nepa_demo", "train.max_steps=7"]) == 0
    assert "max_steps: 7" in capsys.readouterr().out


def test_doctor_lists_what_is_installed(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("machine", "python", "torch", "transformers", "accelerator", "wandb"):
        assert re.search(rf"^{word} ", out, re.MULTILINE)


def test_doctor_does_not_need_torch_or_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setitem(sys.modules, "torch", None)
    lines = dict(diagnosis())
    assert lines["accelerator"].startswith("torch does not start: ")
    assert lines["torch"].startswith("MISSING")
    assert lines["wandb"] == "not installed: pip install 'nextembed[wandb]' (live curves on wandb.ai)"


# -- the first minute


def test_a_dry_run_prints_everything_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", "nepa_demo_tiny", "name=mine", "train.device=cpu", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert sorted(tmp_path.rglob("*")) == before
    assert said[0] == "Run:     runs/mine-2 (runs/mine exists)"
    names = [line.partition(":")[0] for line in said if not line.startswith(" ")]
    assert names == ["Run", "Device", "Data", "Model", "Length", "Time", "Dry run"]
    assert "Data:    emoji: " in "\n".join(said) and "2 steps of 8" in "\n".join(said)
