"""Semantic segmentation: cross-entropy of pixels.

The backbone is a Hugging Face segmentation model: `backbone(pixel_values).logits` [B, classes, h, w] of any resolution;
one with an `auxiliary_head` (transformers' UPerNet) has that trained, too.
"""

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..core.objective import OBJECTIVES, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.types import IGNORE_PIXEL, Attention, Batch, Encodes, Hidden
from ..errors import ConfigError


@OBJECTIVES.register("segmentation")
class SegmentationSettings(ObjectiveSettings):
    """Cross-entropy of the pixels that have a label, at the labels' resolution.

    Attributes:
        class_weights: factor of each class, in order; null: all 1. The mean is over pixels, not over weights.
        label_smoothing: share of the target that is spread over all classes.
    """

    task: ClassVar[str] = "segmentation"

    class_weights: list[Annotated[float, Field(ge=0, le=1e6)]] | None = None
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    def verdict(self, history: History) -> Verdict:
        return Verdict("segmenter", "Trained on pixel labels, but not scored.")

    def build(self, backbone: Any) -> "Segmentation":
        """Raises ConfigError if there is not one weight per class."""
        num_classes = int(backbone.config.num_labels)
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ConfigError(
                f"objective.class_weights: {len(self.class_weights)} weights for {num_classes} classes; give one each"
            )
        return Segmentation(self)


class Segmentation(Objective):
    """The objective of `SegmentationSettings`; targets are the pixels whose label is not 255."""

    settings: SegmentationSettings

    def __init__(self, settings: SegmentationSettings):
        super().__init__(settings)

    def count_targets(self, batch: Batch) -> Tensor:
        return (batch["labels"] != IGNORE_PIXEL).sum()

    def forward(self, backbone: Any, batch: Batch) -> ObjectiveOutput:
        labels = batch["labels"]
        logits, auxiliary = self.logits(backbone, batch["pixel_values"])
        logits = resized(logits, labels)
        loss_sum = self.loss_sum(logits, labels)
        if auxiliary is not None:
            weight = backbone.config.auxiliary_loss_weight
            loss_sum = loss_sum + weight * self.loss_sum(resized(auxiliary, labels), labels)
        num_targets, metrics = self.count_targets(batch), None
        if self.diagnose:
            right = (logits.argmax(1) == labels).sum()
            metrics = {"train_pixel_accuracy": (right / num_targets.clamp(min=1)).detach()}
        return ObjectiveOutput(loss_sum=loss_sum, num_targets=num_targets, metrics=metrics)

    def read(
        self, backbone: Any, batch: Batch, attention: Attention | None = None, output_layers: bool = False
    ) -> Hidden:
        """The transformer's hidden states, if the head reads several layers."""
        trunk: Any = backbone if isinstance(backbone, Encodes) else backbone.backbone
        return super().read(trunk, batch, attention, output_layers)

    def logits(self, backbone: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the head, and in training mode those of the auxiliary head, if any."""
        if not self.training or getattr(backbone, "auxiliary_head", None) is None:
            return backbone(pixel_values=pixels).logits, None
        if len(pixels) == 1:
            raise ConfigError("UPerNet's batch norms need two images or more at once: raise train.micro_batch_size")
        # transformers does not return the auxiliary head's logits, only its loss within a mean.
        maps = backbone.backbone(pixels).feature_maps
        return backbone.decode_head(maps), backbone.auxiliary_head(maps)

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights = self.settings.class_weights
        return F.cross_entropy(
            logits,
            labels,
            weight=None if weights is None else torch.tensor(weights, device=logits.device),
            ignore_index=IGNORE_PIXEL,
            reduction="sum",
            label_smoothing=self.settings.label_smoothing,
        )


def resized(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [B, C, h, w] as float32 at the resolution of labels [B, H, W], bilinear."""
    return F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
