"""Generation with Omni, latent by latent with a cache, and scores of given continuations.

Shapes: B documents at once, D latent width, V rows of the table of begin latents and tokens, C candidates.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ...core.types import Attention, Batch, Hidden, Latents
from ...errors import ConfigError, unknown
from ...modalities import Modality
from ...nn.generative import Guidance
from ...nn.linear import fast_for_few_rows
from ...nn.losses import cross_entropy, negative_cosine
from ...nn.orders import inverse, order_of
from ...nn.sampled import AnyDensityHead, SampledHead
from .cache import growing_cache
from .configuration_omni import OmniConfig
from .processing_omni import BEGIN_PLACE, OmniProcessor, Piece, next_places, pad_left
from .scoring import Codes

STOP_COSINE = 0.5  # cosine with a begin or end latent at which a signal without fixed length ends
CHUNK = 32  # candidates scored at once

OnLatent = Callable[[Any], None]


class Omni(Protocol):
    """The part of an `OmniForPreTraining` that is needed here."""

    config: OmniConfig
    density_head: AnyDensityHead | None
    log_scale: nn.Parameter

    @property
    def device(self) -> torch.device: ...

    @property
    def begin(self) -> Tensor: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def absent(self) -> Tensor: ...

    def modality(self, name: str) -> Modality: ...

    def embed(self, batch: Batch) -> Latents: ...

    def encode(
        self,
        latents: Latents,
        attention: Attention | None = None,
        output_layers: bool = False,
        past_key_values: Cache | None = None,
    ) -> Hidden: ...

    def codes(self, batch: Batch) -> Codes: ...

    def way_back(self, name: str) -> Callable[[Tensor], Tensor]: ...


@dataclass(frozen=True)
class Drawing:
    """How outputs are chosen; see `OmniForPreTraining.generate`."""

    max_latents: int = 64
    shape: tuple[int, ...] | None = None
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0
    guidance: float = 1.0
    on_latent: OnLatent | None = None


class Made(NamedTuple):
    """A generated signal. kind: its modality; value: text, picture, ... as in `Segment`; latents [N, D]: as they were
    fed back, in natural order; values [N, P] or ids [N]; ended: whether the model ended it itself."""

    kind: str
    value: Any
    latents: Tensor
    values: Tensor
    ended: bool


class Rollout:
    """Continues B documents, one latent at a time, with a cache. inputs: of the processor, padded on the left. twice:
    each document is also continued without its content, in the same cache, as `context_drop_rate` trains it.
    hidden [B, D]: predicts the next latent; without [B, D]: the same without content.
    """

    without: Tensor | None = None

    def __init__(self, model: Omni, inputs: Batch, twice: bool = False):
        self.model, self.cache, self.twice = model, growing_cache(), twice
        self.documents: Tensor = inputs["document_ids"]
        self.padded = bool((self.documents == 0).any())
        self.time = inputs["coordinates"][..., 0].amax(1)  # [B]: time of the last latent
        latents = model.embed(inputs)
        if twice:
            again = [None if part is None else torch.cat((part, part)) for part in latents[2:]]
            latents = Latents(
                torch.cat((latents.z, model.absent().expand_as(latents.z))),
                torch.cat((latents.coordinates, latents.coordinates)),
                *again,
            )
        self._keep(model.encode(latents, past_key_values=self.cache).last[:, -1])

    def _keep(self, hidden: Tensor) -> None:
        self.hidden = hidden
        if self.twice:
            self.hidden, self.without = hidden.chunk(2)

    def feed(self, z: Tensor, places: Tensor, told: Tensor | None = None) -> None:
        """z [B, D] at positions [B, 3]; told [B, 3]: position of the next one, see `next_places`."""
        self.time = torch.maximum(self.time, places[:, 0])
        self.documents = F.pad(self.documents, (0, 1), value=1)
        documents = self.documents
        if self.twice:
            z, places, documents = (torch.cat((part, part)) for part in (z, places, documents))
            told = None if told is None else torch.cat((told, told))
        following = None if told is None else told[:, None]
        # A single latent at the end sees everything, so it needs no mask and is faster without.
        latents = Latents(z[:, None], places[:, None], documents if self.padded else None, following)
        self._keep(self.model.encode(latents, "full", past_key_values=self.cache).last[:, -1])

    def begin(self, index: int, told: Tensor | None = None) -> None:
        """The begin latent of a modality, by index."""
        z = self.model.begin[index].expand(len(self.time), -1)
        places = F.pad((self.time + 1)[:, None], (0, 2))
        self.feed(z, places, None if told is None else told.expand(len(z), -1))


class Sampler(NamedTuple):
    """How a latent is chosen from its prediction. temperature: 0 takes the most likely; top_k: of tokens, 0 is all."""

    temperature: float = 0.0
    top_k: int = 0
    generator: torch.Generator | None = None

    def code(self, scores: Tensor) -> Tensor:
        """The chosen rows [B] by scores [B, V]."""
        if self.temperature == 0:
            return scores.argmax(-1)
        scores = scores / self.temperature
        if self.top_k:
            least = scores.topk(min(self.top_k, scores.shape[-1])).values[..., -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        return torch.multinomial(scores.softmax(-1).cpu(), 1, generator=self.generator)[..., 0].to(scores.device)

    def direction(self, model: Omni, hidden: Tensor, away: Guidance | None = None) -> Tensor:
        """The chosen direction [B, D] after hidden states [B, D]: of a component of the density, or a draw from it;
        without a density the predicted one. away: of a flow or energy density."""
        head = model.density_head
        if head is None:
            return F.normalize(hidden, dim=-1)
        if isinstance(head, SampledHead):
            drawn = head(hidden)
            return drawn.mode(away) if self.temperature == 0 else drawn.sample(self.generator, self.temperature, away)
        density = head(hidden)
        return density.mode() if self.temperature == 0 else density.component(self.generator, self.temperature)


def on_device(model: Omni, inputs: Mapping[str, Tensor]) -> Batch:
    """A batch on the model's device."""
    return cast(Batch, {name: part.to(model.device) for name, part in inputs.items()})


