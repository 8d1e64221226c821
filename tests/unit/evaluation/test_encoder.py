import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForPreTraining, ViTConfig, ViTModel

import nextembed
from nextembed.core.probe_table import ProbeTable, Row
from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError, DataError
from nextembed.evaluation.features.encoder import Encoder, encode
from nextembed.evaluation.features.extract import FeatureKey, extract


@pytest.fixture
def images(tmp_path, pictures):
    return sorted(pictures(tmp_path / "images", 5).glob("*.png"))


def test_every_layer_equals_the_features_of_the_probes(saved, images):
    samples = ImageData(source=str(images[0].parent), num_workers=0).eval_samples(
        "train", image_size=16, num_channels=3
    )
    model = AutoModelForPreTraining.from_pretrained(saved / "run" / "model")
    keys = [FeatureKey(n, p, a) for n in range(4) for p in ("mean", "last") for a in ("causal", "full")]
    wanted = extract(model, samples, keys)
    for key in keys:
        assert torch.equal(encode(saved / "run", images, *key, weights="raw"), wanted.values[key]), key


@pytest.mark.parametrize("kind", ["pretraining", "plain", "classifier"])
def test_every_kind_of_saved_model_gives_the_same(saved, images, kind):
    place = dict(layer=2, pooling="mean", attention="full")
    assert torch.equal(encode(saved / kind, images, **place), encode(saved / "run", images, weights="raw", **place))


def test_a_model_in_memory_is_left_unchanged(saved, images):
    model = AutoModelForPreTraining.from_pretrained(saved / "pretraining").train()
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    found = encode(model, images, layer=1)
    assert torch.equal(torch.rand(1), want)
    assert torch.equal(found, encode(saved / "pretraining", images, layer=1))
    assert all(module.training for module in model.modules())
    assert len(model.vit_nepa.encoder.layer) == 3


def test_images_in_every_form(saved, images):
    encoder = Encoder(saved / "plain")
    opened = [Image.open(path) for path in images]
    wanted = nextembed.encode(encoder, images)
    assert wanted.shape == (5, 16) and wanted.dtype == torch.float32
    arrays = [np.asarray(image) for image in opened]
    for form in (opened, arrays, np.stack(arrays), (str(path) for path in images)):
        torch.testing.assert_close(encode(encoder, form, batch_size=2), wanted, atol=1e-5, rtol=1e-5)
    assert encode(encoder, str(images[0])).shape == (1, 16)
    assert encode(encoder, arrays[0]).shape == (1, 16)
    assert encode(encoder, []).shape == (0, 16)


def test_weights_and_layer_come_from_the_probes(saved, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("model", "ema", "config.yaml"):
        (run / name).symlink_to(saved / "run" / name)
    assert Encoder(run).place[:2] == ("raw", FeatureKey(1, "mean", "causal"))
    rows = [
        Row("linear", "raw", 2, "last", "full", 0.5),
        Row("knn", "ema", 3, "mean", "full", 0.6),
        Row("linear", "untrained", 1, "mean", "causal", 0.9),
    ]
    ProbeTable(rows).save(run / "probe.json")
    assert Encoder(run).place[:2] == ("ema", FeatureKey(3, "mean", "full"))
    assert "probe.json: knn 60.0 %" in Encoder(run).place.why
    assert Encoder(run, weights="raw").place[:2] == ("raw", FeatureKey(2, "last", "full"))
    assert Encoder(run, layer=-2).place[:2] == ("raw", FeatureKey(2, "last", "full"))
    assert Encoder(run, layer=1).place[:2] == ("raw", FeatureKey(1, "mean", "causal"))  # no row for this layer
    (run / "probe.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"probe\.json: rows is missing"):
        Encoder(run)
    assert Encoder(run, 2, "mean", "full", "raw").place.why == "as asked for"


def test_pixels_are_normalised_as_in_the_run(saved, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(saved / "run" / "model")
    (run / "config.yaml").write_text("data: {kind: images, source: emoji, mean: 0.2, std: 0.3, background: [0, 0, 0]}")
    assert Encoder(run).preprocessing[2:] == (0.2, 0.3, (0, 0, 0))
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in (saved / "plain").iterdir():
        (alone / file.name).symlink_to(file)
    (alone / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.4] * 3}))
    assert Encoder(alone).preprocessing[2:4] == (0.1, 0.4)


def test_unusable_checkpoints_are_one_line_errors(saved, tmp_path, images, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    other = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16)
    ViTModel(other).save_pretrained(tmp_path / "vit")
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.json").write_bytes((saved / "plain" / "config.json").read_bytes())
    (cut / "model.safetensors").write_bytes((saved / "plain" / "model.safetensors").read_bytes()[:-100])
    for checkpoint, settings, words in (
        (tmp_path / "vit", {}, "contains a model of type 'vit', not a NEPA model"),
        (cut, {}, "cannot load the model"),
        (tmp_path / "none", {}, "no such run or checkpoint"),
        (saved / "plain", {"layer": 4}, "layer 4 is not in 0..3"),
        (saved / "plain", {"weights": "ema"}, "has no ema weights; there is raw"),
        (saved / "plain", {"pooling": "first"}, "has seen no patch"),
        (ViTModel(other), {}, "a ViTModel has no latents"),
    ):
        with pytest.raises(ConfigError, match=words) as err:
            encode(checkpoint, images, **settings)
        assert "\n" not in str(err.value)
    with pytest.raises(ConfigError, match="is a folder"):
        encode(saved / "plain", tmp_path)
    with pytest.raises(ConfigError, match="not int"):
        encode(saved / "plain", 3)
    with pytest.raises(DataError, match="number 1 cannot be read: not an image"):
        encode(saved / "plain", [images[0], b"text"])


def test_missing_weights_are_not_initialised_at_random(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "plain" / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((saved / "plain" / "config.json").read_bytes())
    with pytest.raises(ConfigError, match=r"lacks parameter encoder.layer.1.output.dense.bias \(1 in all"):
        Encoder(tmp_path)
