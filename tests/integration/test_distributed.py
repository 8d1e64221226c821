"""Two ranks on the CPU (gloo) train the same weights as one rank."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from forked import run_script
from tiny import weights

from nextembed.core.config import to_yaml
from nextembed.run import fit
from nextembed.runs import RunConfig

RUNNER = Path(__file__).parent / "rank_runner.py"


def config(output_dir: Path, **train) -> RunConfig:
    values = {"batch_size": 16, "max_steps": 6, "log_steps": 3, "save_steps": 3, "ema_decay": 0.9, "device": "cpu",
              "trackers": []}  # fmt: skip
    return RunConfig(
        name="run",
        output_dir=str(output_dir),
        data={"kind": "images", "source": "emoji", "num_workers": 1},
        model={"kind": "vit_nepa", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
               "image_size": 16, "patch_size": 4, "layerscale_value": 1.0, "drop_path_prob": 0.2},
        objective={"kind": "next_embedding", "target": "teacher", "input_mask_rate": 0.3},
        optim={"learning_rate": 1e-1 * 16 / 256, "warmup_steps": 2, "eps": 1e-3},
        train=values | train,
        probe={"enabled": False},
    )  # fmt: skip


def python(*words: object) -> subprocess.CompletedProcess:
    command = [str(word) for word in (sys.executable, *words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)


def torchrun(script: Path, *args: object) -> subprocess.CompletedProcess:
    return python("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", script, *args)


def given(settings: RunConfig, folder: Path) -> Path:
    file = folder / "given.yaml"
    file.write_text(to_yaml(settings))
    return file


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    return fit(config(tmp_path_factory.mktemp("one")))


def close(run_dir: Path, expected: Path, name: str) -> None:
    found, wanted = weights(run_dir, name), weights(expected, name)
    assert found.keys() == wanted.keys()
    for key, weight in wanted.items():
        assert (found[key] - weight).abs().max() <= 5e-6 * weight.abs().max(), f"{name} {key}"


@pytest.mark.slow
def test_two_ranks_train_the_same_weights_as_one(tmp_path, one_rank):
    done = torchrun(RUNNER, given(config(tmp_path, micro_batch_size=4), tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    run_dir = tmp_path / "run"
    for name in ("model", "ema"):
        close(run_dir, one_rank.dir, name)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 6]  # written by one rank only
    assert lines[-1]["loss"] == pytest.approx(one_rank.metrics["loss"], rel=1e-5)
    assert json.loads((run_dir / "environment.json").read_text())["ranks"] == 2
    assert done.stderr.count("step 6/6") == 1  # printed by one rank only


@pytest.mark.slow
def test_two_ranks_resume_a_run_of_one(tmp_path):
    """Weights, optimizer state and data position in a checkpoint do not depend on the number of ranks."""
    half = config(tmp_path, max_steps=3)
    half.optim.schedule = "constant"
    first = fit(half)
    whole = config(tmp_path / "whole", max_steps=6)
    whole.optim.schedule = "constant"
    expected = fit(whole)
    whole.train.micro_batch_size = 4
    done = run_script(RUNNER, "--ranks", 2, given(whole, tmp_path), first.dir)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("model", "ema"):
        close(first.dir, expected.dir, name)


@pytest.mark.slow
def test_sharded_weights_optimizer_and_average_are_restored(tmp_path):
    """The contents of a checkpoint with FSDP2; the assertions are in the runner."""
    done = torchrun(RUNNER.with_name("shard_runner.py"), tmp_path)
    assert done.returncode == 0, done.stderr[:6000]  # the first failing rank prints first