@torch.no_grad()
def generate(
    model: Omni, processor: OmniProcessor, documents: Sequence[Sequence[Piece]], target: str | None, drawing: Drawing
) -> list[Made]:
    """Continues each document in one modality. See `OmniForPreTraining.generate`."""
    sampler = Sampler(drawing.temperature, drawing.top_k, torch.Generator().manual_seed(drawing.seed))
    inputs = on_device(model, processor(documents))
    rollout = Rollout(model, inputs, drawing.guidance != 1)
    name = target or chosen_modality(model, rollout, sampler)
    if name is None:
        return []
    if name not in processor.readers:
        raise ConfigError(unknown("target:", name, processor.names))
    is_text = processor.readers[name].value_size is None
    if not is_text and drawing.guidance != 1 and not isinstance(model.density_head, SampledHead):
        raise ConfigError("guidance: latents other than tokens support it with model.density=flow or energy only")
    with fast_for_few_rows(model.modules()):
        return (write if is_text else paint)(model, processor, rollout, name, sampler, drawing)


def chosen_modality(model: Omni, rollout: Rollout, sampler: Sampler) -> str | None:
    """The modality whose begin latent is predicted; None if the document ends."""
    if len(rollout.hidden) > 1:
        raise ConfigError("target: name one; the model can choose only for a single document")
    table = model.begin
    index = int(sampler.code(code_scores(model, rollout.hidden, table))[0])
    return None if index == len(table) - 1 else model.config.names[index]


def code_scores(model: Omni, hidden: Tensor, table: Tensor) -> Tensor:
    """Logits [B, V] of the rows of a table [V, D] being the next latent: log densities, or scaled cosines."""
    head = model.density_head
    if head is not None and not isinstance(head, SampledHead) and not model.config.token_softmax:
        density = head(hidden)
        return density.at((slice(None), None)).log_prob(table[None])
    cosines = F.normalize(hidden.float(), dim=-1) @ F.normalize(table.float(), dim=-1).T
    return cosines * model.log_scale.float().exp()


