"""A run that is killed at any moment and resumed ends with bit-identical results."""

import json
from pathlib import Path

import pytest
import torch
from forked import run_script
from safetensors.torch import load_file
from tiny import STATE_FILE, model, trainer

from nextembed.core.config import to_yaml
from nextembed.core.optim import OptimConfig
from nextembed.errors import ConfigError
from nextembed.runs import RunConfig

RUNNER = Path(__file__).parent / "kill_runner.py"
EVENTS = ["window", "watch", "update", "end_of_step", "log"]
# step 7 is in the middle of a logging window, 12 has just been saved, 18 is killed while saving
KILLS = ["3:window", "7:watch", "12:end_of_step", "18:write", "20:log"]


def config(streaming: bool) -> RunConfig:
    """All randomness (crops, rotary rescaling, drop path, input masks) and all kinds of state are enabled."""
    return RunConfig(
        name="run",
        data={"kind": "images", "source": "emoji", "num_workers": 2, "streaming": streaming, "shuffle_buffer": 50},
        model={"kind": "vit_nepa", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
               "image_size": 16, "patch_size": 4, "layerscale_value": 1.0, "drop_path_prob": 0.2},
        objective={"kind": "next_embedding", "target": "teacher", "input_mask_rate": 0.3, "steps_ahead": [1, 2]},
        optim={"learning_rate": 1e-2 * 8 / 256, "warmup_steps": 3},
        train={"batch_size": 8, "micro_batch_size": 4, "max_steps": 24, "log_steps": 5, "save_steps": 6,
               "ema_decay": 0.99, "device": "cpu", "trackers": []},
        probe={"enabled": False},
    )  # fmt: skip


def run(settings: RunConfig, **kills: list[str]) -> list[Path]:
    """The folders of runs with the same settings, each killed at the given moments; one process starts them all."""
    words: list[str] = []
    for folder, moments in kills.items():
        Path(folder).mkdir()
        (Path(folder) / "config.yaml").write_text(to_yaml(settings))
        words += [*(["--"] if words else []), folder, *moments]
    done = run_script(RUNNER, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return [Path(folder) / "run" for folder in kills]


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{n: v for n, v in line.items() if n != "images_per_second"} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["map", "streaming"])
def test_killed_five_times_and_resumed_is_bit_identical(tmp_path, streaming, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, parts = run(config(streaming), whole=[], parts=KILLS)
    last = "checkpoints/step-000024"
    for file in (
        "model/model.safetensors",
        "ema/model.safetensors",
        f"{last}/{STATE_FILE}",
    ):
        expected, found = load_file(whole / file), load_file(parts / file)
        assert expected.keys() == found.keys()
        for name, weight in expected.items():
            assert torch.equal(found[name], weight), f"{file} {name}"
    assert metrics(parts) == metrics(whole)
    assert [line["step"] for line in metrics(whole)] == [1, 5, 10, 15, 20, 24]
    assert not list(parts.glob("**/.tmp-*"))


@pytest.mark.parametrize(("kind", "stored"), [("muon", "momentum_buffer."), ("adamw_8bit", "absmax2.")])
def test_muon_and_8_bit_resume_bit_identically_and_not_as_adamw(tmp_path, kind, stored):
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    optim = OptimConfig(kind=kind, learning_rate=1e-3, warmup_steps=2)
    settings = {"max_steps": 6, "save_steps": 3, "micro_batch_size": 8, "ema_decay": 0.9}
    wide = {"hidden_size": 64, "intermediate_size": 64}  # matrices of 4,096 elements
    trainer(tmp_path / "whole", model(**wide), optim, **settings).train()
    middle = tmp_path / "whole/checkpoints/step-000003"
    trainer(tmp_path / "parts", model(1, **wide), optim, start={"next": 6}, **settings).train(resume=middle)
    last = f"checkpoints/step-000006/{STATE_FILE}"
    expected, found = load_file(tmp_path / "whole" / last), load_file(tmp_path / "parts" / last)
    assert expected.keys() == found.keys() and any(name.startswith(stored) for name in found)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    adamw = trainer(tmp_path / "adamw", model(**wide), optim.model_copy(update={"kind": "adamw"}), **settings)
    with pytest.raises(ConfigError, match=r"optim\.kind: the checkpoint was trained by another optimizer"):
        adamw.train(resume=middle)
