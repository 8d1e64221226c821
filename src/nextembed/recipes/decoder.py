"""Small decoders from the latents of a frozen, pretrained model to pixels, which show what latents contain."""

from ..core.optim import OptimConfig
from ..data.sources import ImageData
from ..evaluation.probes.sweep import ProbeConfig
from ..models.nepa import NepaModel
from ..objectives.latent_decoder import LatentDecoderSettings
from ..runs import RunConfig
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
