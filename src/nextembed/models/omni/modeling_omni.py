"""Omni: one causal transformer over latents of any modality.

Shapes: B rows, T positions of packed documents, D hidden_size, M modalities. `kinds` is the kind of each position: 0
padding, 1 a begin (or end) latent, 2 + i the i-th modality. Position t predicts the latent at t + 1, whatever it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoProcessor
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from ...core import distributed
from ...core.pretrained import load_pretrained
from ...core.types import Attention, Batch, Hidden, Latents, Scoring, by_name
from ...errors import ConfigError
from ...modalities import MODALITIES, Modality
from ...nn.linear_inverse import LinearInverse, ValueStatistics
from ...nn.losses import next_embedding
from ...nn.masks import attention_arguments
from ...nn.modes import evaluating
from ...nn.positions import NextPlace, rotary_tables
from ...nn.sampled import AnyDensityHead, density_head
from ...nn.transformer import SelfAttention, Transformer, TransformerLayer, init_transformer
from ..parts import CheckedModel
from . import scoring as scorers
from .configuration_omni import BEGIN, FIRST, OmniConfig
from .generation import Drawing, generate, score
from .processing_omni import OmniProcessor, Piece, as_documents

LENGTH_DECAY = 0.98
READOUT_NOISE = 0.1  # variance of a prediction's error, relative to the squared length of a latent
START_LOG_SCALE = 3.0  # cosines of random latents 192 wide are within 0.1 or so; a softmax needs them larger


@dataclass
class OmniOutput(ModelOutput):
    """loss []: mean negative cosine over targets; last_hidden_state [B, T, D]: position t's is the prediction of latent
    t + 1; latents [B, T, D]: before mixing."""

    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    latents: Tensor | None = None


class OmniPreTrainedModel(CheckedModel):
    """Initialisation of an Omni, and the modules that record outputs and are sharded."""

    config: OmniConfig
    config_class = OmniConfig
    base_model_prefix = "model"
    main_input_name = "kinds"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerLayer"]
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": TransformerLayer, "attentions": SelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal for matrices and tables, zero biases, LayerScale at its start value."""
        super()._init_weights(module)
        init_transformer(module, self.config)
        if isinstance(module, NextPlace):
            init.zeros_(module.weight)  # zero at the start
        elif isinstance(module, OmniForPreTraining):  # called last, and only for modules with parameters of their own
            init.constant_(module.log_scale, START_LOG_SCALE)
            if module.density_head is not None:
                module.density_head.reset_parameters()


