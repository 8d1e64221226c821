"""From a pretrained NEPA to a classifier: for your own images, and as in the paper (arXiv 2512.16922).

The checkpoint is set with `model.pretrained=runs/mine/model` or a hub id.
"""

from typing import Any

from ..core.optim import OptimConfig
from ..data.sources import ImageData
from ..evaluation.probes.sweep import ProbeConfig
from ..models.nepa.settings import NepaClassifier
from ..objectives.supervised import ClassificationSettings
from ..runs import RunConfig
from ..training.settings import TrainConfig


def finetune() -> RunConfig:
    """A classifier from your pretrained model and labelled images (model.pretrained=..., data.source=...)."""
    return RunConfig(
        name="finetune",
        data=ImageData(source="emoji", crop_scale=(0.4, 1.0), flip_rate=0.5, validation_rate=0.1),
        model=NepaClassifier(drop_path_prob=0.1),
        objective=ClassificationSettings(label_smoothing=0.1),
        optim=OptimConfig(learning_rate=2.5e-4, layer_decay=0.75, warmup_rate=0.1),
        train=TrainConfig(batch_size=64, max_steps=1000, ema_decay=0.99, log_steps=10, save_steps=200, probe_steps=100),
        probe=ProbeConfig(),
    )


def fashion_mnist_finetune(data: str = "zalando-datasets/fashion_mnist") -> RunConfig:
    """Fashion-MNIST from few labels, on a model pretrained with the recipe fashion_mnist (data.labels_per_class=60).

    data: hub id, or a folder with train.parquet and test.parquet. The last 5,000 training images are kept for
    validation.
    """
    config = finetune()
    return config.model_copy(
        update={
            "name": "fashion_mnist_finetune",
            "data": ImageData(
                source=data,
                split="train[:-5000]",
                validation="train[-5000:]",
                test="test",
                crop_scale=(0.6, 1.0),
                labels_per_class=60,
                num_workers=0,  # decoded once, kept in memory
            ),
        }
    )


def nepa_base_imagenet_finetune() -> RunConfig:
    """NEPA-B/14 fine-tuned on ImageNet-1k as in the paper: 100 epochs, layer decay rising from 0.35 (83.8 %)."""
    return _imagenet(
        "nepa_base_imagenet_finetune",
        model=NepaClassifier(pretrained="SixAILab/nepa-base-patch14-224", pooling="last", drop_path_prob=0.1),
        optim={"learning_rate": 4e-3, "layer_decay": 0.35, "layer_decay_end": 1.0, "warmup_epochs": 5},
        epochs=100,
    )


def nepa_large_imagenet_finetune() -> RunConfig:
    """NEPA-L/14 fine-tuned on ImageNet-1k as in the paper: 50 epochs, layer decay rising from 0.60 (85.3 %)."""
    return _imagenet(
        "nepa_large_imagenet_finetune",
        model=NepaClassifier(pretrained="SixAILab/nepa-large-patch14-224", pooling="last", drop_path_prob=0.2),
        optim={"learning_rate": 4e-3, "layer_decay": 0.60, "layer_decay_end": 1.0, "warmup_epochs": 5},
        epochs=50,
    )


def nepa_base_imagenet_finetune_released() -> RunConfig:
    """NEPA-B/14 as the released code fine-tunes it: mean pooling, layer decay 0.65, long layer-wise warm-up."""
    return _imagenet(
        "nepa_base_imagenet_finetune_released",
        model=NepaClassifier(pretrained="SixAILab/nepa-base-patch14-224", drop_path_prob=0.1),
        optim={"learning_rate": 6e-3, "layer_decay": 0.65, "layer_warmup": True, "warmup_rate": 0.2},
        epochs=100,
        erase_rate=0.25,
    )


def nepa_large_imagenet_finetune_released() -> RunConfig:
    """NEPA-L/14 as the released code fine-tunes it: mean pooling, layer decay 0.75, long layer-wise warm-up."""
    return _imagenet(
        "nepa_large_imagenet_finetune_released",
        model=NepaClassifier(pretrained="SixAILab/nepa-large-patch14-224", drop_path_prob=0.2),
        optim={"learning_rate": 4e-3, "layer_decay": 0.75, "layer_warmup": True, "warmup_rate": 0.3},
        epochs=100,
        erase_rate=0.25,
    )


def _imagenet(
    name: str, model: NepaClassifier, optim: dict[str, Any], epochs: float, erase_rate: float = 0.0
) -> RunConfig:
    """Settings of all four. There are no labels for the hub's test split: weights are chosen on the last 10,000
    training images and measured on the 50,000 validation images."""
    return RunConfig(
        name=name,
        data=ImageData(
            source="ILSVRC/imagenet-1k",
            split="train[:-10000]",
            validation="train[-10000:]",
            test="validation",
            flip_rate=0.5,
            rand_augment=(9, 0.5),
            erase_rate=erase_rate,
            num_workers=8,
        ),
        model=model,
        objective=ClassificationSettings(label_smoothing=0.1, mixup_alpha=0.8, cutmix_alpha=1.0),
        optim=OptimConfig(weight_decay=0.05, betas=(0.9, 0.999), **optim),
        train=TrainConfig(
            batch_size=1024,
            epochs=epochs,
            ema_decay=0.9999,
            precision="bf16",
            freeze=["patch_embeddings"],
            log_steps=50,
            save_steps=1250,
            probe_steps=1250,
        ),
        probe=ProbeConfig(num_validation=10_000, num_test=50_000),
    )
