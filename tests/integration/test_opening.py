"""All functions that open a saved model accept runs, checkpoints, model folders and averaged weights, with the same
errors."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from emu_tiny import save_tiny_emu
from transformers import ViTImageProcessor

from nextembed.errors import ConfigError
from nextembed.evaluation.features.encoder import Encoder
from nextembed.evaluation.images import feature_space
from nextembed.evaluation.language.speaker import Speaker
from nextembed.export.emu import is_emu
from nextembed.export.facts import gather
from nextembed.export.layouts import read_any
from nextembed.export.loading import load_model
from nextembed.inference.chat import Talker
from nextembed.inference.generate import load_omni
from nextembed.models.loading import open_model
from nextembed.models.nepa import ViTNepaConfig, ViTNepaForPreTraining
from nextembed.models.omni import OmniConfig, OmniForPreTraining, OmniProcessor

OPENERS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "nepa": {
        "open_model": open_model,
        "encoder": Encoder,
        "feature space": feature_space,
        "export": load_model,
        "convert": read_any,
        "card": gather,
    },
    "emu": {"talker": Talker.load, "speaker": Speaker.load, "open_model": open_model},
    "omni": {"omni": load_omni, "open_model": open_model},
}
CASES = [(family, name) for family, openers in OPENERS.items() for name in openers]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image": {"image_size": 8, "patch_size": 4}}


def save_model(family: str, folder: Path) -> None:
    torch.manual_seed(0)
    if family == "emu":
        save_tiny_emu(folder)
    elif family == "nepa":
        ViTNepaForPreTraining(ViTNepaConfig(**SIZES, image_size=8, patch_size=4)).save_pretrained(folder)
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    else:
        OmniForPreTraining(OmniConfig(modalities=IMAGE, **SIZES)).save_pretrained(folder)
        OmniProcessor(IMAGE).save_pretrained(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each family, with a checkpoint, and averaged weights without a processor."""
    runs = tmp_path_factory.mktemp("runs")
    for family in OPENERS:
        run = runs / family
        save_model(family, run / "model")
        checkpoint = run / "checkpoints" / "step-10"
        for folder in (checkpoint, run / "ema", checkpoint / "ema"):
            shutil.copytree(run / "model", folder, ignore=shutil.ignore_patterns("*process*", "token*"))
        shutil.copytree(run / "model", checkpoint, dirs_exist_ok=True)
        (run / "config.yaml").write_text(f"name: {family}\n")
        (run / "environment.json").write_text("{}")
    return runs


@pytest.mark.parametrize(("family", "name"), CASES)
def test_each_place_can_be_opened(runs: Path, family: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    opener = OPENERS[family][name]
    for place in (family, f"{family}/model", f"{family}/checkpoints/step-10"):
        assert opener(place) is not None and opener(Path(place)) is not None


@pytest.mark.parametrize(("family", "name"), [c for c in CASES if c[1] not in ("feature space", "encoder")])
def test_averaged_weights_are_selected_by_name(runs: Path, family: str, name: str) -> None:
    opener: Any = OPENERS[family][name]
    for place in (runs / family, runs / family / "checkpoints" / "step-10"):
        assert opener(place, weights="ema") is not None
    with pytest.raises(ConfigError, match="has no best weights; there is raw, ema"):
        opener(runs / family, weights="best")


@pytest.mark.parametrize(("family", "name"), CASES)
def test_missing_models_are_one_line_errors(
    runs: Path, family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that looks like a path is never looked up on the hub, and the nearest name is suggested."""
    monkeypatch.chdir(runs)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asked a hub"))
    opener = OPENERS[family][name]
    for place, words in (
        (f"{family}x", rf"no such run or checkpoint: {family}x\. Did you mean '{family}'\?"),
        (f"{family}/modle", rf"no such run or checkpoint: {family}/modle\. Did you mean '{family}/model'\?"),
        ("./me/model", r"no such run or checkpoint: \./me/model"),
        (Path("me/model"), "no such run or checkpoint: me/model"),
        (tmp_path, "contains no model"),
    ):
        with pytest.raises(ConfigError, match=words) as err:
            opener(place)
        assert "\n" not in str(err.value)


@pytest.mark.parametrize(
    ("family", "name", "other"),
    [("emu", "talker", "nepa"), ("emu", "speaker", "omni"), ("omni", "omni", "emu"), ("nepa", "export", "emu"),
     ("nepa", "convert", "omni"), ("nepa", "card", "omni"), ("nepa", "encoder", "emu")],
)  # fmt: skip
def test_a_model_of_another_family_is_rejected(runs: Path, family: str, name: str, other: str) -> None:
    with pytest.raises(ConfigError, match=rf"contains a model of type '(vit_)?{other}'"):
        OPENERS[family][name](runs / other)


def test_emu_is_distinguished_from_others(runs: Path) -> None:
    assert all(is_emu(runs / place) for place in ("emu", "emu/model", "emu/checkpoints/step-10"))
    assert not any(is_emu(runs / place) for place in ("nepa", "omni", "nowhere", "."))
