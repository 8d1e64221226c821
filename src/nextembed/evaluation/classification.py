"""Scores of a fine-tuned classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..core.scores import ClassScores, Mistake
from ..core.types import IGNORE_LABEL
from ..data.images import EvalSamples
from ..errors import ConfigError, DataError
from .features.extract import Precision, Samples, batches, evaluating

METRIC = "eval/accuracy"  # metric for the best weights of a run


@torch.no_grad()
def logits_of(
    model: PreTrainedModel,
    samples: Samples,
    batch_size: int = 256,
    num_workers: int = 0,
    precision: Precision = "float32",
) -> tuple[Tensor, Tensor]:
    """Logits [N, C], float32, and labels [N] of a map-style dataset, on the CPU. The model keeps its mode."""
    device = next(model.parameters()).device
    logits, labels = [], []
    with evaluating(model):
        for batch in batches(samples, batch_size, num_workers):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                logits.append(model(pixel_values=batch["pixel_values"].to(device)).logits.float().cpu())
            labels.append(batch["labels"])
    return torch.cat(logits), torch.cat(labels)


def score_classifier(
    model: PreTrainedModel, samples: EvalSamples, split: str, batch_size: int = 256, precision: Precision = "float32"
) -> ClassScores:
    """Scores on all labelled samples (`samples.class_names` says what their labels mean).

    Raises ConfigError for classes that the model does not know; DataError if there are no labels, or one is no class.
    """
    ids = torch.tensor(ids_by_name(model, samples.class_names))
    logits, labels = logits_of(model, samples, batch_size, precision=precision)
    known = labels != IGNORE_LABEL
    if not known.any():
        raise DataError(f"the {split} images have no labels")
    num_classes = logits.shape[1]
    if int(labels.max()) >= len(ids):
        raise DataError(f"label {int(labels.max())} of the {split} images is not one of the {len(ids)} classes")
    places = known.nonzero()[:, 0]
    logits, labels = logits[known], ids[labels[known]]
    answers = logits.argmax(1)
    wrong = (answers != labels).nonzero()[:, 0]
    sure = logits.softmax(1).amax(1)
    surest = wrong[sure[wrong].argsort(descending=True)][:12]
    return ClassScores(
        split=split,
        num_images=len(labels),
        top1=(answers == labels).double().mean().item(),
        top5=(logits.topk(min(5, num_classes)).indices == labels[:, None]).any(1).double().mean().item(),
        loss=F.cross_entropy(logits, labels).item(),
        class_names=labels_of(model)[:num_classes],
        num_unlabelled=int((~known).sum()),
        confusion=(labels * num_classes + answers).bincount(minlength=num_classes**2).view(num_classes, -1).tolist(),
        errors=[
            Mistake(int(labels[i]), int(answers[i]), round(float(sure[i]), 4), int(places[i])) for i in surest.tolist()
        ],
    )


class QuickScore:
    """Called with a classifier during training: "eval/accuracy" and "eval/loss" on validation images."""

    def __init__(self, samples: Samples, batch_size: int = 256, precision: Precision = "float32"):
        self.samples, self.batch_size, self.precision = samples, batch_size, precision

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        logits, labels = logits_of(model, self.samples, self.batch_size, precision=self.precision)
        right = (logits.argmax(1) == labels)[labels != IGNORE_LABEL]
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL)
        return {METRIC: right.double().mean().item(), "eval/loss": loss.item()}


def labels_of(model: PreTrainedModel) -> list[str]:
    """Names of a model's classes, by id."""
    names = {int(number): str(name) for number, name in (model.config.id2label or {}).items()}
    return [names[number] for number in sorted(names)]


def ids_by_name(model: PreTrainedModel, class_names: list[str]) -> list[int]:
    """The model's class id of each class of the data, by name; a model or data without names goes by number.

    Raises ConfigError for a class of the data that the model does not know.
    """
    own = labels_of(model)
    if not class_names or own == [f"LABEL_{i}" for i in range(len(own))]:
        return list(range(len(own)))
    strange = [name for name in class_names if name not in own]
    if strange:
        raise ConfigError(
            f"the data has {len(strange)} of {len(class_names)} classes that the model does not know "
            f"({', '.join(strange[:4])}); it knows {len(own)}: {', '.join(own[:4])}{', ...' if len(own) > 4 else ''}"
        )
    return [own.index(name) for name in class_names]
