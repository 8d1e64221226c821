import json

import pytest
import torch
from torch import nn

from nextembed.core.objective import Objective, ObjectiveSettings
from nextembed.core.probe_table import ProbeTable, sentence
from nextembed.core.types import Hidden, Latents
from nextembed.errors import ConfigError, DataError
from nextembed.evaluation.probes.sweep import ProbeConfig, ProbeData, QuickProbe, draw, sweep
from nextembed.models.nepa.configuration_nepa import ViTNepaConfig
from nextembed.models.nepa.modeling_nepa import ViTNepaForPreTraining

CONFIG = ProbeConfig(k=5, penalties=[0.01, 0.1], batch_size=32)


def make_model(seed=0):
    torch.manual_seed(seed)
    config = ViTNepaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        layerscale_value=0.5,
    )
    return ViTNepaForPreTraining(config)


def make_samples(num, seed, labels=None):
    """Noisy images of three classes; the class is the position of the bright quadrant."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for i in range(num):
        image = torch.randn(1, 8, 8, generator=generator) * 0.8
        kind = int(torch.randint(3, (), generator=generator))
        image[:, 4 * (kind // 2) : 4 * (kind // 2) + 4, 4 * (kind % 2) : 4 * (kind % 2) + 4] += 1
        samples.append({"pixel_values": image, "label": kind if labels is None else labels[i]})
    return samples


@pytest.fixture(scope="module")
def data():
    return ProbeData(make_samples(120, 0), make_samples(60, 1), make_samples(90, 2), ["a", "b", "c"])


@pytest.fixture(scope="module")
def table(data):
    return sweep({"raw": make_model(0), "untrained": make_model(1)}, data, CONFIG)


def test_sweep_has_every_row_once(table):
    places = [(r.probe, r.weights, r.layer, r.pooling, r.attention) for r in table.rows]
    assert len(places) == len(set(places)) == 2 * 2 * (2 + 2 * 5)
    assert all(0 <= row.validation_accuracy <= 1 for row in table.rows)
    assert table.images == {"train": 120, "validation": 60, "test": 90}
    assert table.pixels["linear"] > 0.9  # the task is linearly separable in pixels
    assert table.chance < 0.5


def test_test_accuracy_only_where_reported(table):
    measured = [row for row in table.rows if row.accuracy is not None]
    for probe in ("linear", "knn"):
        for weights in ("raw", "untrained"):
            rows = [r for r in measured if (r.probe, r.weights) == (probe, weights)]
            best = table.best(probe, weights)
            assert best in rows
            assert all(row.default or row is best for row in rows)
            default = next(row for row in rows if row.default)
            assert (default.layer, default.pooling, default.attention) == (2, "mean", "causal")


def test_choice_does_not_depend_on_test_labels(data, table):
    wrong = [{**sample, "label": (sample["label"] + 1) % 3} for sample in data.test]
    other = sweep({"raw": make_model(0), "untrained": make_model(1)}, data._replace(test=wrong), CONFIG)

    def chosen(table):
        return [(r.probe, r.weights, r.layer, r.pooling, r.attention, r.penalty, r.validation_accuracy,
                 r.accuracy is None) for r in table.rows]  # fmt: skip

    assert chosen(other) == chosen(table)
    assert other.pixels_validation == table.pixels_validation
    assert other.pixels["linear"] < 0.1  # measured on the wrong labels


def test_penalty_and_row_are_chosen_on_validation(data):
    flipped = [{**sample, "label": (sample["label"] + 1) % 3} for sample in data.validation]
    model = make_model(0)
    table = sweep({"raw": model}, data._replace(validation=flipped), CONFIG)
    assert table.pixels_validation["linear"] < 0.1 < table.pixels["linear"]
    best = table.best("linear")
    assert best.validation_accuracy == max(r.validation_accuracy for r in table.rows if r.probe == "linear")


def test_sweep_is_deterministic(data, table):
    torch.manual_seed(1234)
    again = sweep({"raw": make_model(0), "untrained": make_model(1)}, data, CONFIG)
    assert again == table


def test_unlabelled_rows_do_not_count(data):
    extra = [{**sample, "label": -100} for sample in make_samples(10, 5)]
    table = sweep({"raw": make_model(0)}, data._replace(train=data.train + extra, test=data.test + extra), CONFIG)
    assert table.images == {"train": 120, "validation": 60, "test": 90}


def test_without_a_test_split(data):
    table = sweep({"raw": make_model(0), "untrained": make_model(1)}, data._replace(test=None), CONFIG)
    assert table.pixels == {} and all(row.accuracy is None for row in table.rows)
    assert "no test split" in sentence(table)[-1]


@pytest.mark.parametrize(("labels", "message"), [([-100] * 9, "probes need labels"), ([1] * 9, "at least two classes")])
def test_unusable_labels(data, labels, message):
    with pytest.raises(DataError, match=message):
        sweep({"raw": make_model()}, data._replace(train=make_samples(9, 0, labels)), CONFIG)


def test_unknown_layer_is_a_config_error(data):
    with pytest.raises(ConfigError, match=r"probe.layers: layer 7 is not in 0..2"):
        sweep({"raw": make_model()}, data, ProbeConfig(layers=[7]))


def test_table_round_trip_and_words(table, tmp_path):
    path = table.save(tmp_path / "probe.json")
    assert ProbeTable.load(path) == table
    values = json.loads(path.read_text())
    assert values["best"]["validation_accuracy"] == table.best().validation_accuracy
    assert set(values["pixels"]) == {"linear", "knn"}
    lines = sentence(table)
    assert lines[0].startswith("Linear probe ") and "the same network untrained" in lines[0]
    assert f"raw pixels {100 * table.pixels['linear']:.1f} %" in lines[0]
    assert "90 test images" in lines[-1] and "chosen on 60 others" in lines[-1]
    assert "2 (output)" in str(table) and "raw pixels" in str(table)


class Shouting(nn.Module):
    """A backbone whose features are the pixels, but random noise in training mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.config = type("Config", (), {"num_hidden_layers": 2, "is_causal": True})()

    def embed(self, batch):
        z = batch["pixel_values"].flatten(2).transpose(1, 2)
        z = z.transpose(1, 2).expand(-1, 3, -1) * self.weight
        return Latents(torch.randn_like(z) if self.training else z, torch.zeros(len(z), 3, 2))

    def encode(self, latents, attention=None, output_layers=False):
        return Hidden(latents.z, (latents.z,) * 3)


