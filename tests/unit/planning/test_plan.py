"""Plans: predicted against measured memory, closed forms, frozen and sharded parameters, advice, invalid input."""

import gc
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DynamicOutputShapeException

import nextembed
from nextembed import recipes
from nextembed.cli import main
from nextembed.core.config import apply_overrides
from nextembed.planning.known import KnownValues
from nextembed.planning.plan import plan
from nextembed.planning.step import trace_step

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "plan_memory.py"
SMALL = "{image_size: 32, patch_size: 8, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2}"
LARGE = ["train.batch_size=1024", "model.num_hidden_layers=2"]
EMU = [
    "model={kind: emu, tokenizer: bundled, num_image_latents: 4, max_length: 64,"
    " vision_config: {model_type: vit_nepa, image_size: 16, patch_size: 8, hidden_size: 32, num_hidden_layers: 1,"
    " num_attention_heads: 2, intermediate_size: 64}, language_config: {model_type: llama, vocab_size: 8192,"
    " hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 96},"
    " causal_former: {num_layers: 1, num_heads: 2, d_ff: 32, d_model: 32, d_kv: 16}}",
    "objective={kind: emu}",
    "train.batch_size=2",
]


def configured(recipe: str, *changes: str) -> Any:
    import nextembed.models.emu.settings
    import nextembed.objectives.emu  # noqa: F401

    return apply_overrides(recipes.load(recipe), changes)


@pytest.mark.parametrize(
    "words", ["nepa_demo train.batch_size=32", "nepa_demo train.batch_size=32 train.gradient_checkpointing=true"]
)
def test_within_20_percent_of_measured_memory(words: str, tmp_path: Path) -> None:
    """Measured in this process as in the benchmark: after a first run, which allocates persistent memory."""
    spec = importlib.util.spec_from_file_location("plan_memory", BENCHMARK)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    config = benchmark.settings_of(words)
    benchmark.train(benchmark.settings_of("nepa_demo_tiny"), tmp_path)
    gc.collect()
    measured = benchmark.allocated(lambda: benchmark.train(config, tmp_path))
    assert trace_step(config, 1, 10).peak / measured == pytest.approx(1, abs=0.2)


def test_closed_forms() -> None:
    made = plan(configured("nepa_demo", "train.precision=bf16"), memory=1)
    assert isinstance(made, nextembed.Plan) and made.parameters == made.trained
    assert made.memory["weights"] == made.memory["averages"] == 4 * made.parameters
    assert made.memory["optimizer"] == pytest.approx(8 * made.parameters, rel=0.01)
    eight = plan(configured("nepa_demo", "train.precision=bf16", "optim.kind=adamw_8bit"), memory=1)
    assert eight.memory["optimizer"] == pytest.approx(2 * (1 + 4 / 256) * made.parameters, rel=0.03)
    assert made.flops_per_step == pytest.approx(6 * made.parameters * 128 * 16, rel=0.1)  # the last latent is skipped
    assert made.peak == sum(made.memory.values()) and made.verdict == "fits"
    assert made.steps == 600 and made.hours == pytest.approx(600 * made.flops_per_step / 312e12 / 0.4 / 3600)


def test_checkpointing_needs_more_flops_and_less_memory() -> None:
    plain, again = (trace_step(configured("nepa_demo", f"train.gradient_checkpointing={on}"), 1, 10) for on in (0, 1))
    assert again.kept < plain.kept / 4 and plain.flops < again.flops < 1.4 * plain.flops


def test_gradients_are_kept_during_accumulation() -> None:
    step = trace_step(configured("nepa_demo", "train.micro_batch_size=16"), 2, 10)
    assert step.accumulation == 4 and step.memory["gradients"] == step.memory["weights"]
    assert step.memory["communication"] == step.memory["weights"]  # buckets of DDP


def test_lora_trains_few_parameters() -> None:
    whole, lora = (
        trace_step(configured("finetune", f"model.architecture={SMALL}", f"train.lora={value}"), 1, 10)
        for value in ("null", "{rank: 4}")
    )
    assert lora.trained < whole.trained / 5
    assert lora.memory["optimizer"] == pytest.approx(8 * lora.trained, rel=0.05)
    assert lora.memory["weights"] > whole.memory["weights"]


def test_fsdp_shards_memory() -> None:
    alone, shared = (trace_step(configured("nepa_demo", f"train.fsdp={on}"), 8, 10) for on in (0, 1))
    for name in ("weights", "optimizer", "averages"):
        assert shared.memory[name] == pytest.approx(alone.memory[name] / 8, rel=0.01)
    assert shared.memory["activations"] == alone.memory["activations"]


