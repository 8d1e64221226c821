"""NEPA with a linear head for semantic segmentation. UPerNet comes from transformers, over `ViTNepaBackbone`."""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import can_return_tuple

from ...core.types import Attention, Batch, Hidden, Latents
from .configuration_nepa import ViTNepaConfig
from .modeling_nepa import OutputFlags, ViTNepaModel, ViTNepaPreTrainedModel


class ViTNepaForSemanticSegmentation(ViTNepaPreTrainedModel):
    """A linear classifier of every patch, from the layers that `out_indices` names (the last if none is named)."""

    def __init__(self, config: ViTNepaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit_nepa = ViTNepaModel(config)
        self.classifier = nn.Conv2d(config.hidden_size * len(config.out_indices), int(config.num_labels or 0), 1)
        self.post_init()

    def embed(self, batch: Batch) -> Latents:
        """Latents of images.

        Args:
            batch: pixel_values [B, C, H, W], as of `ViTNepaModel.embed`.

        Returns:
            z [B, T, D].
        """
        return self.vit_nepa.embed(batch)

    def encode(self, latents: Latents, attention: Attention | None = None, output_layers: bool = False) -> Hidden:
        """Hidden states of latents.

        Args:
            latents: [B, T, D].
            attention: which positions see which; None takes the config's.
            output_layers: whether the hidden states of all layers are kept.

        Returns:
            h [B, T, D].
        """
        return self.vit_nepa.encode(latents, attention, output_layers)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        is_causal: bool | None = None,
        **kwargs: Unpack[OutputFlags],
    ) -> SemanticSegmenterOutput:
        """Scores of classes for each patch.

        Args:
            pixel_values: [B, C, height, width].
            labels: [B, H, W], int64: the logits are resized to them, bilinear, and the loss is the mean cross-entropy
                of their pixels but those of `semantic_loss_ignore_index`.
            is_causal: None takes the config's.
            kwargs: output_hidden_states and other flags of transformers.

        Returns:
            logits [B, num_labels, rows, columns], one column per patch, and the loss [] if labels are given.
        """
        last, indices = self.config.num_hidden_layers, self.config.out_indices
        inner = any(i % (last + 1) != last for i in indices)
        wanted = kwargs.pop("output_hidden_states", None)
        wanted = self.config.output_hidden_states if wanted is None else wanted
        outputs = self.vit_nepa(pixel_values, is_causal=is_causal, output_hidden_states=inner or wanted, **kwargs)
        layers = [outputs.hidden_states[i] for i in indices] if inner else [outputs.last_hidden_state]
        normed = [
            h if i % (last + 1) == last else self.vit_nepa.layernorm(h) for i, h in zip(indices, layers, strict=True)
        ]
        rows = pixel_values.shape[-2] // self.config.patch_shape[0]
        maps = torch.cat(normed, dim=-1)[:, 1:].mT.unflatten(2, (rows, -1))  # [B, layers x D, rows, columns]
        logits = self.classifier(maps)
        loss = None
        if labels is not None:
            resized = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(resized, labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states if wanted else None,
            attentions=outputs.attentions,
        )
