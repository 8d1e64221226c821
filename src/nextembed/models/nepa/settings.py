"""The model part of a run: sizes of a new NEPA model, or the checkpoint it starts from."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from transformers import ViTImageProcessor

from ...core.config import MODELS
from ...core.sizes import COLOURS, MAX_FRAMES, MAX_LAYERS, MAX_SIDE, MAX_WIDTH, TUBELET
from ...core.types import AttentionMode
from ...errors import ConfigError
from ..parts import ModelPart, load_part
from .configuration_nepa import ViTNepaConfig
from .loading import check_classes, read_config, with_pretrained_weights
from .modeling_nepa import ViTNepaForImageClassification, ViTNepaForPreTraining


@MODELS.register("vit_nepa")
class NepaModel(ModelPart):
    """Settings of a NEPA model; the fields are `ViTNepaConfig`'s, the defaults the paper's (SwiGLU, QK-norm, RoPE).

    Attributes:
        pretrained: an HF folder or hub id to start from; its sizes win over the fields here.
        hidden_size: width of the latents and of every layer.
        num_hidden_layers: layers of the transformer.
        num_attention_heads: heads of each layer; hidden_size is a multiple of four times their number.
        intermediate_size: width of the MLPs; null: 4 * hidden_size.
        use_gated_mlp: SwiGLU instead of a plain MLP; its gate also has the full intermediate_size.
        hidden_act: the activation in the MLPs.
        image_size: side of the training images in pixels.
        patch_size: side of a patch in pixels; each becomes one latent.
        num_channels: 3 for colours, 1 for grey images.
        num_frames: above 1 the model reads clips of so many frames, and a latent is a patch of two frames.
        layerscale_value: factor on what each layer adds, at the start (learned): 1e-5 in the paper; 0.1 to 1 learns
            faster in runs of minutes; null leaves it out.
        qk_norm: LayerNorm on each head's query and key.
        qk_norm_affine: whether that norm has a learned scale.
        qk_norm_bias: whether that norm has a learned shift.
        rope_theta: base of the rotary frequencies.
        drop_path_prob: stochastic depth of the last layer, rising linearly from 0 at the first.
        pos_embed_shift: in training, largest random shift of the coordinates along each axis; null: none.
        pos_embed_jitter: in training, largest random scaling factor of the coordinates along each axis; null: none.
        pos_embed_rescale: in training, largest random scaling factor of all coordinates together; null: none.
        is_causal: default attention of the saved model, if a call does not set it.
        add_pooling_layer: a classifier pools the mean of the patches and norms it; false reads the last latent.
    """

    hidden_size: int = Field(768, gt=0, le=MAX_WIDTH)
    num_hidden_layers: int = Field(12, gt=0, le=MAX_LAYERS)
    num_attention_heads: int = Field(12, gt=0, le=MAX_WIDTH)
    intermediate_size: int | None = Field(None, gt=0, le=4 * MAX_WIDTH)
    use_gated_mlp: bool = True
    hidden_act: Literal["gelu", "silu", "relu", "gelu_pytorch_tanh"] = "silu"
    image_size: int = Field(224, gt=0, le=MAX_SIDE)
    patch_size: int = Field(14, gt=0, le=MAX_SIDE)
    num_channels: Literal[1, 3] = 3
    num_frames: int = Field(1, gt=0, le=MAX_FRAMES)
    layerscale_value: float | None = Field(1e-5, ge=0, le=100)
    qk_norm: bool = True
    qk_norm_affine: bool = False
    qk_norm_bias: bool = False
    rope_theta: float = Field(100.0, ge=1, le=1e12)
    drop_path_prob: float = Field(0.0, ge=0, le=0.99)
    pos_embed_shift: float | None = Field(None, ge=0, le=100)
    pos_embed_jitter: float | None = Field(None, ge=1, le=100)
    pos_embed_rescale: float | None = Field(2.0, ge=1, le=100)
    is_causal: bool = True
    add_pooling_layer: bool = True

    @model_validator(mode="after")
    def _fits(self) -> "NepaModel":
        if self.image_size % self.patch_size:
            near = [p for p in range(1, self.image_size + 1) if self.image_size % p == 0]
            near.sort(key=lambda p: abs(p - self.patch_size))
            raise ValueError(
                f"patch_size {self.patch_size} does not divide image_size {self.image_size}; "
                f"near ones that do: {', '.join(map(str, sorted(near[:3])))}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}"
            )
        if self.hidden_size // self.num_attention_heads % 4:
            raise ValueError(
                f"hidden_size / num_attention_heads is {self.hidden_size // self.num_attention_heads}; "
                "rotary positions need a multiple of 4"
            )
        if self.num_frames > 1:
            self._fits_clips()
        return self

    def _fits_clips(self) -> None:
        if self.num_frames % TUBELET:
            raise ValueError(f"num_frames {self.num_frames} should be even: a latent holds two frames")
        if self.num_channels != COLOURS:
            raise ValueError("num_frames: frames of clips have num_channels=3")
        if self.hidden_size // self.num_attention_heads % 12:
            raise ValueError(
                f"hidden_size / num_attention_heads is {self.hidden_size // self.num_attention_heads}; "
                "positions in time, height and width need a multiple of 12"
            )

    def hf_config(self) -> ViTNepaConfig:
        """The Hugging Face configuration that these settings describe."""
        fields: dict[str, Any] = self.model_dump(exclude={"kind", "pretrained"})
        fields["num_channels"] = self.num_channels * self.num_frames
        fields["intermediate_size"] = self.intermediate_size or 4 * self.hidden_size
        return ViTNepaConfig(**fields)

    def build(self, class_names: Sequence[str] = ()) -> ViTNepaForPreTraining:
        """A new model, or the pretrained one.

        Args:
            class_names: not used.

        Returns:
            The model, in float32.

        Raises:
            ConfigError: If `pretrained` is no NEPA checkpoint.
        """
        if self.pretrained is None:
            return ViTNepaForPreTraining(self.hf_config())
        return load_part(ViTNepaForPreTraining, self.pretrained, "pretrained")

    def processor(self) -> ViTImageProcessor | None:
        """The image processor for this model: resize, scale to [-1, 1]; saved with checkpoints. There is none for
        clips."""
        config = self.hf_config() if self.pretrained is None else read_config(self.pretrained)
        if config.num_frames > 1:
            return None
        return image_processor(config.image_shape, config.num_channels)


@MODELS.register("vit_nepa_classifier")
class NepaClassifier(ModelPart):
    """A NEPA model with a classification head for the classes of the data, to fine-tune.

    Attributes:
        pretrained: HF folder or hub id of a pretrained (or fine-tuned) NEPA model.
        architecture: sizes of a network that is trained from scratch, in place of `pretrained`.
        from_scratch: keeps the sizes of `pretrained`, not its weights.
        attention: "full" as the released fine-tuned models, or "causal" as pretrained.
        pooling: "mean" of the patches and a norm, or the "last" patch.
        num_layers: use only this many layers, from the first (the best features of a short pretraining are in the
            middle).
        image_size: side in pixels; null: as pretrained.
        drop_path_prob: stochastic depth of the last layer, rising linearly from 0.
        layerscale_value: LayerScale of a network trained from scratch; null: as in the config of `pretrained`.
        pos_embed_rescale: in training, largest random scaling factor of all coordinates together; 1: none; null: as in
            the config of `pretrained`.
        new_head: initialises a new head even if `pretrained` has one; without it, a head for other classes is an error.
    """

    task: ClassVar[str] = "classification"

    architecture: NepaModel | None = None
    from_scratch: bool = False
    attention: AttentionMode = "full"
    pooling: Literal["mean", "last"] = "mean"
    num_layers: int | None = Field(None, gt=0, le=MAX_LAYERS)
    image_size: int | None = Field(None, gt=0, le=MAX_SIDE)
    drop_path_prob: float = Field(0.0, ge=0, le=0.99)
    layerscale_value: float | None = Field(None, ge=0, le=100)
    pos_embed_rescale: float | None = Field(None, ge=1, le=100)
    new_head: bool = False

    def hf_config(self, class_names: Sequence[str]) -> ViTNepaConfig:
        """The configuration of the classifier. Raises ConfigError for a checkpoint or size that does not fit."""
        config = base_config(self.pretrained, self.architecture)
        if self.pretrained is not None and not self.new_head:
            check_classes(config, class_names, self.pretrained)
        return adjusted(
            config,
            self.num_layers,
            self.image_size,
            is_causal=self.attention == "causal",
            add_pooling_layer=self.pooling == "mean",
            drop_path_prob=self.drop_path_prob,
            id2label=dict(enumerate(class_names)),
            label2id={name: i for i, name in enumerate(class_names)},
            **self.given("layerscale_value", "pos_embed_rescale"),
        )

    def given(self, *names: str) -> dict[str, object]:
        """The fields of these names that are not null: they replace those of the config."""
        return {name: value for name, value in self.model_dump(include=set(names)).items() if value is not None}

    def build(self, class_names: Sequence[str] = ()) -> ViTNepaForImageClassification:
        """The classifier; its head, and all of it if from scratch, is drawn from torch's random state."""
        model = ViTNepaForImageClassification(self.hf_config(class_names))
        if self.pretrained is None or self.from_scratch:
            return model
        return with_pretrained_weights(model, self.pretrained, head=("fc_norm.", "classifier."), new_head=self.new_head)

    def processor(self) -> ViTImageProcessor | None:
        config = base_config(self.pretrained, self.architecture)
        if config.num_frames > 1:
            return None
        shape = config.image_shape if self.image_size is None else (self.image_size, self.image_size)
        return image_processor(shape, config.num_channels)


