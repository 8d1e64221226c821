"""What `nextembed train` prints at the end of an Omni run."""

from pathlib import Path

import pytest

from nextembed.cli.train import summary
from nextembed.models.omni import OmniConfig, OmniParts
from nextembed.recipes.omni import omni_emoji
from nextembed.runs import Run
from nextembed.tasks.multimodal import last_losses


@pytest.mark.parametrize(
    ("modalities", "command"),
    [
        ({"text": {}, "image": {}}, "--image PICTURE.png --target text"),
        ({"text": {}, "sound": {"kind": "audio"}}, "--audio SOUND.wav --target text"),
        ({"text": {}, "series": {"channels": 3}}, "--series SERIES.json --target text"),
        ({"text": {}, "touch": {"kind": "series"}}, "--piece touch=FILE --target text"),
        ({"image": {}, "caption": {"kind": "text"}}, '--text "a red apple" --target image'),
    ],
)
def test_the_command_fits_the_modalities(tmp_path, modalities, command):
    config = omni_emoji().model_copy(update={"model": OmniParts(modalities=modalities)})
    said = summary(Run(tmp_path, tmp_path, config))
    assert command in said and "nextembed generate" in said
    assert "AutoModel" not in said and "probe" not in said.lower()


def test_metrics_by_modality():
    (line,) = last_losses({"cos_next/text": 0.25, "cos_next/image": 0.75, "top1/text": 0.5, "loss": 1.0})
    assert line == "Cosine with the next latent: text 0.250, image 0.750. Top-1: text 50.0 %."


def test_a_pretrained_model_keeps_its_modalities(tmp_path: Path) -> None:
    OmniConfig(modalities={"text": {"kind": "text"}, "series": {"kind": "series"}}).save_pretrained(tmp_path)
    usage = OmniParts(pretrained=str(tmp_path)).usage("runs/mine")
    assert usage == "nextembed generate runs/mine --series SERIES.json --target text"
    assert "--target text" in OmniParts(pretrained="runs/gone/model").usage("runs/mine")
