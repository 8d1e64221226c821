"""Emu with its heads, as a Hugging Face model that predicts text tokens and image latents.

Shapes: B rows, T positions, I images of all rows in reading order, N latents an image, D width of the language model.
Source: Emu (arXiv 2307.05222); where the paper is silent, the released inference code.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from ...core.types import IGNORE_LABEL, Attention, Batch, Hidden, Latents
from ...errors import ConfigError
from ...nn.latent_flow import LatentFlow, LatentSampling, row_generators
from ...nn.linear import fast_for_few_rows
from ...nn.losses import regression_distance, token_cross_entropy
from .base_emu import EmuModel, EmuPreTrainedModel
from .configuration_emu import EmuConfig
from .outputs import EmuOutput
from .packed import positions_in_documents


class EmuForConditionalGeneration(EmuPreTrainedModel, GenerationMixin):
    """Emu with both heads: the language model's own for text, and `regression_head` for image latents.

    The regression head maps the hidden state at `[IMG]` or at a latent to the next latent: a matrix D x D, or a
    `LatentFlow`.

    Args:
        config: sizes of new parts.
        visual: a vision model that exists already; None makes a new one.
        language_model: a language model that exists already; None makes a new one.

    Source:
        Emu (arXiv 2307.05222); the release can only train text.
    """

    def __init__(
        self, config: EmuConfig, visual: PreTrainedModel | None = None, language_model: PreTrainedModel | None = None
    ):
        super().__init__(config)
        self.model = EmuModel(config, visual, language_model)
        self.regression_head: nn.Linear | LatentFlow = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.post_init()
        if config.regression_head == "flow":
            self.regress_by_flow()

    @property
    def draws_latents(self) -> bool:
        """Whether the regression head is a flow."""
        return isinstance(self.regression_head, LatentFlow)

    def regress_by_flow(self) -> None:
        """Replaces the linear head by a new flow; an existing flow stays."""
        if not isinstance(self.regression_head, LatentFlow):
            self.regression_head = LatentFlow(self.config.hidden_size).to(self.regression_head.weight)
            self.config.regression_head = "flow"

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head of the language model."""
        return self.model.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.model.language_model.set_output_embeddings(value)

    def get_decoder(self) -> Any:
        return self.model.get_decoder()

    def image_latents(self, pixel_values: Tensor) -> Tensor:
        """Latents of images, as the language model reads them.

        Args:
            pixel_values: normalised pixels [I, C, S, S].

        Returns:
            [I, N, D].
        """
        return self.model.image_latents(pixel_values)

    def embed(self, batch: Batch) -> Latents:
        """What the language model reads of packed documents.

        Args:
            batch: with input_ids and document_ids [B, T], and pixel_values [I, C, S, S] where there are images.

        Returns:
            z [B, T, D], with positions counted in each document.
        """
        pixels = batch["pixel_values"]
        latents = self.image_latents(pixels) if len(pixels) else None
        places = positions_in_documents(batch["document_ids"])
        z = self.model.embed(batch["input_ids"], latents)
        return Latents(z, places[..., None].float(), batch["document_ids"])

    def encode(self, latents: Latents, attention: Attention | None = None, output_layers: bool = False) -> Hidden:
        """Hidden states of the language model.

        Args:
            latents: as `embed` gives them.
            attention: "causal" or None.
            output_layers: whether the hidden states of all layers are kept.

        Returns:
            h [B, T, D]; attention stays inside each document.

        Raises:
            ConfigError: another attention than causal.
        """
        if attention not in (None, "causal"):
            raise ConfigError("a language model reads with causal attention only")
        found = self.model(
            inputs_embeds=latents.z,
            document_ids=latents.documents,
            position_ids=latents.coordinates[..., 0].long(),
            output_hidden_states=output_layers,
        )
        return Hidden(found.last_hidden_state, tuple(found.hidden_states) if output_layers else ())

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens, as the language model computes them.

        Args:
            hidden: hidden states [..., D].

        Returns:
            [..., V].
        """
        config = self.config.text_config
        logits = self.get_output_embeddings()(hidden)
        if (scale := getattr(config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def regression_mask(self, input_ids: Tensor) -> Tensor:
        """Positions whose embedding is a regression target: latents, and `[/IMG]` after them.

        Args:
            input_ids: int64 [B, T].

        Returns:
            bool [B, T].
        """
        config = self.config
        is_latent = input_ids == config.image_token_id
        source = is_latent | (input_ids == config.image_start_token_id)
        target = is_latent | (input_ids == config.image_end_token_id) if config.regress_image_end else is_latent
        target = target.clone()
        target[:, 1:] &= source[:, :-1]
        target[:, 0] = False
        return target

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        labels: Tensor | None = None,
        regression_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> EmuOutput:
        """Logits, and with labels the loss; other arguments as in `EmuModel.forward`.

        Args:
            input_ids: [B, T], int64.
            pixel_values: [I, C, S, S], of all images in reading order.
            attention_mask: [B, T]: 1 where there is something.
            position_ids: [B, T]: from 0 in each document; made here if not given.
            document_ids: [B, T]: documents of packed rows, 0 for padding.
            labels: [B, T], not shifted: token ids, -100 where there is no target.
            regression_mask: [B, T], bool: where the embedding that is read is a target; None finds every image.
            inputs_embeds: [B, T, D], in place of ids and pixels.
            cache: keys and values of earlier positions.
            use_cache: whether a cache is returned.
            logits_to_keep: only the last so many positions get logits; 0 all.
            kwargs: passed to the language model.

        Returns:
            loss [] (with labels), logits [B, T, V], and the cache.
        """
        read = (input_ids, pixel_values, attention_mask, position_ids, document_ids, inputs_embeds, cache, use_cache)
        found = self.model(*read, return_dict=True, **kwargs)
        hidden, embeds = found.last_hidden_state, found.inputs_embeds
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        terms: dict[str, Tensor] = {}
        if labels is not None:
            kept = labels[:, 1:] != IGNORE_LABEL
            total, count = token_cross_entropy(self.text_logits(hidden[:, :-1][kept]), labels[:, 1:][kept])
            terms["text_loss"] = total / count.clamp(min=1)
            terms["loss"] = self.config.text_weight * terms["text_loss"]
        if input_ids is not None and (labels is not None or regression_mask is not None):
            mask = self.regression_mask(input_ids) if regression_mask is None else regression_mask
            pred = self.regression_head(hidden[:, :-1][mask[:, 1:]])
            target = embeds[:, 1:][mask[:, 1:]].detach()
            if isinstance(self.regression_head, LatentFlow):
                distances = self.regression_head.loss(hidden[:, :-1][mask[:, 1:]], target)
            else:
                distances = regression_distance(pred, target, self.config.regression_distance)
            terms |= {"regression_pred": pred, "regression_target": target}
            terms["regression_loss"] = distances.sum() / max(1, len(distances))
            weighted = self.config.regression_weight * terms["regression_loss"]
            terms["loss"] = terms["loss"] + weighted if "loss" in terms else weighted
        every: dict[str, Any] = {**terms, **found}
        # All at once: fields that are set later would come last in the tuple, and the loss would not be first.
        return EmuOutput(logits=self.text_logits(hidden[:, keep]), **every)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generates tokens after prompts. The images are read once, whatever the number of beams.

        Args:
            input_ids: int64 [B, T], padded on the left.
            pixel_values: [I, C, S, S], of all images in reading order.
            attention_mask: [B, T]: 0 for padding.
            inputs_embeds: [B, T, D], in place of ids and pixels.
            kwargs: as of `GenerationMixin.generate`: max_new_tokens, do_sample, num_beams, ...

        Returns:
            New token ids only, [B, at most max_new_tokens].

        Raises:
            ValueError: prompts are padded on the right.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("generate needs input_ids or inputs_embeds")
            if input_ids.shape[1] == 0:
                raise ValueError("an empty prompt: give at least a begin token")
            if attention_mask is not None and not bool(attention_mask[:, -1].all()):
                raise ValueError("generate needs prompts padded on the left (the processor does it)")
            latents = self.image_latents(pixel_values) if pixel_values is not None and len(pixel_values) else None
            inputs_embeds = self.model.embed(input_ids, latents)
        if (num_new := kwargs.get("max_new_tokens")) is not None:
            self.model.check_length(inputs_embeds.shape[1], num_new)
        with fast_for_few_rows(self.modules()):
            return super().generate(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    @torch.no_grad()
    def generate_image_embeddings(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        guidance: bool = False,
        sampling: LatentSampling | None = None,
        seed: int | Sequence[int] | None = 0,
    ) -> Tensor:
        """Latents of the image that would follow each prompt, one after the other, from a cache.

        Each is the regression head's output at the position before, and is read as the next embedding. The prompt is
        without the `[IMG]` that begins the new image.

        Args:
            input_ids: [B, T], padded on the left.
            pixel_values: [I, C, S, S], of the images in the prompts.
            attention_mask: [B, T]: 1 where there is something.
            guidance: gives [2 B, N, D], the second half for empty prompts.
            sampling: how a flow samples: temperature, guidance, steps.
            seed: one, or one for each row; None: random. The empty prompt's is always 0, as a visual decoder learned
                it.

        Returns:
            [B, N, D], or with guidance [2 B, N, D].

        Raises:
            ConfigError: For `sampling` of a linear head.

        Source:
            Emu (arXiv 2307.05222), section 2.2; the release computes the whole sequence anew for each latent.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        latents = self.image_latents(pixel_values) if pixel_values is not None and len(pixel_values) else None
        embeds, mask = pad_left(self.model.embed(input_ids, latents), attention_mask)
        start = input_ids.new_full((len(embeds), 1), self.config.image_start_token_id)
        embeds = torch.cat([embeds, self.get_input_embeddings()(start)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        one = self.empty_prompt(input_ids.device)
        prompt, empty = (embeds, mask), (one, mask.new_ones(one.shape[:2]))
        sampling, rows = self.latent_sampling(sampling), len(embeds)
        if sampling.guidance != 1:  # each prompt together with an empty one that reads the same latents
            beside = (one.expand(rows, -1, -1), empty[1].expand(rows, -1))
            found = self.regress_latents([prompt, beside], sampling, seed)[:rows]
        elif self.draws_latents or not guidance:
            found = self.regress_latents([prompt], sampling, seed)
        if not guidance:
            return found
        if self.draws_latents:
            without = self.regress_latents([empty])
        else:
            found, without = self.regress_latents([prompt, empty]).split([rows, 1])
        return torch.cat([found, without.expand(rows, -1, -1)])  # all empty prompts are the same

    def latent_sampling(self, sampling: LatentSampling | None) -> LatentSampling:
        """Sampling settings of the regression head.

        Args:
            sampling: the user's settings; None takes the defaults.

        Returns:
            The settings.

        Raises:
            ConfigError: settings are given, but the head is linear and does not sample.
        """
        sampling = sampling or LatentSampling()
        if sampling != LatentSampling() and not self.draws_latents:
            raise ConfigError(
                "latent temperature and guidance need a model that draws its image latents "
                "(objective.regression=flow); the regression head of this one gives their mean"
            )
        return sampling

    def next_latent(
        self, hidden: Tensor, generators: Sequence[torch.Generator | None], sampling: LatentSampling
    ) -> Tensor:
        """The latent to be read next; see `LatentFlow.sample`.

        Args:
            hidden: hidden states [rows, 1, D].
            generators: one per row; None draws from the default generator.
            sampling: how a flow samples; a linear head ignores it.

        Returns:
            [rows, 1, D].
        """
        if isinstance(self.regression_head, LatentFlow):
            return self.regression_head.sample(hidden, generators, sampling)
        return self.regression_head(hidden)

    def empty_prompt(self, device: torch.device | None = None) -> Tensor:
        """Embeddings of an empty prompt: the begin token, where there is one, and `[IMG]`.

        Args:
            device: None is the model's.

        Returns:
            [1, 1 or 2, D].
        """
        bos = self.config.bos_token_id
        ids = [self.config.image_start_token_id] if bos is None else [bos, self.config.image_start_token_id]
        return self.get_input_embeddings()(torch.tensor([ids], device=device))

    def regress_latents(
        self,
        prompts: list[tuple[Tensor, Tensor]],
        sampling: LatentSampling = LatentSampling(),  # noqa: B008  (it cannot be changed)
        seed: int | Sequence[int] | None = 0,
    ) -> Tensor:
        """Predicts the N latents of an image after each prompt.

        Args:
            prompts: groups of prompts that end with `[IMG]`: (embeddings [B, T, D], mask [B, T], padded on the left),
                of any lengths. Each group is read separately, so that short ones cost little; then all continue in one
                batch with one static cache.
            sampling: how a flow samples.
            seed: one for all rows or one per row; None is random.

        Returns:
            [rows, N, D].
        """
        num, length = self.config.num_image_latents, max(embeds.shape[1] for embeds, _ in prompts)
        self.model.check_length(length - 1, num)  # the [IMG], and all latents but the last, are read
        mask = torch.cat([nn.functional.pad(mask, (length - mask.shape[1], num - 1)) for _, mask in prompts])
        mask[:, length:] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        if len(prompts) > 1 and not keeps_all(self.config.text_config):  # caches that cannot be put together
            embeds = torch.cat([nn.functional.pad(one, (0, 0, length - one.shape[1], 0)) for one, _ in prompts])
            prompts = [(embeds, mask[:, :length])]
        cache, hidden = self.read_prompts(prompts, length + num - 1)
        generators = row_generators(seed, len(hidden) // (1 if sampling.guidance == 1 else 2))
        found = [self.next_latent(hidden, generators, sampling)]
        with fast_for_few_rows(self.modules()):
            for last in range(length + 1, length + num):
                out = self.model(
                    inputs_embeds=found[-1].to(prompts[0][0].dtype),  # bf16 of autocast would not match the cache
                    attention_mask=mask[:, :last],
                    position_ids=positions[:, last - 1 : last],
                    cache=cache,
                    use_cache=True,
                )
                found.append(self.next_latent(out.last_hidden_state, generators, sampling))
        return torch.cat(found, dim=1)

    def read_prompts(self, prompts: list[tuple[Tensor, Tensor]], size: int) -> tuple[StaticCache, Tensor]:
        """Reads the prompts of all groups into one static cache.

        Args:
            prompts: see `regress_latents`.
            size: positions of the cache.

        Returns:
            The cache, and the last hidden states [rows, 1, D].
        """
        cache = StaticCache(config=self.config.text_config, max_cache_len=size)
        alone = len(prompts) == 1
        hidden, parts = [], []
        for embeds, mask in prompts:
            part: Any = cache if alone else DynamicCache(config=self.config.text_config)
            whole = bool(mask.all())  # only the future has to be masked then
            out = self.model(
                inputs_embeds=embeds,
                attention_mask=None if whole and not alone else mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                cache=part,
                use_cache=True,
            )
            hidden.append(out.last_hidden_state[:, -1:])
            parts.append(part)
        if not alone:
            length = max(embeds.shape[1] for embeds, _ in prompts)
            for number in range(len(parts[0].layers)):
                kept: list[Tensor] = []
                for name in ("keys", "values"):
                    each = [getattr(part.layers[number], name) for part in parts]  # [B, heads, T, width]
                    kept.append(torch.cat([nn.functional.pad(x, (0, 0, length - x.shape[-2], 0)) for x in each]))
                cache.update(kept[0], kept[1], number)
        return cache, torch.cat(hidden)


def keeps_all(text_config: Any) -> bool:
    """Whether every layer of a language model keeps all keys and values: no windows, no running states."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=text_config).layers)


def pad_left(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [B, T, D] with what is masked out moved to the left, in which order they were."""
    if bool(mask[:, -1:].all()):
        return embeds, mask
    order = torch.argsort(mask.bool().long(), dim=1, stable=True)
    return embeds.gather(1, order[..., None].expand_as(embeds)), mask.gather(1, order)
