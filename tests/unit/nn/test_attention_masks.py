"""Attention masks are equivalent for every implementation."""

from types import SimpleNamespace

import pytest
import torch

from nextembed.core.types import Blocks, Prefix
from nextembed.errors import ConfigError
from nextembed.nn.masks import attention_arguments

NUM = 6
ASKS, SEES = torch.arange(NUM)[:, None], torch.arange(NUM)[None]
DOCUMENTS = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
IDS = torch.tensor([[0, 0, 1, 2, 2, 1], [3, 2, 1, 0, 0, 0]])
LENGTHS = torch.tensor([0, 4])
CASES = {
    "causal": ("causal", (SEES <= ASKS).expand(2, -1, -1)),
    "full": ("full", torch.ones(2, NUM, NUM, dtype=torch.bool)),
    "prefix": (Prefix(LENGTHS), (SEES <= ASKS) | (LENGTHS[:, None, None] > SEES)),
    "blocks": (Blocks(IDS), IDS[:, None, :] <= IDS[:, :, None]),
}


def seen(kind, attention, documents=None, past=0):
    """The mask [2, T, S], bool, from `attention_arguments`."""
    z = torch.zeros(2, NUM - past, 4)
    found = attention_arguments(attention, z, SimpleNamespace(_attn_implementation=kind), documents, past)
    mask = found["attention_mask"]
    if mask is None:
        return (
            (SEES <= ASKS).expand(2, -1, -1)[:, past:] if found["is_causal"] else torch.ones(2, NUM - past, NUM).bool()
        )
    if kind == "flex_attention":
        b, i, j = torch.meshgrid(torch.arange(2), torch.arange(NUM - past), torch.arange(NUM), indexing="ij")
        return mask.mask_mod(b, torch.zeros_like(b), i, j)
    if mask.dtype == torch.int64:  # document ids; test_document_attention.py compares them with the mask
        documents = mask[:, 0, 0]
        return (documents[:, :, None] == documents[:, None, :]) & (SEES <= ASKS)
    return mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["eager", "sdpa", "flex_attention"])
def test_masks(kind, name, packed):
    attention, expected = CASES[name]
    if packed:
        expected = expected & (DOCUMENTS[:, None] == DOCUMENTS[:, :, None])
    assert torch.equal(seen(kind, attention, DOCUMENTS if packed else None), expected)


@pytest.mark.parametrize("past", [2, 5])
@pytest.mark.parametrize("name", ["causal", "full"])
@pytest.mark.parametrize("kind", ["eager", "sdpa", "flex_attention"])
def test_masks_with_a_cache(kind, name, past):
    attention, expected = CASES[name]
    if past == NUM - 1 and kind == "sdpa" and name == "causal":
        found = attention_arguments(
            attention, torch.zeros(2, 1, 4), SimpleNamespace(_attn_implementation=kind), None, 5
        )
        assert found == {
            "attention_mask": None,
            "is_causal": True,
        }  # a single latent: transformers drops the flag
        return
    assert torch.equal(seen(kind, attention, None, past), expected[:, past:])
    packed = expected & (DOCUMENTS[:, None] == DOCUMENTS[:, :, None])
    assert torch.equal(seen(kind, attention, DOCUMENTS, past), packed[:, past:])


def test_flash_attention_gets_document_boundaries():
    config = SimpleNamespace(_attn_implementation="flash_attention_2")
    found = attention_arguments("causal", torch.zeros(2, NUM, 4), config, DOCUMENTS)
    assert found["attention_mask"] is None and found["is_causal"]
    assert found["cu_seq_lens_q"].tolist() == [0, 2, 5, 6, 12] and found["cu_seq_lens_q"].dtype == torch.int32
    assert found["max_length_k"] == 6
    with pytest.raises(ConfigError, match=r"attn_implementation=flash_attention_2 has no such mask"):
        attention_arguments(Prefix(LENGTHS), torch.zeros(2, NUM, 4), config)