def write(
    model: Omni,
    processor: OmniProcessor,
    rollout: Rollout,
    name: str,
    sampler: Sampler,
    drawing: Drawing,
) -> list[Made]:
    """Tokens until a begin or end latent is the most likely."""
    modality: Any = model.modality(name)  # a modality of tokens has a table
    rollout.begin(processor.names.index(name))
    first = len(model.begin)
    table = torch.cat((model.begin, modality.table.weight))
    size = len(rollout.hidden)
    ids: list[list[int]] = [[] for _ in range(size)]
    done = torch.zeros(size, dtype=torch.bool, device=model.device)
    for _ in range(drawing.max_latents):
        scores = code_scores(model, rollout.hidden, table)
        if rollout.without is not None:
            untold = code_scores(model, rollout.without, table)
            scores = untold + drawing.guidance * (scores - untold)
        codes = sampler.code(scores)
        done = done | (codes < first)
        if bool(done.all()):
            break
        for row, (code, over) in enumerate(zip((codes - first).tolist(), done.tolist())):
            if not over:
                ids[row].append(code)
        if drawing.on_latent is not None and size == 1:
            drawing.on_latent(processor.read(name, torch.tensor(ids[0]), (len(ids[0]),)))
        places = F.pad((rollout.time + 1)[:, None], (0, 2))
        rollout.feed(table[codes], places)
    made = []
    for written, over in zip(ids, done.tolist()):
        tokens = torch.tensor(written, dtype=torch.int64)
        latents = modality.table.weight[tokens.to(model.device)].cpu()
        made.append(Made(name, processor.read(name, tokens, (len(written),)), latents, tokens, over))
    return made


def paint(
    model: Omni,
    processor: OmniProcessor,
    rollout: Rollout,
    name: str,
    sampler: Sampler,
    drawing: Drawing,
) -> list[Made]:
    """Latents of a continuous modality: as many as its shape needs, or until a begin or end latent is predicted."""
    reader, number = processor.readers[name], processor.names.index(name)
    shape = drawing.shape or reader.default_shape()
    try:
        places = reader.places(shape if shape is not None else (drawing.max_latents,)).to(model.device)
    except IndexError:  # more axes than time
        size = f"shape {tuple(shape)} does not fit" if shape is not None else "its size has to be given"
        raise ConfigError(f"target '{name}': {size}; see `default_shape` of {type(reader).__name__}") from None
    own = processor.orders.get(name, "raster")
    order = None if own == "raster" or shape is None else order_of(own, places.cpu(), sampler.generator)
    steps = places if order is None else places[order]
    tells = processor.tell_next and order is not None
    rollout.begin(number, next_places(steps[:1], BEGIN_PLACE.to(steps.device)) if tells else None)
    start = rollout.time + 1  # [B]
    back = model.way_back(name)
    fed: list[Tensor] = []
    values: list[Tensor] = []
    ended = False
    for step, place in enumerate(steps):
        scale = 1 + (drawing.guidance - 1) * (step + 1) / len(steps)
        away = None if rollout.without is None else Guidance(rollout.without, scale)
        direction = sampler.direction(model, rollout.hidden, away)
        if shape is None and step > 0 and bool((nearest_begin(model, direction) > STOP_COSINE).all()):
            ended = True
            break
        found = back(direction)
        z = model.modality(name).embed(found)
        fed.append(z)
        values.append(found)
        told = None
        if tells and step + 1 < len(steps):
            told = next_places(steps[step + 1 : step + 2], steps[step : step + 1]).expand(len(z), -1)
        elif tells:
            told = torch.zeros(len(z), 3, device=z.device)
        here = place.expand(len(z), -1).clone()
        here[:, 0] += start
        rollout.feed(z, here, told)
        if drawing.on_latent is not None:
            drawing.on_latent(step + 1)
    natural = torch.arange(len(fed)) if order is None else inverse(order)
    latents, found = torch.stack(fed, 1)[:, natural].cpu(), torch.stack(values, 1)[:, natural].cpu().float()
    made_shape = shape if shape is not None else (len(fed),)
    return [Made(name, processor.read(name, v, made_shape), z, v, ended or shape is not None)
            for z, v in zip(latents, found)]  # fmt: skip


