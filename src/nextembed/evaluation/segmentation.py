"""Scores of a segmenter over a whole split: mIoU, IoU of classes, pixel accuracy."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..core.scores import ClassArea, SegmentScores
from ..core.types import IGNORE_PIXEL, Sample
from ..data.images import EvalSamples
from ..errors import ConfigError, DataError, MissingExtra
from ..models.nepa.segmenter import trunk_config
from ..nn.windows import sliding_logits
from .features.extract import Precision, evaluating

METRIC = "eval/miou"  # metric for the best weights of a run
STRIDE_RATE = 2 / 3  # of the window, if no stride is given


Masked = Sequence[Sample] | EvalSamples  # with a mask as label


class Counts:
    """torchmetrics' IoU and pixel accuracy, updated image by image. Raises MissingExtra without torchmetrics."""

    def __init__(self, num_classes: int):
        try:
            from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
        except ImportError:
            raise MissingExtra("torchmetrics", "segment") from None
        settings: dict[str, Any] = {"num_classes": num_classes, "ignore_index": IGNORE_PIXEL, "validate_args": False}
        self.iou = MulticlassJaccardIndex(average="none", zero_division=float("nan"), **settings)
        self.accuracy = MulticlassAccuracy(average="micro", **settings)
        self.loss_sum, self.num_pixels, self.num_images = 0.0, 0, 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """logits [B, C, H, W] and labels int64 [B, H, W] of the same size, on the CPU."""
        answers = logits.argmax(1)
        self.iou.update(answers, labels)
        self.accuracy.update(answers, labels)
        self.loss_sum += F.cross_entropy(logits, labels, ignore_index=IGNORE_PIXEL, reduction="sum").item()
        self.num_pixels += int((labels != IGNORE_PIXEL).sum())
        self.num_images += len(labels)

    def per_class(self) -> Tensor:
        """IoU [C], float64; nan for a class that is neither in the labels nor in the answers."""
        return self.iou.compute().double()

    def shares(self) -> Tensor:
        """Share of each class in the labels, [C]."""
        confusion: Tensor = self.iou.confmat
        return confusion.sum(1).double() / max(1, self.num_pixels)


@torch.no_grad()
def count(
    model: PreTrainedModel,
    samples: Masked,
    split: str,
    stride: int | None = None,
    batch_size: int = 256,
    precision: Precision = "float32",
) -> Counts:
    """Answers to all samples, at the resolution of their masks, by sliding window. The model keeps its mode. stride:
    pixels; None takes two thirds of the window. batch_size: window-sized images at once. Raises DataError if no pixel
    has a label or one is not one of the model's classes.
    """
    device, num_classes = next(model.parameters()).device, len(model.config.id2label or {})
    window = window_of(model)
    step = stride or max(1, round(window * STRIDE_RATE))
    if step > window:
        raise ConfigError(f"probe.stride {step}: more than the window of {window} pixels, which would leave gaps")

    def predict(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return model(pixel_values=pixels.to(device)).logits.float()

    counts = Counts(num_classes)
    with evaluating(model):
        for pixels, labels in same_size(samples, batch_size * window**2):
            known = labels[labels != IGNORE_PIXEL]
            if len(known) and not 0 <= int(known.min()) <= int(known.max()) < num_classes:
                raise DataError(f"a {split} mask has class {int(known.max())}, the model knows {num_classes}")
            logits = sliding_logits(predict, pixels.to(device), (window, window), (step, step))
            counts.add(F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False).cpu(), labels)
    if counts.num_pixels == 0:
        raise DataError(f"no pixel of the {split} images has a label")
    return counts


def same_size(samples: Masked, max_pixels: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels [B, C, h, w] and labels [B, H, W] of neighbouring samples of one size, at most so many pixels at once."""
    pixels: list[Tensor] = []
    labels: list[Tensor] = []
    for index in range(len(samples)):
        sample = samples[index]
        image, label = sample["pixel_values"], torch.as_tensor(sample["label"])
        full = (len(pixels) + 1) * image.shape[-2] * image.shape[-1] > max_pixels
        if pixels and (full or image.shape != pixels[-1].shape or label.shape != labels[-1].shape):
            yield torch.stack(pixels), torch.stack(labels)
            pixels, labels = [], []
        pixels.append(image)
        labels.append(label)
    if pixels:
        yield torch.stack(pixels), torch.stack(labels)


def window_of(model: PreTrainedModel) -> int:
    """Side of a segmenter's training images, in pixels."""
    return int(trunk_config(model.config).image_shape[0])


def score_segmenter(
    model: PreTrainedModel,
    samples: Masked,
    class_names: list[str],
    split: str,
    stride: int | None = None,
    batch_size: int = 256,
    precision: Precision = "float32",
) -> SegmentScores:
    """Scores on all samples ({"pixel_values" [C, h, w], "label" [H, W]}). Raises DataError without labelled pixels."""
    counts = count(model, samples, split, stride, batch_size, precision)
    ious, shares = counts.per_class(), counts.shares()
    window = window_of(model)
    return SegmentScores(
        split=split,
        num_images=counts.num_images,
        num_pixels=counts.num_pixels,
        miou=ious.nanmean().item(),
        pixel_accuracy=float(counts.accuracy.compute()),
        per_class=[
            ClassArea(name, None if iou != iou else round(iou, 6), round(share, 6))
            for name, iou, share in zip(class_names, ious.tolist(), shares.tolist(), strict=True)
        ],
        window=window,
        stride=stride or max(1, round(window * STRIDE_RATE)),
        skipped=dict(samples.log.reasons) if isinstance(samples, EvalSamples) else {},
    )


class QuickSegment:
    """Called with a segmenter during training: "eval/miou", "eval/pixel_accuracy" and "eval/loss" on validation."""

    def __init__(self, samples: Masked, stride: int | None = None, batch_size: int = 256):
        self.samples, self.stride, self.batch_size = samples, stride, batch_size

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        counts = count(model, self.samples, "validation", self.stride, self.batch_size)
        return {
            METRIC: counts.per_class().nanmean().item(),
            "eval/pixel_accuracy": float(counts.accuracy.compute()),
            "eval/loss": counts.loss_sum / counts.num_pixels,
        }
