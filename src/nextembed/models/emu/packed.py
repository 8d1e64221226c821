"""Packed documents as a language model of transformers reads them."""

from typing import Any

import torch
from torch import Tensor


def document_mask(config: Any, document_ids: Tensor, embeds: Tensor) -> Any:
    """Mask [B, 1, T, T] that keeps attention causal and inside each document; None where the kernel reads that
    from position ids that start anew (flash, flex)."""
    kind = str(config._attn_implementation)
    if "flash" in kind or "flex" in kind:
        return None
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    ones = torch.ones(same.shape[-2:], dtype=torch.bool, device=same.device)
    mask = same & ones.tril()
    window, layers = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or []
    near = mask if window is None else mask & ones.triu(1 - window)

    def shown(mask: Tensor) -> Tensor:
        if kind == "sdpa":
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
