"""Guidance: sampling extrapolates away from the unconditional prediction; both share one cache."""

import pytest
import torch

from nextembed.core.objective import PretrainingModel
from nextembed.errors import ConfigError
from nextembed.models.omni import OmniConfig, OmniForPreTraining, OmniProcessor
from nextembed.models.omni.generation import Rollout
from nextembed.objectives.next_embedding import NextEmbeddingSettings

BOUNDARY = {"text": {}, "image": {"image_size": 8, "patch_size": 4}}


def small(density: str) -> OmniForPreTraining:
    torch.manual_seed(0)
    model = OmniForPreTraining(OmniConfig(modalities=BOUNDARY, hidden_size=32, num_hidden_layers=2,
                               num_attention_heads=2, intermediate_size=48, layerscale_value=1.0, density=density,
                               token_softmax=True))  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(1 if "density" in name else 8)
        if model.density_head is not None:
            for parameter in model.density_head.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.processor = OmniProcessor(BOUNDARY)
    return model.eval()


@pytest.mark.parametrize("density", ["none", "flow", "energy"])
def test_gradients_are_finite_without_context(density: str) -> None:
    """A row whose documents all lose their context, in a deep model with LayerScale."""
    torch.manual_seed(0)
    model = OmniForPreTraining(OmniConfig(modalities=BOUNDARY, hidden_size=32, num_hidden_layers=8,
                               num_attention_heads=2, intermediate_size=48, layerscale_value=0.1, density=density,
                               token_softmax=True))  # fmt: skip
    model.processor = OmniProcessor(BOUNDARY)
    objective = NextEmbeddingSettings(distance="vocabulary", context_drop_rate=0.999).build(model)
    batch = model.processor([["a dog", torch.zeros(3, 8, 8, dtype=torch.uint8)]])
    first = int((batch["kinds"][0] == 1).nonzero()[1])
    hidden = torch.arange(batch["kinds"].shape[1])[None] < first
    batch |= {"input_mask": hidden, "latent_mask": batch["latent_mask"] & (batch["kinds"] > 1) & ~hidden}
    out = PretrainingModel(model, objective).train()(batch)
    out.loss_sum.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert 0 < sum(float(g.square().sum()) for g in gradients) < 1e12


def test_the_unconditional_pass_reads_what_ends_a_document() -> None:
    model = small("flow")
    with torch.no_grad():
        inputs = model.processor([["a red dog"], ["it"]])
        both = Rollout(model, inputs, twice=True)
        plain = Rollout(model, inputs)
        assert both.without is not None
        assert torch.allclose(both.hidden, plain.hidden, atol=1e-5)
        latents = model.embed(inputs)
        ends = model.model.begin.weight[-1].expand_as(latents.z)
        assert torch.allclose(both.without, model.encode(latents._replace(z=ends)).last[:, -1], atol=1e-5)
        for rollout in (both, plain):
            rollout.begin(1)
        assert torch.allclose(both.hidden, plain.hidden, atol=1e-5)
        assert not torch.allclose(both.without, plain.hidden, atol=1e-3)
        assert torch.equal(both.time, plain.time)


@pytest.mark.parametrize("density", ["flow", "energy"])
def test_images_depend_on_seed_temperature_and_guidance(density: str) -> None:
    model = small(density)

    def made(**options: object) -> torch.Tensor:
        found = model.generate(["a dog"], target="image", **options)
        return found.latents  # type: ignore[no-any-return]

    first = made(temperature=1.0, seed=1)
    assert torch.equal(made(temperature=1.0, seed=1), first)
    assert not torch.allclose(made(temperature=1.0, seed=2), first, atol=1e-3)
    assert not torch.allclose(made(temperature=1.0, seed=1, guidance=4.0), first, atol=1e-3)
    assert torch.equal(made(), made(seed=3))  # temperature 0 is deterministic


def test_text_can_be_guided_and_other_densities_cannot() -> None:
    model = small("flow")
    assert model.generate(["a dog"], target="text", guidance=3.0, max_latents=4) is not None
    with pytest.raises(ConfigError, match=r"support it with model\.density=flow or energy only"):
        small("mixture").generate(["a dog"], target="image", guidance=3.0)


def test_scores_of_candidates_are_finite_and_tokens_keep_their_softmax() -> None:
    model, plain = small("energy"), small("none")
    picture = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    scores = model.score(["a dog"], [[picture], [255 - picture]])
    assert scores.shape == (2,) and scores.isfinite().all() and scores[0] != scores[1]
    plain.load_state_dict(model.state_dict(), strict=False)
    said = [one.score(["a dog"], ["it", "no"]) for one in (model, plain)]
    assert torch.allclose(*said, atol=1e-5)


def test_a_dropped_context_is_neither_input_nor_target() -> None:
    settings = NextEmbeddingSettings(distance="vocabulary", context_drop_rate=0.5)
    processor = OmniProcessor(BOUNDARY)
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    segments = [{"kind": "text", "value": "a dog"}, {"kind": "image", "value": picture}]
    positions = processor.encode_document({"key": "a", "segments": segments}).positions  # type: ignore[typeddict-item]
    begin = 6  # a begin latent and five letters; the begin latent of the image is still visible
    assert int(positions["kinds"][begin]) == 1 and int(positions["kinds"][-1]) == 1
    dropped = 0
    for seed in range(60):
        drawn = settings.draw(positions, torch.Generator().manual_seed(seed))
        if bool(drawn["input_mask"].any()):
            dropped += 1
            assert drawn["input_mask"].tolist() == [True] * begin + [False] * (len(positions["kinds"]) - begin)
            assert not drawn["latent_mask"][: begin + 1].any()
            assert torch.equal(drawn["latent_mask"][begin + 1 :], positions["latent_mask"][begin + 1 :])
        else:
            assert torch.equal(drawn["latent_mask"], positions["latent_mask"])
    assert 15 <= dropped <= 45


def test_noise_is_added_only_to_continuous_latents() -> None:
    model = small("flow")
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    batch = model.processor([["a dog", picture]])
    found = model.continuous(batch)
    assert found.sum() == 4 and torch.equal(found, batch["kinds"] == 3)  # 1 begin latents, 2 letters, 3 patches
    objective = NextEmbeddingSettings(distance="vocabulary", input_noise=0.5).build(model)
    latents = model.embed(batch)
    moved = objective.train().noisy(model, latents, batch).z != latents.z
    assert torch.equal(moved.any(-1), found)
    assert objective.eval().noisy(model, latents, batch) is latents
