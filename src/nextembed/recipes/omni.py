"""Omni: one transformer, one loss, any modality."""

from ..core.optim import OptimConfig
from ..data.pairs import TextData
from ..evaluation.probes.sweep import ProbeConfig
from ..models.omni import OmniParts
from ..objectives.next_embedding import NextEmbeddingSettings
from ..objectives.readout import ReadoutSettings
from ..runs import RunConfig
from ..toys.emoji_documents import EmojiDocuments, KindWeights
from ..training.settings import TrainConfig


def omni_emoji() -> RunConfig:
    """Images and text in one latent space, on the bundled emoji; 43 minutes on one core.

    Captions, names to be painted, keywords and questions about the group; 16 patches a picture, tokens of the bundled
    tokenizer.
    """
    return RunConfig(
        name="omni_emoji",
        data=EmojiDocuments(
            kinds=KindWeights(tags=1, question=1, context=0),
            max_shift=0.1,
            max_scale=0.1,
            restyle_rate=0.5,  # for images in another drawing style
            num_workers=0,
        ),
        model=OmniParts(
            # mean and std: those of the bundled images, most of whose pixels are white
            modalities={"text": {}, "image": {"image_size": 32, "patch_size": 8, "mean": 0.53, "std": 0.6}},
            tokenizer="bundled",
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=3,
            layerscale_value=0.1,
            max_length=256,
        ),
        # A softmax over cosines has twenty times the gradient of a cosine; without weights, pictures would not depend
        # on names.
        objective=NextEmbeddingSettings(distance="vocabulary", weights={"image": 16}),
        optim=OptimConfig(
            kind="muon",
            learning_rate=2e-3,
            betas=(0.9, 0.98),
            warmup_rate=0.05,
            # At the full rate latents of white patches grow to thirty times the length of tokens (docs/LOG.md).
            part_lr_rates={"modalities.image": 0.1},
        ),
        # Many small steps: with AdamW and as many rows, 2 per step are better than 8 (docs/LOG.md). Muon's own products
        # do not grow with the rows, so with it 4 cost less per row.
        train=TrainConfig(batch_size=4, max_steps=6000, log_steps=50, save_steps=1000, probe_steps=1000),
        probe=ProbeConfig(enabled=False),
    )


def omni_emoji_readout() -> RunConfig:
    """A small network from predictions of runs/omni_emoji to pixels, sharper than without; 4 minutes on one core."""
    config = omni_emoji()
    return config.model_copy(
        update={
            "name": "omni_emoji_readout",
            "data": EmojiDocuments(kinds=KindWeights(caption=0, tags=0, question=0, context=0), num_workers=0),
            "model": OmniParts(pretrained="runs/omni_emoji/model", max_length=256),
            "objective": ReadoutSettings(source="predictions", decoder="mlp"),
            "optim": OptimConfig(learning_rate=2e-3, warmup_rate=0.05),
            "train": TrainConfig(batch_size=16, max_steps=200, log_steps=20, save_steps=200),
            "after": ["omni_emoji"],
        }
    )


def omni_text() -> RunConfig:
    """Next latents of bytes, on short descriptions; 4 minutes on one core.

    For benchmarks/omni_ablations.py, which compares distances. The last 2,000 of the bundled texts are for validation.
    """
    return RunConfig(
        name="omni_text",
        data=TextData(source="glosses", split="train[:38000]", validation="train[38000:]", num_workers=0),
        model=OmniParts(
            modalities={"text": {}},
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            layerscale_value=0.1,
            max_length=256,
        ),
        objective=NextEmbeddingSettings(distance="vocabulary"),
        optim=OptimConfig(learning_rate=2e-3, betas=(0.9, 0.98), warmup_rate=0.05),
        train=TrainConfig(batch_size=16, max_steps=300, log_steps=20, save_steps=300),
        probe=ProbeConfig(enabled=False),
    )
