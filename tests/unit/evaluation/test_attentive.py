import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nextembed.core.probe_table import ProbeTable, sentence
from nextembed.core.types import Hidden, Latents
from nextembed.errors import ConfigError
from nextembed.evaluation.probes.attentive import (
    AttentiveProbe,
    Patches,
    Reader,
    Setting,
    accuracies,
    attentive,
    fit_attentive,
    grid,
    moments,
)
from nextembed.evaluation.probes.sweep import ProbeConfig, ProbeData, sweep
from nextembed.models.nepa.configuration_nepa import ViTNepaConfig
from nextembed.models.nepa.modeling_nepa import ViTNepaForPreTraining

CPU = torch.device("cpu")


def test_probe_is_cross_attention_with_one_learned_query():
    torch.manual_seed(0)
    probe, patches = AttentiveProbe(width=12, num_heads=3, num_classes=5), torch.randn(4, 7, 12)
    probe.query.data.normal_()
    keys = torch.einsum("btw,hdw->bhtd", patches, probe.key)
    values = torch.einsum("btw,hdw->bhtd", patches, probe.value)
    query = probe.query[None, :, None].expand(4, -1, -1, -1)
    context = F.scaled_dot_product_attention(query, keys, values)[:, :, 0].flatten(1)
    torch.testing.assert_close(probe(patches), probe.classifier(context))
    assert probe(patches).requires_grad


def odd_patch(num, seed):
    """Sixteen noisy patches; one marked patch carries the class, which is hard to read from their mean."""
    generator = torch.Generator().manual_seed(seed)
    values, labels = torch.randn(num, 16, 8, generator=generator) * 2, torch.randint(2, (num,), generator=generator)
    where = torch.randint(16, (num,), generator=generator)
    values[:, :, 0] = 0
    values[torch.arange(num), where, 0] = 6
    values[torch.arange(num), where, 1] = 4.0 * labels - 2
    return Patches(values.half(), labels)


