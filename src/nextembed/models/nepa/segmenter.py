"""The model part of a segmentation run: a NEPA model with a linear head, or UPerNet over its layers."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import BeitImageProcessor, PreTrainedConfig, UperNetConfig, UperNetForSemanticSegmentation

from ...core.config import MODELS
from ...core.sizes import MAX_LAYERS, MAX_SIDE, MAX_WIDTH
from ...core.types import IGNORE_PIXEL, AttentionMode
from ...errors import ConfigError
from ..parts import ModelPart
from .configuration_nepa import ViTNepaConfig
from .loading import few, read_any_config, with_pretrained_weights
from .modeling_segmentation import ViTNepaForSemanticSegmentation
from .settings import NepaModel, adjusted, base_config

NUM_SCALES = 4


def trunk_config(config: PreTrainedConfig) -> ViTNepaConfig:
    """The configuration of a segmenter's transformer. Raises ConfigError for another model."""
    trunk = config.backbone_config if isinstance(config, UperNetConfig) else config
    if not isinstance(trunk, ViTNepaConfig):
        raise ConfigError(f"a model of type '{config.model_type}' is not an image segmenter")
    return trunk


@MODELS.register("vit_nepa_segmenter")
class NepaSegmenter(ModelPart):
    """A NEPA model that gives every pixel a class of the data.

    Attributes:
        head: "linear", one 1x1 convolution over the patches; or "upernet", a pyramid of four layers under transformers'
            UPerNet (arXiv 1807.10221).
        pretrained: HF folder or hub id of a NEPA model, pretrained or fine-tuned.
        architecture: sizes of a network that is trained from scratch, in place of `pretrained`.
        from_scratch: keeps the sizes of `pretrained`, not its weights.
        attention: "full" as in the paper's segmentation, or "causal" as pretrained.
        num_layers: use only this many layers, from the first.
        layers: layers that the head reads, counted from 1; null: the last for a linear head, those at 1/3, 1/2, 2/3 and
            the end for UPerNet, as in BEiT.
        image_size: side of training crops and of the sliding window, in pixels; null: as pretrained.
        drop_path_prob: stochastic depth of the last layer, rising linearly from 0.
        layerscale_value: LayerScale of a network trained from scratch; null: as in the config of `pretrained`.
        head_width: channels of UPerNet.
        auxiliary_loss_weight: weight of UPerNet's second, convolutional head, which reads the third layer in training;
            0: no such head.
        new_head: initialises a new head even if `pretrained` has one; without it, a head for other classes is an error.
    """

    task: ClassVar[str] = "segmentation"

    head: Literal["linear", "upernet"] = "linear"
    architecture: NepaModel | None = None
    from_scratch: bool = False
    attention: AttentionMode = "full"
    num_layers: int | None = Field(None, gt=0, le=MAX_LAYERS)
    layers: Annotated[list[int], Field(min_length=1, max_length=100)] | None = None
    image_size: int | None = Field(None, gt=0, le=MAX_SIDE)
    drop_path_prob: float = Field(0.0, ge=0, le=0.99)
    layerscale_value: float | None = Field(None, ge=0, le=100)
    head_width: int = Field(512, gt=0, le=MAX_WIDTH)
    auxiliary_loss_weight: float = Field(0.4, ge=0, le=1e6)
    new_head: bool = False

    def trunk_config(self, class_names: Sequence[str]) -> ViTNepaConfig:
        """The transformer's configuration. Raises ConfigError for a checkpoint, layer or size that does not fit."""
        config = adjusted(
            self._start(),
            self.num_layers,
            self.image_size,
            is_causal=self.attention == "causal",
            add_fpn=False,
            drop_path_prob=self.drop_path_prob,
            semantic_loss_ignore_index=IGNORE_PIXEL,
            id2label=dict(enumerate(class_names)),
            label2id={name: i for i, name in enumerate(class_names)},
            **({} if self.layerscale_value is None else {"layerscale_value": self.layerscale_value}),
        )
        config.out_indices = self._layers(config.num_hidden_layers)
        config.add_fpn = self.head == "upernet"
        return config

    def build(self, class_names: Sequence[str] = ()) -> Any:
        """The segmenter; its head, and all of it if from scratch, is drawn from torch's random state.

        Raises ConfigError for a checkpoint of another model type or with a head for other classes.
        """
        config = self.trunk_config(class_names)
        pretrained = None if self.from_scratch else self.pretrained
        has_head = pretrained is not None and self._check_head(pretrained, class_names)
        if self.head == "linear":
            model: Any = ViTNepaForSemanticSegmentation(config)
            return self._filled(model, pretrained, ("classifier.",))
        model = UperNetForSemanticSegmentation(self._upernet_config(config))
        # Needed by FSDP and gradient checkpointing; transformers' UPerNet leaves it to its backbone.
        model._no_split_modules = list(model.backbone._no_split_modules)
        model.supports_gradient_checkpointing = True
        if has_head:
            return self._filled(model, pretrained, ("decode_head.classifier.", "auxiliary_head.classifier."))
        model.backbone = self._filled(model.backbone, pretrained, ("fpn.",))
        return model

    def trunk(self, backbone: Any) -> Any:
        return backbone.backbone if self.head == "upernet" else backbone

    def example_labels(self, side: int) -> Tensor:
        return torch.zeros(side, side, dtype=torch.int64)

    def processor(self) -> BeitImageProcessor:
        """Resizes to the training size, scales to [-1, 1], and turns logits into maps of classes."""
        config = self._start()
        height, width = config.image_shape if self.image_size is None else (self.image_size, self.image_size)
        half = [0.5] * config.num_channels
        return BeitImageProcessor(
            size={"height": height, "width": width}, resample=2, image_mean=half, image_std=half, do_center_crop=False
        )

    def _start(self) -> ViTNepaConfig:
        """The configuration to start from, also that under a UPerNet of ours."""
        if self.pretrained is not None and self.architecture is None:
            config = read_any_config(self.pretrained)
            if isinstance(config, UperNetConfig) and isinstance(config.backbone_config, ViTNepaConfig):
                if self.head == "linear":
                    raise ConfigError(f"model.pretrained: {self.pretrained} is a UPerNet; set model.head=upernet")
                return config.backbone_config
        return base_config(self.pretrained, self.architecture)

    def _layers(self, num_layers: int) -> list[int]:
        if self.layers is not None:
            layers = sorted(set(self.layers))
            if layers != self.layers or not 1 <= layers[0] <= layers[-1] <= num_layers:
                raise ConfigError(f"model.layers {self.layers}: give increasing numbers from 1 to {num_layers}")
            if self.head == "upernet" and len(layers) != NUM_SCALES:
                raise ConfigError(f"model.layers {self.layers}: UPerNet reads {NUM_SCALES} layers")
            return layers
        if self.head == "linear":
            return [num_layers]
        if num_layers < NUM_SCALES:
            raise ConfigError(f"model.head upernet needs at least {NUM_SCALES} layers, the model has {num_layers}")
        fourth, third = num_layers, min(round(num_layers * 2 / 3), num_layers - 1)
        second = min(round(num_layers / 2), third - 1)
        return [min(round(num_layers / 3), second - 1), second, third, fourth]

    def _upernet_config(self, config: ViTNepaConfig) -> UperNetConfig:
        return UperNetConfig(
            backbone_config=config,
            hidden_size=self.head_width,
            auxiliary_channels=self.head_width // 2,
            use_auxiliary_head=self.auxiliary_loss_weight > 0,
            auxiliary_loss_weight=self.auxiliary_loss_weight,
            loss_ignore_index=IGNORE_PIXEL,
            id2label=config.id2label,
            label2id=config.label2id,
        )

    def _check_head(self, pretrained: str, class_names: Sequence[str]) -> bool:
        """Whether a checkpoint has a head of this kind. Raises ConfigError if it is for other classes."""
        config: Any = read_any_config(pretrained)
        kind = "UperNetForSemanticSegmentation" if self.head == "upernet" else "ViTNepaForSemanticSegmentation"
        if kind not in (config.architectures or []):
            return False
        own = [str(config.id2label[i]) for i in sorted(config.id2label)]
        if own != list(class_names) and not self.new_head:
            raise ConfigError(
                f"model.pretrained: {pretrained} has a head for {len(own)} classes ({few(own)}), the data has "
                f"{len(class_names)} ({few(class_names)}); set model.new_head=true for a new head"
            )
        return True

    def _filled(self, model: Any, pretrained: str | None, head: tuple[str, ...]) -> Any:
        """The model with the checkpoint's weights; `head`: parameters that may be new."""
        if pretrained is None:
            return model
        fresh = {name: value.clone() for name, value in model.state_dict().items() if name.startswith(head)}
        loaded = with_pretrained_weights(model, pretrained, head)
        if self.new_head:
            loaded.load_state_dict(fresh, strict=False)
        return loaded
