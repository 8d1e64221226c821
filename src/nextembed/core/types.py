"""The contracts between data, backbone, objective and trainer.

Shapes: B samples, T latents a sample, D latent width, L layers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, cast, runtime_checkable

import torch
from torch import Generator, Tensor, nn
from transformers.cache_utils import Cache

Draw = Callable[[Mapping[str, Tensor], Generator], dict[str, Tensor]]  # `ObjectiveSettings.draw`
AttentionMode = Literal["causal", "full"]
Metrics = Mapping[str, Tensor | tuple[Tensor, Tensor]]  # means over a batch, or (sum, count)
Role = Literal["train", "validation", "test"]  # purpose of a split


class Prefix(NamedTuple):
    """The first `lengths` [B] latents see each other, later ones everything before them (AIM, arXiv 2401.08541)."""

    lengths: Tensor


class Blocks(NamedTuple):
    """Latent i sees j where ids[j] <= ids[i]; ids [B, T], int64: groups of latents that are read at once, one group
    after another."""

    ids: Tensor


Attention = AttentionMode | Prefix | Blocks  # which latents see which; `nn.masks` makes masks of it

BEGIN = 1  # kind of begin and end latents
IGNORE_LABEL = -100
IGNORE_PIXEL = 255  # in masks and in labels [B, H, W]


class Sample(TypedDict, total=False):
    """One document of the data, after decoding and transforms.

    Attributes:
        key: identifies it for good: a file name or row number.
        pixel_values: [C, H, W], float32, normalised.
        label: class id, -100 where there is none; or a mask [H, W], 255 where there is none.
        encoded: a packed document, in place of pixels.
        raw: [N], float32: what a baseline reads instead of latents.
    """

    key: str
    pixel_values: Tensor
    label: int | Tensor
    encoded: "Encoded"
    raw: Tensor


class Segment(TypedDict, total=False):
    """One modality's span of a document.

    Attributes:
        kind: the modality: "text", "image", "video", "audio", "series", or one of the user's own.
        value: text `str`; image uint8 [C, H, W]; video uint8 [F, C, H, W]; audio float32 [N] in [-1, 1], mono, 16 kHz;
            series float32 [C, T].
        loss: whether it is to be predicted; True by default.
        order: in which its latents are read; raster by default.
        tokens: (begin, end) of the parts of a text in which special tokens of the tokenizer are tokens; elsewhere they
            are text.
    """

    kind: str
    value: Any
    loss: bool
    order: str
    tokens: list[tuple[int, int]]


class Document(TypedDict, total=False):
    """Segments in reading order.

    Attributes:
        key: identifies the document for good.
        segments: what it holds.
        seed: of what is sampled while it is encoded.
    """

    key: str
    segments: list[Segment]
    seed: int


class Encoded(NamedTuple):
    """A document as a model reads it, by the keys of `Batch`.

    Attributes:
        positions: tensors [T, ...], one row for each position; `labels`, `regression_mask` or `latent_mask` say what
            may be a target, never the first.
        values: tensors [N, ...] of other lengths, in reading order: pixels, patches. Every document has the same keys,
            with N = 0 where it has none.
    """

    positions: dict[str, Tensor]
    values: dict[str, Tensor]

    @property
    def length(self) -> int:
        """Number of positions, T."""
        return len(next(iter(self.positions.values())))


Encode = Callable[[Document], Encoded]


class Skipped(Protocol):
    """Collects samples that could not be read."""

    @property
    def reasons(self) -> Mapping[str, str]: ...
    def add(self, key: str, reason: str, num_seen: int, *, counts: bool = True) -> None: ...


class Documents(Protocol):
    """Documents of a split in order; `skipped` names those that could not be read."""

    @property
    def skipped(self) -> Skipped: ...
    def __iter__(self) -> Iterator[Document]: ...


@runtime_checkable
class DocumentSource(Protocol):
    """Data that gives documents; `isinstance` checks for the method."""

    def documents(self, split: Role) -> Documents: ...


class Batch(TypedDict, total=False):
    """What the collator gives to the model; every value is a tensor, mostly with B as its first axis.

    Attributes:
        pixel_values: [B, C, H, W], float32, normalised to about [-1, 1]; for clips of F frames [B, 3 F, H, W], one
            frame after the other; for packed documents [I, C, S, S], the images of all rows in reading order.
        labels: [B], int64, -100 where there is none; for segmentation [B, H, W], 255 where a pixel has none; for packed
            documents [B, T].
        latent_mask: [B, T], bool: False where a latent is padding. T counts the first (begin) token.
        input_mask: [B, T], bool: True where the autoregressor may not see the latent (it is still a target).
        input_ids: [B, T], int64: tokens of packed documents.
        document_ids: [B, T], int64: documents of a packed row, from 1; 0 is padding.
        position_ids: [B, T], int64: positions, from 0 in each document.
        regression_mask: [B, T], bool: where the embedding that is read is a target of regression.
        kinds: [B, T], int64: which modality a latent of an Omni belongs to, see `models.omni.processing_omni`.
        coordinates: [B, T, 3], float32: time, height and width of a latent of an Omni.
        next_coordinates: [B, T, 3], float32: those of the latent that comes next.
        prefix_length: [B], int64: what AIM samples, see `objectives.pixels`.
        kept: [B, 1 + K], int64: positions that MAE and MAR keep. JEPAs add context_KIND [B, 1 + K] and targets_KIND [B,
            M, Q], see `objectives.jepa`.
        global_views: [B, V, C, H, W]: large crops, for objectives that compare several (`core.objective.ViewSettings`);
            then pixel_values is the first of them.
        local_views: [B, L, C, h, w]: small crops.
        class_dropped: [B], bool: samples whose class is left out, see `nn.sampling`.
        seeds: [B], int64: seeds of what a network samples for each image in training (`core.randomness`).
        position: [B, P], int64: where each sample stands in the data. Opaque to all but data/; the trainer saves it, so
            that a resumed run continues with the next sample.
    """

    pixel_values: Tensor
    labels: Tensor
    latent_mask: Tensor
    input_mask: Tensor
    input_ids: Tensor
    document_ids: Tensor
    position_ids: Tensor
    regression_mask: Tensor
    prefix_length: Tensor
    kept: Tensor
    class_dropped: Tensor
    kinds: Tensor
    coordinates: Tensor
    next_coordinates: Tensor
    global_views: Tensor
    local_views: Tensor
    seeds: Tensor
    position: Tensor


def by_name(batch: Batch) -> dict[str, Tensor]:
    """The same batch with any key: one of documents also has `values.NAME`, for modalities that are not known here.

    Args:
        batch: a typed batch.

    Returns:
        The same object.
    """
    return cast(dict[str, Tensor], batch)


class Loading(NamedTuple):
    """How one rank of a run reads its data.

    Attributes:
        micro_batch_size: samples, or rows of packed documents, of each batch.
        seed: of order, crops and everything that is sampled.
        rank: which of the processes this is.
        world_size: how many processes train together.
        start: the data's state to resume from; None: the beginning.
        skipped_path: of `skipped.jsonl`, shared by all ranks.
        pin_memory: None pins where there is an accelerator.
    """

    micro_batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    start: dict[str, Any] | None = None
    skipped_path: Path | None = None
    pin_memory: bool | None = None

    @property
    def pins(self) -> bool:
        return torch.accelerator.is_available() if self.pin_memory is None else self.pin_memory


class Latents(NamedTuple):
    """Latents before mixing, with their positions.

    Attributes:
        z: [B, T, D]: one vector for each position.
        coordinates: [B, T, A], float32: position on each of A axes, patch centres in [-1, 1]; (0, ..., 0) is no
            rotation at all and belongs to the first (begin) token.
        documents: [B, T], int64: documents of packed rows; attention stays inside each. None: every sample is one.
        following: [B, T, A]: coordinates of the latent that comes next, where the model is conditioned on them; else 0.
    """

    z: Tensor
    coordinates: Tensor
    documents: Tensor | None = None
    following: Tensor | None = None

    def until(self, end: int) -> "Latents":
        """The first positions.

        Args:
            end: how many.

        Returns:
            Latents [B, end, D].
        """
        return self._map(lambda part: part[:, :end])

    def take(self, index: Tensor) -> "Latents":
        """Some positions of each sample, in a given order: what a mask keeps, what an order permutes.

        Args:
            index: int64 [B, K].

        Returns:
            Latents [B, K, D], with their coordinates.
        """

        def taken(part: Tensor) -> Tensor:
            places = index if part.ndim == 2 else index[..., None].expand(-1, -1, part.shape[-1])
            return part.gather(1, places)

        return self._map(taken)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Latents":
        documents, following = (None if part is None else change(part) for part in (self.documents, self.following))
        return Latents(change(self.z), change(self.coordinates), documents, following)


class Hidden(NamedTuple):
    """Hidden states after mixing.

    Attributes:
        last: [B, T, D]: after the final norm; what predictions are read from.
        layers: (z, layer 1, ..., layer L), each [B, T, D]; the last entry is `last`. Empty unless asked for.
    """

    last: Tensor
    layers: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Scoring:
    """How an objective compares predictions with targets. distance: its name; weights: factors by modality;
    stop_gradient_table: a softmax does not train the table that it compares with."""

    distance: str
    weights: Mapping[str, float]
    stop_gradient_table: bool = False


class Scorer(Protocol):
    """Compares predictions with targets of one batch; made by a backbone whose latents are more than vectors."""

    def distance(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Distance of predictions and targets at each position.

        Args:
            pred: [B, T - k, D], shifted.
            target: [B, T - k, D], shifted.
            mask: bool [B, T - k]; None takes all.

        Returns:
            [B, T - k].
        """

    def diagnose(self, z: Tensor, h: Tensor, target: Tensor, mask: Tensor | None) -> Metrics:
        """The figures of `nn.diagnostics.diagnose`, and those that only this model can compute.

        Args:
            z: latents [B, T, D].
            h: hidden states [B, T, D].
            target: [B, T, D].
            mask: bool [B, T]; None takes all.

        Returns:
            By name: a value, or a sum and a count.
        """


