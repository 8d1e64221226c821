"""Sharing a model whose objective defines its features: a hub folder, the hub, other layouts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

import nextembed
from nextembed import recipes
from nextembed.cli.app import main
from nextembed.errors import ConfigError
from nextembed.evaluation.features.encoder import Encoder, encode
from nextembed.export.card import model_card
from nextembed.export.facts import gather
from nextembed.export.hub import write_hub_folder
from nextembed.objectives.saved import objective_beside
from nextembed.objectives.tokens import Igpt

PLACE = {"layer": 1, "pooling": "mean", "attention": "causal"}
IMAGE = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
REPO = "me/igpt-mine"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> nextembed.Run:
    config = recipes.load("igpt_demo_tiny")
    config.output_dir, config.probe.enabled = str(tmp_path_factory.mktemp("shared")), False
    return nextembed.fit(config)


@pytest.fixture
def folder(run: nextembed.Run, tmp_path: Path) -> Path:
    return write_hub_folder(gather(run.dir), tmp_path / "hub" / "igpt-mine", REPO)


def on_hub(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies the folder into the download cache as a repository of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = cache / f"models--{REPO.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repo / "snapshots" / ("0" * 40))


def test_a_hub_folder_uses_its_objective(run: nextembed.Run, folder: Path) -> None:
    assert objective_beside(folder) == folder / "objective"
    assert json.loads((folder / "config.json").read_text())["nextembed_objective"] is True
    encoder = Encoder(folder, **PLACE)
    assert isinstance(encoder.objective, Igpt)
    expected, plain = encode(run.dir, IMAGE, **PLACE), encode(encoder.trunk, IMAGE, **PLACE)
    assert torch.equal(encode(encoder, IMAGE), expected) and not torch.allclose(plain, expected, atol=1e-3)


def test_a_hub_id_uses_its_objective(
    run: nextembed.Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_hub(folder, tmp_path / "cache", monkeypatch)
    assert torch.equal(encode(REPO, IMAGE, **PLACE), encode(run.dir, IMAGE, **PLACE))


def test_an_objective_that_is_missing_on_the_hub_is_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "objective" / "model.safetensors").unlink()
    on_hub(folder, tmp_path / "cache", monkeypatch)
    with pytest.raises(ConfigError, match=f"{REPO} is read by an objective, and its objective/ is not there"):
        encode(REPO, IMAGE, **PLACE)


def test_a_model_without_an_objective_has_none_on_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder / "objective")
    values = json.loads((folder / "config.json").read_text())
    del values["nextembed_objective"]
    (folder / "config.json").write_text(json.dumps(values))
    on_hub(folder, tmp_path / "cache", monkeypatch)
    assert objective_beside(REPO) is None and Encoder(REPO, **PLACE).objective is None


def test_pixels_are_normalised_as_for_the_model_on_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "preprocessor_config.json"
    values = json.loads(file.read_text()) | {"image_mean": [0.3] * 3, "image_std": [0.2] * 3}
    file.write_text(json.dumps(values))
    on_hub(folder, tmp_path / "cache", monkeypatch)
    found = Encoder(REPO, **PLACE).preprocessing
    assert (found.mean, found.std) == (0.3, 0.2) == Encoder(folder, **PLACE).preprocessing[2:4]


def test_the_card_computes_features_with_the_objective(run: nextembed.Run) -> None:
    card = model_card(gather(run.dir), REPO)
    assert f'nextembed.encode("{REPO}", "picture.jpg"' in card and "training objective `igpt`" in card
    assert "AutoModel.from_pretrained" not in card


def test_features_of_an_objective_cannot_be_exported(run: nextembed.Run, tmp_path: Path, capsys) -> None:
    assert main(["export", str(run.dir), "-o", str(tmp_path / "model.onnx")]) == 2
    said = capsys.readouterr().err
    assert "read by its objective igpt" in said and "cannot be exported" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["nextembed", "official"])
def test_another_layout_keeps_the_objective_or_notes_its_absence(
    run: nextembed.Run, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(run.dir), str(tmp_path / "out"), "--to", layout]) == 0
    kept = objective_beside(tmp_path / "out") is not None
    assert kept == (layout == "nextembed")
    assert ("This layout has no place for its objective" in capsys.readouterr().out) != kept


def test_a_custom_objective_is_not_uploaded(run: nextembed.Run, tmp_path: Path) -> None:
    shutil.copytree(run.dir, tmp_path / "run")
    file = tmp_path / "run" / "objective" / "config.json"
    values = json.loads(file.read_text())
    values["settings"]["kind"] = "/home/me/mine.py:Mine"
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"needs the objective /home/me/mine.py:Mine, whose code cannot be uploaded"):
        write_hub_folder(gather(tmp_path / "run"), tmp_path / "hub", REPO)
    assert not (tmp_path / "hub").exists()
