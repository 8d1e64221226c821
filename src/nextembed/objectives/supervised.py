"""Fine-tuning: objectives that compare a model's answers with labels.

Their backbone is a Hugging Face model with a head: `backbone(pixel_values).logits`.
"""

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor
from torchvision.transforms import v2

from ..core.objective import OBJECTIVES, Accumulation, History, Objective, ObjectiveOutput, ObjectiveSettings, Verdict
from ..core.types import IGNORE_LABEL, Batch
from ..errors import DataError


def _drawable(alpha: float) -> float:
    if 0 < alpha < 1e-3:  # samples of Beta become nan above
        raise ValueError(f"should be 0 (off) or at least 0.001, got {alpha:g}")
    return alpha


Alpha = Annotated[float, Field(ge=0, le=1e4), AfterValidator(_drawable)]


@OBJECTIVES.register("classification")
class ClassificationSettings(ObjectiveSettings):
    """Cross-entropy of image classes.

    Attributes:
        label_smoothing: share of the target that is spread over all classes.
        mixup_alpha: mixup within each micro batch, with a share drawn from Beta(alpha, alpha); 0: off. With
            cutmix_alpha above 0 as well, each micro batch uses one of the two at random.
        cutmix_alpha: CutMix within each micro batch, with a share drawn from Beta(alpha, alpha); 0: off. With
            mixup_alpha above 0 as well, each micro batch uses one of the two at random.
        mix_rate: share of micro batches that are mixed at all.

    Source:
        mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899).
    """

    task: ClassVar[str] = "classification"

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup_alpha: Alpha = 0.0
    cutmix_alpha: Alpha = 0.0
    mix_rate: float = Field(1.0, ge=0, le=1)

    @property
    def accumulation(self) -> Accumulation:
        """Mixing pairs the images of one micro batch."""
        return "per micro batch" if self.mixup_alpha or self.cutmix_alpha else "exact"

    def verdict(self, history: History) -> Verdict:
        return Verdict("classifier", "Trained on labels, but not scored.")

    def build(self, backbone: Any) -> "Classification":
        return Classification(self, backbone)


class Classification(Objective):
    """The objective of `ClassificationSettings`; samples without a label (-100) are ignored."""

    settings: ClassificationSettings

    def __init__(self, settings: ClassificationSettings, backbone: Any):
        super().__init__(settings)
        self.num_classes = int(backbone.config.num_labels)
        self.mixers: list[v2.Transform] = []
        if settings.mixup_alpha > 0:
            self.mixers.append(v2.MixUp(alpha=settings.mixup_alpha, num_classes=self.num_classes))
        if settings.cutmix_alpha > 0:
            self.mixers.append(v2.CutMix(alpha=settings.cutmix_alpha, num_classes=self.num_classes))

    def count_targets(self, batch: Batch) -> Tensor:
        """Number of labels in the batch. Raises DataError for a label that is not a class of the head."""
        labels = batch["labels"]
        known = labels != IGNORE_LABEL
        if bad := labels[known & ((labels < 0) | (labels >= self.num_classes))].tolist():
            raise DataError(f"label {bad[0]} is not one of the {self.num_classes} classes (0..{self.num_classes - 1})")
        return known.sum()

    def forward(self, backbone: Any, batch: Batch) -> ObjectiveOutput:
        pixels, targets = self.mixed(batch["pixel_values"], self.one_hot(batch["labels"]))
        logits = backbone(pixel_values=pixels).logits.float()
        mass = targets.sum(-1, keepdim=True)  # 1; 0 without a label; between where one with and one without were mixed
        smooth = self.settings.label_smoothing
        smoothed = (1 - smooth) * targets + smooth * mass / self.num_classes
        metrics = None
        if self.diagnose:
            right = (logits.argmax(-1) == targets.argmax(-1)).float() * mass[:, 0]
            metrics = {"train_accuracy": right.sum().detach() / mass.sum().clamp(min=1)}
        return ObjectiveOutput(
            loss_sum=-(smoothed * F.log_softmax(logits, dim=-1)).sum(),
            num_targets=(batch["labels"] != IGNORE_LABEL).sum(),
            metrics=metrics,
        )

    def one_hot(self, labels: Tensor) -> Tensor:
        """Targets [B, C], float32; a row of zeros where there is no label."""
        targets = F.one_hot(labels.clamp(min=0), self.num_classes).float()
        return targets * (labels != IGNORE_LABEL)[:, None]

    def mixed(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] and targets [B, classes], mixed within the batch in training mode."""
        if not self.mixers or not self.training or torch.rand(()) >= self.settings.mix_rate:
            return pixels, targets
        mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
        return mixer(pixels, targets)
