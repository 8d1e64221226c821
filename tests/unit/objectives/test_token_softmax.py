"""A density for signals and a softmax for tokens in one model: loss and scores."""

import pytest
import torch
import torch.nn.functional as F

from nextembed.core.objective import PretrainingModel
from nextembed.errors import ConfigError
from nextembed.models.omni import OmniConfig, OmniForPreTraining, OmniProcessor
from nextembed.models.omni.generation import code_scores, log_likelihoods
from nextembed.objectives.next_embedding import NextEmbeddingSettings

MODALITIES = {"text": {}, "touch": {"kind": "series", "patch_size": 2}}


def small() -> OmniForPreTraining:
    torch.manual_seed(0)
    config = OmniConfig(modalities=MODALITIES, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, layerscale_value=0.5, density="mixture", num_components=2)  # fmt: skip
    model = OmniForPreTraining(config).eval()
    model.processor = OmniProcessor(MODALITIES)
    return model


def test_the_loss_is_cross_entropy_of_tokens_and_likelihood_of_signals() -> None:
    model = small()
    objective = NextEmbeddingSettings(distance="vocabulary").build(model)
    touch = {"touch": torch.randn(1, 6, generator=torch.Generator().manual_seed(0))}
    inputs = model.processor([[touch, "hot"]], end=True)
    with torch.no_grad():
        loss = objective(model, inputs).loss_sum
        z = model.embed(inputs).z
        hidden = model.encode(model.embed(inputs)).last[:, :-1]
        signal = -model.density_head(hidden).log_prob(z[:, 1:])
        table = torch.cat((model.model.begin.weight, model.model.modality("text").table.weight))
        cosines = F.normalize(hidden, dim=-1) @ F.normalize(table, dim=-1).T
        codes = torch.where(inputs["kinds"] == 1, inputs["input_ids"], inputs["input_ids"] + 3)[:, 1:]
        token = F.cross_entropy((cosines * model.log_scale.exp()).mT, codes, reduction="none")
        touched = inputs["kinds"][:, 1:] == 3
    assert int(touched.sum()) == 3
    assert torch.allclose(loss, torch.where(touched, signal, token).sum(), atol=1e-4)


def test_scores_match_the_training_objective_also_after_saving(tmp_path) -> None:
    model = small()
    hidden, table = torch.randn(2, 32), model.model.begin.weight
    by_density = code_scores(model, hidden, table)
    PretrainingModel(model, NextEmbeddingSettings(distance="vocabulary").build(model))
    assert not torch.allclose(by_density, code_scores(model, hidden, table), atol=1e-2)
    model.save_pretrained(tmp_path)
    loaded = OmniForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(code_scores(loaded, hidden, loaded.model.begin.weight), code_scores(model, hidden, table))
    inputs = model.processor([["hot"]], end=True)
    with torch.no_grad():
        found = log_likelihoods(model, inputs)[0, 1:]
        assert (found < 0).all()  # log-probabilities; log densities may be positive
        PretrainingModel(model, NextEmbeddingSettings(distance="likelihood").build(model))
        assert torch.allclose(code_scores(model, hidden, table), by_density)


def test_other_distances_do_not_train_a_density() -> None:
    with pytest.raises(ConfigError, match="likelihood or vocabulary"):
        NextEmbeddingSettings(distance="cosine").build(small())