def base_config(pretrained: str | None, architecture: NepaModel | None) -> ViTNepaConfig:
    """The configuration to start from. Raises ConfigError unless exactly one of the two is given."""
    if (pretrained is None) == (architecture is None):
        raise ConfigError(
            "model.pretrained: name the checkpoint to fine-tune, e.g. model.pretrained=runs/mine/model "
            "(or give model.architecture to train from scratch; not both)"
        )
    return architecture.hf_config() if architecture is not None else read_config(str(pretrained))


def adjusted(config: ViTNepaConfig, num_layers: int | None, image_size: int | None, **changes: object) -> ViTNepaConfig:
    """A copy of a configuration with fewer layers, another image size and other changes."""
    if num_layers is not None:
        if num_layers > config.num_hidden_layers:
            raise ConfigError(f"model.num_layers {num_layers}: the model has only {config.num_hidden_layers}")
        changes["num_hidden_layers"] = num_layers
    if image_size is not None:
        changes["image_size"] = image_size
    fields = {**config.to_dict(), **changes}
    derived = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices", "num_labels", "dtype")
    for name in derived:
        fields.pop(name, None)
    config = ViTNepaConfig(**fields)
    for side, patch in zip(config.image_shape, config.patch_shape, strict=True):
        if side % patch:
            raise ConfigError(f"model.image_size {side} is not a multiple of the patch size {patch}")
    return config


def image_processor(shape: tuple[int, int], num_channels: int) -> ViTImageProcessor:
    """Resizes to (height, width), bilinear, and scales to [-1, 1]."""
    (height, width), half = shape, [0.5] * num_channels
    return ViTImageProcessor(size={"height": height, "width": width}, resample=2, image_mean=half, image_std=half)
