"""Pictures, captions in three languages, sounds and speech in one latent space."""

from ..core.optim import OptimConfig
from ..data.joined import Join
from ..data.mixture import Mixture
from ..data.records import Piece, Records
from ..evaluation.probes.sweep import ProbeConfig
from ..models.omni import OmniParts
from ..objectives.next_embedding import NextEmbeddingSettings
from ..runs import RunConfig
from ..training.settings import TrainConfig

LANGUAGES = {"en": ("English: {text}", "caption"), "es": ("Español: {text}", "captions_other.es"),
             "fr": ("Français : {text}", "captions_other.fr")}  # fmt: skip


def omni_stamps() -> RunConfig:
    """Image, text, sound and speech, each from every other; 19 minutes on one core, with other work running.

    For stamps of Tux Paint (GPL, not part of this package; benchmarks/make_stamps.py makes the tables from Debian's
    tuxpaint-stamps-default): the folder `stamps` with image, caption, captions_other, sound and speech, of which most
    rows have only the first three, and `stamps_speech` with spoken captions in Spanish and French, whose `id` is that
    of a stamp. Text is bytes. A latent is 8 x 8 pixels of 32 x 32 or 80 ms of sound. What is spoken says its language
    before it, so that it can be asked for. After these steps speech and its words find each other, and the rest is
    hardly above chance: train longer for more.
    """
    return RunConfig(
        name="omni_stamps",
        data=Mixture(sources=[_stamps(), _spoken()], weights=[1.0, 1.0], num_workers=0),
        model=OmniParts(
            modalities={
                "text": {},
                "image": {"image_size": 32, "patch_size": 8},
                "audio": {"num_frames": 8, "max_seconds": 8},
            },
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            layerscale_value=0.1,
            drop_path_prob=0.1,
            max_length=256,
        ),
        # As in omni_emoji: cosines have smaller gradients than the softmax of text, and many small steps are better.
        objective=NextEmbeddingSettings(distance="vocabulary", weights={"image": 16, "audio": 16}),
        optim=OptimConfig(
            learning_rate=1e-3,
            betas=(0.9, 0.98),
            warmup_rate=0.05,
            part_lr_rates={"modalities.image": 0.1, "modalities.audio": 0.1},
        ),
        train=TrainConfig(batch_size=2, max_steps=5000, log_steps=50, save_steps=1000),
        probe=ProbeConfig(enabled=False),
    )


def _stamps() -> Records:
    """Every piece of a stamp from every other."""
    captions = {
        name: Piece(kind="text", column=column, prompts=[prompt]) for name, (prompt, column) in LANGUAGES.items()
    }
    return Records(
        source="stamps",
        pieces={"image": Piece(kind="image"), "sound": Piece(kind="audio"), "speech": Piece(kind="audio"), **captions},
        layouts={
            "image en|es|fr": 2,
            "en|es|fr image": 2,
            "en|es|fr en|es|fr": 0.5,
            "image sound|speech": 2,
            "sound|speech image": 2,
            "sound|speech en": 2,
            "en sound|speech": 2,
        },
    )


def _spoken() -> Records:
    """Captions in other languages, spoken, with the picture that they belong to."""
    return Records(
        source="stamps_speech",
        joins={"stamps": Join(source="stamps", by="id")},
        pieces={
            "image": Piece(kind="image", column="stamps.image"),
            "speech": Piece(kind="audio"),
            "words": Piece(kind="text", column="text", prompts=["{language}: {text}"]),
        },
        layouts=["image speech", "speech image", "speech words", "words speech"],
    )
