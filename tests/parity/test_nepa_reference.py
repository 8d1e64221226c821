"""NEPA agrees with the reference values in reference/nepa within the tolerance in its README."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nextembed.models.nepa import ViTNepaForPreTraining
from nextembed.objectives import NextEmbeddingSettings

FOLDER = Path(__file__).parent / "reference" / "nepa"
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["gelu", "swiglu"])
def variant(request):
    return FOLDER / request.param


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request, variant):
    return ViTNepaForPreTraining.from_pretrained(variant, attn_implementation=request.param).eval()


@pytest.fixture(scope="module")
def expected(variant):
    return load_file(variant / "io.safetensors")


def assert_equal(actual, expected, name):
    """As in the README, the largest difference is at most 1e-5 of the largest expected value."""
    assert actual.shape == expected.shape, name
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max(), name


def test_every_weight_is_loaded(variant):
    model, info = ViTNepaForPreTraining.from_pretrained(variant, output_loading_info=True)
    assert not any(info.values()), info
    assert set(model.state_dict()) == set(load_file(variant / "model.safetensors"))


def test_latents_and_hidden_states(model, expected):
    with torch.no_grad():
        out = model(expected["pixel_values"], output_hidden_states=True)
    assert_equal(out.input_embedding, expected["input_embedding"], "input_embedding")
    assert_equal(out.last_hidden_state, expected["last_hidden_state"], "last_hidden_state")
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)  # the last state is after the norm
    for i in range(1, model.config.num_hidden_layers):
        assert_equal(out.hidden_states[i], expected[f"hidden_states.{i}"], f"hidden_states.{i}")


def test_last_layer_before_the_norm(model, expected):
    seen = []
    hook = model.vit_nepa.encoder.layer[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        model(expected["pixel_values"])
    hook.remove()
    last = f"hidden_states.{model.config.num_hidden_layers}"
    assert_equal(seen[0], expected[last], last)


def test_encode_gives_the_same_layers(model, expected):
    with torch.no_grad():
        hidden = model.encode(model.embed({"pixel_values": expected["pixel_values"]}), output_layers=True)
    assert len(hidden.layers) == model.config.num_hidden_layers + 1
    assert_equal(hidden.layers[0], expected["input_embedding"], "z")
    for i in range(1, model.config.num_hidden_layers):
        assert_equal(hidden.layers[i], expected[f"hidden_states.{i}"], f"layer {i}")
    assert_equal(hidden.last, expected["last_hidden_state"], "last")


def test_loss_and_gradients(model, expected):
    model.zero_grad()
    loss = model(expected["pixel_values"]).loss
    loss.backward()
    assert abs(loss.item() - expected["loss"].item()) <= TOLERANCE
    named = {name: value for name, value in expected.items() if name.startswith("grad.")}
    assert len(named) == 4
    for name, gradient in named.items():
        assert_equal(model.get_parameter(name.removeprefix("grad.")).grad, gradient, name)


def test_objective_gives_the_same_loss_and_gradients(model, expected):
    model.zero_grad()
    pixels = expected["pixel_values"]
    out = NextEmbeddingSettings().build(model)(model, {"pixel_values": pixels, "latent_mask": torch.ones(3, 17) > 0})
    loss = out.loss_sum / out.num_targets
    loss.backward()
    assert abs(loss.item() - expected["loss"].item()) <= TOLERANCE
    for name, gradient in expected.items():
        if name.startswith("grad."):
            assert_equal(model.get_parameter(name.removeprefix("grad.")).grad, gradient, name)


def test_checkpoint_round_trip(variant, tmp_path):
    ViTNepaForPreTraining.from_pretrained(variant).save_pretrained(tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (variant, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (variant, tmp_path))
    ours = {"transformers_version", "dtype", "torch_dtype", "architectures"}
    changed = {
        name: (value, now.get(name)) for name, value in was.items() if name not in ours and now.get(name) != value
    }
    assert not changed
