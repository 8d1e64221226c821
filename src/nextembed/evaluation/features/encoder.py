"""One feature vector per image: a checkpoint together with layer, pooling and attention."""

import copy
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedModel

from ...core.objective import Objective
from ...core.pretrained import hub_file, load_pretrained
from ...core.probe_table import ProbeTable, Row, percent
from ...core.run_folder import Processor, find_saved, read_config, read_processor, run_folder
from ...core.types import AttentionMode, Batch, Encodes, LayeredConfig
from ...data.clips import reader_of
from ...data.transforms import ImageReader, Unreadable, normalize, resize
from ...errors import ConfigError, DataError
from ...models.loading import load_model
from ...models.nepa import ViTNepaConfig
from ...models.nepa.modeling_nepa import ViTNepaTrunk
from ...models.omni import OmniConfig, OmniForPreTraining, OmniModel, OmniProcessor
from ...models.omni.images import OmniImages, image_config
from ...objectives.saved import objective_beside, objective_of
from .extract import FeatureKey, Pooling, Precision, evaluating, feature_keys, pool

Network = ViTNepaTrunk | OmniImages  # or one of the user's own with the same interface
Checkpoint = str | os.PathLike[str] | nn.Module
Picture = str | bytes | os.PathLike[str] | Image.Image | np.ndarray


class Preprocessing(NamedTuple):
    """Preprocessing of images. size: side in pixels; mean, std: for pixels in [0, 1]; background: RGB."""

    size: int
    num_channels: int
    mean: float = 0.5
    std: float = 0.5
    background: tuple[int, int, int] = (255, 255, 255)


class Place(NamedTuple):
    """Weights, layer, pooling and attention, and the reason of the choice as text."""

    weights: str
    key: FeatureKey
    why: str


class Encoder:
    """A frozen network, and layer, pooling and attention of an image's features. Values that are not given come from
    the best row of RUN/probe.json that matches the others, else: raw weights, the middle layer, mean over patches, and
    the attention that the model was trained with.

    Args:
        checkpoint: a run, a checkpoint, a model folder (pretraining, classification or plain; an Omni that reads
            images), a hub id, or such a model itself.
        layer: 0 is the latents, -1 the output.
        pooling: "mean" over patches, "last" patch, or "first", the begin token.
        attention: "causal" or "full".
        weights: "raw", "ema" or "best".
        precision: of the forward pass.

    Raises:
        ConfigError: for a path without a NEPA model, weights or a layer that it does not have.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        layer: int | None = None,
        pooling: Pooling | None = None,
        attention: AttentionMode | None = None,
        weights: str | None = None,
        precision: Precision = "float32",
    ):
        wanted = (layer, pooling, attention, weights)
        if isinstance(checkpoint, str | os.PathLike):
            saved = find_saved(checkpoint)
            self.config = _load_config(saved.folder(weights))
            self.place = choose(saved.path, self.config, list(saved.folders), *wanted)
            folder = saved.folder(self.place.weights)
            self.preprocessing = preprocessing_of(self.config, saved.run, folder)
            self.trunk, self.objective = load_network(folder)
        else:
            self.trunk, self.objective = trunk_of(checkpoint), None
            self.config = self.trunk.config
            self.place = choose(None, self.config, ["given"], *wanted)
            self.preprocessing = preprocessing_of(self.config)
        self.checkpoint = str(checkpoint) if isinstance(checkpoint, str | os.PathLike) else None
        self.precision: Precision = precision
        self._short = cut(self.trunk, self.place.key.layer)

    @property
    def width(self) -> int:
        """Length of a feature vector."""
        return int(self.config.hidden_size)

    def reader(self, max_pixels: int = 64_000_000, max_bytes: int = 100_000_000) -> ImageReader:
        """The decoder that reads images as the model expects them.

        Args:
            max_pixels: larger images count as unreadable.
            max_bytes: larger files count as unreadable.

        Returns:
            The decoder; its `read` gives uint8 [C, H, W].
        """
        return reader_of(self.preprocessing.num_channels, self.preprocessing.background, max_pixels, max_bytes)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Features of decoded images.

        Args:
            pixels: uint8 [B, C, size, size].

        Returns:
            float32 [B, D], on the CPU.
        """
        device = next(self.trunk.parameters()).device
        pixel_values = normalize(pixels.to(device), self.preprocessing.mean, self.preprocessing.std)
        layer, pooling, attention = self.place.key
        with evaluating(self._short):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                inputs: Batch = {"pixel_values": pixel_values}
                if self.objective is not None:
                    hidden = self.objective.read(self.trunk, inputs, attention, True)
                else:
                    whole = self._short is self.trunk
                    hidden = self._short.encode(self._short.embed(inputs), attention, output_layers=whole)
            return pool((hidden.layers[layer] if hidden.layers else hidden.last).float(), pooling).cpu()

    def digest(self) -> str:
        """A hash of the weights."""
        found = blake2b(digest_size=16)
        state = self.trunk.state_dict()
        if self.objective is not None:
            state |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
        for name, value in sorted(state.items()):
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data if value.numel() else b"")
        return found.hexdigest()


