import pytest
import torch
import yaml

from nextembed.core.run_folder import read_lines, run_folder, weights_folders
from nextembed.data.images import ImagePart
from nextembed.errors import ConfigError, DataError, MissingSplit
from nextembed.evaluation.probes.samples import load_data
from nextembed.evaluation.probes.sweep import ProbeConfig
from nextembed.models.nepa.configuration_nepa import ViTNepaConfig
from nextembed.models.nepa.modeling_nepa import ViTNepaForPreTraining
from nextembed.runs import open_run
from nextembed.tasks.pretraining import models_of, probe, untrained

PROBE = {
    "layers": [2],
    "poolings": ["mean"],
    "attentions": ["causal"],
    "num_train": 200,
    "num_validation": 50,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as after training, with an untrained model."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = ViTNepaForPreTraining(ViTNepaConfig(image_size=16, patch_size=8, layerscale_value=0.5, **sizes))
    for name in ("model", "ema", "checkpoints/step-000100", "checkpoints/step-000020"):
        model.save_pretrained(folder / name)
    values = {"seed": 7, "data": {"kind": "images", "source": "emoji", "num_workers": 0}, "probe": PROBE}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_probes_of_a_run(run):
    table = probe(open_run(run))
    assert {row.weights for row in table.rows} == {"raw", "ema", "untrained"}
    assert table.images["train"] == 200 and table.images["validation"] == 50 and table.images["test"] > 50
    assert table.class_names and all(row.layer == 2 for row in table.rows)
    raw, ema = (table.best("linear", weights) for weights in ("raw", "ema"))
    assert raw.accuracy == ema.accuracy  # the same weights are saved twice


def test_where_models_are_found(run, tmp_path):
    assert weights_folders(run) == {"raw": run / "model", "ema": run / "ema"}
    assert weights_folders(run / "ema") == {"ema": run / "ema"}
    newest = run / "checkpoints" / "step-000100"
    assert weights_folders(newest) == {"raw": newest}
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "checkpoints").symlink_to(run / "checkpoints")
    assert weights_folders(tmp_path / "cut")["raw"].name == "step-000100"
    with pytest.raises(ConfigError, match="no such run or checkpoint"):
        weights_folders(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="contains no model"):
        models_of(open_run(tmp_path / "empty"))


def test_newest_checkpoint_by_number(run, tmp_path):
    for step in (999999, 1000000, 20):
        folder = tmp_path / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    assert weights_folders(tmp_path)["raw"].name == "step-1000000"


def test_the_run_that_contains_a_path(tmp_path):
    inner = tmp_path / "run" / "checkpoints" / "step-000001" / "ema"
    inner.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    assert run_folder(tmp_path / "run") == tmp_path / "run"
    assert run_folder(inner) is None  # a config.yaml alone is not a run
    (tmp_path / "run" / "environment.json").touch()
    assert run_folder(inner) == run_folder(inner.parent) == tmp_path / "run"
    assert run_folder(tmp_path) is None


def test_a_model_that_cannot_load(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit_nepa"}')
    with pytest.raises(ConfigError, match="cannot load the model"):
        models_of(open_run(tmp_path))


def test_data_is_required_outside_a_run(run, tmp_path):
    (tmp_path / "model").symlink_to(run / "model")
    with pytest.raises(ConfigError, match="--data"):
        probe(open_run(tmp_path))


def test_untrained_weights_are_initialised_from_the_seed(run):
    models = models_of(open_run(run))
    state = torch.get_rng_state()
    again, other = untrained(models["raw"], 7), untrained(models["raw"], 8)
    assert torch.equal(torch.get_rng_state(), state)
    weight = "vit_nepa.embeddings.patch_embeddings.projection.weight"
    assert torch.equal(again.state_dict()[weight], models["untrained"].state_dict()[weight].cpu())
    assert not torch.equal(other.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(models["raw"].state_dict()[weight], models["untrained"].state_dict()[weight])


class Rows(ImagePart):
    """A data config with one split of ten images."""

    def eval_samples(self, split, *, image_size, num_channels, num_samples=None, seed=0):
        if split != "train":
            raise MissingSplit(f"data: split '{split}' is not known.")
        samples = Samples({"pixel_values": torch.full((1, 4, 4), float(i)), "label": i % 2} for i in range(10))
        return samples


class Samples(list):
    class_names = ("even", "odd")


def test_a_validation_split_is_held_out_if_there_is_none():
    config = ViTNepaConfig(image_size=4, patch_size=2, num_channels=1)
    data = load_data(Rows(), ProbeConfig(), config)
    seen = [[int(s["pixel_values"].mean()) for s in part] for part in (data.train, data.validation)]
    assert sorted(seen[0] + seen[1]) == list(range(10)) and len(seen[1]) == 2
    assert data.test is None and list(data.class_names) == ["even", "odd"]


def test_data_without_labels(run, tmp_path):
    from PIL import Image

    from nextembed.core.config import DATA

    for i in range(12):
        Image.new("RGB", (16, 16), (i * 20, 0, 0)).save(tmp_path / f"{i}.png")
    data = DATA.parse({"kind": "images", "source": str(tmp_path), "num_workers": 0})
    with pytest.raises(DataError, match="label_column"):
        probe(open_run(run), data)


def test_lines_of_a_killed_run(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_lines(file) == [{"step": 1}, {"step": 2}]
    assert read_lines(tmp_path / "none.jsonl") == []
