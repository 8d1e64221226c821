"""Emu: from a NEPA encoder and a small language model to captions, answers and painted pictures."""

from ..core.optim import OptimConfig
from ..data.interleaved import Interleaved
from ..data.messages import Messages
from ..data.mixture import Mixture
from ..data.pairs import PairData, TextData
from ..data.video import VideoText
from ..evaluation.probes.sweep import ProbeConfig
from ..models.emu import EmuParts
from ..models.emu.visual_decoder_settings import PixelDecoder, StableDiffusionDecoder
from ..models.nepa.settings import NepaClassifier
from ..objectives.alignment import AlignmentSettings
from ..objectives.emu import EmuSettings
from ..objectives.supervised import ClassificationSettings
from ..objectives.visual_decoder import VisualDecoderSettings
from ..runs import RunConfig
from ..toys.emoji_documents import EmojiDocuments, KindWeights
from ..toys.emoji_names import EmojiNames
from ..training.adapt import LoraSettings
from ..training.settings import TrainConfig

ENCODER = "runs/emu_emoji_encoder/model"
LANGUAGE = "runs/emu_emoji_language/model"
EMOJI = "runs/emu_emoji/model"
LLAMA_LORA = LoraSettings(
    rank=16, alpha=16, dropout=0.05, targets=["q_proj", "k_proj", "v_proj", "o_proj"], within="language_model"
)


def emu_pretrain() -> RunConfig:
    """Emu's pretraining as in the paper: pairs, interleaved documents, videos with text and with subtitles.

    Learning rates, AdamW, warm-up and 8 frames a video are the paper's; 10,000 steps of 7,168 rows of 2,048 positions
    read its 150 B tokens. The four sources are yours to name (data.sources); so are the weights of the EVA-CLIP tower
    (model.vision), which else starts anew.
    """
    return RunConfig(
        name="emu_pretrain",
        data=Mixture(
            sources=[
                PairData(source="data/pairs/*.tar", streaming=True),
                Interleaved(source="data/interleaved/*.jsonl", streaming=True),
                VideoText(source="data/videos/*.tar", streaming=True),
                VideoText(source="data/storyboards/*.parquet", with_subtitles=True, streaming=True),
            ],
            num_workers=2,
        ),
        model=EmuParts(
            vision_config={"model_type": "blip_2_vision_model", "num_hidden_layers": 40, "initializer_range": 0.02},
            language="huggyllama/llama-13b",
        ),
        objective=EmuSettings(),
        optim=OptimConfig(
            learning_rate=1e-4,  # of the causal transformer
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.05,
            warmup_rate=0.2,
            part_lr_rates={"visual": 0.4, "visual_norm": 0.4, "language_model": 0.3},
        ),
        train=TrainConfig(
            batch_size=7168,
            micro_batch_size=4,
            max_steps=10_000,
            precision="bf16",
            gradient_checkpointing=True,
            fsdp=True,
            log_steps=10,
            save_steps=500,
        ),
        probe=ProbeConfig(enabled=False),
    )


def emu_instruct() -> RunConfig:
    """Instruction tuning as in the paper: LoRA on q, k, v and o of the language model, loss on answers only.

    Learning rate, batch and length are ours: the paper does not say. The conversations (data.source) and the pretrained
    Emu (model.pretrained) are yours to name.
    """
    return RunConfig(
        name="emu_instruct",
        data=Messages(source="data/conversations.jsonl", num_workers=2),
        model=EmuParts(pretrained="runs/emu_pretrain/model"),
        objective=EmuSettings(regression_weight=0.0),
        optim=OptimConfig(learning_rate=1e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05, warmup_rate=0.2),
        train=TrainConfig(
            batch_size=128,
            micro_batch_size=4,
            max_steps=10_000,
            precision="bf16",
            gradient_checkpointing=True,
            lora=LLAMA_LORA,
            freeze=["regression_head"],
            log_steps=10,
            save_steps=500,
        ),
        probe=ProbeConfig(enabled=False),
    )


