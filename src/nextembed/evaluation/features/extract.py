"""Images or documents in, frozen features out: every layer, pooling and attention mode, with one forward pass per
mode."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...core.objective import ReadFeatures
from ...core.types import IGNORE_LABEL, AttentionMode, Backbone, Batch, Sample
from ...models.omni.configuration_omni import FIRST, PADDING
from ...models.omni.processing_omni import pad_left
from ...nn import modes

Samples = Dataset[Sample] | Sequence[Sample]
Pooling = Literal["mean", "last", "first"]
Precision = Literal["float32", "bfloat16"]

BESIDE = ("labels", "raw")  # entries of a batch that no model reads
PIXEL_SIZE = 32  # raw pixels are shrunk to this side, so that a probe on them is feasible


class FeatureKey(NamedTuple):
    """Where a feature is read: layer 0 is the latents, layer L comes after the final norm."""

    layer: int
    pooling: Pooling
    attention: AttentionMode


PIXELS = "pixels"


class Features(NamedTuple):
    """values: float32 [N, D] by FeatureKey (or "pixels"), on the CPU; labels [N], int64, -100 where none."""

    values: dict[FeatureKey | str, Tensor]
    labels: Tensor


def feature_keys(
    num_layers: int,
    layers: Literal["all"] | Sequence[int] = "all",
    poolings: Sequence[Pooling] = ("mean", "last", "first"),
    attentions: Sequence[AttentionMode] = ("causal", "full"),
) -> list[FeatureKey]:
    """All keys that can differ. Left out as empty or duplicate: the first token where it sees no patch (causal
    attention, or layer 0), and layer 0 in a second attention mode.

    Args:
        num_layers: L, of the backbone.
        layers: negative ones count from the end.
        poolings: to combine.
        attentions: to combine.

    Raises:
        ValueError: for a layer outside -(L + 1)..L.
    """
    wanted = range(num_layers + 1) if layers == "all" else layers
    keys: list[FeatureKey] = []
    for layer in wanted:
        if not -num_layers - 1 <= layer <= num_layers:
            raise ValueError(f"layer {layer} is not in 0..{num_layers} (0 = latents, {num_layers} = output)")
        layer %= num_layers + 1
        for attention in attentions if layer else attentions[:1]:
            for pooling in poolings:
                blind = pooling == "first" and (layer == 0 or attention == "causal")
                if not blind and FeatureKey(layer, pooling, attention) not in keys:
                    keys.append(FeatureKey(layer, pooling, attention))
    return keys


def pool(hidden: Tensor, pooling: Pooling, kinds: Tensor | None = None) -> Tensor:
    """One vector per sample, [B, D], from hidden states.

    Args:
        hidden: [B, T, D].
        pooling: "mean" is over patches only; "first" is the begin token, "last" the last patch.
        kinds: [B, T], of documents that are padded on the left and have no end; the mean is over all but begin latents.
    """
    if pooling == "last":
        return hidden[:, -1]
    if kinds is None:
        return hidden[:, 1:].mean(1) if pooling == "mean" else hidden[:, 0]
    if pooling == "first":
        return hidden[torch.arange(len(hidden)), (kinds == PADDING).sum(1)]
    own = (kinds >= FIRST)[..., None]
    return (hidden * own).sum(1) / own.sum(1).clamp(min=1)


@torch.no_grad()
def extract(
    backbone: Backbone,
    dataset: Samples,
    keys: Sequence[FeatureKey],
    batch_size: int = 256,
    num_workers: int = 0,
    precision: Precision = "float32",
    read: ReadFeatures | None = None,
) -> Features:
    """Features of samples, in their order.

    One embedding per batch and one pass per attention mode give all keys. The backbone is used in eval mode on its
    device and then restored; global random generators are not used.

    Args:
        backbone: frozen.
        dataset: they hold "pixel_values", or "encoded" for a model of packed documents.
        keys: where features are read.
        batch_size: samples a forward pass.
        num_workers: processes that read.
        precision: of the forward pass; the features are float32 either way.
        read: where they come from, see `Objective.read`; None: the backbone itself.
    """
    device = next(backbone.parameters()).device
    keys = [FeatureKey(*key) for key in keys]
    attentions = list(dict.fromkeys(key.attention for key in keys))
    parts: dict[FeatureKey, list[Tensor]] = {key: [] for key in keys}
    labels = []
    with evaluating(cast(nn.Module, backbone)):
        for batch in batches(dataset, batch_size, num_workers):
            labels.append(batch["labels"])
            tensors = {name: x.to(device) for name, x in _tensors(batch).items() if name not in BESIDE}
            inputs, kinds = cast(Batch, tensors), tensors.get("kinds")
            half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
            with half:
                latents = None if read is not None else backbone.embed(inputs)
            for attention in attentions:
                with half:
                    if read is not None:
                        states = read(backbone, inputs, attention, True).layers
                    else:
                        assert latents is not None
                        states = backbone.encode(latents, attention=attention, output_layers=True).layers
                for key in keys:
                    if key.attention == attention:
                        parts[key].append(pool(states[key.layer].float(), key.pooling, kinds).cpu())
    return Features({key: torch.cat(values) for key, values in parts.items()}, torch.cat(labels))


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return cast(dict[str, Tensor], batch)


def extract_pixels(dataset: Samples, batch_size: int = 256, num_workers: int = 0) -> Features:
    """Raw pixels [N, C * H * W] under the key "pixels": the baseline of useful features.

    Images larger than 32 pixels a side are averaged down to 32 first. For samples with "encoded" it is their "raw".
    """
    values, labels = [], []
    for batch in batches(dataset, batch_size, num_workers):
        if "raw" in batch:
            values.append(_tensors(batch)["raw"])
            labels.append(batch["labels"])
            continue
        images = batch["pixel_values"].float()
        height, width = images.shape[-2:]
        images = F.adaptive_avg_pool2d(images, (min(height, PIXEL_SIZE), min(width, PIXEL_SIZE)))
        values.append(images.flatten(1))
        labels.append(batch["labels"])
    return Features({PIXELS: torch.cat(values)}, torch.cat(labels))


def batches(dataset: Samples, batch_size: int = 256, num_workers: int = 0) -> Iterator[Batch]:
    """A map-style dataset as batches of `pixel_values` (or documents, and their `raw`) and `labels`, in order."""
    # A separate generator: a DataLoader draws a seed, which would change later training if it were the global one.
    loader = DataLoader(
        cast(Dataset[Sample], dataset),
        batch_size,
        num_workers=num_workers,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(0),
    )
    yield from loader


def _collate(samples: list[Sample]) -> Batch:
    labels = torch.tensor([int(sample.get("label", IGNORE_LABEL)) for sample in samples])
    if "encoded" not in samples[0]:
        return {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples]), "labels": labels}
    batch = {**pad_left([sample["encoded"] for sample in samples]), "labels": labels}
    if "raw" in samples[0]:
        batch["raw"] = torch.stack([sample["raw"] for sample in samples])
    return cast(Batch, batch)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards every submodule is in the mode it had, the random state too."""
    with modes.evaluating(model), torch.random.fork_rng():
        yield
