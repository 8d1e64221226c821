"""NEPA (arXiv 2512.16922): next-embedding prediction on images, from a demo of minutes to the paper's runs."""

from typing import Any, Literal

from ..core.optim import OptimConfig
from ..data.sources import ImageData
from ..evaluation.probes.sweep import ProbeConfig
from ..models.nepa import NepaModel
from ..objectives.next_embedding import NextEmbeddingSettings
from ..runs import RunConfig
from ..training.settings import TrainConfig


def nepa_demo() -> RunConfig:
    """NEPA on the bundled emoji pictures, 32 px: minutes on two CPU cores."""
    return RunConfig(
        name="nepa_demo",
        data=ImageData(
            source="emoji",
            crop_scale=(1.0, 1.0),
            crop_ratio=(1.0, 1.0),
            flip_rate=0.5,
            num_workers=0,  # decoded once, kept in memory
        ),
        model=_small(image_size=32, patch_size=8, num_channels=3),
        objective=NextEmbeddingSettings(),
        optim=OptimConfig(learning_rate=1e-3, warmup_rate=0.1),
        train=TrainConfig(batch_size=128, max_steps=600, ema_decay=0.99, log_steps=10, save_steps=200),
        probe=ProbeConfig(),
    )


def fashion_mnist(data: str = "zalando-datasets/fashion_mnist") -> RunConfig:
    """NEPA on Fashion-MNIST, 28 px grey: a real benchmark for a small machine.

    data: hub id, or a folder with train.parquet and test.parquet. The last 5,000 training images are kept for
    validation.
    """
    return RunConfig(
        name="fashion_mnist",
        data=ImageData(
            source=data,
            split="train[:-5000]",
            validation="train[-5000:]",
            test="test",
            crop_scale=(1.0, 1.0),  # garments are centred: random crops cost 1 to 2 points in short runs
            crop_ratio=(1.0, 1.0),
            flip_rate=0.5,
            num_workers=0,  # decoded once, kept in memory
        ),
        model=_small(image_size=28, patch_size=7, num_channels=1, hidden_size=256, num_attention_heads=4),
        objective=NextEmbeddingSettings(),
        optim=OptimConfig(learning_rate=1e-3, warmup_rate=0.1),  # 3e-3 loses rank and 2 points
        train=TrainConfig(batch_size=128, max_steps=2000, ema_decay=0.999, log_steps=20, save_steps=500),
        probe=ProbeConfig(),
    )


def nepa_base_imagenet() -> RunConfig:
    """NEPA-B/14 on ImageNet-1k as in the paper: 1600 epochs, SwiGLU (about 3 days on 8 H100)."""
    return _imagenet("nepa_base_imagenet", _base(), epochs=1600)


def nepa_large_imagenet() -> RunConfig:
    """NEPA-L/14 on ImageNet-1k as in the paper: 800 epochs, SwiGLU (about 5 days on 8 H100)."""
    return _imagenet("nepa_large_imagenet", _large(), epochs=800)


def nepa_base_imagenet_released() -> RunConfig:
    """NEPA-B/14 on ImageNet-1k as in the released code: GELU, horizontal flips."""
    model = _base(use_gated_mlp=False, hidden_act="gelu")
    return _imagenet("nepa_base_imagenet_released", model, epochs=1600, flip_rate=0.5)


def nepa_large_imagenet_released() -> RunConfig:
    """NEPA-L/14 on ImageNet-1k as in the released code: GELU, learned QK-norm scale, flips, 1600 epochs."""
    model = _large(use_gated_mlp=False, hidden_act="gelu", qk_norm_affine=True)
    return _imagenet("nepa_large_imagenet_released", model, epochs=1600, flip_rate=0.5)


def _small(image_size: int, patch_size: int, num_channels: Literal[1, 3], **sizes: int) -> NepaModel:
    """A few million parameters. LayerScale starts at 1: the paper's 1e-5 learns slowly in runs of minutes."""
    sizes = {"hidden_size": 192, "num_attention_heads": 3, **sizes}
    return NepaModel(
        image_size=image_size,
        patch_size=patch_size,
        num_channels=num_channels,
        num_hidden_layers=6,
        intermediate_size=8 * sizes["hidden_size"] // 3 // 8 * 8,  # SwiGLU's three matrices cost as much as GELU's two
        layerscale_value=1.0,
        hidden_size=sizes["hidden_size"],
        num_attention_heads=sizes["num_attention_heads"],
    )


def _base(**changes: Any) -> NepaModel:
    return NepaModel(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, **changes)


def _large(**changes: Any) -> NepaModel:
    return NepaModel(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, **changes)


def _imagenet(name: str, model: NepaModel, epochs: float, flip_rate: float = 0.0) -> RunConfig:
    """Settings of B and L, paper and released code. The hub's test split has no labels, so probes choose on 10,000 of
    the validation images and measure on the other 40,000."""
    return RunConfig(
        name=name,
        data=ImageData(
            source="ILSVRC/imagenet-1k",
            validation="validation[:10000]",
            test="validation[10000:]",
            flip_rate=flip_rate,
            num_workers=8,
        ),
        model=model,
        objective=NextEmbeddingSettings(),
        optim=OptimConfig(learning_rate=4.8e-3, weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=40),
        train=TrainConfig(
            batch_size=4096, epochs=epochs, ema_decay=0.9999, precision="bf16", log_steps=50, save_steps=2500
        ),
        probe=ProbeConfig(num_train=100_000, num_test=40_000),
    )
