"""Training on GPUs: precision, compilation, and FSDP2 through accelerate. Skipped without GPUs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nextembed.core.config import to_yaml
from nextembed.run import fit
from nextembed.runs import RunConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
RUNNER = Path(__file__).parents[1] / "integration" / "rank_runner.py"


def config(output_dir, **train) -> RunConfig:
    values = {"batch_size": 32, "max_steps": 6, "log_steps": 2, "save_steps": 3, "ema_decay": 0.9, "trackers": []}
    return RunConfig(
        output_dir=str(output_dir),
        data={"kind": "images", "source": "emoji", "num_workers": 2},
        model={"kind": "vit_nepa", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
               "image_size": 32, "patch_size": 4, "layerscale_value": 1.0, "pos_embed_rescale": None},
        optim={"learning_rate": 1e-2 * 32 / 256, "warmup_steps": 2, "eps": 1e-3},
        train=values | train,
        probe={"enabled": False},
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return fit(config(tmp_path_factory.mktemp("plain"), device="cpu"))


@pytest.mark.parametrize(
    ("train", "tolerance"),
    [({}, 1e-3), ({"precision": "bf16"}, 2e-2), ({"compile": True}, 1e-3), ({"gradient_checkpointing": True}, 1e-3)],
    ids=["float32", "bf16", "compile", "checkpointing"],
)
def test_loss_equals_the_cpu(tmp_path, plain, train, tolerance):
    run = fit(config(tmp_path, **train))
    assert next(run.trained.parameters()).device.type == "cuda"
    assert {p.dtype for p in run.trained.parameters()} == {torch.float32}
    assert run.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=tolerance)


def test_resume_is_exact(tmp_path):
    whole = fit(config(tmp_path / "whole", precision="bf16"))
    half = config(tmp_path / "half", precision="bf16", max_steps=3)
    half.optim.schedule = "constant"
    full = config(tmp_path / "full", precision="bf16")
    full.optim.schedule = "constant"
    first, expected = fit(half), fit(full)
    resumed = fit(full, resume=first.dir)
    assert resumed.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-5)
    assert whole.metrics["step"] == resumed.metrics["step"] == 6


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp2"])
def test_two_ranks_have_the_same_loss_as_one(tmp_path, plain, fsdp):
    file = tmp_path / "given.yaml"
    settings = config(tmp_path, fsdp=fsdp, micro_batch_size=8)
    file.write_text(to_yaml(settings))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(RUNNER),
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = fit(settings.model_copy(update={"train": config(tmp_path).train}), resume=tmp_path / "run")
    assert resumed.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=1e-3)
