"""The function that is exported: pixels to hidden states and an embedding, or to logits, for any image size."""

import copy
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..core.files import to_json
from ..core.types import AttentionMode
from ..errors import ConfigError
from ..models.nepa import ViTNepaConfig, ViTNepaForImageClassification, ViTNepaPreTrainedModel
from ..nn.transformer import TransformerLayer
from .loading import Task

Pooling = Literal["mean", "last", "first"]
TOLERANCE = 1e-4


@dataclass(frozen=True)
class GraphSpec:
    """What an exported model computes.

    task: "features" gives `last_hidden_state` [B, T, D] and `embedding` [B, D], "classification" gives `logits`
    [B, classes]. layer: where features are read, 0 = latents, -1 = output after the final norm; later layers are not
    in the graph. pooling: "mean" over patches, "last" patch, "first" (begin) token. attention: None takes the
    model's own. size: (height, width) in pixels fixes the image size; None leaves it open.
    mean, std: given, the input is `images` uint8 [B, height, width, C] and the graph normalises it; else it is
    `pixel_values` float32 [B, C, height, width].
    """

    task: Task = "features"
    layer: int = -1
    pooling: Pooling = "mean"
    attention: AttentionMode | None = None
    size: tuple[int, int] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    class_names: list[str] = field(default_factory=list)

    @property
    def input_name(self) -> str:
        return "pixel_values" if self.mean is None else "images"

    @property
    def output_names(self) -> list[str]:
        return ["logits"] if self.task == "classification" else ["last_hidden_state", "embedding"]


