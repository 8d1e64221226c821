import copy
import itertools

import pytest
import torch

from nextembed.core.objective import PretrainingModel
from nextembed.core.optim import OptimConfig
from nextembed.errors import ConfigError
from nextembed.models.nepa.settings import NepaModel
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.training.eight_bit import state_bytes
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


def test_weight_decay_excludes_norms_biases_and_layerscale(net):
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
    )  # the logged learning rate


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


def test_fused_adamw_equals_adamw(net):
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


# -- Muon


def test_muon_is_used_only_for_matrices_of_layers(net):
    names = {p: n for n, p in net.named_parameters()}
    groups = build_optimizer(net, OptimConfig(kind="muon")).param_groups
    muon = {names[p] for g in groups if g["muon"] for p in g["params"]}
    others = {names[p] for g in groups if not g["muon"] for p in g["params"]}
    assert muon | others == set(names.values()) and not muon & others
    assert muon == {n for n in names.values() if ".layer." in n and n.endswith("weight") and "norm" not in n}
    assert not any(g["muon"] for g in build_optimizer(net, OptimConfig()).param_groups)


def layer(values):
    module = torch.nn.Module()
    module.layers = torch.nn.ModuleList([torch.nn.Linear(6, 4)])
    module.layers[0].weight.data = values.clone()
    module.layers[0].bias.data.zero_()
    return module


def test_a_muon_step_is_orthogonal_and_scaled_like_adamw():
    start, gradient = torch.randn(4, 6), torch.randn(4, 6)
    module = layer(start)
    config = OptimConfig(kind="muon", learning_rate=0.01, weight_decay=0.1)
    optimizer = build_optimizer(module, config)
    set_learning_rates(optimizer, config, 0, 2, 10)
    module.layers[0].weight.grad, module.layers[0].bias.grad = gradient, torch.tensor([1.0, -1.0, 2.0, -2.0])
    optimizer.step()
    rate = 0.01 * 0.5  # first of two warm-up steps
    moved = (start * (1 - rate * 0.1) - module.layers[0].weight.data) / rate
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(moved.flatten(), (left @ right).flatten(), dim=0) > 0.9
    assert torch.linalg.svdvals(moved / (0.2 * 6**0.5)) == pytest.approx(1.0, abs=0.4)
    torch.testing.assert_close(module.layers[0].bias.data, rate * torch.tensor([-1.0, 1.0, -1.0, 1.0]))


def test_the_combined_state_of_muon_and_adamw_can_be_restored():
    """Through torch's state_dict; a later learning rate applies to both."""
    start, config = torch.randn(4, 6), OptimConfig(kind="muon", learning_rate=0.01)
    nets = [layer(start), layer(start)]
    first, second = (build_optimizer(net, config) for net in nets)
    for number in range(3):
        if number == 1:
            nets[1].load_state_dict(nets[0].state_dict())
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        for net, optimizer in zip(nets, (first, second)):
            set_learning_rates(optimizer, config, number, 0, 4)
            for param in net.parameters():
                param.grad = torch.sin(param.detach() * (number + 1) + number)
            if number or optimizer is first:
                optimizer.step()
    for one, other in zip(nets[0].parameters(), nets[1].parameters()):
        assert torch.equal(one, other) and not torch.equal(one, start)


# -- 8-bit


