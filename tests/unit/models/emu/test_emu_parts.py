"""Parts of an Emu that come from other models."""

import torch
from transformers import AutoTokenizer

from nextembed.models.emu import EmuParts
from nextembed.models.emu.processing_emu import add_emu_tokens
from nextembed.models.emu.settings import BUNDLED_TOKENIZER

VISION = {"model_type": "vit_nepa", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "intermediate_size": 32, "image_size": 8, "patch_size": 4}  # fmt: skip
FORMER = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 1}


def parts(width, **changes):
    language = {"model_type": "llama", "hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1,
                "num_attention_heads": 2, "vocab_size": 4096, "max_position_embeddings": 64}  # fmt: skip
    return EmuParts(language_config=language, tokenizer="bundled", num_image_latents=2, causal_former=FORMER, **changes)


def test_the_encoder_of_an_emu_can_be_reused(tmp_path):
    torch.manual_seed(0)
    first = parts(32, vision_config=VISION)
    model = first.build()
    model.save_pretrained(tmp_path)
    first.processor().save_pretrained(tmp_path)
    torch.manual_seed(1)
    second = parts(24, vision=str(tmp_path))
    found, expected = second.build().model.visual.state_dict(), model.model.visual.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert second.processor().image_processor.size == first.processor().image_processor.size


def test_an_end_token_used_for_padding_gets_a_separate_padding_token():
    """Padding is never a target, so otherwise the model could not learn to stop."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
    tokenizer.pad_token = tokenizer.eos_token
    add_emu_tokens(tokenizer)
    assert tokenizer.pad_token == "[PAD]" and tokenizer.pad_token_id != tokenizer.eos_token_id
