"""Causal attention inside packed documents, without a mask over whole rows.

With a mask a row of T positions costs T^2, however short its documents. Here documents of about the same length lie
beside each other and are attended to in one call, so n positions cost n^2. Measured in benchmarks/omni_speed.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .linear import is_uncompiled_cpu

DOCUMENTS = "sdpa_documents"  # its name among the attention functions of transformers
SHORTEST = 16  # documents of up to so many positions are laid beside each other whatever their length


class Blocks(NamedTuple):
    """Where to find the documents of packed rows [B, T].

    Attributes:
        rows: for each call of attention the positions that it reads, [N, n], int64, counted through the flattened B T.
            A document shorter than n repeats its last position.
        back: [B T], int64: where the output of each position lies among those of all calls.
    """

    rows: list[Tensor]
    back: Tensor


def attends_in_blocks(z: Tensor) -> bool:
    """Whether packed documents are attended to in blocks.

    Args:
        z: latents, [B, T, D].

    Returns:
        True on a CPU without compiler. Elsewhere the sizes of the blocks would have to be fetched from the device in
        each step.
    """
    return is_uncompiled_cpu(z)


def as_mask(documents: Tensor) -> Tensor:
    """Documents in place of a mask.

    Args:
        documents: [B, T], whole numbers; equal ones in a row are one document.

    Returns:
        [B, 1, 1, T], int64. Only `document_attention` understands it.
    """
    return documents.long()[:, None, None, :]


def document_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: object
) -> tuple[Tensor, None]:
    """Like the "sdpa" of transformers, and if the mask is that of `as_mask`, causal inside each document.

    Args:
        module: the layer; `sdpa` reads from it whether heads share keys.
        query: [B, H, T, d].
        key: [B, G, T, d]; G divides H.
        value: [B, G, T, d].
        attention_mask: of `as_mask`, or any mask of "sdpa".
        **kwargs: of "sdpa" (scaling, dropout, is_causal).

    Returns:
        The context, [B, T, H, d], and no weights.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[arg-type]
    blocks = _known_blocks(attention_mask)
    kwargs["is_causal"] = True
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]  # [B T, H, d]
    found = []
    for rows in blocks.rows:
        inside = (x.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2) for x in flat)
        out, _ = sdpa_attention_forward(module, *inside, None, **kwargs)  # type: ignore[arg-type, call-arg]
        found.append(out.flatten(0, 1))
    out = torch.cat(found).index_select(0, blocks.back)
    return out.unflatten(0, (query.shape[0], query.shape[2])), None


def find_blocks(documents: Tensor) -> Blocks:
    """Groups documents by length: up to 16 positions, up to 32, 64 and so on.

    Args:
        documents: [B, T], int64, not negative. The positions of a document need not be neighbours.

    Returns:
        Where they are; every position of [B, T] occurs, padding as well.
    """
    num_rows, length = documents.shape
    device = documents.device
    name = documents + torch.arange(num_rows, device=device)[:, None] * (documents.amax() + 1)
    order = name.flatten().argsort(stable=True)  # a document's positions, one after the other
    lengths = name.flatten()[order].unique_consecutive(return_counts=True)[1]
    starts = lengths.cumsum(0) - lengths
    back = torch.empty_like(order)
    rows: list[Tensor] = []
    before, shortest, longest = 0, 0, SHORTEST
    while shortest < length:
        chosen = ((lengths > shortest) & (lengths <= longest)).nonzero()[:, 0]
        if len(chosen):
            own, begin = lengths[chosen][:, None], starts[chosen][:, None]
            steps = torch.arange(int(own.amax()), device=device)[None]
            places = order[begin + steps.minimum(own - 1)]
            outputs = before + torch.arange(places.numel(), device=device).view(places.shape)
            real = steps < own
            back[places[real]] = outputs[real]
            rows.append(places)
            before += places.numel()
        shortest, longest = longest, 2 * longest
    return Blocks(rows, back)


_BLOCKS = WeakIdKeyDictionary()  # of the masks that are in use: all layers share one


def _known_blocks(mask: Tensor) -> Blocks:
    if mask not in _BLOCKS:
        _BLOCKS[mask] = find_blocks(mask[:, 0, 0])
    return _BLOCKS[mask]


ALL_ATTENTION_FUNCTIONS.register(DOCUMENTS, document_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(DOCUMENTS, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
