"""NEPA's vision transformer as Hugging Face models. Parameter names are the official ones.

Shapes: B images, T = 1 + patches (a learned begin token comes first), D hidden_size, H heads, d head width. Source:
NEPA (arXiv 2512.16922); details that only the released code defines follow that code.
"""

from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from ...core.types import Attention, AttentionMode, Batch, Hidden, Latents
from ...nn.losses import next_embedding
from ...nn.masks import attention_arguments
from ...nn.positions import augment_coordinates, once, patch_coordinates, rotary_tables, tubelet_coordinates
from ...nn.transformer import SelfAttention, Transformer, TransformerLayer, init_transformer
from ..parts import CheckedModel
from .configuration_nepa import ViTNepaConfig
from .pyramid import ViTNepaPyramid


class OutputFlags(TypedDict, total=False):
    """Further arguments of every forward. hidden states: all of them, or those at some indices."""

    output_hidden_states: bool | int | list[int] | None
    output_attentions: bool | None
    return_dict: bool | None


@dataclass
class ViTNepaModelOutput(ModelOutput):
    """last_hidden_state [B, T, D] after the final norm; input_embedding [B, T, D]: the latents, before any masking;
    hidden_states: latents and every layer's output, the last one after the final norm; attentions [B, H, T, T] each."""

    last_hidden_state: Tensor | None = None
    input_embedding: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class ViTNepaForPreTrainingOutput(ModelOutput):
    """loss []: mean negative cosine; the rest as in `ViTNepaModelOutput`."""

    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    input_embedding: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def attention_mode(is_causal: bool | None) -> Attention | None:
    """Hugging Face's flag as the attention name of `Backbone.encode`."""
    return None if is_causal is None else ("causal" if is_causal else "full")


