"""Omni runs: micro-batches give the same weights as whole batches; ranks without a modality do not hang."""

import json
from pathlib import Path

import pytest
from forked import run_script
from safetensors.torch import load_file

import nextembed
from nextembed import recipes
from nextembed.core.config import apply_overrides, to_yaml

RUNNER = Path(__file__).with_name("rank_runner.py")
# Some rows have only text, so in some steps a rank has no image: no patches to embed and no density to compare.
MIXED = [
    "data={kind: mixture, sources: [{kind: emoji_documents}, {kind: text, source: glosses}], num_workers: 0}",
    "data.pack_window=4", "model.max_length=40", "train.batch_size=4", "train.max_steps=6", "train.save_steps=6",
    "optim.eps=1e-3", "name=run", "train.device=cpu",
]  # fmt: skip


def config(folder, *overrides):
    return apply_overrides(recipes.load("omni_emoji_tiny"), [*MIXED, f"output_dir={folder}", *overrides])


def same(a, b, tolerance=1e-5):
    a, b = (load_file(run / "model" / "model.safetensors") for run in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        if not name.endswith("lengths"):  # a running mean over batches
            assert (a[name] - b[name]).abs().max() <= tolerance * a[name].abs().max() + tolerance, name


@pytest.mark.parametrize(
    ("density", "optimizer", "tolerance"),
    [
        ("none", "{kind: adamw, learning_rate: 1e-3}", 1e-5),
        ("mixture", "{kind: adamw, learning_rate: 1e-3}", 1e-5),
        ("none", "{kind: muon, learning_rate: 1e-3}", 1e-4),  # torch's Muon multiplies in bf16
    ],
    ids=["none", "mixture", "muon"],
)
def test_accumulation_gives_the_same_weights(tmp_path, density, optimizer, tolerance):
    given = [f"model.density={density}", f"optim={optimizer}"]
    whole = nextembed.fit(config(tmp_path / "a", *given))
    parts = nextembed.fit(config(tmp_path / "b", *given, "train.micro_batch_size=1"))
    same(whole.dir, parts.dir, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("density", ["none", "mixture"])
def test_two_ranks_train_together(tmp_path, density):
    """No rank waits for ever for one without images; ranks pack their own documents, so rows differ from one rank."""
    two = config(tmp_path, f"model.density={density}", "train.micro_batch_size=1", "train.batch_size=2")
    file = tmp_path / "given.yaml"
    file.write_text(to_yaml(two))
    done = run_script(RUNNER, "--ranks", 2, file)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6 and lines[-1]["loss"] < lines[0]["loss"]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["ranks"] == 2


def test_a_new_run_measures_value_statistics(tmp_path):
    """With white backgrounds, pixel means are far from 0 and neighbours correlate. A continued run keeps the values."""
    short = ["train.max_steps=1", "train.save_steps=1"]
    centred = nextembed.fit(config(tmp_path / "c", *short)).trained.model.values["image"]
    assert centred.mean.mean().abs() < 0.2  # with the mean and std of the recipe
    plain = ["model.modalities.image.mean=0", "model.modalities.image.std=1"]
    run = nextembed.fit(config(tmp_path / "a", *short, *plain))
    found = run.trained.model.values["image"]
    assert found.mean.mean() > 0.3
    assert (found.covariance > 0).float().mean() > 0.9
    later = nextembed.fit(config(tmp_path / "b", f"model.pretrained={run.dir / 'model'}", "train.max_steps=1"))
    assert (later.trained.model.values["image"].covariance == found.covariance).all()
