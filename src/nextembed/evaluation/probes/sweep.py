"""kNN and linear probes of frozen features over layer, pooling, attention mode and weights.

Fitted on training images, chosen on validation images (or by cross-validation, where the data has none), measured once
on test images. Rows of any other modality are probed in the same way, see `segments`.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset, Subset
from transformers import PreTrainedModel

from ...core import distributed
from ...core.config import Config
from ...core.probe_table import ProbeName, ProbeTable, Row
from ...core.sizes import MAX_LAYERS, MAX_NUMBER
from ...core.types import IGNORE_LABEL, AttentionMode, Backbone, LayeredConfig, Sample, SaysCausal
from ...errors import ConfigError, DataError
from ..features.extract import (
    PIXELS,
    FeatureKey,
    Features,
    Pooling,
    Precision,
    ReadFeatures,
    extract,
    extract_pixels,
    feature_keys,
)
from .attentive import Reader, attentive, grid
from .solvers import fit_linear, knn

PROBES: tuple[ProbeName, ...] = ("linear", "knn")
SEED_SHARE = 0.8  # of the training images, for each of several seeds
Predict = Callable[[Tensor], Tensor]  # features [N, D] -> classes [N]
Read = Callable[[Dataset[Sample], Sequence[FeatureKey]], Features]
T = TypeVar("T")


Rate = Annotated[float, Field(gt=0, le=100)]
Decay = Annotated[float, Field(ge=0, le=100)]
Penalty = Annotated[float, Field(ge=1e-12, le=1e6)]


class ProbeConfig(Config):
    """Which features are probed, on how many images.

    Attributes:
        enabled: probe at the end of a run.
        layers: "all" or a list; 0 = latents, -1 = output.
        poolings: how the hidden states of an image are pooled into one vector.
        attentions: attention modes in which features are read.
        num_train: at most this many images of this split, drawn once with a fixed seed.
        num_validation: at most this many images of this split, drawn once with a fixed seed.
        num_test: at most this many images of this split, drawn once with a fixed seed.
        num_online: at most this many images for the quick probes while training.
        k: number of nearest neighbours that vote in kNN.
        penalties: penalties on the linear probe's weights; one is chosen on validation.
        batch_size: images per forward pass.
        precision: precision of the forward pass that reads features.
        stride: step of the sliding window in segmentation, pixels; null: two thirds of the window.
        modality: modality of an Omni to probe; null: images.
        column: column of its values; null: detected.
        label_column: column of the labels; null: detected.
        folds: folds of the cross-validation that chooses if such rows have no validation split.
        seeds: number of repetitions for mean and standard deviation of test accuracies (at least 2; 3 is usual): linear
            and kNN are each fitted on a random 80 % of the training images, the attentive probe is re-initialised and
            reshuffled.
        attentive: also fit an attentive probe, on the best linear row's layer and attention (slow: minutes).
        attentive_epochs: passes of the attentive probe over its images.
        attentive_learning_rates: learning rates of the attentive probe; one is chosen on validation.
        attentive_weight_decays: weight decays of the attentive probe; one is chosen on validation.
        attentive_gigabytes: memory for the patches of its training images; if they do not fit, it uses fewer images,
            and says so.
    """

    enabled: bool = True
    layers: Literal["all"] | Annotated[list[int], Field(min_length=1, max_length=MAX_LAYERS)] = "all"
    poolings: list[Pooling] = Field(default=["mean", "last", "first"], min_length=1)
    attentions: list[AttentionMode] = Field(default=["causal", "full"], min_length=1)
    num_train: int = Field(10_000, gt=0, le=MAX_NUMBER)
    num_validation: int = Field(5_000, gt=0, le=MAX_NUMBER)
    num_test: int = Field(10_000, gt=0, le=MAX_NUMBER)
    num_online: int = Field(2_000, gt=0, le=MAX_NUMBER)
    k: int = Field(20, gt=0, le=MAX_NUMBER)
    penalties: list[Penalty] = Field(default=[1e-3, 1e-2, 1e-1, 1.0], min_length=1)
    batch_size: int = Field(256, gt=0, le=MAX_NUMBER)
    precision: Precision = "float32"
    seeds: int = Field(1, ge=1, le=1000)
    attentive: bool = False
    attentive_epochs: int = Field(20, gt=0, le=10**6)
    attentive_learning_rates: list[Rate] = Field(default=[3e-4, 1e-3, 3e-3], min_length=1)
    attentive_weight_decays: list[Decay] = Field(default=[1e-3, 1e-1], min_length=1)
    attentive_gigabytes: float = Field(2.0, gt=0, le=1e6)
    stride: int | None = Field(None, gt=0, le=MAX_NUMBER)
    modality: str | None = None
    column: str | None = None
    label_column: str | None = None
    folds: int = Field(5, ge=2, le=1000)

    def features(self, num_layers: int) -> list[FeatureKey]:
        """The combinations of layer, pooling and attention that are probed in a model.

        Args:
            num_layers: layers of the model; layer 0 is its latents.

        Returns:
            One key per combination.

        Raises:
            ConfigError: For a layer that it does not have.
        """
        try:
            return feature_keys(num_layers, self.layers, self.poolings, self.attentions)
        except ValueError as err:
            raise ConfigError(f"probe.layers: {err}") from None


class ProbeData(NamedTuple):
    """Labelled images, without augmentation, or rows of another modality (`segments`).

    validation is None where choices are made by cross-validation, test where the data has no such split. raw, things:
    names of the baseline's input and of the rows. notes: further remarks.
    """

    train: Dataset[Sample]
    validation: Dataset[Sample] | None
    test: Dataset[Sample] | None
    class_names: list[str]
    raw: str = "raw pixels"
    things: str = "images"
    notes: tuple[str, ...] = ()


class Fit(NamedTuple):
    """A fitted probe: its prediction, its accuracy on validation (or in cross-validation), the penalty that was chosen
    (linear only)."""

    predict: Predict
    accuracy: float
    penalty: float | None


def sweep(
    models: Mapping[str, PreTrainedModel],
    data: ProbeData,
    config: ProbeConfig,
    all_ranks: bool = False,
    readers: Mapping[str, ReadFeatures] | None = None,
) -> ProbeTable:
    """Probes of every feature of every model, and of raw pixels.

    models: backbones by the name of their weights ("raw", "ema", "untrained"). For each of them, and for each
    probe, the row that is best on validation and the default row are measured on test; no choice looks at
    test labels.
    readers: by those names too, where features are read by the objective and not by the backbone.
    all_ranks: every rank calls it, and takes its share of the features; the table is whole on the main rank.
    Raises DataError if labels are missing or there is only one class.
    """
    readers = readers or {}
    place = (distributed.rank(), distributed.world_size()) if all_ranks else (0, 1)
    table = ProbeTable(rows=[], class_names=list(data.class_names), k=config.k, seeds=config.seeds)
    table.raw, table.things, table.notes = data.raw, data.things, list(data.notes)
    is_last = place[0] == place[1] - 1  # it has the fewest features
    if all_ranks:
        distributed.together(lambda: _probe_pixels(table, data, config) if is_last else None)
        table = distributed.gather_objects(table)[-1]
    else:
        _probe_pixels(table, data, config)
    for weights, backbone in models.items():
        table.num_layers = backbone.config.num_hidden_layers
        read = partial(
            extract,
            cast(Backbone, backbone),
            batch_size=config.batch_size,
            precision=config.precision,
            read=readers.get(weights),
        )
        table.rows += _probe_backbone(weights, backbone.config, read, data, config, place)
    if config.attentive and place[0] == 0:
        for best in (table.best("linear"), table.best("linear", "untrained")):
            if best is not None:
                reader = Reader(
                    models[best.weights],
                    best.layer,
                    cast(AttentionMode, best.attention),
                    config.batch_size,
                    config.precision,
                    readers.get(best.weights),
                )
                table.rows.append(_attentive_row(best, reader, data, config, table))
    return table


def _alone(function: Callable[[], T]) -> T:
    return function()


def _probe_pixels(table: ProbeTable, data: ProbeData, config: ProbeConfig) -> None:
    """Adds the results of probes on raw values, and the numbers of images."""
    pixels = partial(extract_pixels, batch_size=config.batch_size)
    train = _labelled(pixels(data.train), "training")
    validation = None if data.validation is None else _labelled(pixels(data.validation), "validation")
    if train.labels.unique().numel() < 2:
        fitted = f"{len(train.labels):,} training {data.things} that they are fitted on"
        raise DataError(f"probes need at least two classes, but all of the {fitted} have the same label")
    fits = fit_probes(train, validation, config)[PIXELS]
    table.pixels_validation = {probe: fit.accuracy for probe, fit in fits.items()}
    table.chance = train.labels.bincount().max().item() / len(train.labels)
    table.images = {"train": len(train.labels)}
    if validation is None:
        table.folds = config.folds
    else:
        table.images["validation"] = len(validation.labels)
    if data.test is not None:
        test = _labelled(pixels(data.test), "test")
        for probe, fit in fits.items():
            table.pixels[probe], spread = measure(fit, probe, PIXELS, train, validation, test, config)
            table.pixels_spread |= {} if spread is None else {probe: spread}
        table.images["test"] = len(test.labels)


def _attentive_row(best: Row, reader: Reader, data: ProbeData, config: ProbeConfig, table: ProbeTable) -> Row:
    """An attentive probe on the layer and attention of the best linear one."""
    found = attentive(
        reader,
        *(data.train, cast(Any, data.validation), data.test),
        grid(config.attentive_learning_rates, config.attentive_weight_decays),
        config.attentive_epochs,
        config.seeds,
        config.attentive_gigabytes * 2**30,
    )
    if found.num_train < table.images["train"]:
        note = f"the attentive probe was fitted on {found.num_train:,} of {table.images['train']:,} training images"
        note += f", as many as fit into probe.attentive_gigabytes={config.attentive_gigabytes:g}"
        table.notes += [note] if note not in table.notes else []
    return Row(
        probe="attentive",
        weights=best.weights,
        layer=best.layer,
        pooling="attentive",
        attention=best.attention,
        validation_accuracy=statistics.mean(found.validation),
        accuracy=statistics.mean(found.test) if found.test else None,
        penalty=found.setting.weight_decay,
        spread=statistics.stdev(found.test) if len(found.test) > 1 else None,
        learning_rate=found.setting.learning_rate,
    )


class Fitted(NamedTuple):
    """Probes by feature, with the samples for fitting and choosing."""

    fits: dict[FeatureKey, dict[ProbeName, Fit]]
    train: Features
    validation: Features | None


def _probe_backbone(
    weights: str, network: LayeredConfig, read: Read, data: ProbeData, config: ProbeConfig, place: tuple[int, int]
) -> list[Row]:
    """All rows, on every rank; each rank fits those of its own features."""
    number, world = place
    together = _alone if world == 1 else distributed.together
    num_layers = network.num_hidden_layers
    keys = config.features(num_layers)
    own = FeatureKey(num_layers, "mean", attention_of(network))
    fitted = together(lambda: _fitted(read, keys[number::world], data, config))
    rows = [
        _row(probe, weights, key, fit, key == own)
        for key, by_probe in fitted.fits.items()
        for probe, fit in by_probe.items()
    ]
    everyone = _of_all(rows, keys, world)
    if data.test is not None:
        best = [max((r for r in everyone if r.probe == probe), key=lambda r: r.validation_accuracy) for probe in PROBES]
        chosen = {(row.probe, key_of(row)) for row in everyone if row.default or row in best}
        mine = [row for row in rows if (row.probe, key_of(row)) in chosen]
        together(lambda: _measure_on_test(read, mine, fitted, data, config))
        everyone = _of_all(rows, keys, world)
    return sorted(everyone, key=lambda row: row.probe, reverse=True)


def key_of(row: Row) -> FeatureKey:
    return FeatureKey(row.layer, cast(Pooling, row.pooling), cast(AttentionMode, row.attention))


def _of_all(rows: list[Row], keys: list[FeatureKey], world: int) -> list[Row]:
    """The rows of all ranks, in the order of the features."""
    if world > 1:
        rows = [row for own in distributed.gather_objects(rows) for row in own]
    return sorted(rows, key=lambda row: keys.index(key_of(row)))


def _fitted(read: Read, keys: list[FeatureKey], data: ProbeData, config: ProbeConfig) -> Fitted:
    """Rows of some features; none if there are more ranks than features."""
    if not keys:
        return Fitted({}, Features({}, torch.empty(0)), None)
    train = _labelled(read(data.train, keys))
    validation = None if data.validation is None else _labelled(read(data.validation, keys))
    return Fitted(fit_probes(train, validation, config), train, validation)


def _measure_on_test(read: Read, rows: list[Row], fitted: Fitted, data: ProbeData, config: ProbeConfig) -> None:
    """Puts accuracies on test images into rows."""
    if not rows:
        return
    assert data.test is not None
    test = _labelled(read(data.test, list(dict.fromkeys(key_of(row) for row in rows))))
    for row in rows:
        key = key_of(row)
        fit = fitted.fits[key][row.probe]
        row.accuracy, row.spread = measure(fit, row.probe, key, fitted.train, fitted.validation, test, config)


def _row(probe: ProbeName, weights: str, key: FeatureKey, fit: Fit, default: bool) -> Row:
    return Row(
        probe=probe,
        weights=weights,
        layer=key.layer,
        pooling=key.pooling,
        attention=key.attention,
        validation_accuracy=fit.accuracy,
        penalty=fit.penalty,
        default=default,
    )


def fit_probes(
    train: Features, validation: Features | None, config: ProbeConfig, probes: Sequence[ProbeName] = PROBES
) -> dict[Any, dict[ProbeName, Fit]]:
    """Probes fitted on every feature of `train`, with their accuracy on `validation`, or in cross-validation."""
    num_classes = int(max(part.labels.max() for part in (train, validation) if part is not None)) + 1
    fits: dict[Any, dict[ProbeName, Fit]] = {}
    for key, x in train.values.items():
        fits[key] = {}
        for probe in probes:
            found = _candidates(probe, x, train.labels, num_classes, config)
            if validation is None:
                shares = _cross_validated(probe, x, train.labels, num_classes, config)
            else:
                shares = [_share(predict(validation.values[key]), validation.labels) for predict, _ in found]
            best = max(range(len(found)), key=shares.__getitem__)
            fits[key][probe] = Fit(found[best][0], shares[best], found[best][1])
    return fits


def _candidates(
    probe: ProbeName, x: Tensor, labels: Tensor, num_classes: int, config: ProbeConfig
) -> list[tuple[Predict, float | None]]:
    """The candidates of a probe, with their penalties."""
    if probe == "knn":
        return [(partial(knn, x, labels, num_classes=num_classes, k=config.k, device=_device()), None)]
    found = fit_linear(x, labels, num_classes, config.penalties, device=_device())
    return [(linear.predict, linear.penalty) for linear in found]


def _device() -> torch.device:
    """The accelerator, where there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _cross_validated(probe: ProbeName, x: Tensor, labels: Tensor, num_classes: int, config: ProbeConfig) -> list[float]:
    """Accuracy of each candidate in cross-validation."""
    right: list[float] = []
    for fold in range(config.folds):
        out = folds_of(labels, config.folds) == fold
        if out.any() and not out.all():
            fitted = _candidates(probe, x[~out], labels[~out], num_classes, config)
            now = [(predict(x[out]) == labels[out]).sum().item() for predict, _ in fitted]
            right = [a + b for a, b in zip(right, now)] if right else now
    return [count / len(labels) for count in right]


