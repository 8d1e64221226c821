"""The attentive probe: learned attention over an image's frozen patches, then a linear classifier.

Source: AIM (arXiv 2401.08541, section 4 and its `AttentionPoolingClassifier`): normalised features, one learned query,
keys and values from the features, no MLP. V-JEPA (arXiv 2404.08471) pools by a whole cross-attention block with an
MLP, which fits more of its own; its successor (arXiv 2506.09985) tries all learning rates and weight decays at once, as
here. Ours differs from both: features are computed once, without augmentation, and kept as float16; they are
standardised with the statistics of all training patches in place of a batch's; the first token is left out.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from transformers import PreTrainedModel

from ...core.objective import ReadFeatures
from ...core.types import IGNORE_LABEL, AttentionMode, Backbone, Batch, Sample
from ...errors import ConfigError
from ..features.encoder import cut, trunk_of
from ..features.extract import Precision, batches, evaluating

BATCH_SIZE = 64
HALF_MAX = 65504.0  # largest float16


class AttentiveProbe(nn.Module):
    """Logits [B, C] of standardised patches [B, T, D].

    Each head's learned query attends to its keys of the patches; the weighted means of the values of all heads go to
    the classifier. The order of computation is reversed: the query is first applied to the key matrix, and values are
    computed from pooled patches, so keys and values of single patches are never computed. The function, its parameters
    and their gradients are the same.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, num_heads: int, num_classes: int):
        super().__init__()
        head_width = width // num_heads
        self.query = nn.Parameter(torch.randn(num_heads, head_width) * 0.02)
        self.key = nn.Parameter(torch.empty(num_heads, head_width, width).uniform_(-(width**-0.5), width**-0.5))
        self.value = nn.Parameter(torch.empty(num_heads, head_width, width).uniform_(-(width**-0.5), width**-0.5))
        self.classifier = nn.Linear(num_heads * head_width, num_classes)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def standardised(self, patches: Tensor) -> Tensor:
        return (patches.float() - self.mean) / self.scale

    def forward(self, patches: Tensor) -> Tensor:
        directions = torch.einsum("hd,hdw->hw", self.query, self.key) * self.query.shape[1] ** -0.5
        weights = (patches @ directions.T).softmax(dim=1)  # [B, T, H]
        pooled = weights.mT @ patches  # [B, H, D]
        return self.classifier(torch.einsum("bhw,hdw->bhd", pooled, self.value).flatten(1))


class Patches(NamedTuple):
    """Frozen patches float16 [N, T, D], on the CPU, and labels [N]."""

    values: Tensor
    labels: Tensor


class Setting(NamedTuple):
    learning_rate: float
    weight_decay: float


class Attentive(NamedTuple):
    """The result of the probe. validation, test: accuracy of each seed, in [0, 1]; test is empty without a test split.
    num_train: labelled images it was fitted on."""

    setting: Setting
    validation: list[float]
    test: list[float]
    num_train: int


