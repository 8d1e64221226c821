"""Emu's loss with two heads: counts, gradients, and agreement with the model's own loss."""

import copy

import pytest
import torch

from nextembed.core.objective import OBJECTIVES
from nextembed.errors import ConfigError
from nextembed.models.emu import EmuForConditionalGeneration, EmuParts
from nextembed.objectives import EmuSettings
from nextembed.objectives.emu import CHUNK

VISION = {"model_type": "vit_nepa", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 48, "image_size": 16, "patch_size": 8}  # fmt: skip
LANGUAGE = {"model_type": "llama", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "vocab_size": 300, "max_position_embeddings": 256}  # fmt: skip
FORMER = {"d_model": 24, "d_kv": 8, "num_heads": 3, "d_ff": 32, "num_layers": 2, "dropout_rate": 0.0}


def parts(**changes):
    return EmuParts(**{"vision_config": VISION, "language_config": LANGUAGE, "tokenizer": "bundled",
                       "num_image_latents": 4, "causal_former": FORMER, **changes})  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return parts().build().eval()


@pytest.fixture(scope="module")
def processor():
    return parts().processor()


def picture(seed):
    return torch.randint(0, 256, (3, 20, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def document(*pieces):
    segments = [{"kind": "text", "value": p} if isinstance(p, str) else {"kind": "image", "value": p} for p in pieces]
    return {"key": "", "segments": segments}


def batch_of(encoded, length=64):
    """A batch with one document per row."""
    rows = {"input_ids": 0, "labels": -100, "regression_mask": False, "document_ids": 0, "position_ids": 0}
    batch = {name: torch.full((len(encoded), length), fill) for name, fill in rows.items()}
    for row, one in enumerate(encoded):
        num = len(one.positions["input_ids"])
        for name in ("input_ids", "labels", "regression_mask"):
            batch[name][row, :num] = one.positions[name]
        batch["document_ids"][row, :num] = 1
        batch["position_ids"][row, :num] = torch.arange(num)
    return batch | {"pixel_values": torch.cat([one.values["pixel_values"] for one in encoded])}


@pytest.fixture
def batch(processor):
    documents = [document(picture(1), "an apple"), document("two pears:", picture(2), picture(3)), document("a word")]
    return batch_of([processor.encode_document(one) for one in documents])


def test_equals_the_model_s_own_loss(model, batch):
    out = EmuSettings(regression_weight=0.5).build(model)(model, batch)
    own = model(batch["input_ids"], batch["pixel_values"], (batch["document_ids"] > 0).long(), labels=batch["labels"],
                regression_mask=batch["regression_mask"])  # fmt: skip
    text, regression = out.loss_sum / out.num_targets
    assert torch.allclose(text, own.text_loss, atol=1e-5)
    assert torch.allclose(regression, 0.5 * own.regression_loss, atol=1e-5)


def test_counts_are_known_before_the_forward_pass(model, batch):
    objective = EmuSettings().build(model)
    counts = objective.count_targets(batch)
    assert counts.tolist() == objective(model, batch).num_targets.tolist()
    assert counts[1] == 3 * 5  # three images, each with four latents and the closing token


def test_every_part_gets_gradients_from_the_sum(model, batch):
    objective = EmuSettings().build(model)
    model.zero_grad()
    out = objective(model, batch)
    (out.loss_sum / out.num_targets).sum().backward()
    for part in ("model.visual", "model.visual_norm", "model.connector", "model.language_model", "regression_head"):
        grads = [p.grad for name, p in model.named_parameters() if name.startswith(part + ".")]
        assert any(g is not None and g.abs().max() > 0 for g in grads), part
    assert model.get_output_embeddings().weight.grad.abs().max() > 0


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_a_term_of_weight_zero_gives_no_gradient(model, batch, weights):
    model.zero_grad()
    out = EmuSettings(text_weight=weights[0], regression_weight=weights[1]).build(model)(model, batch)
    out.loss_sum.sum().backward()
    text, latents = model.get_output_embeddings().weight.grad, model.regression_head.weight.grad
    assert (text.abs().max() > 0) == (weights[0] > 0) and (latents.abs().max() > 0) == (weights[1] > 0)


def test_targets_are_detached_by_default(model, processor):
    """Without text and the last regression pair, the last latent is only a target."""
    encoded = processor.encode_document(document(picture(1)), end=False)
    only_last = torch.zeros_like(encoded.positions["regression_mask"])
    only_last[encoded.positions["input_ids"] == processor.ids["<image>"]] = True
    batch = batch_of([encoded._replace(positions=encoded.positions | {"regression_mask": only_last})], length=8)
    grads = {}
    for detach in (True, False):
        latents = model.image_latents(batch["pixel_values"]).detach().requires_grad_()
        inner = model.image_latents
        model.image_latents = lambda pixels, found=latents: found
        try:
            out = EmuSettings(detach_targets=detach).build(model)(model, batch)
            out.loss_sum.sum().backward()
        finally:
            model.image_latents = inner
        grads[detach] = latents.grad[0]
    assert grads[True][-1].abs().max() == 0  # not an input of any prediction in the loss
    assert grads[False][-1].abs().max() > 0
    assert grads[True][0].abs().max() > 0  # an input of later predictions


def test_text_alone_and_images_alone(model, processor):
    objective = EmuSettings().build(model)
    words = objective(model, batch_of([processor.encode_document(document("only words here"))]))
    assert words.num_targets[1] == 0 and words.loss_sum[1] == 0 and words.loss_sum[0] > 0
    image = processor.encode_document(document(picture(1)), end=False)
    images = objective(model, batch_of([image]))
    assert images.num_targets[0] == 0 and images.loss_sum[1] > 0
    assert torch.isfinite(images.loss_sum).all()


def test_many_targets_are_scored_in_chunks(model, batch):
    objective = EmuSettings().build(model)
    num = CHUNK + 7
    model = copy.deepcopy(model).double()  # in float32, results depend on the chunking through rounding
    hidden = torch.randn(num, 48, requires_grad=True, dtype=torch.float64)
    tokens = torch.randint(0, 300, (num,))
    total, count, right = objective.text_term(model, hidden, tokens)
    total.backward()
    chunked, hidden.grad = hidden.grad, None
    logits = model.text_logits(hidden)
    whole = torch.nn.functional.cross_entropy(logits.float(), tokens, reduction="sum")
    whole.backward()
    assert torch.allclose(total, whole) and torch.allclose(chunked, hidden.grad, atol=1e-6)
    assert count == num and right == (logits.argmax(-1) == tokens).sum()


def test_diagnostics_are_those_of_the_latents(model, batch):
    objective = EmuSettings().build(model)
    metrics = objective(model, batch).metrics
    assert {"text_loss", "text_accuracy", "regression_loss", "cos_next", "latent_rank", "copy_win"} <= metrics.keys()
    objective.diagnose = False
    assert objective(model, batch).metrics == {}


def test_invalid_settings(model):
    with pytest.raises(ConfigError, match="both 0"):
        EmuSettings(text_weight=0, regression_weight=0).build(model)
    with pytest.raises(ConfigError, match=r"model\.kind=emu"):
        EmuSettings().build(model.model.visual)
    assert OBJECTIVES.find("emu") is EmuSettings


def test_model_round_trip(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = parts(pretrained=str(tmp_path), vision_config={}, language_config={})
    loaded = again.build()
    assert isinstance(loaded, EmuForConditionalGeneration)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    again.processor().check(loaded.config)


def test_parts_keep_their_weights(tmp_path):
    torch.manual_seed(1)
    first = parts().build()
    first.model.visual.save_pretrained(tmp_path / "vision")
    first.model.language_model.save_pretrained(tmp_path / "language")
    second = parts(vision=str(tmp_path / "vision"), language=str(tmp_path / "language"), vision_config={},
                   language_config={}).build()  # fmt: skip
    for part in ("visual", "language_model"):
        old, new = (getattr(m.model, part).state_dict() for m in (first, second))
        assert all(torch.equal(old[name], new[name]) for name in old), part


def test_packed_documents_do_not_see_each_other(model):
    ids, documents = torch.randint(0, 290, (1, 12)), torch.tensor([[1] * 5 + [2] * 5 + [0] * 2])
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    hidden = model.model(inputs_embeds=embeds, document_ids=documents).last_hidden_state
    hidden[0, 7].sum().backward()
    seen = embeds.grad[0].abs().sum(-1) > 0
    assert seen.tolist() == [False] * 5 + [True] * 3 + [False] * 4
    alone = model.model(inputs_embeds=embeds[:, 5:10]).last_hidden_state
    assert torch.allclose(alone, hidden[:, 5:10], atol=1e-5)


def test_a_part_without_a_name_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="vision"):
        EmuParts(language_config=LANGUAGE)
    with pytest.raises(ConfigError, match=r"model\.vision: no such run"):
        parts(vision="no/such/folder", vision_config={}).build()
    with pytest.raises(ConfigError, match="has no setting 'colour'"):
        first = parts().build()
        first.model.visual.save_pretrained(tmp_path)
        parts(vision=str(tmp_path), vision_config={"colour": 1}).build()
