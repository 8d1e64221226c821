import itertools

import pytest
import torch

from nextembed.core.objective import PretrainingModel
from nextembed.core.optim import OptimConfig
from nextembed.errors import ConfigError
from nextembed.models.nepa.settings import NepaModel
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.training.optim import build_optimizer, lr_rate, parameter_groups, set_learning_rates
from nextembed.training.settings import TrainConfig


@pytest.fixture(scope="module")
def net():
    backbone = NepaModel(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4).build()
    return PretrainingModel(backbone, NextEmbeddingSettings(steps_ahead=[1, 2]).build(backbone))


def settings_of(net, config):
    """{name: (learning rate, weight decay)}"""
    names = {p: n for n, p in net.named_parameters()}
    groups = parameter_groups(net, config.model_copy(update={"learning_rate": 1.0}))
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
    assert (
        parameter_groups(net, OptimConfig(layer_decay=0.5, learning_rate=1.0))[0]["lr"] == 1.0
    )  # the one that is logged


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


def test_fused_adamw_is_adamw(net):
    """One step against the formula, decay included."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
    module = torch.nn.Module()
    module.register_parameter("w", weight)
    config = OptimConfig(learning_rate=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    optimizer = build_optimizer(module, config)
    set_learning_rates(optimizer, config, 0, 2, 10)
    weight.grad = torch.tensor([[0.5, -3.0]])
    optimizer.step()
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


# -- fine-tuning


def test_groups_know_how_far_below_the_top_they_are(net):
    groups = parameter_groups(net, OptimConfig(layer_decay=0.5, learning_rate=1.0))
    names = {p: n for n, p in net.named_parameters()}
    below = {names[p]: g["below_top"] for g in groups for p in g["params"]}
    layers = [below[f"backbone.vit_nepa.encoder.layer.{i}.output.dense.weight"] for i in range(3)]
    assert layers == [2, 1, 0]  # as the released code counts: the last layer learns at the head's rate
    assert below["backbone.vit_nepa.embeddings.cls_token"] == 3 and below["backbone.vit_nepa.layernorm.weight"] == 0
    assert {g["below_top"] for g in parameter_groups(net, OptimConfig(learning_rate=1.0))} == {0, 1, 2, 3}


def test_layer_decay_rises_by_half_a_cosine():
    """A layer two below the top: its rate is decay ** 2, with decay going from 0.5 to 1."""
    config = OptimConfig(layer_decay=0.5, layer_decay_end=1.0, schedule="constant")
    decay = [0.5, 0.5 + 0.5 * (1 - 0.5**0.5) / 2, 0.75, 1.0]
    for step, value in zip((0, 2, 4, 8), decay):
        rate = config.layer_decay**2 * lr_rate(step, config, 0, 8, below_top=2)
        assert rate == pytest.approx(value**2), step
        assert lr_rate(step, config, 0, 8, below_top=0) == 1.0
    assert lr_rate(99, config, 0, 8, below_top=2) == pytest.approx(4.0)


def test_lower_layers_warm_up_longer():
    """A layer at x times the top's rate warms up over (1 - x) of the steps."""
    config = OptimConfig(layer_decay=0.5, layer_warmup=True, schedule="constant")
    for below, steps in ((0, 0), (1, 8), (2, 12), (3, 14)):
        rates = [lr_rate(step, config, 16, 100, below_top=below) for step in range(20)]
        assert rates == pytest.approx([min(1.0, (step + 1) / steps) if steps else 1.0 for step in range(20)])
    assert lr_rate(4, OptimConfig(layer_decay=0.5, schedule="constant"), 16, 100, below_top=1) == 5 / 16
    cosine = OptimConfig(layer_decay=0.5, layer_warmup=True)
    assert lr_rate(54, cosine, 16, 100, below_top=1) == pytest.approx(0.5)  # half way between 8 and 100


def test_the_schedule_reaches_each_group(net):
    config = OptimConfig(layer_decay=0.5, layer_decay_end=1.0, schedule="constant", learning_rate=1.0)
    optimizer = build_optimizer(net, config)
    set_learning_rates(optimizer, config, 0, 0, 4)
    start = {group["below_top"]: group["lr"] for group in optimizer.param_groups}
    assert start == {0: 1.0, 1: 0.5, 2: 0.25, 3: 0.125}
    set_learning_rates(optimizer, config, 4, 0, 4)
    assert all(group["lr"] == pytest.approx(1.0) for group in optimizer.param_groups)