def nearest_begin(model: Omni, direction: Tensor) -> Tensor:
    """Highest cosine with a begin or end latent, [B]."""
    return (direction @ F.normalize(model.begin, dim=-1).T).amax(-1)


class Context(NamedTuple):
    """A context that was read once: keys and values, number of latents, and time of the next one."""

    cache: Cache
    length: int
    time: int

    def copies(self, num: int) -> Cache:
        """The cache for `num` documents with this context: views, which are copied when they are extended."""
        found: list[Any] = []
        layer: Any
        for layer in self.cache.layers:
            own = DynamicLayer()
            own.lazy_initialization(layer.keys, layer.values)
            own.keys, own.values = (x.expand(num, -1, -1, -1) for x in (layer.keys, layer.values))
            found.append(own)
        return Cache(layers=found)


def read_context(model: Omni, processor: OmniProcessor, pieces: Sequence[Piece]) -> Context | None:
    """None for an empty context."""
    if not len(pieces):
        return None
    inputs = on_device(model, processor([list(pieces)]))
    cache = DynamicCache()
    model.encode(model.embed(inputs), past_key_values=cache)
    return Context(cache, inputs["kinds"].shape[1], int(inputs["coordinates"][..., 0].max()) + 1)


@torch.no_grad()
def score(
    model: Omni,
    processor: OmniProcessor,
    context: Sequence[Piece],
    candidates: Sequence[Sequence[Piece]],
    *,
    against: Sequence[Sequence[Piece]] = (),
) -> Tensor:
    """How well each candidate continues the context, [C]. See `OmniForPreTraining.score`. The context is read once;
    candidates of similar length are read together.
    """
    if not len(candidates):
        raise ConfigError("candidates: give at least one")
    before = read_context(model, processor, context)
    # The seed of random orders is that of their segments within the whole document.
    encoded = [processor.encode_document({**processor.document(c), "seed": len(context)}) for c in candidates]
    by_length = sorted(range(len(encoded)), key=lambda number: encoded[number].length)
    total = torch.zeros(len(encoded), device=model.device)
    for start in range(0, len(encoded), CHUNK):
        rows = by_length[start : start + CHUNK]
        inputs = on_device(model, pad_left([encoded[row] for row in rows]))
        total[rows] = log_likelihoods(model, inputs, before).sum(1)
    for other in against:
        total = total - score(model, processor, other, candidates) / len(against)
    return total


def log_likelihoods(model: Omni, inputs: Batch, before: Context | None = None) -> Tensor:
    """For each position how likely its latent was after those before it, [B, T], 0 at the first of each document and
    where there is none: the log density relative to the uniform one, or what stands for it (`nn.sampled`); of
    rows of tables that are read by a softmax its logarithm; else the cosine. before: their common context."""
    present = inputs["document_ids"] > 0
    cache = None
    if before is not None:
        shift = torch.tensor([float(before.time), 0.0, 0.0], device=present.device)
        inputs = {
            **inputs,
            "coordinates": inputs["coordinates"] + shift,
            "document_ids": F.pad(inputs["document_ids"], (before.length, 0), value=1),
        }
        cache = before.copies(len(present))
    latents = model.embed(inputs)
    last = latents.z.shape[1] - 1
    seen = latents.until(last)._replace(documents=inputs["document_ids"][:, :-1])
    hidden = model.encode(seen, past_key_values=cache).last
    target = latents.z[:, 1:]
    if model.density_head is not None:
        found = model.density_head(hidden).log_prob(target)
    else:
        found = -negative_cosine(hidden, target)
    softmax = model.config.token_softmax or isinstance(model.density_head, SampledHead)
    if model.density_head is None or softmax:
        table, codes, _ = model.codes(inputs)
        chosen = codes[:, 1:] >= 0
        scores = code_scores(model, hidden[chosen], table)
        found = found.masked_scatter(chosen, -cross_entropy(scores, codes[:, 1:][chosen]))
    return F.pad(found * (present[:, 1:] & present[:, :-1]), (1, 0))