class OmniModel(OmniPreTrainedModel):
    """The transformer with its modalities: packed documents in, latents and hidden states out."""

    lengths: Tensor

    def __init__(self, config: OmniConfig):
        super().__init__(config)
        width = config.hidden_size
        self.modalities = nn.ModuleDict(
            {name: MODALITIES.build(name, settings, width) for name, settings in (config.modalities or {}).items()}
        )
        self.begin = nn.Embedding(len(self.modalities) + 1, width)  # the last one ends a document
        self.next_place = NextPlace(width) if config.tell_next else None
        # Mean length of the latents of each kind, over recent training: a predicted direction has none of its own.
        self.register_buffer("lengths", torch.ones(FIRST + len(self.modalities)))
        self._seen: Tensor | None = None  # since the last step: [kinds, 2], summed lengths and how many
        sizes = {name: self.modality(name).value_size for name in self.modalities}
        self.values = nn.ModuleDict({name: ValueStatistics(size) for name, size in sizes.items() if size is not None})
        self.encoder = Transformer(config)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.begin

    def modality(self, name: str) -> Modality:
        """The module that turns signals into latents.

        Args:
            name: the modality.

        Returns:
            The module of that name.
        """
        return self.modalities[name]  # type: ignore[return-value]

    def embed(self, batch: Batch) -> Latents:
        """Latents of packed documents, before mixing.

        Args:
            batch: kinds, input_ids, document_ids [B, T], coordinates [B, T, 3], and `values.NAME` [N, P] of each
                continuous modality, in reading order.

        Returns:
            z [B, T, D].
        """
        # --8<-- [start:embed]
        kinds, ids = batch["kinds"], batch["input_ids"]
        z = torch.zeros(*kinds.shape, self.config.hidden_size, device=kinds.device, dtype=self.begin.weight.dtype)
        parts = [(BEGIN, self.begin(ids[kinds == BEGIN]))]
        idle: list[Tensor] = []
        for number, name in enumerate(self.modalities):
            modality, kind = self.modality(name), FIRST + number
            values = ids[kinds == kind] if modality.value_size is None else by_name(batch)[f"values.{name}"]
            if len(values):
                parts.append((kind, modality.embed(values.to(z.dtype) if values.is_floating_point() else values)))
            elif self.training:  # every rank has to use every parameter in every step
                idle += [p.sum() * 0.0 for p in modality.parameters() if p.requires_grad]
        for kind, latents in parts:
            z = z.masked_scatter((kinds == kind)[..., None], latents.to(z.dtype))
            # --8<-- [end:embed]
            if self.training and len(latents):
                self._measure(kind, latents)
        if idle:
            z = z + torch.stack(idle).sum().to(z.dtype)
        return Latents(z, batch["coordinates"], batch.get("document_ids"), batch.get("next_coordinates"))

    @torch.no_grad()
    def _measure(self, kind: int, latents: Tensor) -> None:
        seen = torch.zeros(len(self.lengths), 2, device=latents.device) if self._seen is None else self._seen.clone()
        seen[kind, 0] += latents.detach().float().norm(dim=-1).sum()
        seen[kind, 1] += len(latents)
        self._seen = seen

    @torch.no_grad()
    def after_step(self) -> None:
        """Updates the running lengths with the latents of all ranks in this step, however it was divided."""
        seen = torch.zeros(len(self.lengths), 2) if self._seen is None else self._seen.cpu()
        self._seen = None
        total, count = distributed.sum_over_ranks(seen).to(self.lengths.device).unbind(1)
        mean = torch.where(count > 0, total / count.clamp(min=1), self.lengths)
        self.lengths.lerp_(mean, 1 - LENGTH_DECAY)

    def encode(
        self,
        latents: Latents,
        attention: Attention | None = None,
        output_layers: bool = False,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> Hidden:
        """Hidden states of latents, in the order of their segments; attention stays inside each document.

        With a cache, latents are the new ones and `documents` [B, past + T] tell of all.

        Args:
            latents: [B, T, D]; with a cache the new ones only, with `documents` [B, past + T] of all.
            attention: None takes the config's, causal or full.
            output_layers: whether the hidden states of all layers are kept.
            past_key_values: cache of earlier positions.
            kwargs: passed to the transformer.

        Returns:
            h [B, T, D].
        """
        z = latents.z
        if attention is None:
            attention = "causal" if self.config.is_causal else "full"
        if self.next_place is not None and latents.following is not None:
            z = z + self.next_place(latents.following)
        cos, sin = rotary_tables(
            latents.coordinates, self.config.head_dim, self.config.rope_theta, self.config.rope_split
        )
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        kwargs.update(attention_arguments(attention, z, self.config, latents.documents, past))
        kwargs["rotary"] = (cos[..., None, :].to(z.dtype), sin[..., None, :].to(z.dtype))
        layers = self.encoder(z, output_layers, past_key_values=past_key_values, **kwargs)
        layers[-1] = self.layernorm(layers[-1])
        return Hidden(layers[-1], tuple(layers) if output_layers else ())

    def forward(self, **batch: Tensor) -> OmniOutput:
        """Latents and hidden states.

        Args:
            batch: as `OmniProcessor` makes it.

        Returns:
            z and last_hidden_state [B, T, D].
        """
        latents = self.embed(batch)  # type: ignore[arg-type]
        return OmniOutput(last_hidden_state=self.encode(latents).last, latents=latents.z)


class OmniForPreTraining(OmniPreTrainedModel):
    """Omni for training and generation: the transformer, and the decoding of its predictions. The backbone for
    objective `next_embedding`.
    """

    def __init__(self, config: OmniConfig):
        super().__init__(config)
        self.model = OmniModel(config)
        self.log_scale = nn.Parameter(torch.tensor(START_LOG_SCALE))
        self.density_head: AnyDensityHead | None = density_head(
            config.density, config.hidden_size, config.num_components, config.max_cosine
        )
        self.readouts: dict[str, nn.Module] = {}  # latents to values, trained separately; not saved with the model
        self._processor: OmniProcessor | None = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.begin

    def embed(self, batch: Batch) -> Latents:
        """Latents of packed documents, before mixing.

        Args:
            batch: see `OmniModel.embed`.

        Returns:
            z [B, T, D].
        """
        return self.model.embed(batch)

    def encode(
        self,
        latents: Latents,
        attention: Attention | None = None,
        output_layers: bool = False,
        past_key_values: Cache | None = None,
    ) -> Hidden:
        """Hidden states of latents.

        Args:
            latents: as `embed` gives them.
            attention: None takes the config's.
            output_layers: whether the hidden states of all layers are kept, the latents first.
            past_key_values: cache of the latents before them; then `latents` are the new ones only.

        Returns:
            h [B, T, D].
        """
        return self.model.encode(latents, attention, output_layers, past_key_values)

    @property
    def begin(self) -> Tensor:
        """Begin latents of the modalities, in their order, then the end latent."""
        return self.model.begin.weight

    def absent(self) -> Tensor:
        """What is read in place of a context that is hidden, [D]: the latent that ends a document.

        With zeros for a whole document every layer would normalise nothing, which multiplies gradients by
        1 / sqrt(layer_norm_eps) each time.
        """
        return self.begin[-1]

    def modality(self, name: str) -> Modality:
        """The module that turns signals into latents.

        Args:
            name: of the modality in this model.

        Returns:
            The modality.
        """
        return self.model.modality(name)

    @property
    def kind_names(self) -> list[str]:
        """Names of the kinds from 1 on."""
        return ["begin", *self.config.names]

    def continuous(self, batch: Batch) -> Tensor:
        """Positions whose latents come from values: neither begin latents nor tokens.

        Args:
            batch: with kinds [B, T].

        Returns:
            bool [B, T].
        """
        kinds = [FIRST + i for i, name in enumerate(self.config.names) if self.modality(name).value_size is not None]
        return torch.isin(batch["kinds"], torch.tensor(kinds, device=batch["kinds"].device))

    def likeliest(self, hidden: Tensor) -> Tensor:
        """The most likely next latents: with a density its mode, else the hidden states.

        Args:
            hidden: hidden states [..., D].

        Returns:
            [..., D].
        """
        return hidden if self.density_head is None else self.density_head(hidden).mode()

    def codes(self, batch: Batch) -> scorers.Codes:
        """The latents of a batch that are rows of tables: tokens and begin latents.

        Args:
            batch: see `OmniModel.embed`.

        Returns:
            Their positions, rows and tables.
        """
        kinds, ids = batch["kinds"], batch["input_ids"]
        tables, found = [self.model.begin.weight], torch.where(kinds == BEGIN, ids, -1)
        for number, name in enumerate(self.config.names):
            modality = self.model.modality(name)
            if modality.value_size is None:
                found = torch.where(kinds == FIRST + number, ids + sum(map(len, tables)), found)
                tables.append(modality.table.weight)
        return scorers.Codes(torch.cat(tables), found, self.log_scale)

    # -- in training

    def check(self, scoring: Scoring) -> None:
        """Checks that this model can be trained with an objective's distance.

        Args:
            scoring: of the objective.

        Raises:
            ConfigError: it cannot.
        """
        scorers.check(self, scoring)

    def accept(self, scoring: Scoring) -> None:
        """Stores how the model is trained: with a density, tokens may still be predicted by a softmax.

        Args:
            scoring: of the objective.
        """
        if self.density_head is not None:
            self.config.token_softmax = scoring.distance == "vocabulary"

    def scorer(self, batch: Batch, scoring: Scoring) -> scorers.OmniScorer:
        """Compares predictions of a batch with its latents.

        Args:
            batch: see `OmniModel.embed`.
            scoring: of the objective.

        Returns:
            The scorer.
        """
        return scorers.OmniScorer(self, batch, scoring)

    def after_step(self) -> None:
        """Moves the running lengths of latents, on every rank."""
        self.model.after_step()

    def forward(self, **batch: Tensor) -> OmniOutput:
        """Hidden states of packed documents, and NEPA's loss.

        Args:
            batch: as `OmniProcessor` makes it.

        Returns:
            loss [], the mean negative cosine over `latent_mask`; last_hidden_state and latents [B, T, D].
        """
        latents = self.embed(batch)  # type: ignore[arg-type]
        last = self.encode(latents).last
        loss = None
        if "latent_mask" in batch:
            total, count = next_embedding(last, latents.z, batch["latent_mask"])
            loss = total / count.clamp(min=1)
        return OmniOutput(loss=loss, last_hidden_state=last, latents=latents.z)

    # -- in use; see `generation`

    @property
    def processor(self) -> OmniProcessor:
        """The processor next to the weights, loaded when first needed; may be set.

        Raises:
            ConfigError: Without one.
        """
        if self._processor is None:
            what = "the model was not loaded from a folder with a processor: set model.processor"
            self._processor = load_pretrained(AutoProcessor, self.config._name_or_path, what)
        return self._processor

    @processor.setter
    def processor(self, value: OmniProcessor) -> None:
        self._processor = value

    def values_of(self, name: str, direction: Tensor) -> Tensor:
        """Values that predicted latents stand for; see `way_back`.

        Args:
            name: of the modality.
            direction: [N, D], of any length.

        Returns:
            [N, P].
        """
        return self.way_back(name)(direction)

    def way_back(self, name: str) -> Callable[[Tensor], Tensor]:
        """The inverse of a modality's embedding: its trained readout (see `readouts`), else the inverse of its
        projection (`nn.linear_inverse`).

        Args:
            name: of the modality.

        Returns:
            A function from directions of latents [N, D] to values [N, P].

        Raises:
            ConfigError: the modality consists of tokens, or has neither readout nor projection.
        """
        modality = self.model.modality(name)
        if modality.value_size is None:
            raise ConfigError(f"modality '{name}' is read out by its table")
        if name in self.readouts:
            return lambda direction: self.readouts[name](F.normalize(direction.float(), dim=-1))
        projection = getattr(modality, "projection", None)
        if not isinstance(projection, nn.Linear):
            raise ConfigError(f"modality '{name}' has no linear projection to go back through: train a readout for it")
        length = self.model.lengths[FIRST + self.config.names.index(name)]
        statistics: Any = self.model.values[name]
        return LinearInverse(projection.weight.float(), projection.bias.float(), statistics, length, READOUT_NOISE)

    def generate(  # type: ignore[override]
        self, segments: Sequence[Piece] | Sequence[Sequence[Piece]], target: str | None = None, **options: Any
    ) -> Any:
        """Continues a document, a list of pieces as `OmniProcessor` takes them, or each of a list of documents.

        Args:
            segments: pieces of one document, or lists of pieces.
            target: the modality of what comes; None lets the model choose (a single document).
            options: max_latents (64), of text and signals without a fixed length; shape, of those with one; temperature
                (0: the likeliest latent; above, it is drawn: tokens from their softmax, others from the components of a
                density, of which only a mixture has several, or from a flow or energy density); top_k, of tokens (0:
                all); seed; guidance (1: none): how far tokens, and draws of a flow or energy density, are led away from
                what comes without the document, growing along a signal, of a model trained with
                `objective.context_drop_rate`; on_latent: called with
                the text so far, or with how many latents there are.

        Returns:
            A `generation.Made`, or a list of them; None where the model ends the document.

        Raises:
            ConfigError: The model has no such modality.
        """
        documents = as_documents(segments)
        many = len(segments) > 0 and isinstance(segments[0], list | tuple)
        with evaluating(self):
            made = generate(self, self.processor, documents, target, Drawing(**options))
        return made if many else (made[0] if made else None)

    def score(
        self,
        segments: Sequence[Piece],
        candidates: Sequence[Piece | Sequence[Piece]],
        against: Sequence[Sequence[Piece]] = (),
    ) -> Tensor:
        """How well each of C candidates continues a document, [C]; higher is better.

        Args:
            segments: pieces of the document.
            candidates: pieces, or lists of pieces.
            against: other documents; a candidate's mean score after them is taken off, which stops common candidates
                from winning everywhere. [[]] is nothing at all; for images other captions are better, since what an
                image scores by itself differs far more between images than a caption changes it.

        Returns:
            Log densities relative to the uniform one, summed over the candidate's latents and the end; of a model
            without density, log-probabilities of tokens and cosines of other latents.
        """
        lists = [as_documents(one)[0] for one in candidates]
        with evaluating(self):
            return score(self, self.processor, segments, lists, against=against)
