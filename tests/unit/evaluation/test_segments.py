"""Probes of any modality: labelled rows of series, text and images, with choices by cross-validation."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nextembed.core.probe_table import ProbeTable, sentence
from nextembed.data.records import Records
from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError, DataError
from nextembed.evaluation.features.extract import Features
from nextembed.evaluation.probes.records import segment_data
from nextembed.evaluation.probes.sweep import ProbeConfig, fit_probes, folds_of
from nextembed.inference.generate import features
from nextembed.models.omni import OmniConfig, OmniForPreTraining, OmniProcessor
from nextembed.runs import open_run
from nextembed.tasks.pretraining import probe

MODALITIES = {"text": {}, "image": {"image_size": 8, "patch_size": 4},
              "touch": {"kind": "series", "channels": 2, "patch_size": 2}}  # fmt: skip
QUICK: dict[str, Any] = {"k": 3, "penalties": [0.01, 0.1], "layers": [0, -1], "folds": 4}


@pytest.fixture(scope="module")
def model() -> OmniForPreTraining:
    torch.manual_seed(0)
    config = OmniConfig(modalities=MODALITIES, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, layerscale_value=0.5)  # fmt: skip
    model = OmniForPreTraining(config).eval()
    model.processor = OmniProcessor(MODALITIES)
    return model


@pytest.fixture
def saved(model: OmniForPreTraining, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    model.processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Series of various lengths in two classes that differ in their mean, with a text for each class."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for split, num in (("train", 24), ("test", 10)):
        generator = torch.Generator().manual_seed(num)
        rows = []
        for i in range(num):
            series = torch.randn(2, 5 + i % 4, generator=generator) * 0.1 + (i % 2) * torch.tensor([[2.0], [-2.0]])
            rows.append({"touch": series.tolist(), "words": ["cold ice", "hot fire"][i % 2], "kind": "ab"[i % 2]})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


def config(**settings: Any) -> ProbeConfig:
    return ProbeConfig(**{"modality": "touch", "label_column": "kind", **QUICK, **settings})


def test_series_are_probed_with_untrained_and_raw_baselines(saved: Path, table: Path) -> None:
    found = probe(open_run(saved), Records(source=str(table)), config())
    assert {row.weights for row in found.rows} == {"raw", "untrained"}
    assert {row.layer for row in found.rows} == {0, 2}
    assert found.images == {"train": 24, "test": 10} and found.folds == 4 and found.class_names == ["a", "b"]
    assert found.pixels == {"linear": 1.0, "knn": 1.0} and found.chance == 0.5
    best = found.best("linear")
    assert best is not None and best.accuracy == 1.0
    text = " ".join(sentence(found))
    assert "raw signal 100.0 %" in text and "4-fold cross-validation" in text and "10 test rows" in text
    assert "image" not in text and "image" not in str(found)


def test_text_is_probed_by_column_name(saved: Path, table: Path) -> None:
    found = probe(open_run(saved), Records(source=str(table)), config(modality="text", column="words"))
    assert found.raw == "bag of tokens" and found.pixels["knn"] == 1.0
    best = found.best("knn")
    assert best is not None and best.accuracy == 1.0  # there are only two distinct texts


def test_images_come_from_image_data(saved: Path) -> None:
    data = ImageData(source="emoji", label_column="group")
    found = probe(open_run(saved), data, ProbeConfig(num_train=40, num_validation=20, num_test=20, **QUICK))
    assert found.raw == "raw pixels" and found.folds == 0 and found.images["validation"] == 20
    again = Records(source="emoji")
    rows = probe(open_run(saved), again, ProbeConfig(modality="image", label_column="group", num_train=40,
                                                      num_validation=20, num_test=20, **QUICK))  # fmt: skip
    assert rows.raw == "raw pixels" and rows.things == "rows" and rows.images == {**found.images}


def test_missing_modalities_and_columns(model: OmniForPreTraining, table: Path) -> None:
    data = Records(source=str(table))
    for settings, message in (
        ({"modality": "tuch"}, "touch"),
        ({"modality": None}, "probe.modality: choose which one"),
        ({"modality": "text"}, "probe.column: name one of the columns touch, words, kind"),
        ({"column": "word"}, "words"),
        ({"label_column": None}, "probe.label_column: name one"),
        ({"label_column": "touch"}, "contains list, not classes"),
        ({"attentive": True}, "probe.attentive"),
    ):
        with pytest.raises(ConfigError, match=message):
            segment_data(data, config(**settings), model.processor)
    with pytest.raises(DataError, match="24 of 24 train rows cannot be read as touch"):
        segment_data(data, config(column="words"), model.processor)


def test_features_do_not_depend_on_the_rest_of_the_batch(model: OmniForPreTraining) -> None:
    touch = {"touch": torch.randn(2, 9, generator=torch.Generator().manual_seed(0))}
    documents = ["a", ["it is cold", touch], touch]
    together = features(model, documents, layer=-1, attention="full")
    for row, document in zip(together, documents):
        assert torch.allclose(row, features(model, [document], layer=-1, attention="full")[0], atol=1e-5)
    latents = model.embed(model.processor(documents[1]))
    own = model.processor(documents[1])["kinds"][0] > 1
    assert torch.allclose(features(model, [documents[1]], layer=0)[0], latents.z[0, own].mean(0), atol=1e-5)
    last = features(model, ["ab"], layer=-1, pooling="last")
    assert torch.allclose(last[0], model(**model.processor("ab")).last_hidden_state[0, -1], atol=1e-5)
    with pytest.raises(ConfigError, match="layer 9"):
        features(model, ["a"], layer=9)
    with pytest.raises(ConfigError, match="begin latent"):
        features(model, ["a"], pooling="first")
    with pytest.raises(ConfigError, match="modality"):
        features(model, [{"smell": 1}])


def test_folds_are_stratified_and_held_out() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 5)
    folds = folds_of(labels, 5)
    for fold in range(5):
        assert (folds == fold).sum() == 4 and set(labels[folds == fold].tolist()) == {0, 1, 2}

    # Random labels: 1-NN is correct only on rows it was fitted on, so a fold must not contain its own rows.
    generator = torch.Generator().manual_seed(0)
    train = Features({"x": torch.randn(60, 30, generator=generator)}, torch.randint(0, 3, (60,), generator=generator))
    fit = fit_probes(train, None, ProbeConfig(k=1, folds=5))["x"]["knn"]
    assert (fit.predict(train.values["x"]) == train.labels).all() and fit.accuracy < 0.6


def test_a_saved_table_keeps_the_kind_of_data(saved: Path, table: Path, tmp_path: Path) -> None:
    found = probe(open_run(saved), Records(source=str(table)), config(seeds=2))
    again = ProbeTable.load(found.save(tmp_path / "probe.json"))
    assert (again.raw, again.things, again.folds) == ("raw signal", "rows", 4)
    best = found.best("linear")
    assert best is not None and best.spread is not None


def test_a_modality_setting_reads_the_source_as_rows(saved: Path) -> None:
    from nextembed.cli.evaluate import probe_settings

    found = probe_settings(open_run(saved), "rows", ["probe.modality=touch", "data.where={kind: a}"])
    assert isinstance(found.data, Records) and found.data.where == {"kind": "a"} and found.probe.modality == "touch"
    assert isinstance(probe_settings(open_run(saved), "pictures", []).data, ImageData)
    with pytest.raises(ConfigError, match="labelled images or rows"):
        probe_settings(open_run(saved), None, [])
