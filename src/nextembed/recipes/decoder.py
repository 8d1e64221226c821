"""Small decoders from the latents of a frozen, pretrained model to pixels: to look at what its latents hold."""

from ..core.config import apply_overrides
from ..data.sources import ImageData
from ..evaluation.probes.sweep import ProbeConfig
from ..models.nepa import NepaModel
from ..objectives.latent_decoder import LatentDecoderSettings
from ..run import RunConfig
from ..training.optim import OptimConfig
from ..training.settings import TrainConfig


def latent_decoder() -> RunConfig:
    """A decoder from the frozen latents of a trained model to pixels: minutes on two CPU cores.

    The model is runs/nepa_demo/model; for another, change model.pretrained and data.source.
    """
    return RunConfig(
        name="latent_decoder",
        data=ImageData(source="emoji", crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip_rate=0.5, num_workers=0),
        model=NepaModel(pretrained="runs/nepa_demo/model"),
        objective=LatentDecoderSettings(),
        optim=OptimConfig(learning_rate=1e-3, warmup_rate=0.05, weight_decay=0.01),
        train=TrainConfig(batch_size=128, max_steps=1000, log_steps=20, save_steps=500),
        probe=ProbeConfig(enabled=False),  # the model is not trained: its own run has been probed
    )


def latent_decoder_tiny() -> RunConfig:
    """latent_decoder, shrunk, of an untrained model."""
    return apply_overrides(
        latent_decoder(),
        [
            "name=latent_decoder_tiny",
            "model={kind: vit_nepa, image_size: 24, patch_size: 8, hidden_size: 32, num_hidden_layers: 2, "
            "num_attention_heads: 2, intermediate_size: 48}",
            "objective={kind: latent_decoder, width: 32, num_layers: 1, num_heads: 2}",
            "optim.warmup_rate=null",
            "optim.warmup_steps=1",
            "train.batch_size=8",
            "train.max_steps=2",
            "train.log_steps=1",
            "train.save_steps=2",
        ],
    )