def encode(
    model: Checkpoint | Encoder,
    images: Picture | Iterable[Picture],
    layer: int | None = None,
    pooling: Pooling | None = None,
    attention: AttentionMode | None = None,
    batch_size: int = 64,
    weights: str | None = None,
    precision: Precision = "float32",
) -> Tensor:
    """Features of images: `encode("runs/mine", ["a.png", "b.png"])` reads the layer that probed best.

    Args:
        model: as of `Encoder`, or an `Encoder`.
        images: a path, a PIL image, a uint8 array [H, W] or [H, W, C], or an iterable of these of any length (a
            generator is read a batch at a time).
        layer: as of `Encoder`, like `pooling`, `attention`, `weights` and `precision`.
        pooling: see `layer`.
        attention: see `layer`.
        batch_size: images a forward pass.
        weights: see `layer`.
        precision: see `layer`.

    Returns:
        float32 [N, D], in the order of the images.

    Raises:
        ConfigError: for a model that cannot be used.
        DataError: for an image that cannot be read.
    """
    encoder = model if isinstance(model, Encoder) else Encoder(model, layer, pooling, attention, weights, precision)
    if batch_size < 1:
        raise ConfigError(f"batch_size should be at least 1, got {batch_size}")
    reader, size = encoder.reader(), encoder.preprocessing.size
    parts = []
    numbered = enumerate(_each(images))
    while batch := list(itertools.islice(numbered, batch_size)):
        parts.append(encoder(torch.stack([_read(reader, image, size, number) for number, image in batch])))
    return torch.cat(parts) if parts else torch.zeros(0, encoder.width)


def _each(images: Picture | Iterable[Picture]) -> Iterator[Picture]:
    if isinstance(images, str | bytes | os.PathLike | Image.Image):
        return iter([images])
    if isinstance(images, np.ndarray) and images.ndim < 4:
        return iter([images])
    if not isinstance(images, Iterable) or isinstance(images, Tensor):
        raise ConfigError(
            f"images: a path, a PIL image, a uint8 array or an iterable of these, not {type(images).__name__}"
        )
    return iter(images)


def _read(reader: ImageReader, image: Picture, size: int, number: int) -> Tensor:
    if isinstance(image, str | os.PathLike) and Path(image).is_dir():
        raise ConfigError(f"{image} is a folder; `nextembed embed` takes folders, encode takes images")
    try:
        return resize(reader.read(image), size)
    except Unreadable as err:
        name = str(image) if isinstance(image, str | os.PathLike) else f"number {number}"
        raise DataError(f"image {name} cannot be read: {err}") from None


def choose(
    path: str | None,
    config: ViTNepaConfig,
    available: list[str],
    layer: int | None,
    pooling: Pooling | None,
    attention: AttentionMode | None,
    weights: str | None,
) -> Place:
    """Weights, layer, pooling and attention: the given values, the rest from the run's probes or the defaults. Raises
    ConfigError for a layer that the model does not have, or for a token without context.
    """
    num_layers = config.num_hidden_layers
    if layer is not None:
        if not -num_layers - 1 <= layer <= num_layers:
            raise ConfigError(f"layer {layer} is not in 0..{num_layers} (0 = latents, {num_layers} = output)")
        layer %= num_layers + 1
    wanted = {"layer": layer, "pooling": pooling, "attention": attention, "weights": weights}
    best, file = None, None
    if path is not None and None in wanted.values() and (run := run_folder(path)) and (run / "probe.json").is_file():
        file = os.path.relpath(run / "probe.json")
        best = _best_row(run / "probe.json", num_layers, available, wanted)
    if best is not None:
        measured = f"{best.probe} {percent(best.validation_accuracy)} on validation"
        key = FeatureKey(best.layer, cast(Pooling, best.pooling), cast(AttentionMode, best.attention))
        place = Place(best.weights, key, f"best of {file}: {measured}")
    else:
        own: AttentionMode = "causal" if config.is_causal else "full"
        why = "as asked for" if layer is not None else "the middle layer; run nextembed probe to find the best one"
        default = num_layers // 2 if layer is None else layer
        place = Place(weights or available[0], FeatureKey(default, pooling or "mean", attention or own), why)
    if not feature_keys(num_layers, [place.key.layer], [place.key.pooling], [place.key.attention]):
        raise ConfigError(
            "pooling 'first' reads the begin token, which has seen no patch at layer 0 or under causal attention; "
            "choose attention 'full' and a layer above 0, or another pooling"
        )
    return place