def test_quick_probe_has_no_side_effects(data):
    probe = QuickProbe(data, CONFIG)
    model = Shouting().train()
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    result = probe(model)
    assert torch.equal(torch.rand(2), want)
    assert model.training and model.weight.grad is None
    assert set(result) == {"probe/knn", "probe/linear", "probe/knn_middle", "probe/linear_middle"}
    assert result["probe/linear"] > 0.9
    assert result == probe(model)


def test_quick_probe_reads_features_from_the_objective(data):
    """If the objective reads features that are all zero, the probe fails even with a good backbone."""

    class Blind(Objective):
        reads_itself = True

        def read(self, backbone, batch, attention=None, output_layers=False):
            hidden = super().read(backbone, batch, attention, output_layers)
            return Hidden(hidden.last * 0, tuple(layer * 0 for layer in hidden.layers))

    blind = Blind(ObjectiveSettings())
    assert blind.reads_itself and not Objective(ObjectiveSettings()).reads_itself
    found = QuickProbe(data, CONFIG, blind.read)(Shouting())
    assert found["probe/linear"] < 0.7 < QuickProbe(data, CONFIG)(Shouting())["probe/linear"]


def test_draw_is_the_same_subset_each_time():
    one, two = draw(list(range(100)), 7), draw(list(range(100)), 7)
    assert list(one) == list(two) and len(set(one)) == 7
    assert draw([1, 2], 7) == [1, 2]