def emu_visual_decoder() -> RunConfig:
    """Emu's visual decoder as in the paper: the UNet of Stable Diffusion 1.5 reads the latents of a frozen Emu.

    512 px, 15,000 steps, condition dropped in 10 %. The paper's learning rate rises for 5,000 steps to 1e-4 and falls
    to 5e-5 and 1e-5 at steps 10,000 and 14,000; ours falls by half a cosine instead. Images (data.source), the Emu
    (model.pretrained) and the Stable Diffusion folder (objective.decoder.pretrained) are yours to name.
    """
    return RunConfig(
        name="emu_visual_decoder",
        data=PairData(source="data/pairs/*.tar", streaming=True, order="image_first", num_workers=2),
        model=EmuParts(pretrained="runs/emu_pretrain/model"),
        objective=VisualDecoderSettings(
            decoder=StableDiffusionDecoder(pretrained="stable-diffusion-v1-5"),
            drop_rate=0.1,
            gradient_checkpointing=True,
            mean=[0.48145466, 0.4578275, 0.40821073],
            std=[0.26862954, 0.26130258, 0.27577711],
        ),
        optim=OptimConfig(learning_rate=1e-4, betas=(0.9, 0.98), eps=1e-6, warmup_steps=5000),
        train=TrainConfig(
            batch_size=512, micro_batch_size=8, max_steps=15_000, precision="bf16", log_steps=20, save_steps=1000
        ),
        probe=ProbeConfig(enabled=False),
    )


def emu_emoji_encoder() -> RunConfig:
    """NEPA's encoder learns to tell emoji apart in any style, by their names; 12 minutes on one core.

    In place of Emu's EVA-CLIP, which has learned from captions before: an encoder that is trained by the captions of
    the bundled emoji alone learns their names several times more slowly (docs/LOG.md).
    """
    return RunConfig(
        name="emu_emoji_encoder",
        data=EmojiNames(versions=78, num_workers=0),  # no image is seen twice
        model=NepaClassifier(pretrained="runs/nepa_demo/model", pos_embed_rescale=1),
        objective=ClassificationSettings(label_smoothing=0.1),
        optim=OptimConfig(kind="muon", learning_rate=2e-3, betas=(0.9, 0.98), warmup_rate=0.05),
        train=TrainConfig(batch_size=64, max_steps=2000, log_steps=50, save_steps=500, probe_steps=500),
        probe=ProbeConfig(),
        after=["nepa_demo"],
    )


def emu_emoji_language() -> RunConfig:
    """A small language model in an Emu, warmed up on short descriptions; its encoder is runs/emu_emoji_encoder."""
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
        optim=OptimConfig(learning_rate=1.5e-3, betas=(0.9, 0.98), warmup_rate=0.05),
        train=TrainConfig(
            batch_size=16,
            max_steps=800,
            freeze=["visual", "visual_norm", "connector", "regression_head"],
            log_steps=20,
            save_steps=500,
        ),
        probe=ProbeConfig(enabled=False),
        after=["emu_emoji_encoder"],
    )


def emu_emoji() -> RunConfig:
    """Emu on the bundled emoji: causal transformer, language model and both heads, 40 minutes on one core.

    It starts from runs/emu_emoji_language and the stages before it, trained first if they are not there.
    """
    return RunConfig(
        name="emu_emoji",
        data=EmojiDocuments(
            kinds=KindWeights(caption=4, paint=3, tags=0.5, question=1.5, context=0.5),
            prompt_loss=False,  # nothing before them says which name will come
            max_shift=0.1,
            max_scale=0.1,
            restyle_rate=0.8,  # for images in another drawing style
            num_workers=0,
        ),
        model=EmuParts(pretrained=LANGUAGE, latent_std=0.3, max_length=128),
        objective=EmuSettings(),
        optim=OptimConfig(
            kind="muon",
            learning_rate=2e-3,
            betas=(0.9, 0.98),
            warmup_rate=0.05,
            part_lr_rates={"connector": 0.5},
        ),
        train=TrainConfig(
            batch_size=12,
            max_steps=2600,
            # It knows the names already. Trained with the rest, it costs about a third of a step, and its latents lose
            # half of their directions (docs/LOG.md).
            freeze=["visual"],
            log_steps=20,
            save_steps=400,
            probe_steps=200,
        ),
        probe=ProbeConfig(enabled=False),
        after=["emu_emoji_language"],
    )


def emu_emoji_instruct() -> RunConfig:
    """LoRA on the emoji Emu, on questions about groups; loss on answers only."""
    return RunConfig(
        name="emu_emoji_instruct",
        data=EmojiDocuments(
            kinds=KindWeights(caption=0, paint=0, tags=0, question=1, context=0), max_shift=0.1, num_workers=0
        ),
        model=EmuParts(pretrained=EMOJI, max_length=128),
        objective=EmuSettings(regression_weight=0.0),
        optim=OptimConfig(learning_rate=2e-3, betas=(0.9, 0.98), warmup_rate=0.1),
        train=TrainConfig(
            batch_size=16, max_steps=200, lora=LLAMA_LORA, freeze=["regression_head"], log_steps=20, save_steps=100
        ),
        probe=ProbeConfig(enabled=False),
        after=["emu_emoji"],
    )