def test_8_bit_states_need_a_quarter_of_the_memory_and_match_adamw():
    """Small parameters such as biases keep exact float32 states."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    start, config = torch.randn(96, 96), OptimConfig(learning_rate=0.01, weight_decay=0.1)
    nets = [torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(96, 96)])}) for _ in range(2)]
    optimizers = []
    for net, kind in zip(nets, ("adamw", "adamw_8bit")):
        net["layers"][0].weight.data, net["layers"][0].bias.data = start.clone(), torch.zeros(96)
        optimizers.append(build_optimizer(net, config.model_copy(update={"kind": kind})))
    for number in range(20):
        torch.manual_seed(number)
        gradients = [torch.randn(96, 96) + 0.5, torch.randn(96)]
        for net, optimizer in zip(nets, optimizers):
            set_learning_rates(optimizer, config, number, 2, 40)
            for param, gradient in zip(net["layers"][0].parameters(), gradients):
                param.grad = gradient.clone()
            optimizer.step()
    (exact, exact_bias), (weight, bias) = (list(net["layers"][0].parameters()) for net in nets)
    torch.testing.assert_close(bias, exact_bias, rtol=1e-5, atol=1e-7)
    moved = (exact - start).flatten()
    assert (exact - weight).abs().mean() < 0.05 * moved.abs().mean()
    assert torch.nn.functional.cosine_similarity((weight - start).flatten(), moved, dim=0) > 0.99
    assert not torch.equal(weight, exact)
    state = optimizers[1].state[weight]
    assert state["state1"].dtype == torch.uint8
    used = sum(state[name].nbytes for name in ("state1", "state2", "absmax1", "absmax2"))
    assert used == state_bytes(96 * 96, "adamw_8bit") and used < 0.26 * state_bytes(96 * 96, "adamw")
    assert sum(
        value.nbytes for value in (optimizers[1].state[bias]["state1"], optimizers[1].state[bias]["state2"])
    ) == (state_bytes(96, "adamw_8bit"))


def test_8_bit_states_need_cpu_or_cuda():
    pytest.importorskip("bitsandbytes")
    net = torch.nn.Linear(4, 4, device="meta")
    with pytest.raises(ConfigError, match=r"optim\.kind=adamw_8bit supports cpu and cuda, not meta"):
        build_optimizer(net, OptimConfig(kind="adamw_8bit"))


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


def test_groups_have_their_depth_below_the_top(net):
    groups = parameter_groups(net, OptimConfig(layer_decay=0.5, learning_rate=1.0))
    names = {p: n for n, p in net.named_parameters()}
    below = {names[p]: g["below_top"] for g in groups for p in g["params"]}
    layers = [below[f"backbone.vit_nepa.encoder.layer.{i}.output.dense.weight"] for i in range(3)]
    assert layers == [2, 1, 0]  # as in the released code: the last layer has the learning rate of the head
    assert below["backbone.vit_nepa.embeddings.cls_token"] == 3 and below["backbone.vit_nepa.layernorm.weight"] == 0
    assert {g["below_top"] for g in parameter_groups(net, OptimConfig(learning_rate=1.0))} == {0, 1, 2, 3}


def test_layer_decay_follows_a_half_cosine():
    """Two layers below the top, the factor is decay ** 2, with decay rising from 0.5 to 1."""
    config = OptimConfig(layer_decay=0.5, layer_decay_end=1.0, schedule="constant")
    decay = [0.5, 0.5 + 0.5 * (1 - 0.5**0.5) / 2, 0.75, 1.0]
    for step, value in zip((0, 2, 4, 8), decay):
        rate = config.layer_decay**2 * lr_rate(step, config, 0, 8, below_top=2)
        assert rate == pytest.approx(value**2), step
        assert lr_rate(step, config, 0, 8, below_top=0) == 1.0
    assert lr_rate(99, config, 0, 8, below_top=2) == pytest.approx(4.0)


def test_lower_layers_warm_up_longer():
    """A layer with x times the rate of the top warms up over (1 - x) of the steps."""
    config = OptimConfig(layer_decay=0.5, layer_warmup=True, schedule="constant")
    for below, steps in ((0, 0), (1, 8), (2, 12), (3, 14)):
        rates = [lr_rate(step, config, 16, 100, below_top=below) for step in range(20)]
        assert rates == pytest.approx([min(1.0, (step + 1) / steps) if steps else 1.0 for step in range(20)])
    assert lr_rate(4, OptimConfig(layer_decay=0.5, schedule="constant"), 16, 100, below_top=1) == 5 / 16
    cosine = OptimConfig(layer_decay=0.5, layer_warmup=True)
    assert lr_rate(54, cosine, 16, 100, below_top=1) == pytest.approx(0.5)  # half-way between 8 and 100


def test_the_schedule_applies_to_each_group(net):
    config = OptimConfig(layer_decay=0.5, layer_decay_end=1.0, schedule="constant", learning_rate=1.0)
    optimizer = build_optimizer(net, config)
    set_learning_rates(optimizer, config, 0, 0, 4)
    start = {group["below_top"]: group["lr"] for group in optimizer.param_groups}
    assert start == {0: 1.0, 1: 0.5, 2: 0.25, 3: 0.125}
    set_learning_rates(optimizer, config, 4, 0, 4)
    assert all(group["lr"] == pytest.approx(1.0) for group in optimizer.param_groups)
