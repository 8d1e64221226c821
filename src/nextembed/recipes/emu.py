"""Emu: from a NEPA encoder and a small language model to captions, answers and painted pictures."""

from typing import Any

from ..core.config import apply_overrides
from ..data.emoji_documents import EmojiDocuments
from ..data.pairs import TextData
from ..evaluation.probes import ProbeConfig
from ..models.emu import EmuParts
from ..objectives.emu import EmuSettings
from ..run import RunConfig
from ..training.optim import OptimConfig
from ..training.trainer import TrainConfig

ENCODER = "runs/nepa_demo/model"
LANGUAGE = "runs/emu_emoji_language/model"


def emu_emoji_language() -> RunConfig:
    """A small language model inside an Emu, warmed up on short descriptions; its encoder is runs/nepa_demo/model."""
    return RunConfig(
        name="emu_emoji_language",
        data=TextData(source="glosses", num_workers=0),
        model=EmuParts(
            vision=ENCODER,
            vision_config={"is_causal": False},
            language_config=_small_llama(),
            tokenizer="bundled",
            num_image_latents=8,
            causal_former=_small_former(),
            max_length=128,
        ),
        objective=EmuSettings(),
        optim=OptimConfig(base_learning_rate=2.4e-2, betas=(0.9, 0.98), warmup_rate=0.05),
        train=TrainConfig(
            batch_size=16,
            max_steps=800,
            freeze=["visual", "visual_norm", "connector", "regression_head"],
            log_steps=20,
            save_steps=500,
        ),
        probe=ProbeConfig(enabled=False),
        after=["nepa_demo"],
    )


def emu_emoji() -> RunConfig:
    """Emu on the bundled emoji: encoder, causal transformer, language model and both heads, 25 minutes on two cores.

    It starts from runs/emu_emoji_language (and that from runs/nepa_demo), trained first if they are not there.
    """
    return RunConfig(
        name="emu_emoji",
        data=EmojiDocuments(max_shift=0.1, num_workers=0),
        model=EmuParts(pretrained=LANGUAGE, latent_std=0.3, max_length=128),
        objective=EmuSettings(),
        optim=OptimConfig(
            base_learning_rate=1.6e-2,
            betas=(0.9, 0.98),
            warmup_rate=0.05,
            # At the full rate the text loss alone makes all latents point one way within 50 steps.
            part_lr_rates={"visual": 0.1, "connector": 0.1},
        ),
        train=TrainConfig(batch_size=16, max_steps=2500, log_steps=20, save_steps=500),
        probe=ProbeConfig(enabled=False),
        after=["emu_emoji_language"],
    )


def emu_emoji_language_tiny() -> RunConfig:
    """emu_emoji_language, shrunk."""
    return _tiny(emu_emoji_language())


def emu_emoji_tiny() -> RunConfig:
    """emu_emoji, shrunk, with new parts."""
    return _tiny(emu_emoji())


def _small_llama() -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 4096,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }


def _small_former() -> dict[str, Any]:
    return {"d_model": 192, "d_kv": 48, "num_heads": 4, "d_ff": 512, "num_layers": 2, "dropout_rate": 0.0}


def _tiny(config: RunConfig) -> RunConfig:
    """The same stages on new, narrow parts, two steps."""
    return apply_overrides(
        config,
        [
            f"name={config.name}_tiny",
            "data.num_workers=0",
            "data.pack_window=32",
            "model={kind: emu, vision_config: {model_type: vit_nepa, hidden_size: 32, num_hidden_layers: 2, "
            "num_attention_heads: 2, intermediate_size: 48, image_size: 24, patch_size: 8}, "
            "language_config: {model_type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, "
            "intermediate_size: 48, vocab_size: 4096, max_position_embeddings: 128}, tokenizer: bundled, "
            "num_image_latents: 4, max_length: 64, "
            "causal_former: {d_model: 24, d_kv: 8, num_heads: 2, d_ff: 32, num_layers: 1}}",
            "optim.warmup_rate=null",
            "optim.warmup_steps=1",
            "train.batch_size=2",
            "train.max_steps=2",
            "train.log_steps=1",
            "train.save_steps=2",
            "after=[]",
        ],
    )
