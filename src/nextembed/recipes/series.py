"""Sensor series: next-latent pretraining on multichannel recordings, and their classes as text."""

from ..core.optim import OptimConfig
from ..data.records import Piece, Records
from ..evaluation.probes.sweep import ProbeConfig
from ..models.omni import OmniParts
from ..objectives.next_embedding import NextEmbeddingSettings
from ..runs import RunConfig
from ..training.settings import TrainConfig


def omni_series() -> RunConfig:
    """Next latents of 6-channel motion recordings without their classes; a minute on one core.

    For BasicMotions (UEA archive, 40 recordings of 100 samples at 10 Hz) as Parquet, columns `series` and `label`, in
    the folder series/BasicMotions; another data set needs data.source, and its own channels and scale of
    model.modalities.series. Probed by benchmarks/omni_series.py.
    """
    return RunConfig(
        name="omni_series",
        data=Records(
            source="series/BasicMotions",
            pieces={"series": Piece(kind="series"), "class": Piece(kind="text", column="label", prompts=["{text}."])},
            layouts={"series": 1},
            num_workers=0,
        ),
        model=OmniParts(
            modalities={"text": {}, "series": {"channels": 6, "patch_size": 5, "scale": [7, 7, 3.5, 2, 2, 3.5]}},
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            layerscale_value=0.1,
            max_length=128,
        ),
        objective=NextEmbeddingSettings(distance="vocabulary"),
        optim=OptimConfig(learning_rate=2e-3, betas=(0.9, 0.98), warmup_rate=0.1),
        train=TrainConfig(batch_size=8, max_steps=200, log_steps=20, save_steps=200),
        probe=ProbeConfig(enabled=False),
    )


def omni_series_classes() -> RunConfig:
    """omni_series, with the class as text after each recording: it classifies with `score`; a minute on one core.

    It starts from runs/omni_series.
    """
    config = omni_series()
    config.name, config.after = "omni_series_classes", ["omni_series"]
    config.data.layouts = {"series class": 1}  # type: ignore[attr-defined]
    config.model = OmniParts(pretrained="runs/omni_series/model", max_length=128)
    config.optim.learning_rate = 1e-3
    config.train.max_steps = config.train.save_steps = 100
    return config
