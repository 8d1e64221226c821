"""A tiny Emu, saved as by training."""

from pathlib import Path

import torch
from transformers import LlamaConfig, ViTImageProcessorPil

from nextembed.models.emu import EmuConfig, EmuForConditionalGeneration, EmuProcessor
from nextembed.models.emu.vocabulary import train_tokenizer
from nextembed.models.nepa import ViTNepaConfig

LINES = ["a photo of a cat", "a photo of a dog", "what colour is it? it is red", "Question: who? Answer: a cat"]
WIDTH = 32


def save_tiny_emu(folder: Path, instruct: bool = True, context: int = 256) -> Path:
    """Saves a model with N = 4 and images of 8 pixels."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(LINES, 300)
    ids = tokenizer.get_vocab()
    if not instruct:
        specials = ["<unk>", "<s>", "</s>", "[PAD]", "[IMG]", "[/IMG]", "<image>"]
        tokenizer = without_dialogue(tokenizer)
        ids = tokenizer.get_vocab()
        assert set(specials) <= set(ids)
    config = EmuConfig(
        vision_config=ViTNepaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                                    image_size=8, patch_size=4),
        text_config=LlamaConfig(vocab_size=max(ids.values()) + 1, hidden_size=WIDTH, intermediate_size=64,
                                num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=context,
                                pad_token_id=ids["[PAD]"], bos_token_id=ids["<s>"], eos_token_id=ids["</s>"]),
        causal_former_config={"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 1},
        num_image_latents=4,
        image_token_id=ids["<image>"], image_start_token_id=ids["[IMG]"], image_end_token_id=ids["[/IMG]"],
        pad_token_id=ids["[PAD]"], bos_token_id=ids["<s>"], eos_token_id=ids["</s>"],
        user_token_id=ids.get("[USER]"), assistant_token_id=ids.get("[ASSISTANT]"),
    )  # fmt: skip
    model = EmuForConditionalGeneration(config)
    pixels = ViTImageProcessorPil(size={"height": 8, "width": 8}, resample=3)
    model.save_pretrained(folder)
    EmuProcessor(pixels, tokenizer, 4).save_pretrained(folder)
    return folder


def without_dialogue(tokenizer):
    """The same tokenizer with its dialogue tokens renamed."""
    import json

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    text = tokenizer.backend_tokenizer.to_str().replace("[USER]", "[A]").replace("[ASSISTANT]", "[B]")
    json.loads(text)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), unk_token="<unk>", bos_token="<s>",
                                   eos_token="</s>", pad_token="[PAD]")  # fmt: skip