def test_emu_and_quantized_weights() -> None:
    lora = "train.lora={rank: 2, targets: [q_proj, v_proj], within: language_model}"
    plain, packed = (
        trace_step(configured("nepa_demo", *EMU, lora, f"model.quantize={q}"), 1, 10) for q in ("null", "4bit")
    )
    assert plain.parts.keys() >= {"visual", "connector", "language_model", "regression_head"}
    numbers = 2 * (4 * 64 * 64 + 3 * 64 * 96)
    assert plain.memory["weights"] - packed.memory["weights"] == 4 * numbers - numbers // 2 - numbers // 16


@pytest.mark.parametrize(
    "name",
    [
        "fashion_mnist",
        "nepa_large_imagenet_released",
        "nepa_base_imagenet_finetune",
        "latent_decoder",
        "nepa_base_ade20k",
    ],
)
def test_kinds_of_recipes(name: str) -> None:
    assert trace_step(recipes.load(f"{name}_tiny"), 1, 7).peak > 0


def test_only_the_configuration_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    configured("nepa_demo").model.hf_config().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["ViTNepaForPreTraining"]}))
    made = plan(configured("finetune", f"model.pretrained={tmp_path}"), devices=2, classes=5)
    assert made.parts["classifier"] == 5 * 193 and any("5 classes" in line for line in made.assumptions)


def test_advice_is_verified_by_tracing() -> None:
    made = plan(configured("nepa_demo", *LARGE), memory=0.1)
    assert made.verdict == "does not fit" and made.hours is not None
    size = int(made.advice[0].partition("micro_batch_size=")[2].partition(")")[0])
    assert "it fits" in made.advice[0] and 1 < size < 128
    again = plan(configured("nepa_demo", *LARGE, f"train.micro_batch_size={size}"), memory=0.1)
    assert again.verdict == "fits"
    larger = plan(configured("nepa_demo", *LARGE, f"train.micro_batch_size={2 * size}"), memory=0.1)
    assert larger.verdict != "fits"


def test_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "plan.json"
    assert main(["plan", "nepa_demo_tiny", "--devices", "2", "--memory", "8", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "It fits." in out and "optimizer" in out and "(a100)" in out
    assert json.loads(file.read_text())["devices"] == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nepa_dem"], "Did you mean 'nepa_demo'?"),
        (["nepa_demo", "--peak-tflops", "a10000"], "a100"),
        (["nepa_demo", "--devices", "7"], "not a multiple"),
        (["nepa_demo", "--utilisation", "2"], "plan.utilisation: should be less than or equal to 1"),
        (["nepa_demo", "--json", "/dev/null/plan.json"], "cannot write"),
        (["nepa_demo", "objective={kind: OBJECTIVE}"], "cannot plan nepa_demo: ZeroDivisionError"),
    ],
)
def test_errors_are_one_line(words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "import nextembed\n\n\nclass Broken(nextembed.NextEmbeddingSettings):\n"
        "    def build(self, backbone):\n        1 / 0\n"
    )
    words = [word.replace("OBJECTIVE", f"{own}:Broken") for word in words]
    assert main(["plan", *words]) == 2
    err = capsys.readouterr().err
    assert reason in err and len(err.strip().splitlines()) == 1


def test_values_of_masks_are_known() -> None:
    real = torch.tensor([True, False, True, True])
    with FakeTensorMode(allow_non_fake_inputs=True), KnownValues() as known:
        mask = known.fake(real)
        x = torch.randn(4, 300)
        assert x[mask].shape == (3, 300) and x[~mask].shape == (1, 300)
        assert int(mask.sum()) == 3 and mask.nonzero().flatten().tolist() == [0, 2, 3]
        mask[0] = False
        assert x[mask].shape == (2, 300)
        with pytest.raises(DynamicOutputShapeException):
            x[x > 0]


@pytest.mark.parametrize("name", ["igpt", "simsiam", "lejepa", "vq", "msvq"])
def test_steps_of_other_objectives_are_traced(name: str) -> None:
    """Including several crops and code counts: no shape in a step depends on tensor values."""
    step = trace_step(recipes.load(f"{name}_demo_tiny"), 1, 3)
    assert step.peak > step.memory["weights"] > 0 and step.memory["activations"] > 0
