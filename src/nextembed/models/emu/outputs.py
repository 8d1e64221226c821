"""Outputs of Emu's models.

Shapes: B rows, T positions, V tokens, I images of all rows in reading order, N latents an image, D their width.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class EmuModelOutput(ModelOutput):
    """last_hidden_state [B, T, D] after the language model's final norm; inputs_embeds [B, T, D]: what it read;
    image_latents [I, N, D]; cache: keys and values; hidden_states, attentions: of the language model, if asked for."""

    last_hidden_state: Tensor | None = None
    inputs_embeds: Tensor | None = None
    image_latents: Tensor | None = None
    cache: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class EmuOutput(ModelOutput):
    """loss []: text_weight x text_loss + regression_weight x regression_loss, each a mean over its own targets;
    logits [B, T, V]; regression_pred, regression_target [pairs, D], in reading order; the rest as in `EmuModelOutput`.
    """

    loss: Tensor | None = None
    text_loss: Tensor | None = None
    regression_loss: Tensor | None = None
    logits: Tensor | None = None
    regression_pred: Tensor | None = None
    regression_target: Tensor | None = None
    last_hidden_state: Tensor | None = None
    inputs_embeds: Tensor | None = None
    image_latents: Tensor | None = None
    cache: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
