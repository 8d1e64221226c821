"""More tokens for a language model."""

from typing import Any

import torch


@torch.no_grad()
def grow_vocabulary(language_model: Any, num_tokens: int) -> None:
    """Makes room for `num_tokens` in place; new rows of the input table and of the head are the mean of the old ones.

    A model that has as many or more stays as it is. Source: Emu's release (transformers' own way draws about the mean).
    """
    old = language_model.get_input_embeddings().weight.shape[0]
    if num_tokens <= old:
        return
    language_model.resize_token_embeddings(num_tokens, mean_resizing=False)
    for layer in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
        if layer is not None:
            layer.weight[old:] = layer.weight[:old].float().mean(0).to(layer.weight.dtype)
