"""What `nextembed train` says at the end of an Omni run."""

import pytest

from nextembed.cli.train import summary
from nextembed.models.omni import OmniParts
from nextembed.recipes.omni import omni_emoji
from nextembed.runs import Run
from nextembed.tasks.multimodal import last_losses


@pytest.mark.parametrize(
    ("modalities", "command"),
    [
        ({"text": {}, "image": {}}, "--image PICTURE.png --target text"),
        ({"text": {}, "sound": {"kind": "audio"}}, "--audio SOUND.wav --target text"),
        ({"text": {}, "touch": {"kind": "series"}}, "--piece touch=FILE --target text"),
        ({"image": {}, "caption": {"kind": "text"}}, '--text "a red apple" --target image'),
    ],
)
def test_the_command_fits_the_modalities(tmp_path, modalities, command):
    config = omni_emoji().model_copy(update={"model": OmniParts(modalities=modalities)})
    said = summary(Run(tmp_path, tmp_path, config))
    assert command in said and "nextembed generate" in said
    assert "AutoModel" not in said and "probe" not in said.lower()


def test_figures_by_modality():
    (line,) = last_losses({"cos_next/text": 0.25, "cos_next/image": 0.75, "top1/text": 0.5, "loss": 1.0})
    assert line == "Cosine with the next latent: text 0.250, image 0.750. Top-1: text 50.0 %."
