"""Emu's regression head as a flow: loss by hand, sampling, saving, errors."""

import pytest
import torch
from test_emu_objective import batch_of, document, parts, picture

from nextembed.core.objective import PretrainingModel
from nextembed.core.randomness import drawn_by, normal, seeds_within
from nextembed.errors import ConfigError
from nextembed.models.emu import EmuForConditionalGeneration
from nextembed.models.emu.mixed import Writing, generate_document
from nextembed.models.emu.official import to_official
from nextembed.nn.latent_flow import NOISE, LatentFlow, LatentSampling
from nextembed.objectives import EmuSettings

FLOW = EmuSettings(regression="flow")


@pytest.fixture
def processor():
    return parts().processor()


@pytest.fixture
def batch(processor):
    documents = [document(picture(1), "an apple"), document("two pears:", picture(2), picture(3)), document("a word")]
    return batch_of([processor.encode_document(one) for one in documents])


@pytest.fixture
def model(batch):
    """A model with a measured flow head and random weights, since a new head predicts zero."""
    torch.manual_seed(0)
    model = parts().build().eval()
    objective = FLOW.build(model)
    assert objective.prepare(model, [batch])
    for parameter in model.regression_head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_the_loss_follows_the_flow_matching_formula(model, batch):
    """|x - e - v|^2 / D at x_t = (1 - t) e + t x with standardised x, derived by hand from the sample seeds."""
    seeds = torch.tensor([5, 6, 7])
    with drawn_by(seeds):
        out = FLOW.build(model)(model, batch)
    head, mask = model.regression_head, batch["regression_mask"][:, 1:]
    embeds = model.model.embed(batch["input_ids"], model.image_latents(batch["pixel_values"]))
    hidden = model.model(inputs_embeds=embeds, document_ids=batch["document_ids"],
                         position_ids=batch["position_ids"]).last_hidden_state[:, :-1][mask]  # fmt: skip
    x = (embeds[:, 1:][mask] - head.center) / head.spread
    with drawn_by(seeds), drawn_by(seeds_within(mask.nonzero()[:, 0])):
        noise = normal(len(x), 4 * (48 + 1), NOISE, x.device).view(len(x), 4, 49)
    total = 0.0
    for row in range(len(x)):
        for draw in range(4):
            e, t = noise[row, draw, :48], torch.special.ndtr(noise[row, draw, 48])
            at = (1 - t) * e + t * x[row]
            found = head.flow.network(at[None], hidden[row][None], t[None])[0]
            velocity = (found - at) / max(float(1 - t), 0.05)
            total += float((x[row] - e - velocity).detach().square().mean()) / 4
    assert out.num_targets[1] == len(x) == 15
    assert float(out.loss_sum[1].detach()) == pytest.approx(total, rel=1e-4)


def test_the_loss_of_a_sample_does_not_depend_on_its_batch(model, batch, processor):
    objective, seeds = FLOW.build(model), torch.tensor([5, 6, 7])
    with drawn_by(seeds):
        whole = objective(model, batch)
    rows, pixels = [slice(0, 1), slice(1, 3)], batch["pixel_values"].split([1, 2])
    sums, counts = torch.zeros(2), torch.zeros(2)
    for row, images in zip(rows, pixels, strict=True):
        part = {name: value[row] for name, value in batch.items() if name != "pixel_values"}
        with drawn_by(seeds[row]):
            out = objective(model, {**part, "pixel_values": images})
        sums, counts = sums + out.loss_sum, counts + out.num_targets
    assert torch.allclose(sums, whole.loss_sum, rtol=1e-4) and torch.equal(counts, whole.num_targets.float())


def test_latents_are_standardised(model, batch):
    latents = model.image_latents(batch["pixel_values"]).flatten(0, 1)
    assert torch.allclose(model.regression_head.center, latents.mean(0), atol=1e-5)
    assert torch.allclose(model.regression_head.spread, latents.std(0, correction=0), atol=1e-5)
    nothing = LatentFlow(48)
    assert not nothing.measure(latents[None, :0]) and not nothing.measured


