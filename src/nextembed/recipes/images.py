"""NEPA on the user's own images: size, patch, batch and steps chosen from what is in the folder and the minutes
given."""

from ..core.optim import OptimConfig
from ..data.sources import ImageData
from ..models.nepa import NepaModel
from ..objectives.next_embedding import NextEmbeddingSettings
from ..runs import RunConfig
from ..training.settings import TrainConfig
from .sizing import choose, look, speed


def nepa_images(data: str = "emoji", minutes: float = 30.0) -> RunConfig:
    """NEPA on your own images: size, patch, batch and steps from what is in the folder and the minutes given.

    data: a folder, Parquet file or hub id. minutes: of training on this machine, about; `nextembed train nepa_images
    data.source=photos --minutes 30` gives both.
    """
    found = look(ImageData(source=data))
    chosen = choose(found, speed(), minutes)
    return RunConfig(
        name="nepa_images",
        data=ImageData(
            source=data,
            crop_scale=(0.4, 1.0),
            validation_rate=0.1 if found.num is not None and found.labelled and found.num >= 200 else None,
            num_workers=0 if found.num is not None and found.num <= 20_000 and chosen.image_size <= 64 else 2,
        ),
        model=NepaModel(
            image_size=chosen.image_size,
            patch_size=chosen.patch_size,
            num_channels=3,
            hidden_size=chosen.width,
            num_attention_heads=chosen.width // 64,
            num_hidden_layers=chosen.layers,
            intermediate_size=8 * chosen.width // 3 // 8 * 8,
            layerscale_value=1.0,
        ),
        objective=NextEmbeddingSettings(),
        optim=OptimConfig(learning_rate=1e-3 if chosen.batch_size >= 64 else 5e-4, warmup_rate=0.1),
        train=TrainConfig(
            batch_size=chosen.batch_size,
            max_steps=chosen.steps,
            ema_decay=0.99 if chosen.steps < 2000 else 0.999,
            log_steps=max(1, chosen.steps // 60),
            save_steps=max(1, chosen.steps // 3),
        ),
    )
