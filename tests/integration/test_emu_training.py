"""Emu runs: exact resume, accumulation, two ranks, frozen parts, LoRA, stages."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from forked import run_script
from safetensors.torch import load_file

import nextembed
from nextembed import recipes
from nextembed.core.config import apply_overrides, to_yaml
from nextembed.errors import ConfigError

RUNNER = Path(__file__).with_name("rank_runner.py")


def config(folder, *overrides, recipe="emu_emoji_tiny"):
    # AdamW, because torch's Muon multiplies in bf16
    exact = ["model.causal_former.dropout_rate=0", "optim.kind=adamw", "optim.eps=1e-3", f"output_dir={folder}",
             "name=run"]  # fmt: skip
    whole = ["train.freeze=[]"] if recipe == "emu_emoji_tiny" else []
    return apply_overrides(recipes.load(recipe), [*exact, *whole, *overrides])


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def same(a, b, tolerance):
    assert a.keys() == b.keys()
    for name in a:
        one, other = a[name].float(), b[name].float()
        assert (one - other).abs().max() <= tolerance * one.abs().max() + tolerance, name


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_run_resumes_bit_identically(tmp_path):
    whole = nextembed.fit(config(tmp_path / "a", "train.max_steps=4", "train.save_steps=2"))
    folder = tmp_path / "a" / "run"
    (folder / "model").rename(tmp_path / "kept")
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    resumed = nextembed.fit(None, resume=folder)
    first, second = load_file(tmp_path / "kept" / "model.safetensors"), weights(resumed.dir)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.metrics["loss"] == resumed.metrics["loss"]


@pytest.mark.parametrize("regression", ["linear", "flow"])
def test_accumulation_gives_the_same_weights(tmp_path, regression):
    """Rows have different numbers of both kinds of targets, so a mean of means would differ."""
    given = ("train.batch_size=4", f"objective.regression={regression}")
    whole = nextembed.fit(config(tmp_path / "a", *given, "train.micro_batch_size=4"))
    parts = nextembed.fit(config(tmp_path / "b", *given, "train.micro_batch_size=1"))
    same(weights(whole.dir), weights(parts.dir), 1e-5)
    for a, b in zip(lines(whole.dir), lines(parts.dir)):
        for name in ("loss", "text_loss", "regression_loss"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("regression", ["linear", "flow"])
def test_two_ranks_train_together(tmp_path, regression):
    """In some steps a rank has only text: no rank waits for ever, and the run finishes."""
    mixed = ["data={kind: mixture, sources: [{kind: emoji_documents}, {kind: text, source: glosses}], num_workers: 0}",
             "train.batch_size=2", "train.micro_batch_size=1", "model.max_length=24", "train.max_steps=6",
             f"objective.regression={regression}"]  # fmt: skip
    file = tmp_path / "given.yaml"
    file.write_text(to_yaml(config(tmp_path / "two", *mixed)))
    done = run_script(RUNNER, "--ranks", 2, file)
    assert done.returncode == 0, done.stderr[-3000:]
    found = lines(tmp_path / "two" / "run")
    assert found[-1]["step"] == 6 and found[-1]["text_loss"] > 0
    assert (tmp_path / "two" / "run" / "model" / "model.safetensors").is_file()


def test_frozen_parts_are_unchanged(tmp_path):
    torch.manual_seed(0)
    before = config(tmp_path, "train.freeze=[visual, language_model]")
    run = nextembed.fit(before)
    torch.manual_seed(before.seed)
    start = before.model.build().state_dict()
    moved = {name.split(".")[1] if name.startswith("model.") else name.split(".")[0]
             for name, value in run.trained.state_dict().items() if not torch.equal(value, start[name])}  # fmt: skip
    assert moved == {"connector", "visual_norm", "regression_head"}


def test_lora_is_limited_to_the_language_model(tmp_path):
    run = nextembed.fit(config(tmp_path, recipe="emu_instruct_tiny"))
    adapted = {name for name, _ in run.trained.named_parameters() if "lora_" in name}
    assert adapted and all(name.startswith("model.language_model.") for name in adapted)
    assert {name.split(".")[-4] for name in adapted} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    trained = [name for name, p in run.trained.named_parameters() if p.requires_grad]
    assert set(trained) == adapted
    merged = weights(run.dir)
    assert not any("lora" in name for name in merged)
    assert (run.dir / "model" / "adapter" / "adapter_model.safetensors").is_file()


def test_latents_are_standardised_at_the_start(tmp_path):
    small = config(tmp_path, "train.max_steps=1", "model.latent_std=0.5", "optim.learning_rate=1e-11")
    run = nextembed.fit(small)
    every = small.data.documents("train")
    documents = [every[i] for i in range(0, len(every), 20)]
    processor = small.model.processor()
    pixels = torch.cat([processor.encode_document(d).values["pixel_values"] for d in documents])
    with torch.no_grad():
        latents = run.trained.eval().image_latents(pixels)
    spread = (latents - latents.mean(0, keepdim=True)).square().mean((0, 1)).sqrt()
    assert 0.3 < spread.mean() < 0.7
    assert latents.mean((0, 1)).abs().max() < 0.25


def test_missing_stages_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [stage.name for stage in recipes.missing_stages(recipes.load("emu_emoji_decoder"))] == [
        "nepa_demo", "emu_emoji_encoder", "emu_emoji_language", "emu_emoji"
    ]  # fmt: skip
    Path("runs/emu_emoji_language/model").mkdir(parents=True)
    assert [stage.name for stage in recipes.missing_stages(recipes.load("emu_emoji"))] == []


def test_wrong_settings_are_one_line_errors(tmp_path):
    with pytest.raises(ConfigError, match="for multimodal"):
        nextembed.fit(config(tmp_path, "model={kind: vit_nepa, image_size: 24, patch_size: 8}"))
    with pytest.raises(ConfigError, match=r"part_lr_rates: part.*'visuals'.*visual"):
        nextembed.fit(config(tmp_path, "optim.part_lr_rates={visuals: 0.1}"))
    with pytest.raises(ConfigError, match=r"lora\.within"):
        nextembed.fit(config(tmp_path, "train.lora={targets: [q_proj], within: language}"))
    assert not (tmp_path / "run").exists()