class ExportGraph(nn.Module):
    """A copy of a model, in eval mode on the CPU in float32, as the function of `spec`.

    Raises ConfigError for a layer, size or task that the model does not have.
    """

    def __init__(self, model: ViTNepaPreTrainedModel, spec: GraphSpec):
        super().__init__()
        model = copy.deepcopy(model)
        nn.Module.to(model, "cpu", torch.float32).eval().requires_grad_(False)
        if model.config._attn_implementation not in ("sdpa", "eager"):
            model.set_attn_implementation("sdpa")
        if spec.task == "classification" and not isinstance(model, ViTNepaForImageClassification):
            raise ConfigError(f"a {type(model).__name__} has no classifier; fine-tune first, or task='features'")
        self.model: Any = model if spec.task == "classification" else model.base_model
        self.config: ViTNepaConfig = model.config
        self.spec = spec
        self.layer = _layer(spec.layer, self.config.num_hidden_layers)
        own: AttentionMode = "causal" if self.config.is_causal else "full"
        self.attention: AttentionMode = spec.attention or own
        if spec.size is not None:
            _check_size(spec.size, self.config.patch_shape)
        _check_pooling(spec, self.layer, self.attention)
        fold_layer_scale(self.model)
        if spec.mean is not None:
            if not len(spec.mean) == len(spec.std or []) == self.config.num_channels:
                raise ConfigError(f"mean {spec.mean} and std {spec.std} do not fit {self.config.num_channels} channels")
            scale = 1 / (255 * torch.tensor(spec.std))
            self.register_buffer("pixel_scale", scale[:, None, None])
            self.register_buffer("pixel_shift", (-torch.tensor(spec.mean) / torch.tensor(spec.std))[:, None, None])

    pixel_scale: Tensor
    pixel_shift: Tensor

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        if self.spec.mean is not None:
            pixels = pixels.permute(0, 3, 1, 2).float() * self.pixel_scale + self.pixel_shift
        if self.spec.task == "classification":
            return (self.model(pixels, is_causal=self.attention == "causal").logits,)
        latents = self.model.embed({"pixel_values": pixels})
        hidden = self.model.encode(latents, attention=self.attention, output_layers=True).layers[self.layer]
        return hidden, self.pooled(hidden)

    def pooled(self, hidden: Tensor) -> Tensor:
        if self.spec.pooling == "mean":
            return hidden[:, 1:].mean(1)
        return hidden[:, -1] if self.spec.pooling == "last" else hidden[:, 0]

    def example(self, batch: int, height: int, width: int) -> Tensor:
        """Random input of the given size, the same on every call."""
        generator = torch.Generator().manual_seed(0)
        channels = self.config.num_channels
        if self.spec.mean is not None:
            return torch.randint(0, 256, (batch, height, width, channels), dtype=torch.uint8, generator=generator)
        return torch.rand(batch, channels, height, width, generator=generator) * 2 - 1

    def check_sizes(self) -> list[tuple[int, int, int]]:
        """(batch, height, width) that an export is compared at: one image, and five; the model's size, and one that is
        not square."""
        if self.spec.size is not None:
            return [(1, *self.spec.size), (5, *self.spec.size)]
        height, width = self.config.image_shape
        row, column = self.config.patch_shape
        return [(1, height, width), (5, max(2 * row, height // row // 2 * row), width + column)]

    def dynamic_shapes(self, smallest: int = 2) -> tuple[dict[int, Any]]:
        """The open axes for torch.export; at least `smallest` patches a side."""
        shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=2**16)}
        if self.spec.size is None:
            first = 2 if self.spec.mean is None else 1
            for axis, name, patch in zip((first, first + 1), ("rows", "columns"), self.config.patch_shape, strict=True):
                patches = torch.export.Dim(name, min=smallest, max=2**12)
                shapes[axis] = patch * patches if patch > 1 else patches
        return (shapes,)

    def metadata(self) -> dict[str, str]:
        """Information for users of the file, as short texts."""
        spec, config = self.spec, self.config
        values: dict[str, object] = {
            "producer": "nextembed",
            "model_type": config.model_type,
            "task": spec.task,
            "attention": self.attention,
            "patch_size": list(config.patch_shape),
            "image_size": list(spec.size or config.image_shape),
            "num_channels": config.num_channels,
        }
        if spec.task == "features":
            values |= {"layer": self.layer, "num_layers": config.num_hidden_layers, "pooling": spec.pooling}
        if spec.class_names:
            values["class_names"] = spec.class_names
        return {name: v if isinstance(v, str) else to_json(v) for name, v in values.items()}


def fold_layer_scale(model: nn.Module) -> None:
    """Multiplies LayerScale into the linear layer before it, in place: the graph then holds one weight for the two, and
    quantisation sees it."""
    for layer in model.modules():
        for scale, linear in _scaled(layer):
            factor = scale.lambda1
            linear.weight.mul_(factor[:, None])
            if linear.bias is not None:
                linear.bias.mul_(factor)
            scale.lambda1 = None


def _scaled(layer: nn.Module) -> list[tuple[Any, Any]]:
    if not isinstance(layer, TransformerLayer):
        return []
    pairs = [(layer.layer_scale, layer.attention.output.dense), (layer.output.layer_scale, layer.output.dense)]
    return [(scale, linear) for scale, linear in pairs if scale.lambda1 is not None]


def class_names(config: ViTNepaConfig) -> list[str]:
    """Names by class id from a model's config; empty where they are only numbers."""
    by_id = cast(dict[int, str], config.id2label or {})
    names = [str(by_id[i]) for i in sorted(by_id)]
    return [] if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def greatest_difference(expected: Tensor, found: Tensor, name: str, tolerance: float = TOLERANCE) -> float:
    """The greatest absolute difference. Raises ConfigError if it is above `tolerance` x the root mean square of the
    expected values (at least 1: hidden states before the final norm have any scale), or not a number."""
    if expected.shape != found.shape:
        raise ConfigError(f"{name} has shape {tuple(found.shape)}, PyTorch gives {tuple(expected.shape)}; not saved")
    difference = (expected.float() - found.float()).abs().max().item()
    limit = tolerance * max(1.0, expected.float().square().mean().sqrt().item())
    if not difference <= limit:
        raise ConfigError(f"{name} differs from PyTorch by {difference:.1e}, more than {limit:.1e}; nothing was saved")
    return difference


def _layer(layer: int, num_layers: int) -> int:
    if not -num_layers - 1 <= layer <= num_layers:
        raise ConfigError(f"layer {layer} is not in 0..{num_layers} (0 = latents, {num_layers} or -1 = output)")
    return layer % (num_layers + 1)


def _check_size(size: tuple[int, int], patch: tuple[int, int]) -> None:
    if min(size) < 1 or size[0] % patch[0] or size[1] % patch[1]:
        raise ConfigError(f"size {size[0]},{size[1]} is not a multiple of the patch size {patch[0]}x{patch[1]}")


def _check_pooling(spec: GraphSpec, layer: int, attention: AttentionMode) -> None:
    if spec.task == "classification" and (spec.layer, spec.pooling) != (-1, "mean"):
        raise ConfigError("a classifier reads its own layer and pooling; layer and pooling are for task 'features'")
    if spec.task == "features" and spec.pooling == "first" and (layer == 0 or attention == "causal"):
        raise ConfigError(
            "pooling 'first' carries no information here: the first token sees no patch (causal, or layer 0)"
        )
