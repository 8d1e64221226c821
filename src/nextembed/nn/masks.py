"""Which latents each latent may attend to, for every attention implementation.

Shapes: B samples, T latents that attend, S latents that are attended to: those of a cache, then the T.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ..core.types import Attention, Blocks, Prefix
from ..errors import ConfigError
from .documents import as_mask, attends_in_blocks


def attention_arguments(
    attention: Attention, z: Tensor, config: Any, documents: Tensor | None = None, past: int = 0
) -> dict[str, Any]:
    """Arguments of an attention function: `attention_mask`, `is_causal` and, for flash, the starts of documents.

    Args:
        attention: which latents see which.
        z: the latents that attend, [B, T, D]; gives sizes, dtype and device.
        config: names the implementation ("eager", "sdpa", "flex_attention", "flash_attention_2", ...).
        documents: [B, S], int64; attention stays inside each. None: every sample is one.
        past: how many latents a cache holds already, S - T.

    Returns:
        Keyword arguments. The mask is None wherever the kernel needs none, and that of `documents.as_mask` where
        documents are attended to in blocks.

    Raises:
        ConfigError: For a mask that the implementation has no kernel for.
    """
    kind, num = config._attn_implementation, z.shape[1]
    is_causal = attention == "causal"
    plain = documents is None and isinstance(attention, str)
    # A kernel's causal mask counts from the first of all latents, so it does not fit several latents after a cache.
    fits = not (is_causal and past and num > 1)
    if plain and fits and kind != "flex_attention":
        return {"attention_mask": None, "is_causal": is_causal}
    if "flash" in kind:
        if isinstance(attention, str) and documents is not None and past == 0:
            return {"attention_mask": None, "is_causal": is_causal, **_document_lengths(documents)}
        if plain:  # flash counts from the end, as a cache needs it
            return {"attention_mask": None, "is_causal": is_causal}
        raise ConfigError(f"train.attn_implementation={kind} has no such mask; use sdpa or flex_attention")
    if kind == "sdpa" and is_causal and documents is not None and past == 0 and attends_in_blocks(z):
        return {"attention_mask": as_mask(documents), "is_causal": True}
    seen = _seen(attention, documents)
    if kind == "flex_attention":
        sizes = (z.shape[0], None, num, past + num, z.device)
        # Compiled it needs little memory; but for some masks the compiler for CPUs makes C++ that does not build.
        mask = create_block_mask(_behind(seen, past), *sizes, _compile=z.device.type != "cpu")
        return {"attention_mask": mask, "is_causal": False}
    mask = ALL_MASK_ATTENTION_FUNCTIONS[kind](
        batch_size=z.shape[0],
        q_length=num,
        kv_length=past + num,
        q_offset=past,
        kv_offset=0,
        mask_function=seen,
        attention_mask=None,
        allow_is_causal_skip=False,
        dtype=z.dtype,
        config=config,
        device=z.device,
    )
    return {"attention_mask": mask, "is_causal": False}


def _seen(attention: Attention, documents: Tensor | None) -> object:
    """(sample, head, i, j) -> whether i sees j, of index tensors that broadcast."""

    def seen(sample: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if isinstance(attention, Prefix):
            found = j < torch.maximum(i + 1, attention.lengths[sample])
        elif isinstance(attention, Blocks):
            found = attention.ids[sample, j] <= attention.ids[sample, i]
        else:
            found = j <= i if attention == "causal" else j >= 0
        if documents is not None:
            found = found & (documents[sample, i] == documents[sample, j])
        return found

    return seen


def _behind(seen: Any, past: int) -> Any:
    return lambda sample, head, i, j: seen(sample, head, i + past, j)


def _document_lengths(documents: Tensor) -> dict[str, object]:
    """Packed documents [B, T] as flash attention takes them: the start of each, with all rows concatenated."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    ends = F.pad(begins.flatten().nonzero()[:, 0].int(), (0, 1), value=documents.numel())
    longest = int(ends.diff().max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
