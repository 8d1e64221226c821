"""Training of tokenizers, and new tokens for a language model."""

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .processing_emu import ASSISTANT, END, IMAGE, PAD, START, USER


@torch.no_grad()
def grow_vocabulary(language_model: Any, num_tokens: int) -> None:
    """Makes room for `num_tokens` in place; new rows of the input table and of the head are the mean of the old ones.

    A model that has as many or more stays as it is. Source: Emu's release (transformers itself draws around the mean).
    """
    old = language_model.get_input_embeddings().weight.shape[0]
    if num_tokens <= old:
        return
    language_model.resize_token_embeddings(num_tokens, mean_resizing=False)
    for layer in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
        if layer is not None:
            layer.weight[old:] = layer.weight[:old].float().mean(0).to(layer.weight.dtype)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer with begin, end, padding and Emu's tokens; save it with `save_pretrained`.

    A word has the same token at the beginning of a text, after an image and after a space, as in LLaMA's.

    Args:
        texts: what it is trained on.
        vocab_size: number of tokens, with the 256 bytes and all special tokens.

    Returns:
        A Hugging Face tokenizer.

    Raises:
        ValueError: For fewer tokens than bytes and specials.
    """
    special = ["<unk>", "<s>", "</s>", PAD, START, END, IMAGE, USER, ASSISTANT]
    if vocab_size < 256 + len(special):
        raise ValueError(f"vocab_size should be at least {256 + len(special)}, not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token=PAD
    )