def test_it_finds_what_mean_pooling_hides():
    train, test = odd_patch(400, 0), odd_patch(400, 1)
    pooled = [part.values.float().mean(1) for part in (train, test)]
    from nextembed.evaluation.probes.solvers import fit_linear

    (linear,) = fit_linear(pooled[0], train.labels, 2, [0.01])
    state = torch.get_rng_state()
    probes = fit_attentive(train, [Setting(1e-2, 1e-3), Setting(1e-9, 1e-3)], 2, 2, 25, 0, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    good, bad = accuracies(probes, iter([test]))
    assert (linear.predict(pooled[1]) == test.labels).float().mean() < 0.75
    assert good > 0.9 > 0.75 > bad


def test_grid_points_are_independent_and_seeds_differ():
    train = odd_patch(130, 0)
    settings = grid([1e-3, 1e-2], [0.1])
    assert settings == [(1e-3, 0.1), (1e-2, 0.1)]
    both = fit_attentive(train, settings, 2, 1, 2, 0, CPU)
    alone = fit_attentive(train, settings[1:], 2, 1, 2, 0, CPU)
    other = fit_attentive(train, settings[1:], 2, 1, 2, 1, CPU)
    for name, value in alone[0].state_dict().items():
        assert torch.equal(both[1].state_dict()[name], value)
    assert not torch.equal(other[0].query, alone[0].query)


def test_moments_are_over_all_patches():
    values = (torch.randn(2050, 3, 5) * 3 + 1).half()
    values[:, :, 4] = 2
    mean, scale = moments(values)
    flat = values.float().flatten(0, 1)
    torch.testing.assert_close(mean, flat.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scale[:4], flat.std(0, correction=0)[:4], atol=1e-4, rtol=1e-4)
    assert scale[4] == 1


def make_model():
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return ViTNepaForPreTraining(
        ViTNepaConfig(image_size=8, patch_size=4, num_channels=1, layerscale_value=0.5, **sizes)
    )


def make_samples(num, seed):
    """Images whose class is a bright quadrant, a dark one, or neither; every fifth image has no label."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for i in range(num):
        image, kind = torch.randn(1, 8, 8, generator=generator), int(torch.randint(3, (), generator=generator))
        row, column = torch.randint(2, (2,), generator=generator).tolist()
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += (2, -2, 0)[kind]
        samples.append({"pixel_values": image, "label": -100 if i % 5 == 4 else kind})
    return samples


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_patches_are_the_hidden_states_of_a_layer(layer):
    model, samples = make_model().train(), make_samples(10, 0)
    kept = Reader(model, layer, "full", batch_size=3).keep(samples, 1e6)
    assert all(module.training for module in model.modules())
    known = [sample for sample in samples if sample["label"] >= 0]
    pixels = torch.stack([sample["pixel_values"] for sample in known])
    with torch.no_grad():
        states = model.eval().vit_nepa(pixels, is_causal=False, output_hidden_states=True).hidden_states[layer]
    torch.testing.assert_close(kept.values, states[:, 1:].half(), atol=2e-3, rtol=2e-3)
    assert kept.labels.tolist() == [sample["label"] for sample in known]


def test_memory_for_patches_is_limited():
    model, samples = make_model(), make_samples(50, 0)
    one = 4 * 16 * 2
    kept = Reader(model, 1, "full").keep(samples, 20 * one)
    assert kept.values.nbytes <= 20 * one and 10 < len(kept.labels) <= 20
    again = Reader(model, 1, "full").keep(samples, 20 * one)
    assert torch.equal(kept.values, again.values)
    with pytest.raises(ConfigError, match=r"probe.attentive_gigabytes: .* so 5 images fit"):
        Reader(model, 1, "full").keep(samples, 5 * one)


def test_choice_is_made_on_validation_and_measured_on_test():
    reader, settings = Reader(make_model(), 0, "causal"), [Setting(1e-9, 0.1), Setting(3e-2, 0.1)]
    parts = [make_samples(100, seed) for seed in range(3)]
    found = attentive(reader, *parts, settings, num_epochs=40, num_seeds=3)
    assert found.setting == settings[1] and len(found.validation) == len(found.test) == 3
    assert min(found.validation) > 0.6 and found.num_train == 80
    wrong = [{**s, "label": (s["label"] + 1) % 3 if s["label"] >= 0 else -100} for s in parts[2]]
    other = attentive(reader, *parts[:2], wrong, settings, num_epochs=40, num_seeds=3)
    assert other[:2] == found[:2] and max(other.test) < 0.4  # the choice does not depend on test labels
    assert attentive(reader, *parts[:2], None, settings, num_epochs=2).test == []


class Plain(nn.Module):
    """A custom backbone whose upper layers cannot be removed."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.config = type("Config", (), {"num_hidden_layers": 1, "is_causal": True})()

    def embed(self, batch):
        z = F.pad(batch["pixel_values"].flatten(2).mT.repeat(1, 1, 4), (0, 0, 1, 0)) * self.weight
        return Latents(z, torch.zeros(*z.shape[:2], 2))

    def encode(self, latents, attention=None, output_layers=False):
        return Hidden(latents.z, (latents.z, latents.z) if output_layers else ())


@pytest.mark.parametrize("backbone", [make_model, Plain])
def test_sweep_with_seeds_and_an_attentive_probe(tmp_path, backbone):
    data = ProbeData(make_samples(120, 0), make_samples(60, 1), make_samples(90, 2), ["a", "b", "c"])
    config = ProbeConfig(k=5, penalties=[0.1], seeds=3, attentive=True, attentive_epochs=3, poolings=["mean"],
                         attentive_learning_rates=[1e-2], attentions=["causal"])  # fmt: skip
    table = sweep({"raw": backbone(), "untrained": backbone()}, data, config)
    rows = [row for row in table.rows if row.probe == "attentive"]
    best = table.best("linear")
    assert [row.weights for row in rows] == ["raw", "untrained"]
    assert (rows[0].layer, rows[0].attention, rows[0].learning_rate) == (best.layer, best.attention, 1e-2)
    measured = [row for row in table.rows if row.accuracy is not None]
    assert all(row.spread is not None and 0 <= row.spread < 0.3 for row in measured)
    assert set(table.pixels_spread) == {"linear", "knn"} and max(row.spread for row in measured) > 0
    assert ProbeTable.load(table.save(tmp_path / "probe.json")) == table
    lines = sentence(table)
    assert lines[2].startswith("Attentive probe ") and " ± " in lines[2] and "untrained" in lines[2]
    assert any("± is the standard deviation over 3 seeds" in line for line in lines)
    assert "Attentive probe" in str(table) and table.notes == []
    again = sweep({"raw": backbone(), "untrained": backbone()}, data, config)
    assert again == table


def test_a_memory_limit_is_noted_in_the_table():
    data = ProbeData(make_samples(120, 0), make_samples(60, 1), None, [])
    config = ProbeConfig(layers=[1], poolings=["mean"], attentions=["full"], attentive=True, attentive_epochs=1,
                         attentive_gigabytes=50 * 4 * 16 * 2 / 2**30)  # fmt: skip
    table = sweep({"raw": make_model()}, data, config)
    assert "fitted on" in sentence(table)[-1] and "of 96 training images" in sentence(table)[-1]
    assert next(row for row in table.rows if row.probe == "attentive").accuracy is None


def test_defaults_have_no_seeds_and_no_attentive_probe():
    data = ProbeData(make_samples(60, 0), make_samples(30, 1), make_samples(30, 2), [])
    table = sweep({"raw": make_model()}, data, ProbeConfig(k=5, penalties=[0.1], layers=[1]))
    assert {row.probe for row in table.rows} == {"linear", "knn"}
    assert all(row.spread is None for row in table.rows) and table.pixels_spread == {} and table.seeds == 1