def emu_emoji_decoder() -> RunConfig:
    """A small diffusion decoder from the latents of the emoji Emu to emoji, on pixels; 27 minutes on one core."""
    return RunConfig(
        name="emu_emoji_decoder",
        data=EmojiDocuments(kinds=KindWeights(caption=0, paint=1, tags=0, question=0, context=0), num_workers=0),
        model=EmuParts(pretrained=EMOJI, max_length=128),
        # Most latents are those that the model predicts, which are what is painted.
        objective=VisualDecoderSettings(
            decoder=PixelDecoder(channels=[64]), regressed_rate=0.9, map_prior=1e-4, ema_decay=0.995
        ),
        optim=OptimConfig(learning_rate=1e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup_rate=0.05),
        train=TrainConfig(batch_size=8, max_steps=2600, log_steps=20, save_steps=200),
        probe=ProbeConfig(enabled=False),
        after=["emu_emoji"],
    )


def emu_smol_alignment() -> RunConfig:
    """The latents of an emoji spell its name in tokens of SmolLM2-135M, for emu_smol; 10 minutes on one core.

    model.language is any causal model of Hugging Face: a hub id, a folder, or a GGUF file. The encoder is that of
    runs/emu_emoji_encoder.
    """
    return RunConfig(
        name="emu_smol_alignment",
        data=_names(),
        model=EmuParts(
            vision=ENCODER,
            vision_config={"is_causal": False},
            language="HuggingFaceTB/SmolLM2-135M-Instruct",
            num_image_latents=6,  # 93 % of the names have no more tokens
            causal_former=_small_former(),
            latent_std=0.1,
            max_length=128,
        ),
        objective=AlignmentSettings(),
        optim=_aligned(),
        train=TrainConfig(batch_size=8, max_steps=1000, log_steps=20, save_steps=500, probe_steps=200),
        probe=ProbeConfig(enabled=False),
        after=["emu_emoji_encoder"],
    )


def emu_smol() -> RunConfig:
    """Emu on SmolLM2-135M: captions, answers in sentences and conversations about emoji.

    32 minutes on one core that has avx512_bf16. The language model, frozen but for LoRA, is that of
    runs/emu_smol_alignment.
    """
    return RunConfig(
        name="emu_smol",
        data=EmojiDocuments(
            kinds=KindWeights(caption=3, paint=1, tags=1, question=2, context=1, chat=3),
            max_shift=0.1,
            max_scale=0.1,
            restyle_rate=0.7,
            num_workers=0,
        ),
        model=EmuParts(pretrained="runs/emu_smol_alignment/model", max_length=128),
        objective=EmuSettings(),
        optim=OptimConfig(
            kind="muon",
            learning_rate=2e-3,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            warmup_rate=0.05,
            part_lr_rates={"visual": 0.1, "connector": 0.1},
        ),
        train=TrainConfig(
            batch_size=4,
            max_steps=800,
            precision="bf16",  # without avx512_bf16 or AMX: float32
            attn_implementation="eager",  # over short rows on a CPU the fastest backward pass (docs/LOG.md)
            lora=LLAMA_LORA.model_copy(update={"dropout": 0.0, "whole": ["visual", "visual_norm", "connector"]}),
            log_steps=20,
            save_steps=250,
        ),
        probe=ProbeConfig(enabled=False),
        after=["emu_smol_alignment"],
    )


def _names() -> EmojiDocuments:
    """Emoji in changed styles with their names."""
    only = KindWeights(caption=1, paint=0, tags=0, question=0, context=0)
    return EmojiDocuments(kinds=only, max_shift=0.1, max_scale=0.1, restyle_rate=0.7, num_workers=0)


def _aligned() -> OptimConfig:
    return OptimConfig(
        kind="muon", learning_rate=2e-3, betas=(0.9, 0.98), warmup_rate=0.05, part_lr_rates={"visual": 0.3}
    )


def _small_llama() -> dict[str, str | int | bool]:
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


def _small_former() -> dict[str, float]:
    return {"d_model": 192, "d_kv": 48, "num_heads": 4, "d_ff": 512, "num_layers": 2, "dropout_rate": 0.0}
