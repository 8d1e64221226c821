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
    """Image, text, sound and speech, each from every other; 44 minutes on one core.

    For stamps of Tux Paint (GPL, not part of this package; benchmarks/make_stamps.py makes the tables from Debian's
    tuxpaint-stamps-default): the folder `stamps` with image, caption, captions_other, sound and speech, of which most
    rows have only the first three, and `stamps_speech` with spoken captions in Spanish and French, whose `id` is that
    of a stamp. The bundled emoji and their names are trained on, too: they show many of the same things. Text is bytes.
    A latent is 8 x 8 pixels of 32 x 32 or 80 ms of sound. What is spoken says its language before it, so that it can be
    asked for.
    """
    return RunConfig(
        name="omni_stamps",
        data=Mixture(sources=[_stamps(), _spoken(), _emoji()], weights=[2.0, 1.0, 2.0], num_workers=0),
        model=OmniParts(
            modalities={
                "text": {},
                "image": {"image_size": 32, "patch_size": 8},
                "audio": {"num_frames": 8, "max_seconds": 8},
            },
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=3,
            layerscale_value=0.1,
            drop_path_prob=0.1,
            max_length=256,
        ),
        objective=NextEmbeddingSettings(distance="vocabulary", weights={"image": 16, "audio": 16}),
        optim=OptimConfig(
            kind="muon",
            learning_rate=2e-3,
            betas=(0.9, 0.98),
            warmup_rate=0.05,
            part_lr_rates={"modalities.image": 0.1, "modalities.audio": 0.1},
        ),
        train=TrainConfig(batch_size=4, max_steps=6000, log_steps=50, save_steps=1000),
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


def _emoji() -> Records:
    """The bundled emoji with their names."""
    return Records(
        source="emoji",
        pieces={
            "image": Piece(kind="image"),
            "en": Piece(kind="text", column="name", prompts=[LANGUAGES["en"][0]]),
        },
        layouts=["image en", "en image"],
    )
