"""Text to tokens and back, as bytes and with a tokenizer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nextembed.modalities import MODALITIES
from nextembed.modalities.text import BUNDLED, Text


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(max_size=20))
def test_bytes_round_trip(value):
    text = MODALITIES.build("text", {}, 8)
    values, coordinates, shape = text.patches(value)
    assert values.dtype == torch.int64 and values.tolist() == list(value.encode())
    assert shape == (len(values),) and coordinates.shape == (len(values), 3)
    assert coordinates[:, 0].tolist() == list(range(len(values))) and not coordinates[:, 1:].any()
    assert text.signal(values, shape) == value
    assert text.embed(values).shape == (len(values), 8)


def test_invalid_bytes_become_replacement_characters():
    assert Text(8).signal(torch.tensor([ord("a"), 0xC3])) == "a\N{REPLACEMENT CHARACTER}"


def test_tokens_round_trip_without_special_tokens(tokenizer):
    text = MODALITIES.without_weights({"text": {"vocabulary": len(tokenizer)}})["text"]
    text.tokenizer = tokenizer
    sentence = "a red apple: it's ripe"
    values, _, shape = text.patches(sentence)
    assert values.tolist() == tokenizer(sentence, add_special_tokens=False)["input_ids"]
    assert text.signal(values, shape).strip() == sentence
    assert not set(values.tolist()) & set(tokenizer.all_special_ids)
    assert text.value_size is None and text.default_shape() is None
    assert text.table.weight.device.type == "meta"


def test_latents_are_rows_of_the_table():
    text = Text(8, vocabulary=5)
    assert torch.equal(text.embed(torch.tensor([3, 0, 3])), text.table.weight[[3, 0, 3]])
    assert len(Text(8).table.weight) == 256


@pytest.mark.parametrize("value", [3, None, b"ab", ["a"]])
def test_invalid_text(value):
    with pytest.raises(ValueError, match="text is a str, not"):
        Text(8).patches(value)


@pytest.mark.parametrize("vocabulary", [1, "words", 2.5, None])
def test_invalid_vocabularies(vocabulary):
    with pytest.raises(ValueError, match="'bytes' or a number of tokens"):
        Text(8, vocabulary)