class ViTNepaPatchEmbeddings(nn.Module):
    """Pixels [B, C, height, width] to patch latents [B, patches, D], in raster order, without position; of clips to
    tubelets, two frames after two frames."""

    def __init__(self, config: ViTNepaConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_shape, self.num_tubelets = config.patch_shape, config.num_tubelets
        channels = config.num_channels // self.num_tubelets
        self.projection = nn.Conv2d(channels, config.hidden_size, self.patch_shape, self.patch_shape)

    def forward(self, pixel_values: Tensor) -> Tensor:
        channels, height, width = pixel_values.shape[1:]
        if channels != self.num_channels:
            raise ValueError(f"pixel_values has {channels} channels, the model takes {self.num_channels}")
        patch_height, patch_width = self.patch_shape
        if height % patch_height or width % patch_width:
            raise ValueError(
                f"image size {height}x{width} is not a multiple of patch size {patch_height}x{patch_width}"
            )
        times = pixel_values.unflatten(1, (self.num_tubelets, -1)).flatten(0, 1)
        patches: Tensor = self.projection(times).flatten(2).transpose(1, 2)  # [B * tubelets, patches of one, D]
        return patches.reshape(pixel_values.shape[0], -1, patches.shape[-1])


class ViTNepaEmbeddings(nn.Module):
    """Latents [B, T, D]: the begin token, then the patches."""

    def __init__(self, config: ViTNepaConfig, use_mask_token: bool = False):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_mask_token else None
        self.patch_embeddings = ViTNepaPatchEmbeddings(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embeddings(pixel_values.to(self.cls_token.dtype))
        return torch.cat((self.cls_token.expand(patches.shape[0], -1, -1).to(patches.dtype), patches), dim=1)


class ViTNepaPreTrainedModel(CheckedModel):
    """Initialisation, and the modules that record outputs and are sharded."""

    config: ViTNepaConfig
    base_model_prefix = "vit_nepa"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ViTNepaEmbeddings", "TransformerLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": TransformerLayer, "attentions": SelfAttention}
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal for linear, convolution and begin token, zero biases, LayerScale at its start value."""
        super()._init_weights(module)
        init_transformer(module, self.config)
        if isinstance(module, ViTNepaEmbeddings):
            init.trunc_normal_(module.cls_token, mean=0.0, std=self.config.initializer_range)
            if module.mask_token is not None:
                init.zeros_(module.mask_token)

    def num_latents(self, height: int, width: int) -> int:
        """Length of the sequence that an image of this size, in pixels, becomes: the begin token and the patches."""
        patch_height, patch_width = self.config.patch_shape
        return 1 + self.config.num_tubelets * (height // patch_height) * (width // patch_width)


class ViTNepaTrunk(ViTNepaPreTrainedModel):
    """The transformer that `ViTNepaModel` and `ViTNepaBackbone` share: pixels to latents, latents to hidden states."""

    def __init__(self, config: ViTNepaConfig, use_mask_token: bool = False):
        super().__init__(config)
        self.embeddings = ViTNepaEmbeddings(config, use_mask_token)
        self.encoder = Transformer(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    def embed(self, batch: Batch) -> Latents:
        """Latents of `pixel_values` [B, C, height, width], any size that patches divide.

        In training mode the patches' coordinates are augmented as the config says (`pos_embed_rescale`, ...).
        Raises ValueError for a wrong number of channels or a size that patches do not divide.
        """
        pixel_values = batch["pixel_values"]
        z = self.embeddings(pixel_values)
        patch_height, patch_width = self.config.patch_shape
        height, width = pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width
        coordinates = patch_coordinates(height, width, device=z.device)  # [patches, 2]
        if self.config.num_frames > 1:
            coordinates = tubelet_coordinates(coordinates, self.config.num_tubelets)
        coordinates = coordinates[None]
        moves = (self.config.pos_embed_shift, self.config.pos_embed_jitter, self.config.pos_embed_rescale)
        if self.training and any(move is not None for move in moves):
            coordinates = augment_coordinates(coordinates.expand(z.shape[0], -1, -1), *moves)
        coordinates = F.pad(coordinates, (0, 0, 1, 0))  # the begin token is at the origin: it is not rotated
        return Latents(z, coordinates.expand(z.shape[0], -1, -1))

    def encode(
        self,
        latents: Latents,
        attention: Attention | None = None,
        output_layers: bool = False,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Hidden:
        """Hidden states of latents [B, T, D]; see `core.types.Backbone`. Keyword arguments go to the attention."""
        z = latents.z
        if attention is None:
            attention = "causal" if self.config.is_causal else "full"
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        cos, sin = rotary_tables(once(latents.coordinates), head_dim, self.config.rope_theta)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        kwargs.update(attention_arguments(attention, z, self.config, latents.documents, past))
        kwargs["rotary"] = (cos[..., None, :].to(z.dtype), sin[..., None, :].to(z.dtype))
        layers = self.encoder(z, output_layers, past_key_values=past_key_values, **kwargs)
        layers[-1] = self.layernorm(layers[-1])
        return Hidden(layers[-1], tuple(layers) if output_layers else ())


class ViTNepaModel(ViTNepaTrunk):
    """NEPA's transformer: pixels in, latents and hidden states out."""

    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        is_causal: bool | None = None,
        **kwargs: Unpack[OutputFlags],
    ) -> ViTNepaModelOutput:
        """Hidden states of images.

        Args:
            pixel_values: [B, C, height, width].
            bool_masked_pos: [B, patches]: patches that the transformer sees as the mask token (a model with
                `use_mask_token=True`) or as zero.
            is_causal: None takes the config's.
            kwargs: output_hidden_states, output_attentions, interpolate_pos_encoding: as of other models of
                transformers.

        Returns:
            last_hidden_state [B, 1 + P, D], the begin token first.
        """
        latents = self.embed({"pixel_values": pixel_values})
        seen = latents
        if bool_masked_pos is not None:
            mask = F.pad(bool_masked_pos.bool(), (1, 0))[..., None]
            token = self.embeddings.mask_token
            seen = latents._replace(z=torch.where(mask, 0.0 if token is None else token.to(latents.z.dtype), latents.z))
        hidden = self.encode(seen, attention_mode(is_causal), **kwargs)
        return ViTNepaModelOutput(last_hidden_state=hidden.last, input_embedding=latents.z)


class ViTNepaForPreTraining(ViTNepaPreTrainedModel):
    """NEPA for pretraining, and the backbone of nextembed's trainer."""

    def __init__(self, config: ViTNepaConfig):
        super().__init__(config)
        self.vit_nepa = ViTNepaModel(config)
        self.post_init()

    def embed(self, batch: Batch) -> Latents:
        """Latents of images, before mixing.

        Args:
            batch: with pixel_values [B, C, height, width].

        Returns:
            z [B, 1 + P, D], the begin token first.
        """
        return self.vit_nepa.embed(batch)

    def encode(self, latents: Latents, attention: Attention | None = None, output_layers: bool = False) -> Hidden:
        """Hidden states of latents.

        Args:
            latents: as `embed` gives them.
            attention: None takes the config's.
            output_layers: whether the hidden states of all layers are kept, the latents first.

        Returns:
            h [B, T, D].
        """
        return self.vit_nepa.encode(latents, attention, output_layers)

    def new_cache(self) -> Cache:
        """An empty cache, for `encode_next`."""
        return DynamicCache(config=self.config)

    def encode_next(self, latents: Latents, attention: AttentionMode, cache: Cache) -> Hidden:
        """Hidden states of latents that follow those in the cache; the cache is extended.

        Args:
            latents: as `embed` gives them, or others of this width, of the next positions only.
            attention: "full" lets them see each other and all that the cache holds.
            cache: from `new_cache` or an earlier call.

        Returns:
            h [B, T, D] of the new ones.
        """
        return self.vit_nepa.encode(latents, attention, past_key_values=cache)

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, is_causal: bool | None = None, **kwargs: Unpack[OutputFlags]
    ) -> ViTNepaForPreTrainingOutput:
        """The paper's loss; `use_intermediate_loss` of the config adds the mean over inner layers.

        Args:
            pixel_values: [B, C, height, width].
            is_causal: None takes the config's.
            kwargs: output_hidden_states and other flags of transformers.

        Returns:
            loss [], embeddings and hidden states [B, 1 + P, D].
        """
        wanted = kwargs.pop("output_hidden_states", None)
        wanted = self.config.output_hidden_states if wanted is None else wanted
        every = self.config.use_intermediate_loss
        outputs = self.vit_nepa(pixel_values, is_causal=is_causal, output_hidden_states=every or wanted, **kwargs)
        selected = [wanted] if type(wanted) is int else wanted if isinstance(wanted, list | tuple) else []  # indices
        hidden_states = outputs.hidden_states if wanted or selected else None
        if every and selected:  # the loss needs all of them
            kept = {i % len(outputs.hidden_states) for i in selected}
            hidden_states = tuple(h if i in kept else None for i, h in enumerate(outputs.hidden_states))
        last, z = outputs.last_hidden_state, outputs.input_embedding
        layers = [last, *outputs.hidden_states[1:-1]] if every else [last]
        sums = [
            next_embedding(h.to(last.device), z.to(last.device)) for h in layers
        ]  # layers may be on several devices
        loss, *before = [loss_sum / num_targets for loss_sum, num_targets in sums]
        if before:
            loss = loss + torch.stack(before).mean()
        return ViTNepaForPreTrainingOutput(
            loss=loss,
            last_hidden_state=last,
            input_embedding=z,
            hidden_states=hidden_states,
            attentions=outputs.attentions,
        )

    @torch.no_grad()
    def rollout(
        self, pixel_values: Tensor, num_known: int, num_new: int, match_norm: bool = False, use_cache: bool = True
    ) -> Tensor:
        """Latents that follow the first `num_known` patches, each predicted from those before it.

        Args:
            pixel_values: [B, C, height, width]: its size says where the patches are; only the first `num_known` are
                read.
            num_known: patches that are given.
            num_new: patches that are predicted.
            match_norm: a prediction is fed back at the mean length of the known patches' latents, since the cosine loss
                leaves its length free; else as it is.
            use_cache: False recomputes the whole sequence each step.

        Returns:
            [B, num_new, D].

        Raises:
            ValueError: If there are fewer than num_known + num_new patches, or num_new < 1, or match_norm without a
                known patch.
        """
        latents = self.embed({"pixel_values": pixel_values})
        z, coordinates = latents.z, latents.coordinates
        start, stop = 1 + num_known, 1 + num_known + num_new
        if num_known < 0 or num_new < 1 or stop > z.shape[1]:
            raise ValueError(
                f"cannot predict {num_new} patches after {num_known}: the image has {z.shape[1] - 1} patches"
            )
        if match_norm and num_known == 0:
            raise ValueError("match_norm needs at least one known patch")
        length = z[:, 1:start].norm(dim=-1).mean(dim=1)[:, None, None] if match_norm else None
        z = z[:, :start]
        cache = DynamicCache(config=self.config) if use_cache else None
        predictions: list[Tensor] = []
        for end in range(start, stop):
            begin = cache.get_seq_length() if cache is not None else 0
            window = Latents(z[:, begin:], coordinates[:, begin:end])
            predicted = self.vit_nepa.encode(window, "causal", past_key_values=cache).last[:, -1:]
            predictions.append(predicted)
            step = predicted if length is None else F.normalize(predicted, dim=-1) * length
            z = torch.cat((z, step), dim=1)
        return torch.cat(predictions, dim=1)


