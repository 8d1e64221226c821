"""The candle test: is a model's uncertainty calibrated for things that it has not touched?"""

from ..core.config import apply_overrides
from ..core.optim import OptimConfig
from ..evaluation.probes.sweep import ProbeConfig
from ..models.omni import OmniParts
from ..objectives.next_embedding import NextEmbeddingSettings
from ..runs import RunConfig
from ..toys.candle import THINGS, Candle
from ..training.settings import TrainConfig

RATES = (0.2, 0.5, 0.8)  # how often a thing is real; each thing has one of these rates


def _rates() -> dict[str, float]:
    """Rates of the things that are hot or cold, each of the three equally often among both."""
    found: dict[str, float] = {}
    for warmth in ("hot", "cold"):
        names = [name for name, own in THINGS.items() if own == warmth]
        found |= {name: RATES[number % len(RATES)] for number, name in enumerate(names)}
    return found


def omni_candle() -> RunConfig:
    """Pictures, touch and questions in one latent space, next latents as mixtures; 8 minutes on one core.

    Pictures of hot, cold and other things (32 px, 16 patches), temperatures on touching them (8 latents of 4 samples)
    and text as bytes. A hot or cold thing is real at a rate of its own, 20, 50 or 80 %; else it is a picture
    of one, which feels like the room.
    """
    return RunConfig(
        name="omni_candle",
        data=Candle(touch_kind="touch", real_rates=_rates(), num_workers=0),
        model=OmniParts(
            modalities={
                "text": {},
                "image": {"image_size": 32, "patch_size": 8},
                "touch": {"kind": "series", "channels": 1, "patch_size": 4, "length": 32},
            },
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            layerscale_value=0.1,
            max_length=128,
            density="mixture",
            num_components=8,
        ),
        # All in nats. Pictures are given, not asked for; at full weight they dominate the gradient.
        objective=NextEmbeddingSettings(distance="vocabulary", weights={"image": 0.01}),
        # White patches move all weights of the image projection in one direction: at the full rate all pictures become
        # alike.
        optim=OptimConfig(
            learning_rate=1.09375e-3,
            betas=(0.9, 0.98),
            warmup_rate=0.05,
            part_lr_rates={"modalities.image": 0.1},
        ),
        train=TrainConfig(batch_size=4, max_steps=3000, log_steps=100, save_steps=3000),
        probe=ProbeConfig(enabled=False),
    )


def omni_candle_point() -> RunConfig:
    """omni_candle whose next latents are points: cosines, and for text the softmax over bytes.

    The weights make touch and images pull as hard as in omni_candle, whose directions pull with a concentration of 20.
    """
    return _variant("point", "model.density=none", "objective.weights={touch: 20, image: 0.2}")


def omni_candle_single() -> RunConfig:
    """omni_candle whose next latents are single von Mises-Fisher densities: one direction and a concentration."""
    return _variant("single", "model.density=von_mises_fisher")


def omni_candle_flow() -> RunConfig:
    """omni_candle whose next latents are sampled by a flow: its loss is a mean over values, so touch weighs more."""
    return _variant("flow", "model.density=flow", "objective.weights={touch: 4, image: 0.04}")


def omni_candle_energy() -> RunConfig:
    """omni_candle whose next latents are sampled in one pass, trained by the energy score."""
    return _variant("energy", "model.density=energy", "objective.weights={touch: 4, image: 0.04}")


def _variant(name: str, *changes: str) -> RunConfig:
    return apply_overrides(omni_candle(), [f"name=omni_candle_{name}", *changes])
