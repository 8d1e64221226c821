"""A custom modality in a single user file: the tutorial own_modality.md as written."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

import nextembed
from nextembed.cli import main
from nextembed.core.code import one_command
from nextembed.errors import CodeRefused, ConfigError
from nextembed.modalities import MODALITIES

PAGE = (Path(__file__).parents[2] / "docs" / "own_modality.md").read_text(encoding="utf-8")
FILE, TRAIN, ASK = re.findall(r"^```python[^\n]*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def forget() -> None:
    """Restores the state of a process that has not loaded the file."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).endswith("_cloud.py"):
            del sys.modules[name]
    for kind in ("point_cloud", "pointcloud"):
        MODALITIES.classes.pop(kind, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("own")
    forget()
    (path / "point_cloud.py").write_text(FILE)
    yield path
    forget()
    if str(path) in sys.path:
        sys.path.remove(str(path))


@pytest.fixture(scope="module")
def names(folder: Path) -> dict[str, Any]:
    """The variables of the page's code, run with few steps."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.manual_seed(0)
        exec(compile(TRAIN.replace('"max_steps": 300', '"max_steps": 3'), "train", "exec"), found)
        assert found["config"].train.max_steps == 3
        exec(compile(ASK, "ask", "exec"), found)
    return found


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)
    with one_command():
        yield


def test_the_file_is_short() -> None:
    assert len(FILE.splitlines()) <= 40
    assert "nextembed." not in FILE  # only public names


def test_it_trains_with_text(names: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in (names["run"].dir / "metrics.jsonl").read_text().splitlines()]
    assert {"cos_next/cloud", "cos_next/text", "top1/text"} <= set(lines[-1])
    torch.manual_seed(names["config"].seed)
    start = names["config"].model.build().state_dict()
    trained = load_file(names["run"].dir / "model" / "model.safetensors")
    for name in ("model.modalities.cloud.projection.weight", "model.modalities.text.table.weight"):
        assert not torch.equal(start[name], trained[name])
    config = json.loads((names["run"].dir / "model" / "config.json").read_text())
    assert config["modalities"]["cloud"] == {"kind": "point_cloud"}  # no local path


def test_it_works_as_context_and_as_output(names: dict[str, Any]) -> None:
    model = names["model"]
    assert isinstance(model, nextembed.OmniForPreTraining)
    assert names["cloud"].shape == (32, 3) and names["cloud"].isfinite().all()
    assert names["names"].shape == names["clouds"].shape == (2,)
    text = model.generate([{"cloud": names["ball"]}], target="text")
    other = model.score([{"cloud": names["ball"] + 1}], ["ball", "box"])
    assert text.kind == "text" and not torch.equal(other, names["names"])  # the scores depend on the cloud
    values = model.model.modality("cloud").patches(names["cloud"]).values
    made = model.generate(["box"], target="cloud")
    assert sorted(made.values.flatten().tolist()) == sorted(values.flatten().tolist())


def test_a_wrong_cloud_is_a_one_line_error(names: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a cloud is \[32, 3\], not \[5, 3\]"):
        names["model"].generate([{"cloud": torch.zeros(5, 3)}], target="text")


def test_a_new_process_needs_the_file(names: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    model, run = names["model"], names["run"].dir
    Path("ball.json").write_text(json.dumps(names["ball"].tolist()))
    line = ["generate", str(run), "--piece", "cloud=ball.json", "--target", "text", "--max-new-tokens", "4"]
    forget()
    with pytest.raises(ConfigError, match="'point_cloud' is not known"):
        AutoModelForPreTraining.from_pretrained(run / "model")
    assert main(line) == 2
    err = capsys.readouterr().err
    assert "--code" in err and err.count("\n") == 1
    assert main([*line, "--code", "point_cloud.py"]) == 0
    assert (
        capsys.readouterr().out.strip()
        == model.generate([{"cloud": names["ball"]}], "text", max_latents=4).value.strip()
    )
    assert main(["generate", str(run), "box", "--target", "cloud", "-o", "box.json", "--code", "point_cloud.py"]) == 0
    made = torch.tensor(json.loads(Path("box.json").read_text()))
    assert torch.allclose(made, names["cloud"], atol=1e-4)


def test_a_file_without_the_decorator_also_works(names: dict[str, Any], folder: Path, capsys: Any) -> None:
    forget()
    plain = FILE.replace('@MODALITIES.register("point_cloud")\n', "").replace("class PointCloud", "class Point_Cloud")
    (folder / "plain_cloud.py").write_text(plain)
    line = ["generate", str(names["run"].dir), "box", "--target", "cloud", "--code", "plain_cloud.py"]
    assert main(line) == 0
    assert torch.allclose(torch.tensor(json.loads(capsys.readouterr().out)), names["cloud"], atol=1e-4)


def test_a_run_resumes_in_a_new_process(names: dict[str, Any]) -> None:
    forget()
    with pytest.raises(CodeRefused, match=r"point_cloud\.py"):
        nextembed.runs.read_run_config(names["run"].dir)
    nextembed.allow_code("point_cloud.py")
    config = nextembed.runs.read_run_config(names["run"].dir)
    config.train.max_steps = 5
    again = nextembed.fit(config, resume=names["run"].dir)
    assert again.metrics["step"] == 5 and again.trained.config.names == ["text", "cloud"]


def test_the_last_command_of_the_page_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "point_cloud.py").write_text(FILE)
    command = re.findall(r"^nextembed (train .*)$", PAGE, re.MULTILINE)[-1]
    words = [
        *shlex.split(command),
        "train.max_steps=1",
        "train.batch_size=2",
        "train.device=cpu",
        "probe.enabled=false",
    ]
    assert main(words) == 0
    assert (tmp_path / "runs" / "clouds" / "model" / "config.json").is_file()


def test_the_last_command_of_the_page_runs(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """With few steps and a small model."""
    forget()
    line = shlex.split(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[-1])
    assert line[:3] == ["nextembed", "train", "omni_emoji"]
    sizes = "train.max_steps=1 train.batch_size=4 model.hidden_size=16 model.num_hidden_layers=1 name=last"
    assert main([*line[1:], *sizes.split(), "model.num_attention_heads=2", "train.device=cpu"]) == 0
    assert "cloud" in capsys.readouterr().out
    assert Path("runs/last/model/config.json").is_file()