@torch.no_grad()
def test_samples_depend_on_the_seed(model, processor):
    prompts = processor([["an apple"], [picture(1), "the same"]])
    first = model.generate_image_embeddings(**prompts, seed=3)
    assert first.shape == (2, 4, 48) and torch.equal(first, model.generate_image_embeddings(**prompts, seed=3))
    assert (first - model.generate_image_embeddings(**prompts, seed=4)).abs().max() > 1e-2
    one = model.generate_image_embeddings(**processor(["an apple"]), seed=3)
    assert torch.allclose(one, first[:1], atol=1e-4)  # independent of the rest of the batch
    assert torch.equal(first, model.generate_image_embeddings(**prompts, seed=[3, 3]))
    cold = [model.generate_image_embeddings(**prompts, sampling=LatentSampling(0.0), seed=seed) for seed in (3, 4)]
    assert torch.equal(*cold)


@torch.no_grad()
def test_guidance_uses_an_empty_prompt(model, processor):
    prompt, led = processor(["an apple"]), LatentSampling(guidance=2.0)
    plain, guided = (model.generate_image_embeddings(**prompt, sampling=how) for how in (None, led))
    assert (plain - guided).abs().max() > 1e-3
    alone = model.generate_image_embeddings(**prompt, sampling=LatentSampling(guidance=0.0))
    empty = model.generate_image_embeddings(**prompt, guidance=True)[1:]
    assert torch.allclose(alone, empty, atol=1e-4)  # at guidance 0 the prompt has no effect
    pair = model.generate_image_embeddings(**prompt, guidance=True, sampling=led, seed=9)
    assert torch.allclose(pair[1:], empty, atol=1e-5)  # deterministic, as the decoder was trained
    for how, wanted in ((None, plain), (led, guided)):
        (made,) = generate_document(model, processor, ["an apple"], Writing(begin_image=True, max_new_tokens=0,
                                                                             sampling=how))  # fmt: skip
        assert torch.allclose(made.latents, wanted[0], atol=1e-4)


def test_it_is_saved_with_the_model(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = EmuForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert loaded.config.regression_head == "flow" and loaded.regression_head.measured
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    prompt = processor(["an apple"])
    assert torch.equal(model.generate_image_embeddings(**prompt), loaded.generate_image_embeddings(**prompt))
    assert FLOW.build(loaded).prepare(loaded, []) and torch.equal(loaded.regression_head.center,
                                                                  model.regression_head.center)  # fmt: skip
    half = loaded.bfloat16().generate_image_embeddings(**prompt)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def test_all_parameters_get_gradients_and_the_model_has_its_own_loss(batch):
    torch.manual_seed(0)
    model = parts().build()
    made = PretrainingModel(model, FLOW.build(model))
    out = made.objective(model, batch)
    out.loss_sum.sum().backward()
    assert all(p.grad is not None for p in model.regression_head.parameters())
    own = model(batch["input_ids"], batch["pixel_values"], (batch["document_ids"] > 0).long())
    assert own.loss is None
    own = model(batch["input_ids"], batch["pixel_values"], (batch["document_ids"] > 0).long(), labels=batch["labels"])
    assert own.regression_loss.isfinite() and own.regression_pred.shape == (15, 48)


def test_errors_without_a_flow_head(model, processor):
    plain = parts().build()
    assert plain.config.regression_head == "linear" and set(plain.regression_head.state_dict()) == {"weight"}
    with pytest.raises(ConfigError, match=r"need a model that draws its image latents \(objective\.regression=flow\)"):
        plain.generate_image_embeddings(**processor(["an apple"]), sampling=LatentSampling(0.5))
    with pytest.raises(ConfigError, match="need a model that draws"):
        generate_document(plain, processor, ["an apple"], Writing(sampling=LatentSampling(guidance=2.0)))
    with pytest.raises(ConfigError, match=r"is a flow; set objective\.regression=flow"):
        EmuSettings().build(model)
    EmuSettings(regression_weight=0.0).build(model)  # text only: the head is not used
    with pytest.raises(ConfigError, match="distance=cosine has no effect"):
        EmuSettings(regression="flow", distance="cosine")
    with pytest.raises(ConfigError, match="the released layout has no place for 'regression_head"):
        to_official("regression_head.center", model.regression_head.center)
    with pytest.raises(ConfigError, match="2 seeds for 1 images"):
        model.generate_image_embeddings(**processor(["an apple"]), seed=[1, 2])
    with pytest.raises(ValueError, match="regression_head is one of linear, flow"):
        type(model.config)(regression_head="curve")