class ViTNepaForImageClassification(ViTNepaPreTrainedModel):
    """A linear classifier on the mean of the patches (normed again) or, without pooling layer, on the last latent."""

    def __init__(self, config: ViTNepaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit_nepa = ViTNepaModel(config)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.add_pooling_layer else None
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    def embed(self, batch: Batch) -> Latents:
        """Latents of images, before mixing.

        Args:
            batch: with pixel_values [B, C, height, width].

        Returns:
            z [B, 1 + P, D], the begin token first.
        """
        return self.vit_nepa.embed(batch)

    def encode(self, latents: Latents, attention: Attention | None = None, output_layers: bool = False) -> Hidden:
        """Hidden states of latents.

        Args:
            latents: as `embed` gives them.
            attention: None takes the config's.
            output_layers: whether the hidden states of all layers are kept, the latents first.

        Returns:
            h [B, T, D].
        """
        return self.vit_nepa.encode(latents, attention, output_layers)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        is_causal: bool | None = None,
        **kwargs: Unpack[OutputFlags],
    ) -> ImageClassifierOutput:
        """Scores of classes.

        Args:
            pixel_values: [B, C, height, width].
            labels: class ids [B]; they add the loss, a cross-entropy unless `problem_type` of the config says
                otherwise.
            is_causal: None takes the config's.
            kwargs: output_hidden_states and other flags of transformers.

        Returns:
            logits [B, num_labels], and the loss [] if labels are given.
        """
        outputs = self.vit_nepa(pixel_values, is_causal=is_causal, **kwargs)
        hidden = outputs.last_hidden_state
        pooled = hidden[:, -1] if self.fc_norm is None else self.fc_norm(hidden[:, 1:].mean(dim=1))
        logits = self.classifier(pooled)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class ViTNepaBackbone(BackboneMixin, ViTNepaTrunk):
    """Feature maps of chosen layers (`out_features`: "stem", "stage1", ...), for detection and segmentation heads.

    `apply_layernorm` puts the final norm on every map; `reshape_hidden_states=False` gives [B, patches, D];
    `add_fpn` makes a pyramid of four.
    """

    def __init__(self, config: ViTNepaConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.fpn = ViTNepaPyramid(config.hidden_size) if config.add_fpn else None
        self.post_init()

    @capture_outputs
    def forward(
        self, pixel_values: Tensor, is_causal: bool | None = None, **kwargs: Unpack[OutputFlags]
    ) -> BackboneOutput:
        """Feature maps of images, one per layer in `out_features`.

        Args:
            pixel_values: [B, C, height, width].
            is_causal: None takes the config's.
            kwargs: output_hidden_states and other flags of transformers.

        Returns:
            feature_maps, each [B, D, rows, columns].
        """
        latents = self.embed({"pixel_values": pixel_values})
        hidden = self.encode(latents, attention_mode(is_causal), output_layers=True, **kwargs)
        rows = pixel_values.shape[-2] // self.config.patch_shape[0]
        maps: list = []
        for name, layer in zip(self.stage_names, hidden.layers, strict=True):
            if name in self.out_features:
                normed = layer is hidden.last or not self.config.apply_layernorm
                patches = (layer if normed else self.layernorm(layer))[:, 1:]  # [B, patches, D]
                maps.append(patches.mT.unflatten(2, (rows, -1)) if self.config.reshape_hidden_states else patches)
        return BackboneOutput(feature_maps=tuple(maps) if self.fpn is None else self.fpn(maps))
