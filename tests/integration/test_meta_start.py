"""Sharded runs of which rank 0 alone builds the model: the same weights, in less memory."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from forked import run_script
from safetensors.torch import load_file

from nextembed import recipes
from nextembed.core.config import apply_overrides, to_yaml
from nextembed.runs import RunConfig

pytestmark = pytest.mark.slow
RUNNER = Path(__file__).with_name("meta_runner.py")
RANKS = Path(__file__).with_name("rank_runner.py")
EMU = ["model.causal_former.dropout_rate=0", "train.freeze=[]", "model.latent_std=1.0",
       "model.language_config.tie_word_embeddings=true"]  # fmt: skip
LORA = ["model.causal_former.dropout_rate=0", "train.freeze=[]",
        "train.lora={rank: 2, targets: [q_proj], within: language_model, whole: [connector]}"]  # fmt: skip


def config(folder: Path, *overrides: str) -> RunConfig:
    given = ["optim.kind=adamw", "optim.eps=1e-3", "train.device=cpu", "train.micro_batch_size=1", "train.max_steps=4",
             "train.save_steps=2", "train.batch_size=4", f"output_dir={folder}", "name=run"]  # fmt: skip
    return apply_overrides(recipes.load("emu_emoji_tiny"), [*given, *overrides])


def train(folder: Path, *overrides: str, script: Path = RANKS, mode: tuple = ("--ranks", 2)) -> dict[str, torch.Tensor]:
    folder.mkdir()
    file = folder / "given.yaml"
    file.write_text(to_yaml(config(folder, *overrides)))
    ran(script, *mode, file)
    return weights(folder / "run")


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of one file or of several, as a sharded model is saved."""
    return {name: value for file in (run / "model").glob("*.safetensors") for name, value in load_file(file).items()}


def ran(script: Path, *words: object) -> str:
    done = run_script(script, *words)
    assert done.returncode == 0, done.stderr[-6000:]
    assert "every rank builds" not in done.stdout
    return done.stdout


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert a and a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).abs().max() <= tolerance * a[name].abs().max() + tolerance, name


def test_a_rank_without_weights_gets_those_that_it_would_build(tmp_path):
    """Frozen, tied, loaded and measured ones, buffers, adapters, the random state; the assertions are in the runner."""
    done = run_script(RUNNER, "values", tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.parametrize("kind", [EMU, LORA], ids=["tied", "LoRA"])
def test_training_is_that_of_ranks_that_all_build_the_model(tmp_path, kind):
    found = train(tmp_path / "one", *kind, "train.fsdp=true")
    expected = train(tmp_path / "all", *kind, "train.fsdp=true", script=RUNNER, mode=("whole",))
    equal(found, expected)
    equal(found, train(tmp_path / "unsharded", *kind), tolerance=1e-5)  # DDP
    run = tmp_path / "one" / "run"
    for folder in (run / "model", run / "checkpoints" / "step-000004"):
        shutil.rmtree(folder)
    ran(RANKS, "--ranks", 2, tmp_path / "one" / "given.yaml", run)
    equal(weights(run), expected)


def test_one_rank_alone_needs_memory_for_the_whole_model(tmp_path):
    """A rank's own half, and one block; the model has 28. Sizes are those of the process, so there is some slack."""
    found = json.loads(ran(RUNNER, "memory").splitlines()[-1])
    first, second = found["ranks"]
    assert first > 0.95 * found["model"] and second < 0.8 * found["model"], found