class Reader(NamedTuple):
    """Reads the patches of one layer. precision: of the forward pass. own: as of `extract`."""

    backbone: PreTrainedModel
    layer: int
    attention: AttentionMode
    batch_size: int = 256
    precision: Precision = "float32"
    own: ReadFeatures | None = None

    @torch.no_grad()
    def read(self, dataset: Dataset[Sample]) -> Iterator[Patches]:
        """Batches of labelled images, in order."""
        trunk = trunk_of(self.backbone)
        short = cut(trunk, self.layer)
        device = next(trunk.parameters()).device
        with evaluating(short):
            for batch in batches(dataset, self.batch_size):
                known = batch["labels"] != IGNORE_LABEL
                if not known.any():
                    continue
                with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    inputs: Batch = {"pixel_values": batch["pixel_values"][known].to(device)}
                    if self.own is not None:
                        hidden = self.own(cast(Backbone, self.backbone), inputs, self.attention, True)
                    else:
                        hidden = short.encode(short.embed(inputs), self.attention, output_layers=short is trunk)
                states = (hidden.layers[self.layer] if hidden.layers else hidden.last)[:, 1:]
                yield Patches(states.float().clamp(-HALF_MAX, HALF_MAX).half().cpu(), batch["labels"][known])

    def keep(self, dataset: Any, max_bytes: float) -> Patches:
        """All of them in memory, or those of as many images as fit into `max_bytes`, drawn with a fixed seed.

        Raises ConfigError if not even 10 images fit.
        """
        one = next(self.read(Subset(dataset, [0])), None) or next(self.read(dataset))
        size = one.values[0].numel() * one.values.element_size()
        num = int(max_bytes // size)
        if num < min(10, len(dataset)):
            raise ConfigError(
                f"probe.attentive_gigabytes: the patches of one image take {size / 2**20:.1f} MiB, so {num} images fit"
            )
        if num < len(dataset):
            order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
            dataset = Subset(dataset, order[:num].sort().values.tolist())
        values = torch.empty(len(dataset), *one.values.shape[1:], dtype=torch.float16)
        labels, end = [], 0
        for batch in self.read(dataset):
            values[end : end + len(batch.labels)] = batch.values
            end += len(batch.labels)
            labels.append(batch.labels)
        return Patches(values[:end], torch.cat(labels))


def attentive(
    reader: Reader,
    train: Dataset[Sample],
    validation: Dataset[Sample],
    test: Dataset[Sample] | None,
    settings: Sequence[Setting],
    num_epochs: int = 20,
    num_seeds: int = 1,
    max_bytes: float = 2 * 2**30,
) -> Attentive:
    """Fits a probe for every setting, chooses on validation, and measures the chosen one on test with every seed.

    A seed draws the initial weights and the order of images. Only training patches are kept, in at most `max_bytes`;
    the others are read a batch at a time.
    """
    kept = reader.keep(train, max_bytes)
    num_classes = int(kept.labels.max()) + 1
    num_heads = _num_heads(kept.values.shape[-1])
    device = next(reader.backbone.parameters()).device
    first = fit_attentive(kept, settings, num_classes, num_heads, num_epochs, 0, device)
    shares = accuracies(first, reader.read(validation))
    best = max(range(len(settings)), key=shares.__getitem__)
    chosen = [first[best]]
    for seed in range(1, num_seeds):
        chosen += fit_attentive(kept, [settings[best]], num_classes, num_heads, num_epochs, seed, device)
    seen = [shares[best], *(accuracies(chosen[1:], reader.read(validation)) if num_seeds > 1 else [])]
    measured = [] if test is None else accuracies(chosen, reader.read(test))
    return Attentive(settings[best], seen, measured, len(kept.labels))


def fit_attentive(
    train: Patches,
    settings: Sequence[Setting],
    num_classes: int,
    num_heads: int,
    num_epochs: int,
    seed: int,
    device: torch.device,
) -> list[AttentiveProbe]:
    """One probe for each setting, from the same initial weights and batches: AdamW, cosine to zero, cross-entropy.

    Weight decay is of matrices. The global random state stays as it was.
    """
    mean, scale = moments(train.values)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = AttentiveProbe(train.values.shape[-1], num_heads, num_classes)
    first.mean.copy_(mean)
    first.scale.copy_(scale)
    probes = [copy.deepcopy(first) for _ in settings]
    solvers = [_solver(probe.to(device), setting) for probe, setting in zip(probes, settings)]
    generator = torch.Generator().manual_seed(seed)
    num_batches = -(-len(train.labels) // BATCH_SIZE)
    num_steps = num_epochs * num_batches
    for epoch in range(num_epochs):
        order = torch.randperm(len(train.labels), generator=generator)
        for number, indices in enumerate(order.split(BATCH_SIZE)):
            patches = probes[0].standardised(train.values[indices].to(device))
            labels = train.labels[indices].to(device)
            share = 0.5 * (1 + math.cos(math.pi * (epoch * num_batches + number) / num_steps))
            for probe, solver, setting in zip(probes, solvers, settings):
                for group in solver.param_groups:
                    group["lr"] = setting.learning_rate * share
                with torch.enable_grad():
                    F.cross_entropy(probe(patches), labels).backward()
                solver.step()
                solver.zero_grad()
    return probes


def _solver(probe: AttentiveProbe, setting: Setting) -> torch.optim.Optimizer:
    matrices = [p for p in probe.parameters() if p.ndim > 1]
    vectors = [p for p in probe.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": setting.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=setting.learning_rate)


@torch.no_grad()
def accuracies(probes: Sequence[AttentiveProbe], patches: Iterator[Patches]) -> list[float]:
    """Share of right answers of each probe, in one pass."""
    right, total = torch.zeros(len(probes)), 0
    for batch in patches:
        values = probes[0].standardised(batch.values.to(probes[0].query.device))
        for number, probe in enumerate(probes):
            right[number] += (probe(values).argmax(1).cpu() == batch.labels).sum()
        total += len(batch.labels)
    return (right / max(total, 1)).tolist()


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] over images and patches; 1 where a feature is constant."""
    total, squares, count = 0.0, 0.0, values.shape[0] * values.shape[1]
    for chunk in values.split(1024):
        flat = chunk.flatten(0, 1).double()
        total, squares = total + flat.sum(0), squares + flat.square().sum(0)
    mean = torch.as_tensor(total) / count
    scale = (torch.as_tensor(squares) / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(scale > 1e-6, scale, 1.0).float()


def _num_heads(width: int) -> int:
    """Number of heads, each about 64 wide as in AIM, that divides the width."""
    return next(n for n in range(max(1, width // 64), 0, -1) if width % n == 0)


def grid(learning_rates: Sequence[float], weight_decays: Sequence[float]) -> list[Setting]:
    return [Setting(*pair) for pair in itertools.product(learning_rates, weight_decays)]