def folds_of(labels: Tensor, num: int) -> Tensor:
    """The fold of each row [N]: every class is distributed evenly, with a fixed seed."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))
    order = order[labels[order].argsort(stable=True)]
    folds = torch.empty_like(labels)
    folds[order] = torch.arange(len(labels)) % num
    return folds


def measure(
    fit: Fit,
    probe: ProbeName,
    key: Any,
    train: Features,
    validation: Features | None,
    test: Features,
    config: ProbeConfig,
) -> tuple[float, float | None]:
    """Test accuracy, and None; with several seeds mean and standard deviation over probes fitted on random parts of the
    training images, each with the penalty that validation then chooses."""
    if config.seeds == 1:
        return accuracy(fit, test, key), None
    num, found = len(train.labels), []
    for seed in range(config.seeds):
        part = torch.randperm(num, generator=torch.Generator().manual_seed(seed))[: max(1, int(SEED_SHARE * num))]
        some = Features({key: train.values[key][part]}, train.labels[part])
        seen = None if validation is None else Features({key: validation.values[key]}, validation.labels)
        found.append(accuracy(fit_probes(some, seen, config, [probe])[key][probe], test, key))
    return statistics.mean(found), statistics.stdev(found)


def accuracy(fit: Fit, features: Features, key: Any) -> float:
    """Share of right answers, in [0, 1]."""
    return _share(fit.predict(features.values[key]), features.labels)


def _share(predicted: Tensor, labels: Tensor) -> float:
    return (predicted == labels).double().mean().item()


def _labelled(features: Features, name: str = "") -> Features:
    """Only the rows that have a label."""
    keep = features.labels != IGNORE_LABEL
    if not keep.any():
        raise DataError(f"probes need labels, but the {name} images have none; set data.label_column")
    return Features({key: x[keep] for key, x in features.values.items()}, features.labels[keep])


class QuickProbe:
    """A quick look during training: called with the backbone, gives validation accuracies in [0, 1].

    "probe/knn" and "probe/linear" read the output layer, "..._middle" the middle one; mean over patches, the
    model's own attention, at most `num_online` images a split. Train mode, gradients and random state stay
    untouched. features: where they are read, see `Objective.read`; None: in the backbone.
    """

    def __init__(self, data: ProbeData, config: ProbeConfig, features: ReadFeatures | None = None):
        self.features = features
        self.train = draw(data.train, config.num_online)
        assert data.validation is not None  # images always have one, held out if necessary
        self.validation = draw(data.validation, config.num_online)
        self.config = config.model_copy(update={"penalties": [0.01]})

    def __call__(self, backbone: Backbone) -> dict[str, float]:
        num_layers = backbone.config.num_hidden_layers
        attention = attention_of(backbone.config)
        depths = {"": num_layers, "_middle": num_layers // 2}
        places = {name: FeatureKey(layer, "mean", attention) for name, layer in depths.items()}
        keys, size = list(places.values()), self.config.batch_size
        read = partial(extract, backbone, keys=keys, batch_size=size, read=self.features)
        fits = fit_probes(_labelled(read(self.train)), _labelled(read(self.validation)), self.config)
        return {f"probe/{p}{name}": fits[key][p].accuracy for name, key in places.items() for p in PROBES}


def attention_of(config: object) -> AttentionMode:
    """The default attention of a model; causal if it does not define one."""
    return "full" if isinstance(config, SaysCausal) and not config.is_causal else "causal"


def draw(dataset: Any, num: int) -> Dataset[Sample]:
    """At most `num` samples, drawn with a fixed seed: the same ones on every call."""
    if len(dataset) <= num:
        return dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    return Subset(dataset, order[:num].sort().values.tolist())
