"""The feed-forward layer in parts gives the same; who watches its modules sees one call."""

import pytest
import torch

from nextembed.models.nepa.configuration_nepa import ViTNepaConfig
from nextembed.nn.linear import MANY_ROWS
from nextembed.nn.transformer import TransformerLayer

NUM_LATENTS = 33
ROTARY = torch.ones(NUM_LATENTS, 1, 4), torch.zeros(NUM_LATENTS, 1, 4)


def make_layer(**changes):
    torch.manual_seed(0)
    config = ViTNepaConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16, **changes)
    config._attn_implementation = "sdpa"
    layer = TransformerLayer(config).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.fixture
def calls(monkeypatch):
    """How many rows each call of the feed-forward layer got."""
    seen = []
    real = TransformerLayer.feed_forward

    def counted(self, hidden_states, path=None):
        seen.append(hidden_states.numel() // hidden_states.shape[-1])
        return real(self, hidden_states, path)

    monkeypatch.setattr(TransformerLayer, "feed_forward", counted)
    return seen


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("layerscale_value", [0.1, None])
def test_parts_give_the_same(calls, gated, layerscale_value):
    layer, x = make_layer(use_gated_mlp=gated, layerscale_value=layerscale_value), torch.randn(70, NUM_LATENTS, 8)
    whole = layer(x, ROTARY)
    assert calls == [70 * NUM_LATENTS]
    before = x.clone()
    with torch.no_grad():
        parts = layer(x, ROTARY)
    assert calls[1:] == [MANY_ROWS, MANY_ROWS, 70 * NUM_LATENTS - 2 * MANY_ROWS]
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(x, before)


def test_few_rows_are_one_part(calls):
    layer = make_layer()
    with torch.no_grad():
        layer(torch.randn(2, NUM_LATENTS, 8), ROTARY)
    assert calls == [2 * NUM_LATENTS]


@pytest.mark.parametrize("name", ["layernorm_after", "intermediate.up_proj", "output.dense"])
def test_a_hook_is_called_once(name):
    layer, seen = make_layer(), []
    layer.get_submodule(name).register_forward_hook(lambda module, given, out: seen.append(out.shape[:-1]))
    with torch.no_grad():
        layer(torch.randn(70, NUM_LATENTS, 8), ROTARY)
    assert seen == [(70, NUM_LATENTS)]


def test_dropout_of_a_layer_in_training_is_drawn_at_once(calls):
    layer = make_layer(hidden_dropout_prob=0.5).train()
    with torch.no_grad():
        layer(torch.randn(70, NUM_LATENTS, 8), ROTARY)
    assert calls == [70 * NUM_LATENTS]
