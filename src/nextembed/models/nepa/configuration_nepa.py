"""Configuration of the NEPA vision transformer, with the official field names."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from ...core.sizes import TUBELET, check_sizes


@strict
class ViTNepaConfig(BackboneConfigMixin, PreTrainedConfig):
    """Settings of a NEPA vision transformer (model_type "vit_nepa").

    Attributes:
        hidden_size: width D of the latents and of every layer.
        num_hidden_layers: number of layers.
        num_attention_heads: heads of each layer.
        intermediate_size: width of the MLPs.
        use_gated_mlp: SwiGLU with gate and up of the full `intermediate_size` (paper; set hidden_act="silu"), else
            hidden_act (released models: exact GELU).
        hidden_act: activation of the MLPs, without `use_gated_mlp`.
        hidden_dropout_prob: dropout after each part of a layer.
        attention_probs_dropout_prob: dropout of attention weights.
        initializer_range: standard deviation of new weights.
        layer_norm_eps: epsilon of the norms.
        qkv_bias: whether query, key and value have a bias.
        apply_layernorm: whether the feature maps of the backbone are normed.
        reshape_hidden_states: whether feature maps of the backbone are [B, D, rows, columns].
        layerscale_value: LayerScale at the start; None leaves LayerScale out. The paper's 1e-5 learns slowly in short
            runs.
        qk_norm: LayerNorm on each head's query and key.
        qk_norm_affine: whether that norm has a learned scale.
        qk_norm_bias: whether that norm has a learned shift.
        rope_theta: base of the rotary frequencies.
        image_size: pixels, one number or (height, width).
        patch_size: pixels, one number or (height, width).
        num_channels: channels of `pixel_values`.
        num_frames: above 1 the model reads clips: an even number of frames. `num_channels` is that of all of them
            together, and a latent holds a patch of two frames (a tubelet, as in V-JEPA, arXiv 2404.08471). The released
            models read images.
        is_causal: attention of a forward call that does not set it.
        add_pooling_layer: the classifier pools the mean of the patches and norms it; False reads the last latent.
        drop_path_prob: stochastic depth of the last layer, rising linearly from 0 at the first.
        pos_embed_shift: largest random shift of all coordinates, in training.
        pos_embed_jitter: log-uniform scaling of each axis, in training.
        pos_embed_rescale: log-uniform scaling of all axes, in training.
        out_features: layers that the backbone and the segmenter read; the last where not given.
        out_indices: the same by number.
        add_fpn: the backbone gives four maps at four times, twice, once and half the patch grid (needs four
            out_features).
        semantic_loss_ignore_index: pixels of this label do not count in the segmenter's loss.
        use_intermediate_loss: `ViTNepaForPreTraining` adds the mean loss of the layers before the last.

    Source:
        NEPA (arXiv 2512.16922) and its released configuration; defaults are the released ones.
    """

    model_type = "vit_nepa"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    use_gated_mlp: bool = False
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    rope_theta: float | int = 100.0
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    num_frames: int = 1
    qkv_bias: bool = True
    qk_norm: bool = False
    qk_norm_bias: bool = False
    qk_norm_affine: bool = False
    layerscale_value: float | int | None = 1e-5
    drop_path_prob: float | int = 0.0
    add_pooling_layer: bool = False
    is_causal: bool = True
    pos_embed_shift: float | int | None = None
    pos_embed_jitter: float | int | None = None
    pos_embed_rescale: float | int | None = 2.0
    use_intermediate_loss: bool = False
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    add_fpn: bool = False
    semantic_loss_ignore_index: int = 255
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        check_sizes(vars(self), self.model_type)
        if self.num_frames > 1 and (self.num_frames % TUBELET or self.num_channels % self.num_frames):
            raise ValueError(f"num_frames {self.num_frames} should be even and divide num_channels {self.num_channels}")
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        if self.add_fpn and (len(self.out_features) != 4 or not self.reshape_hidden_states):
            raise ValueError("add_fpn needs four out_features and reshape_hidden_states=True")
        super().__post_init__(**kwargs)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Height and width of a patch, pixels."""
        return _pair(self.patch_size)

    @property
    def num_tubelets(self) -> int:
        """Number of times at which each patch occurs; 1 for an image."""
        return self.num_frames // TUBELET if self.num_frames > 1 else 1

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of training images, in pixels. The model takes any size that is a multiple of the patch."""
        return _pair(self.image_size)


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