def _best_row(file: Path, num_layers: int, available: list[str], wanted: Mapping[str, object]) -> Row | None:
    """The best row of probe.json that matches the given values; None if none does."""
    table = ProbeTable.load(file)
    table.rows = [
        row
        for row in table.rows
        if row.probe in ("linear", "knn")
        and row.weights in available
        and row.layer <= num_layers
        and all(value in (None, asdict(row)[name]) for name, value in wanted.items())
    ]
    return table.best()


def trunk_of(model: nn.Module) -> Network:
    """The part of a model that gives latents and hidden states. Raises ConfigError if it has none."""
    if isinstance(model, OmniForPreTraining):
        return OmniImages(model.model, model.processor)
    for found in (model.base_model, model) if isinstance(model, PreTrainedModel) else (model,):
        # Emu also has latents, but of documents, and a config of several networks.
        of_documents = isinstance(found, PreTrainedModel) and not isinstance(found.config, LayeredConfig)
        if isinstance(found, nn.Module) and isinstance(found, Encodes) and not of_documents:
            return cast(Network, found)
    raise ConfigError(f"a {type(model).__name__} has no latents and hidden states to read features from")


def cut(trunk: Network, layer: int) -> Network:
    """The same network with shared weights, without the layers above one, so that its last hidden state is that
    layer's. The trunk itself if there is nothing to cut, or if the structure is unknown.
    """
    if not isinstance(trunk, ViTNepaTrunk) or layer >= trunk.config.num_hidden_layers:
        return trunk
    short, encoder = copy.copy(trunk), copy.copy(trunk.encoder)
    short._modules, encoder._modules = dict(trunk._modules), dict(trunk.encoder._modules)
    encoder.layer = trunk.encoder.layer[:layer]
    short._modules |= {"encoder": encoder, "layernorm": nn.Identity()}
    return short


def _load_config(folder: Path | str) -> ViTNepaConfig:
    """The configuration of images of a model. Raises ConfigError for a model that does not read images or has no
    latents."""
    config: ViTNepaConfig | OmniConfig = load_pretrained(AutoConfig, folder)
    if not issubclass(cast(type, MODEL_MAPPING.get(type(config), object)), Encodes):
        raise ConfigError(f"{folder} contains a model of type '{config.model_type}', not a NEPA model (vit_nepa)")
    return image_config(config) if isinstance(config, OmniConfig) else config


def load_network(folder: Path | str) -> tuple[Network, Objective | None]:
    """The source of image features: the transformer of a saved model; if its objective provides features itself, also
    that objective and the model that it was trained on."""
    if objective_beside(folder) is None:
        return load_trunk(folder), None
    backbone = load_model(folder, dtype=torch.float32)
    return cast(Network, backbone), objective_of(folder, backbone)


def load_trunk(folder: Path | str) -> Network:
    """The transformer of a saved model, in float32. Raises ConfigError if it cannot be loaded completely."""
    trunk = load_model(folder, AutoModel, dtype=torch.float32)
    if isinstance(trunk, OmniModel):
        return OmniImages(trunk, load_pretrained(OmniProcessor, folder, f"cannot load the processor in {folder}"))
    return trunk_of(trunk)


def preprocessing_of(config: ViTNepaConfig, run: Path | None = None, folder: Path | str = "") -> Preprocessing:
    """Preprocessing as in the run's data, else as in the model's preprocessor_config.json, else to [-1, 1]."""
    default = Preprocessing(config.image_shape[0], config.num_channels)
    data = read_config(run).get("data") if run else None
    if isinstance(data, dict):
        found = {name: data[name] for name in ("mean", "std") if isinstance(data.get(name), int | float)}
        if isinstance(data.get("background"), list):
            found["background"] = tuple(data["background"])
        return default._replace(**found)
    if isinstance(folder, str):  # a hub id
        file = hub_file(folder, "preprocessor_config.json") if folder else None
        saved = Processor() if file is None else read_processor(file.parent)
    else:
        saved = read_processor(folder)
    if saved.image_mean and saved.image_std:
        if len(set(saved.image_mean)) > 1 or len(set(saved.image_std)) > 1:
            raise ConfigError(f"{folder}: each channel has a mean of its own, which is not supported")
        return default._replace(mean=saved.image_mean[0], std=saved.image_std[0])
    return default
