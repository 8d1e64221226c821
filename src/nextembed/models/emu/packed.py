"""Packed documents as a language model of transformers reads them."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...nn.documents import DOCUMENTS, as_mask, attends_in_blocks


def document_mask(model: PreTrainedModel, document_ids: Tensor, embeds: Tensor) -> Any:
    """Mask that keeps a language model's attention causal and inside each document.

    Args:
        model: the language model. From the first packed batch on, "sdpa" reads documents in blocks where it can
            (`nn.documents`); everything else it computes as before.
        document_ids: [B, T].
        embeds: what the model reads, [B, T, D].

    Returns:
        [B, 1, T, T], documents in place of a mask, or None where the kernel reads them from position ids that start
        anew (flash, flex).
    """
    config: Any = model.config
    if config._attn_implementation == "sdpa" and model._supports_attention_backend:
        model.set_attn_implementation(DOCUMENTS)
    kind = str(config._attn_implementation)
    if "flash" in kind or "flex" in kind:
        return None
    window, layers = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or []
    has_windows = "sliding_attention" in layers if layers else window is not None
    if kind == DOCUMENTS and not has_windows and attends_in_blocks(embeds):
        return as_mask(document_ids)
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    ones = torch.ones(same.shape[-2:], dtype=torch.bool, device=same.device)
    mask = same & ones.tril()
    near = mask if window is None else mask & ones.triu(1 - window)

    def shown(mask: Tensor) -> Tensor:
        if "sdpa" in kind:
            return mask
        return torch.zeros_like(mask, dtype=embeds.dtype).masked_fill(~mask, torch.finfo(embeds.dtype).min)

    if "sliding_attention" in layers:  # these models take one mask per kind of layer
        return {"full_attention": shown(mask), "sliding_attention": shown(near)}
    return shown(mask if layers else near)


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """Positions [B, T] that count from 0 in each document of packed rows [B, T]."""
    steps = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return steps - torch.where(starts, steps, 0).cummax(dim=1).values
