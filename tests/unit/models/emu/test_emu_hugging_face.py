"""Requirements of Hugging Face tools: tuples, deprecated names, hidden states, resized vocabularies, embeddings."""

import pytest
import torch
from test_emu_model import LANGUAGES, VOCABULARY, batch, build, labels_of
from transformers import DynamicCache

from nextembed.models.emu import EmuForConditionalGeneration


@torch.no_grad()
def test_tuples_have_the_same_values():
    model, inputs = build(), batch()
    inputs["labels"] = labels_of(inputs["input_ids"])
    for part, given in ((model, inputs), (model.model, {n: v for n, v in inputs.items() if n != "labels"})):
        whole = part(**given, use_cache=False)
        found = part(**given, use_cache=False, return_dict=False)
        assert isinstance(found, tuple)
        for one, other in zip(whole.to_tuple(), found, strict=True):
            assert torch.equal(one, other)
    assert torch.equal(model(**inputs)[0], model(**inputs).loss)  # where Hugging Face tools expect it
    model.config.return_dict = False
    assert torch.equal(model(**inputs, use_cache=False)[0], model(**inputs, use_cache=False, return_dict=True).loss)


@torch.no_grad()
def test_a_cache_with_its_deprecated_name():
    """Continuing from a cache equals the whole sequence, for both names of the argument."""
    model = build()
    inputs = {name: value for name, value in batch().items() if name != "attention_mask"}
    ids = inputs["input_ids"][1:, -4:]  # text only
    wanted = model(ids).logits[:, -1]
    for name in ("cache", "past_key_values"):
        cache = DynamicCache(config=model.config.text_config)
        with pytest.warns(FutureWarning, match="past_key_values") if name != "cache" else torch.no_grad():
            model(ids[:, :3], use_cache=True, **{name: cache})
        assert cache.get_seq_length() == 3
        assert torch.allclose(model(ids[:, 3:], cache=cache, use_cache=True).logits[:, -1], wanted, atol=1e-5)


@torch.no_grad()
def test_hidden_states_and_attentions_of_the_language_model():
    model, inputs = build(), batch()
    model.set_attn_implementation("eager")
    found = model(**inputs, output_hidden_states=True, output_attentions=True)
    length = inputs["input_ids"].shape[1]
    assert [state.shape for state in found.hidden_states] == [(2, length, 32)] * 3
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    assert [weights.shape for weights in found.attentions] == [(2, 4, length, length)] * 2
    assert model(**inputs).hidden_states is None


@torch.no_grad()
@pytest.mark.parametrize("language", LANGUAGES)
def test_resized_vocabulary(language, tmp_path):
    model, inputs = build(language=language), batch()
    before = model(**inputs).logits
    model.resize_token_embeddings(VOCABULARY + 5)
    after = model(**inputs).logits
    assert after.shape[-1] == VOCABULARY + 5 == model.config.text_config.vocab_size
    assert torch.allclose(after[..., :VOCABULARY], before, atol=1e-5)
    tied = model.config.text_config.tie_word_embeddings
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is bool(tied)
    model.save_pretrained(tmp_path)
    assert torch.equal(EmuForConditionalGeneration.from_pretrained(tmp_path)(**inputs).logits, after)


@torch.no_grad()
def test_embeddings_instead_of_ids():
    model, inputs = build(), batch()
    mask = inputs["attention_mask"]
    embeds = model.model.embed(inputs["input_ids"], model.image_latents(inputs["pixel_values"]))
    assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask).logits, model(**inputs).logits)
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model(attention_mask=mask)