@runtime_checkable
class ScoringBackbone(Protocol):
    """A backbone that scores targets by their modality: tokens by a softmax, directions by a density."""

    def absent(self) -> Tensor:
        """What is read in place of latents of a context that is hidden, [D]."""

    def check(self, scoring: Scoring) -> None:
        """Checks that this backbone can be trained with an objective's distance.

        Args:
            scoring: of the objective.

        Raises:
            ConfigError: it cannot.
        """

    def accept(self, scoring: Scoring) -> None:
        """Called once before training: stores how the model is trained.

        Args:
            scoring: of the objective.
        """

    def scorer(self, batch: Batch, scoring: Scoring) -> Scorer: ...


@runtime_checkable
class DensityBackbone(Protocol):
    """A backbone that may predict densities in place of latents."""

    def likeliest(self, hidden: Tensor) -> Tensor:
        """The most likely next latents: with a density its mode.

        Args:
            hidden: hidden states [..., D].

        Returns:
            [..., D].
        """


@runtime_checkable
class SteppedBackbone(Protocol):
    """A backbone that keeps statistics of what it sees in training."""

    def after_step(self) -> None:
        """Called after every optimizer step, on every rank."""


@runtime_checkable
class CachedBackbone(Protocol):
    """A backbone with a cache, which can continue after latents that it has read."""

    def new_cache(self) -> Cache:
        """An empty cache, for `encode_next`."""

    def encode_next(self, latents: Latents, attention: AttentionMode, cache: Cache) -> Hidden:
        """Hidden states of latents that follow those in the cache; the cache is extended.

        Args:
            latents: the new ones, [B, T, D].
            attention: with "full" the new ones see each other and all that the cache holds.
            cache: from `new_cache` or an earlier call.

        Returns:
            h [B, T, D] of the new ones.
        """


