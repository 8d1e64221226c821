"""Emu with a dropped context, as guidance requires, and with noise on its input latents."""

import copy

import pytest
import torch
from test_emu_objective import batch_of, document, parts, picture

from nextembed.core.randomness import drawn_by
from nextembed.errors import ConfigError
from nextembed.objectives import EmuSettings


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return parts().build().eval()


@pytest.fixture(scope="module")
def processor():
    return parts().processor()


def test_dropped_positions(processor):
    """In a share of the documents, everything before the last [IMG] is dropped; without images, nothing is."""
    encoded = processor.encode_document(document("two pears:", picture(2), picture(3), "x")).positions
    ids, start = encoded["input_ids"], processor.tokenizer.convert_tokens_to_ids("[IMG]")
    last = int((ids == start).nonzero()[-1])
    settings, found = EmuSettings(context_drop_rate=0.5), []
    for seed in range(40):
        dropped = settings.draw(encoded, torch.Generator().manual_seed(seed))["context_dropped"]
        assert dropped.tolist() in ([False] * len(ids), [True] * last + [False] * (len(ids) - last))
        found.append(bool(dropped.any()))
    assert 10 <= sum(found) <= 30
    text = processor.encode_document(document("a word")).positions
    always = EmuSettings(context_drop_rate=0.999)
    assert not always.draw(text, torch.Generator().manual_seed(0))["context_dropped"].any()
    assert EmuSettings().draw(encoded, torch.Generator()) == {}


def test_a_dropped_context_equals_an_empty_prompt(model, processor):
    settings = EmuSettings(context_drop_rate=0.999, text_weight=0)
    texts = [document("two pears:", picture(2)), document("two pears:", picture(2))]
    encoded = [processor.encode_document(one) for one in texts]
    batch, empty = batch_of(encoded), batch_of([processor.encode_document(document(picture(2)))] * 2)
    dropped = [settings.draw(one.positions, torch.Generator().manual_seed(1))["context_dropped"] for one in encoded]
    batch["context_dropped"] = torch.zeros(2, 64, dtype=torch.bool)
    for row, one in enumerate(dropped):
        batch["context_dropped"][row, : len(one)] = one
    objective = settings.build(model)
    without, with_it = objective(model, batch), EmuSettings(text_weight=0).build(model)(model, batch_of(encoded))
    expected = objective(model, empty)
    assert torch.equal(without.num_targets, with_it.num_targets)
    assert torch.allclose(without.loss_sum, expected.loss_sum, rtol=1e-5)
    assert not torch.allclose(without.loss_sum, with_it.loss_sum, rtol=1e-3)
    # packed: both documents in one row
    length = len(encoded[0].positions["input_ids"])
    packed = {name: part[:1].clone() for name, part in batch.items() if name != "pixel_values"}
    for name, part in batch.items():
        if name != "pixel_values":
            packed[name][0, length : 2 * length] = part[1, :length] * (2 if name == "document_ids" else 1)
    found = objective(model, {**packed, "pixel_values": batch["pixel_values"]})
    assert torch.allclose(found.loss_sum, without.loss_sum, rtol=1e-5)


def test_noise_is_added_to_inputs_in_training_and_never_to_targets(model, processor):
    batch = batch_of([processor.encode_document(document(picture(1), "an apple"))])
    objective = EmuSettings(latent_noise=1.0, distance="mse").build(model)
    plain, seeds = EmuSettings().build(model)(model, batch), torch.tensor([3])
    assert torch.equal(objective.eval()(model, batch).loss_sum, plain.loss_sum)
    objective.train()
    with drawn_by(seeds):
        first, again = objective(model, batch), objective(model, batch)
    assert torch.equal(first.loss_sum, again.loss_sum) and not torch.equal(first.loss_sum, plain.loss_sum)
    seen = {}
    hook = model.model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with drawn_by(seeds):
        objective(model, batch)
    hook.remove()
    clean = model.model.embed(batch["input_ids"], model.image_latents(batch["pixel_values"]))
    moved = (seen["inputs_embeds"] != clean).any(-1)
    assert torch.equal(moved, batch["input_ids"] == model.config.image_token_id)


def test_kernels_without_a_mask_are_an_error(model):
    flash = copy.deepcopy(model.config)
    flash.text_config._attn_implementation = "flash_attention_2"
    other = copy.copy(model)
    other.config = flash
    with pytest.raises(ConfigError, match="context_drop_rate needs a mask, which attention flash_attention_2"):
        EmuSettings(context_drop_rate=0.1).build(other)
