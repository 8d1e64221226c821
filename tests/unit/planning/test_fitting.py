"""The settings that `train` chooses if a step does not fit into memory."""

import pytest
import torch

from nextembed import recipes
from nextembed.core.config import apply_overrides
from nextembed.core.objective import PretrainingModel
from nextembed.planning import fitting
from nextembed.planning.step import build_weightless, trace_step
from nextembed.run import loader_arguments
from nextembed.runs import RunConfig
from nextembed.tasks import model_part

IMAGES = ["nepa_demo", "aim_demo", "beit_demo", "cpc_demo", "igpt_demo", "ijepa_demo", "lejepa_demo", "mae_demo",
          "mar_demo", "simsiam_demo", "vq_demo", "msvq_demo"]  # fmt: skip


def configured(name: str, *changes: str) -> RunConfig:
    return apply_overrides(getattr(recipes, name)(), ["train.device=cpu", *changes])


def built(config: RunConfig) -> tuple[PretrainingModel, int | None]:
    """The model without weights, and the number of latents per sample or row."""
    with torch.device("meta"):
        backbone = build_weightless(config, 10)
        model = PretrainingModel(backbone, config.objective.build(backbone))
    loading = loader_arguments(model_part(config), backbone, model.objective)
    return model, loading.get("max_length") or loading.get("num_latents")


def fit(monkeypatch, config: RunConfig, room: float, ranks: int = 1):
    monkeypatch.setattr(fitting, "memory", lambda device: int(room))
    return fitting.fit_to_memory(config, *built(config), ranks, 10)


@pytest.mark.parametrize("name", IMAGES)
def test_the_quick_estimate_is_an_upper_bound(name):
    config = configured(name)
    model, length = built(config)
    peak = trace_step(config, 1, 10).peak
    assert fitting.generous_bytes(model, length, config.train.micro_batch(1), config) > 1.5 * peak


def test_with_ample_memory_nothing_is_traced_or_changed(monkeypatch):
    config = configured("nepa_demo")
    monkeypatch.setattr(fitting, "trace_step", None)
    assert fit(monkeypatch, config, 2**36) == (config.train, "")


def test_the_largest_micro_batch_that_fits_is_used(monkeypatch):
    config = configured("nepa_demo")
    whole = trace_step(config, 1, 10).peak
    train, said = fit(monkeypatch, config, 0.85 * whole)
    assert train.gradient_checkpointing is None and train.micro_batch_size == config.train.batch_size // 2
    assert "2 micro batches of 64 (same result)" in said
    made = config.model_copy(update={"train": train})
    assert trace_step(made, 1, 10).peak <= 0.8 * 0.85 * whole


def test_checkpointing_is_used_if_micro_batches_would_be_tiny(monkeypatch):
    config = configured("nepa_demo")
    room = 1.3 * trace_step(apply_overrides(config, ["train.micro_batch_size=2"]), 1, 10).peak
    train, said = fit(monkeypatch, config, room)
    assert train.gradient_checkpointing and train.micro_batch_size and train.micro_batch_size > 2
    assert "gradient checkpointing (train.gradient_checkpointing)" in said
    made = config.model_copy(update={"train": train})
    assert trace_step(made, 1, 10).peak <= 0.8 * room


def test_a_loss_that_depends_on_the_batch_is_not_split(monkeypatch):
    config = configured("simsiam_demo")
    whole = trace_step(config, 1, 10).peak
    again = trace_step(apply_overrides(config, ["train.gradient_checkpointing=true"]), 1, 10).peak
    assert again < 0.8 * whole
    train, said = fit(monkeypatch, config, again / 0.75)
    assert train.gradient_checkpointing and train.micro_batch_size is None
    assert "micro batches" not in said


@pytest.mark.parametrize("changes", [("train.micro_batch_size=64", "train.gradient_checkpointing=false")])
def test_given_settings_are_kept(monkeypatch, changes):
    config = configured("nepa_demo", *changes)
    assert fit(monkeypatch, config, 0.5 * trace_step(config, 1, 10).peak) == (config.train, "")


def test_a_step_that_cannot_fit_is_reported(monkeypatch):
    config = configured("nepa_demo")
    train, said = fit(monkeypatch, config, 2**20)
    assert train == config.train and said.startswith("Memory:  a step needs about ") and "nextembed plan" in said


def test_ranks_of_a_machine_share_its_memory(monkeypatch):
    config = configured("nepa_demo")
    share = trace_step(config, 2, 10).peak
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    train, _ = fit(monkeypatch, config, 1.9 * share, ranks=2)
    assert train.micro_batch_size == 32
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert fit(monkeypatch, config, 1.9 * share, ranks=2) == (config.train, "")