@runtime_checkable
class PatchConfig(Protocol):
    """What a model of image patches reports about them."""

    hidden_size: int
    num_channels: int

    @property
    def patch_shape(self) -> tuple[int, int]: ...
    @property
    def image_shape(self) -> tuple[int, int]: ...


@runtime_checkable
class ClipConfig(Protocol):
    """Configuration of a model that may read clips; num_channels is then that of all frames together."""

    num_frames: int


def reads_clips(config: object) -> bool:
    """Whether a model reads clips of several frames instead of images.

    Args:
        config: of the model.

    Returns:
        True for clips.
    """
    return isinstance(config, ClipConfig) and config.num_frames > 1


@runtime_checkable
class CountsLatents(Protocol):
    """A backbone that can count the latents of an image."""

    def num_latents(self, height: int, width: int) -> int: ...


@runtime_checkable
class SizedConfig(Protocol):
    """A configuration with the size of images."""

    image_size: int


@runtime_checkable
class LayeredConfig(Protocol):
    """Sizes of one transformer."""

    hidden_size: int
    num_hidden_layers: int


@runtime_checkable
class SaysCausal(Protocol):
    """A configuration with the attention that a model was trained with."""

    is_causal: bool


@runtime_checkable
class Encodes(Protocol):
    """A network that computes latents and hidden states."""

    def embed(self, batch: Batch) -> Latents:
        """Latents of a batch, before any mixing.

        Args:
            batch: as the loader gives it.

        Returns:
            z [B, T, D].
        """

    def encode(
        self,
        latents: Latents,
        attention: Attention | None = None,
        output_layers: bool = False,
    ) -> Hidden:
        """Hidden states of latents. Latents are read in the order they have; see `Latents.take` for other orders and
        subsets.

        Args:
            latents: [B, T, D].
            attention: which positions see which (`nn.masks`); None takes the config's.
            output_layers: whether the hidden states of all layers are kept.

        Returns:
            h [B, T, D].
        """


@runtime_checkable
class Backbone(Encodes, Protocol):
    """The interface of a network for trainer, objectives and probes."""

    config: Any
    training: bool

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def train(self, mode: bool = True) -> nn.Module: ...
    def eval(self) -> nn.Module: ...
