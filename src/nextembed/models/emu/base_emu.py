"""Emu without its heads: images become latents, one causal language model reads latents and text.

Shapes: B rows, T positions, I images of all rows in reading order, N latents an image, D width of the language model.
Source: Emu (arXiv 2307.05222); where the paper is silent, the released inference code.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from ..parts import CheckedModel
from .configuration_emu import EmuConfig
from .connectors import CausalFormer, build_connector
from .outputs import EmuModelOutput
from .packed import document_mask, positions_in_documents
from .visual import build_visual, without_norm


class EmuPreTrainedModel(CheckedModel):
    """Initialisation, and the modules that record outputs and are sharded."""

    config_class = EmuConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, CausalFormer):
            init.normal_(module.causal_tokens, std=self.config.initializer_range)
        else:
            super()._init_weights(module)


class EmuModel(EmuPreTrainedModel):
    """Encoder, connector and language model, without Emu's own heads.

    Args:
        config: sizes of new parts.
        visual: any vision model; None makes a new one.
        language_model: any causal language model with its head; None makes a new one.
    """

    def __init__(
        self, config: EmuConfig, visual: PreTrainedModel | None = None, language_model: PreTrainedModel | None = None
    ):
        super().__init__(config)
        self.visual = build_visual(config.vision_config) if visual is None else without_norm(visual)
        width = config.vision_config.hidden_size
        eps = config.vision_layer_norm_eps
        self.visual_norm = nn.LayerNorm(width, eps=eps) if config.vision_layer_norm else nn.Identity()
        self.connector = build_connector(config)
        self.language_model = (
            AutoModelForCausalLM.from_config(config.text_config, trust_remote_code=False)
            if language_model is None
            else language_model
        )
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads a model folder or hub id; also a folder of `EmuForConditionalGeneration`.

        Args:
            args: as of `PreTrainedModel.from_pretrained`.
            kwargs: as of `PreTrainedModel.from_pretrained`.

        Returns:
            The model, in eval mode.
        """
        kwargs.setdefault("key_mapping", {r"^model\.": ""})
        return super().from_pretrained(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_decoder(self) -> Any:
        """The language model without its head."""
        return self.language_model.base_model

    def visual_features(self, pixel_values: Tensor) -> Tensor:
        """Normalised tokens of the vision encoder.

        Args:
            pixel_values: normalised pixels [I, C, S, S].

        Returns:
            [I, tokens, E].
        """
        layer = self.config.vision_layer
        found = self.visual(pixel_values.to(self.visual.dtype), output_hidden_states=layer is not None)
        return self.visual_norm(found.last_hidden_state if layer is None else found.hidden_states[layer])

    def image_latents(self, pixel_values: Tensor) -> Tensor:
        """Latents of images, as the language model reads them.

        Args:
            pixel_values: normalised pixels [I, C, S, S].

        Returns:
            [I, N, D].

        Raises:
            ValueError: the pixels have another shape.
        """
        config = self.config
        wanted = [config.num_channels, config.image_size, config.image_size]
        if pixel_values.ndim != 4 or list(pixel_values.shape[1:]) != wanted:
            asked = f"[I, {', '.join(map(str, wanted))}]"
            raise ValueError(f"images are {asked}, not {list(pixel_values.shape)}")
        return self.connector(self.visual_features(pixel_values))

    def check_length(self, length: int, num_new: int = 0) -> None:
        """Checks that a text fits into the language model.

        Args:
            length: positions of the text.
            num_new: positions to be generated after it.

        Raises:
            ValueError: together they are longer than the language model reads.
        """
        most = self.config.num_positions
        if most is not None and length + num_new > most:
            new = f" and {num_new} new ones make {length + num_new}" if num_new else ""
            raise ValueError(f"{length} tokens{new}, but the language model reads {most}")

    def embed(self, input_ids: Tensor, image_latents: Tensor | None = None) -> Tensor:
        """Token embeddings, with the latents of images at the `<image>` positions, in reading order.

        Args:
            input_ids: int64 [B, T].
            image_latents: [I, N, D]; None for text without images.

        Returns:
            [B, T, D].

        Raises:
            ValueError: the number of `<image>` positions is not I * N.
        """
        embeds = self.get_input_embeddings()(input_ids)
        is_image = input_ids == self.config.image_token_id
        places = int(is_image.sum())
        given = 0 if image_latents is None else image_latents.shape[0] * image_latents.shape[1]
        if places != given:
            num, size = (0, self.config.num_image_latents) if image_latents is None else image_latents.shape[:2]
            raise ValueError(f"{num} images give {num * size} latents, but the text has {places} <image> positions")
        if image_latents is None or given == 0:
            return embeds
        return embeds.masked_scatter(is_image[..., None], image_latents.to(embeds.dtype))

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> EmuModelOutput:
        """Hidden states of interleaved text and images.

        Args:
            input_ids: [B, T], int64.
            pixel_values: [I, C, S, S], of all images in reading order.
            attention_mask: [B, T]: 1 where there is something.
            position_ids: [B, T]: from 0 in each document; made here if not given.
            document_ids: [B, T]: documents of packed rows, 0 for padding; attention stays inside each document.
            inputs_embeds: [B, T, D], in place of ids and pixels.
            cache: keys and values of earlier positions.
            use_cache: whether a cache is given back.
            kwargs: passed to the language model.

        Returns:
            last_hidden_state [B, T, D], and the cache.
        """
        latents = None
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("a model reads input_ids or inputs_embeds")
            if pixel_values is not None and len(pixel_values):
                latents = self.image_latents(pixel_values)
            if latents is None and cache is not None and cache.get_seq_length() > 0:
                inputs_embeds = self.get_input_embeddings()(input_ids)  # generated text, which may contain `<image>`
            else:
                inputs_embeds = self.embed(input_ids, latents)
        self.check_length(inputs_embeds.shape[1])
        if document_ids is not None:
            position_ids = positions_in_documents(document_ids) if position_ids is None else position_ids
            attention_mask = document_mask(self.language_model, document_ids, inputs_embeds)
            use_cache = False
        found = self.get_decoder()(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return EmuModelOutput(
            found.last_hidden_state, inputs_embeds, latents, *map(found.get, ("cache", "hidden_states", "attentions"))
        )
