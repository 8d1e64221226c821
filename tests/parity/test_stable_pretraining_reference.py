"""Converted weights of stable-pretraining's NEPA give the results of its own class; see the README there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nextembed.errors import ConfigError
from nextembed.models.conversion import from_stable_pretraining, plain_state, to_stable_pretraining
from nextembed.models.nepa import ViTNepaConfig
from nextembed.models.nepa_spt import SptNepaConfig, SptNepaForPreTraining
from nextembed.nn.losses import next_embedding

FOLDER = Path(__file__).parent / "reference" / "stable_pretraining"
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["gated", "gelu"])
def variant(request):
    return FOLDER / request.param


@pytest.fixture(scope="module")
def model(variant):
    _, state = plain_state({f"model.{n}": t for n, t in load_file(variant / "model.safetensors").items()})
    config, ours = from_stable_pretraining(state, image_size=24)
    net = SptNepaForPreTraining(config)
    net.load_state_dict(ours)
    return net.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", ["full", "causal"])
@pytest.mark.parametrize("size", ["24x24", "16x32"])
def test_hidden_states(model, variant, size, mode, attention):
    expected = load_file(variant / "io.safetensors")
    model.set_attn_implementation(attention)
    with torch.no_grad():
        out = model(expected[f"pixel_values.{size}"], is_causal=mode == "causal").last_hidden_state
    assert (out[:, 1:] - expected[f"{mode}.{size}"]).abs().max() <= TOLERANCE
    assert torch.isfinite(out).all()


def test_loss_equals_theirs_without_the_prediction_of_the_begin_token(model, variant):
    expected = load_file(variant / "io.safetensors")
    with torch.no_grad():
        out = model(expected["pixel_values.24x24"], is_causal=True)
    loss_sum, num = next_embedding(out.last_hidden_state[:, 1:], out.input_embedding[:, 1:])
    assert abs(loss_sum / num - expected["loss.24x24"]).item() <= TOLERANCE


def test_the_reverse_conversion_is_exact(model, variant):
    arguments, state = to_stable_pretraining(model.config, model.state_dict())
    theirs = load_file(variant / "model.safetensors")
    assert state.keys() == theirs.keys()
    assert all(torch.equal(state[name], theirs[name]) for name in theirs)
    given = json.loads((variant / "arguments.json").read_text())
    assert {name: arguments[name] for name in given if name in arguments} == {
        name: value for name, value in given.items() if name in arguments
    }


def test_unsupported_models_are_rejected(model):
    with pytest.raises(ConfigError, match="begin token"):
        to_stable_pretraining(ViTNepaConfig(), {})
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=10)
    other = SptNepaConfig(**sizes, image_size=8, patch_size=4, layer_norm_eps=1e-12)
    with pytest.raises(ConfigError, match="layer_norm_eps 1e-05"):
        to_stable_pretraining(other, SptNepaForPreTraining(other).state_dict())
    if model.config.use_gated_mlp:
        state = model.state_dict()
        state["vit_nepa.encoder.layer.1.output.dense.bias"] = torch.ones(32)
        with pytest.raises(ConfigError, match="no biases"):
            to_stable_pretraining(model.config, state)


def test_additive_positions_and_unknown_weights_are_rejected(variant):
    state = load_file(variant / "model.safetensors")
    with pytest.raises(ConfigError, match="additive positions"):
        from_stable_pretraining(state | {"pos_embed": torch.zeros(1, 36, 32)})
    with pytest.raises(ConfigError, match=r"blocks\.0\.attn\.gate"):
        from_stable_pretraining(state | {"blocks.0.attn.gate": torch.zeros(1)})
