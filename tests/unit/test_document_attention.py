"""Attention within packed documents: computing it in blocks gives the same result as a mask over whole rows."""

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, MistralConfig, MistralModel

from nextembed.models.emu import packed
from nextembed.nn import masks
from nextembed.nn.documents import as_mask, document_attention, find_blocks
from nextembed.training.adapt import recompute_activations

ROWS = {
    "two documents and padding": [[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 2, 3, 3, 3, 3, 3]],
    "one a row": [[1] * 40, [1] * 40],
    "many lengths": [[1] * 3 + [2] * 17 + [3] * 16 + [4] * 33 + [5] * 1 + [0] * 2, [1] * 64 + [2] * 8],
    "not in a row": [[1, 2, 1, 2, 1, 0, 0, 3], [3, 3, 1, 1, 3, 1, 2, 2]],
    "padded on the left": [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
}


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["all heads", "grouped keys"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_blocks_equal_the_mask(rows: list[list[int]], heads: tuple[int, int]) -> None:
    documents = torch.tensor(rows)
    length = documents.shape[1]
    mask = documents[:, :, None] == documents[:, None, :]
    mask = (mask & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    module = torch.nn.Module()
    module.num_key_value_groups = heads[0] // heads[1]
    torch.manual_seed(0)
    inputs = [torch.randn(2, n, length, 8, requires_grad=True) for n in (heads[0], heads[1], heads[1])]
    found = []
    for given in (mask, as_mask(documents)):
        out, _ = document_attention(module, *inputs, given, scaling=0.3)
        found.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-5)


def test_blocks_by_hand() -> None:
    """Documents of 2, 1 and 17 positions: the short ones share a call, padded with their last position."""
    blocks = find_blocks(torch.tensor([[5, 5, 7] + [9] * 17]))
    assert [x.tolist() for x in blocks.rows] == [[[0, 1], [2, 2]], [list(range(3, 20))]]
    assert blocks.back.tolist() == [0, 1, 2, *range(4, 21)]


def test_a_change_in_one_document_does_not_reach_another() -> None:
    documents = torch.tensor([[1, 1, 2, 2, 2, 3, 3, 3]])
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    before, _ = document_attention(torch.nn.Module(), q, k, v, as_mask(documents))
    changed = v.clone()
    changed[:, :, 3] += 1
    after, _ = document_attention(torch.nn.Module(), q, k, changed, as_mask(documents))
    moved = (after - before).abs().sum((2, 3))[0] > 0
    assert moved.tolist() == [False, False, False, True, True, False, False, False]


def _llama(**kwargs: object) -> LlamaModel:
    torch.manual_seed(0)
    return LlamaModel(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **kwargs,
        )
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_language_model_reads_documents_in_blocks(monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    documents = torch.tensor([[1] * 5 + [2] * 20 + [3] * 5, [1] * 28 + [0] * 2])
    embeds = torch.randn(2, 30, 32, generator=torch.Generator().manual_seed(1))
    found = []
    for in_blocks in (False, True):
        monkeypatch.setattr(packed, "attends_in_blocks", lambda z, in_blocks=in_blocks: in_blocks)
        model = _llama().train()
        if checkpointing:
            recompute_activations(model)
        mask = packed.document_mask(model, documents, embeds)
        assert mask.shape == ((2, 1, 1, 30) if in_blocks else (2, 1, 30, 30))
        places = packed.positions_in_documents(documents)
        out = model(inputs_embeds=embeds, attention_mask=mask, position_ids=places, use_cache=False).last_hidden_state
        out.square().sum().backward()
        found.append((out.detach(), model.layers[0].self_attn.k_proj.weight.grad))
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_windows_keep_their_mask() -> None:
    """Sliding-window attention over the last 4 positions is not block-wise; it gets a mask over whole rows."""
    model = MistralModel(
        MistralConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            sliding_window=4,
        )
    )
    mask = packed.document_mask(model, torch.ones(1, 8, dtype=torch.int64), torch.zeros(1, 8, 32))
    assert mask.dtype == torch.bool
    assert mask[0, 0, 7].tolist() == [False] * 4 + [True] * 4


def test_only_causal_attention_on_a_cpu_uses_blocks() -> None:
    config = _llama(attn_implementation="sdpa").config
    z, documents = torch.zeros(1, 4, 8), torch.tensor([[1, 1, 2, 2]])
    assert masks.attention_arguments("causal", z, config, documents)["attention_mask"].dtype == torch.int64
    assert masks.attention_arguments("full", z, config, documents)["attention_mask"].dtype == torch.bool
    on_device = masks.attention_arguments("causal", z.to("meta"), config, documents.to("meta"))
    assert on_device["attention_mask"].shape == (1, 1, 4, 4)
