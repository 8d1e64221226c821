from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTImageProcessor

from nextembed.models.nepa import ViTNepaConfig, ViTNepaForImageClassification, ViTNepaForPreTraining

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
    "layerscale_value": 0.5,
    "qk_norm": True,
}


def build(kind: Any = ViTNepaForPreTraining, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = kind(ViTNepaConfig(**(SIZES | settings)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)  # zero biases would hide errors
            elif parameter.ndim >= 2:
                parameter.mul_(10)  # freshly initialised attention barely mixes positions, which would hide errors, too
    return model.eval()


@pytest.fixture(scope="session")
def model() -> Any:
    return build(use_gated_mlp=True, hidden_act="silu")


@pytest.fixture(scope="session")
def classifier() -> Any:
    names = {0: "cat", 1: "dog", 2: "eel"}
    return build(
        ViTNepaForImageClassification,
        add_pooling_layer=True,
        is_causal=False,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    ViTImageProcessor(size=size, resample=2, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model, tmp_path_factory.mktemp("model") / "nepa")


@pytest.fixture(scope="session")
def classifier_checkpoint(classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(classifier, tmp_path_factory.mktemp("model") / "classifier")
