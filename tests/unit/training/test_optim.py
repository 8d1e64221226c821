import itertools

import pytest
import torch

from nextembed.core.types import PretrainingModel
from nextembed.errors import ConfigError
from nextembed.models.nepa.settings import NepaModel
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.training.optim import OptimConfig, build_optimizer, build_scheduler, lr_rate, parameter_groups
from nextembed.training.trainer import TrainConfig


@pytest.fixture(scope="module")
def net():
    backbone = NepaModel(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4).build()
    return PretrainingModel(backbone, NextEmbeddingSettings(steps_ahead=[1, 2]).build(backbone))


def settings_of(net, config, learning_rate=1.0):
    """{name: (learning rate, weight decay)}"""
    names = {p: n for n, p in net.named_parameters()}
    groups = parameter_groups(net, config, learning_rate)
    return {names[p]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_norms_biases_and_layerscale_do_not_decay_but_the_first_token_does(net):
    found = settings_of(net, OptimConfig(weight_decay=0.05))
    assert found.keys() == dict(net.named_parameters()).keys()
    for name, (_, decay) in found.items():
        free = name.endswith("bias") or "norm" in name or "lambda" in name
        assert decay == (0.0 if free else 0.05), name
    assert found["backbone.vit_nepa.embeddings.cls_token"][1] == 0.05


def test_layer_decay_and_embedding_rate(net):
    found = settings_of(net, OptimConfig(layer_decay=0.5, embed_lr_rate=0.1))
    rate = {name: lr for name, (lr, _) in found.items()}
    assert rate["objective.heads.2.weight"] == rate["backbone.vit_nepa.layernorm.weight"] == 1.0
    layers = [rate[f"backbone.vit_nepa.encoder.layer.{i}.output.dense.weight"] for i in range(3)]
    assert layers == [0.25, 0.5, 1.0]
    assert rate["backbone.vit_nepa.embeddings.patch_embeddings.projection.weight"] == pytest.approx(0.0125)
    assert parameter_groups(net, OptimConfig(layer_decay=0.5), 1.0)[0]["lr"] == 1.0  # the one that is logged


def test_frozen_parameters_are_left_out(net):
    teacher = NextEmbeddingSettings(target="teacher").build(net.backbone)
    found = settings_of(PretrainingModel(net.backbone, teacher), OptimConfig())
    assert not any(name.startswith("objective.teacher") for name in found)


def test_cosine_with_warm_up():
    config = OptimConfig(min_lr_rate=0.1)
    rates = [lr_rate(step, config, 4, 12) for step in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[12] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert lr_rate(10**6, config, 4, 12) == pytest.approx(0.1)


def test_constant():
    rates = [lr_rate(s, OptimConfig(schedule="constant"), 2, 9) for s in range(9)]
    assert rates == [0.5] + 8 * [1.0]


def test_warm_up_in_steps_rate_and_epochs():
    assert OptimConfig().num_warmup_steps(100, None) == 0
    assert OptimConfig(warmup_steps=7).num_warmup_steps(100, None) == 7
    assert OptimConfig(warmup_rate=0.1).num_warmup_steps(50, None) == 5
    assert OptimConfig(warmup_epochs=1.5).num_warmup_steps(100, 10.0) == 15
    with pytest.raises(ConfigError, match="warmup_epochs needs data of known size"):
        OptimConfig(warmup_epochs=1).num_warmup_steps(100, None)


def test_two_warm_ups_are_an_error():
    with pytest.raises(ConfigError, match="one of warmup_steps, warmup_rate"):
        OptimConfig(warmup_steps=1, warmup_rate=0.1)


def test_learning_rate_grows_with_the_batch():
    assert OptimConfig(base_learning_rate=3e-4).learning_rate(4096) == pytest.approx(4.8e-3)


def test_fused_adamw_is_adamw(net):
    """One step against the formula, decay included."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
    module = torch.nn.Module()
    module.register_parameter("w", weight)
    config = OptimConfig(weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    optimizer = build_optimizer(module, config, 0.01)
    scheduler = build_scheduler(optimizer, config, 2, 10)
    weight.grad = torch.tensor([[0.5, -3.0]])
    optimizer.step()
    scheduler.step()
    rate = 0.01 * 0.5  # first of two warm-up steps
    expected = torch.tensor([[1.0, -2.0]]) * (1 - rate * 0.1) - rate * torch.tensor([[1.0, -1.0]])
    torch.testing.assert_close(weight.data, expected)


@pytest.mark.parametrize(
    ("values", "world", "micro"),
    [({}, 1, 16), ({}, 2, 8), ({"micro_batch_size": 4}, 2, 4), ({"micro_batch_size": 16}, 1, 16)],
)
def test_micro_batch(values, world, micro):
    assert TrainConfig(batch_size=16, max_steps=1, **values).micro_batch(world) == micro


@pytest.mark.parametrize(("micro", "world"), [(None, 3), (5, 1), (16, 2), (None, 32)])
def test_a_batch_that_does_not_divide(micro, world):
    with pytest.raises(ConfigError, match=r"train\.batch_size 16 is not a multiple of micro_batch_size"):
        TrainConfig(batch_size=16, max_steps=1, micro_batch_size=micro).micro_batch(world)


def test_length_of_a_run():
    assert TrainConfig(batch_size=16, max_steps=7).num_steps(None) == 7
    assert TrainConfig(batch_size=16, epochs=2.5).num_steps(160) == 25
    with pytest.raises(ConfigError, match="epochs needs data of known size"):
        TrainConfig(epochs=1).num_steps(None)
    for values in ({}, {"max_steps": 1, "epochs": 1}):
        with pytest.raises(ConfigError, match="one of max_steps and epochs"):
            TrainConfig(**values)
