"""Converts documents of any modality to Omni's inputs: patches, tokens, coordinates, and possible targets."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from ...core.types import Document, Encoded, Segment
from ...errors import ConfigError, unknown
from ...modalities import MODALITIES, Modality, Text
from ...modalities.base import Patches
from ...nn.orders import ORDERS, order_of
from .configuration_omni import BEGIN, FIRST, OmniConfig, in_order

KEPT = ("modalities", "modality_names", "orders", "tell_next")  # in processor_config.json
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

BEGIN_PLACE = torch.tensor([[-1.0, 0.0, 0.0]])  # of a begin latent, in the coordinates of the segment that it begins

Piece = str | Image.Image | np.ndarray | Tensor | dict[str, Any]
Pieces = Piece | Sequence[Piece] | Sequence[Sequence[Piece]]  # a document, or several


class OmniProcessor(ProcessorMixin):
    """Turns raw signals into batches for an Omni model; it needs the model's settings, not its weights.

    Called with one document, a list of pieces in reading order, or with a list of such lists:

        processor(["an apple:", image])
        processor([{"touch": values}, "it is"])

    A piece is text, an image (PIL, uint8 array [H, W, C], uint8 tensor [C, H, W]), or {NAME: value} of any modality by
    its name in the model. Each becomes its begin latent and its latents; a document that is trained on ends with the
    end latent. Gives, padded on the left, kinds, input_ids, document_ids [B, T], coordinates [B, T, 3], latent_mask [B,
    T] (what may be a target: all but padding and the first), next_coordinates where the model is conditioned on them,
    and `values.NAME` [N, P] of each continuous modality of all documents in reading order.

    Args:
        modalities: as in `OmniConfig`.
        orders: by modality, the order of segments that name none, e.g. {"image": "hilbert"}.
        tell_next: as in `OmniConfig`.
        words: a tokenizer; None reads text as bytes.
        modality_names: as in `OmniConfig`.

    Raises:
        ValueError: One line, for what no modality of the model takes.
    """

    valid_kwargs = ["modalities", "orders", "tell_next", "words", "modality_names"]

    def __init__(
        self,
        modalities: Mapping[str, Any] | None = None,
        orders: Mapping[str, str] | None = None,
        tell_next: bool = False,
        words: PreTrainedTokenizerBase | None = None,
        modality_names: Sequence[str] | None = None,
        **kwargs: object,
    ):
        own = in_order(modalities or {"text": {}, "image": {}}, modality_names)
        self.modalities = {name: dict(settings) for name, settings in own.items()}
        self.orders, self.tell_next, self.words = dict(orders or {}), tell_next, words
        super().__init__(**kwargs)
        self.readers: dict[str, Modality] = MODALITIES.without_weights(self.modalities)
        for name, reader in self._texts().items():
            if words is None:
                raise ValueError(f"modality '{name}' reads tokens; give the processor a tokenizer (words=)")
            reader.tokenizer = words
        for name in self.orders:
            if name not in self.readers:
                raise ValueError(f"orders: the model has no modality '{name}', only {', '.join(self.readers)}")
            if self.orders[name] not in ORDERS:
                raise ValueError(f"orders.{name}: " + unknown("order", self.orders[name], ORDERS))

    @property
    def spelled(self) -> list[str]:
        """The modalities whose text is tokenized."""
        return list(self._texts())

    def _texts(self) -> dict[str, Text]:
        return {n: r for n, r in self.readers.items() if isinstance(r, Text) and r.vocabulary != "bytes"}

    def to_dict(self) -> dict[str, Any]:
        """Content of processor_config.json."""
        found = {"modalities": self.modalities, "orders": self.orders, "tell_next": self.tell_next}
        return {"processor_class": type(self).__name__, "modality_names": self.names, **found}

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes processor_config.json, and the tokenizer's files where there is one.

        Args:
            save_directory: the folder.
            push_to_hub: as of `ProcessorMixin`.
            kwargs: as of `ProcessorMixin`.

        Returns:
            The files.
        """
        if self.words is not None:
            self.words.save_pretrained(save_directory)
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> "OmniProcessor":  # type: ignore[override]
        """Loads a processor.

        Args:
            pretrained_model_name_or_path: a folder or hub id.
            kwargs: as of `ProcessorMixin`.

        Returns:
            The processor.

        Raises:
            OSError: there is no processor.
            ConfigError: it names a modality of your own that is not loaded.
        """
        hub = {key: value for key, value in kwargs.items() if key in HUB_ARGUMENTS}
        found, _ = cls.get_processor_dict(pretrained_model_name_or_path, **hub)
        own: dict[str, Any] = {name: found.get(name) for name in KEPT}
        if any(part.get("vocabulary", "bytes") != "bytes" for part in (own["modalities"] or {}).values()):
            own["words"] = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, trust_remote_code=False, **hub)
        return cls(**own)

    @property
    def names(self) -> list[str]:
        """Names of the modalities, in the order of their begin latents."""
        return list(self.readers)

    @property
    def model_input_names(self) -> list[str]:
        return ["kinds", "input_ids", "coordinates", "document_ids", "latent_mask"]

    def __call__(
        self, documents: Piece | Sequence[Piece] | Sequence[Sequence[Piece]], end: bool = False, **kwargs: object
    ) -> BatchFeature:
        """A batch of documents, one per row.

        Args:
            documents: a signal, a list of signals (one document), or a list of documents. Signals: text, PIL image,
                array, or {"NAME": value} for a modality by name.
            end: whether documents end; False leaves them open, to be continued.
            kwargs: not used.

        Returns:
            What `OmniModel.embed` reads, padded on the left.

        Raises:
            ValueError: a document is empty, or a signal does not fit its modality.
        """
        encoded = [self.encode_document(self.document(pieces), end=end) for pieces in as_documents(documents)]
        return BatchFeature(pad_left(encoded))

    def document(self, pieces: Sequence[Piece]) -> Document:
        """Signals as a document.

        Args:
            pieces: see `__call__`.

        Returns:
            The document, with one segment per signal.

        Raises:
            ValueError: a piece is not a signal.
        """
        return {"key": "", "segments": [self.segment(piece) for piece in pieces]}

    def segment(self, piece: Piece) -> Segment:
        """One signal as a segment.

        Args:
            piece: see `__call__`.

        Returns:
            The segment.

        Raises:
            ValueError: the piece is not a signal.
        """
        if isinstance(piece, str):
            return {"kind": "text", "value": piece}
        if isinstance(piece, dict):
            if {"kind", "value"} <= piece.keys():
                return piece  # type: ignore[return-value]
            if len(piece) == 1 and next(iter(piece)) in self.readers:
                name, value = next(iter(piece.items()))
                return {"kind": name, "value": as_tensor(value) if isinstance(value, Image.Image) else value}
            raise ValueError(f"a piece of a document is {{modality: value}} with one of {', '.join(self.readers)}")
        return {"kind": "image", "value": as_tensor(piece)}

    def encode_document(self, document: Document, end: bool = True) -> Encoded:
        """A document as the model reads it.

        Args:
            document: its segments.
            end: whether the end latent follows; it is a target where the last segment is.

        Returns:
            kinds, input_ids, labels and coordinates [T, ...], and values of each continuous modality.

        Raises:
            ValueError: For an empty document, an unknown modality, and values that a modality does not take.
        """
        parts: list[dict[str, Tensor]] = []
        values: dict[str, list[Tensor]] = {n: [] for n, r in self.readers.items() if r.value_size is not None}
        time, loss = 0, True
        for number, segment in enumerate(document["segments"]):
            name, loss = segment["kind"], segment.get("loss", True)
            if name not in self.readers:
                raise ValueError(f"a segment of kind '{name}'; the model has {', '.join(self.readers)}")
            reader = self.readers[name]
            found = reader.patches(segment["value"])
            if found.values.shape[1:] != (() if reader.value_size is None else (reader.value_size,)):
                raise ValueError(
                    f"patches of '{name}' are {list(found.values.shape)}, its value_size {reader.value_size}"
                )
            order = self.order(segment, found, document.get("seed", 0) + number)
            places = found.coordinates
            duration = int(places[:, 0].max()) + 1 if len(places) else 0
            rows = found.values if order is None else found.values[order]
            places = places if order is None else places[order]
            parts += [begin(self.names.index(name), time, loss), self.latents(name, rows, places, time + 1, loss)]
            if self.tell_next and order is not None and len(places):
                parts[-2]["next_coordinates"] = next_places(places[:1], BEGIN_PLACE)
                parts[-1]["next_coordinates"] = next_places(torch.cat((places[1:], 0 * places[:1])), places)
                parts[-1]["next_coordinates"][-1] = 0.0
            if name in values:
                values[name].append(rows)
            time += 1 + duration
        if not parts:
            raise ValueError("the document is empty")
        if end:
            parts.append(begin(len(self.names), time, loss))
        positions = {key: torch.cat([part[key] for part in parts]) for key in parts[0] if key != "next_coordinates"}
        positions["latent_mask"][0] = False
        if self.tell_next:
            blank = [part.get("next_coordinates", torch.zeros(len(part["kinds"]), 3)) for part in parts]
            positions["next_coordinates"] = torch.cat(blank)
        return Encoded(positions, {f"values.{name}": self.joined(name, rows) for name, rows in values.items()})

    def joined(self, name: str, rows: list[Tensor]) -> Tensor:
        """Values of a modality in reading order.

        Args:
            name: the modality.
            rows: values of each signal, [n, P].

        Returns:
            [N, P].
        """
        size = self.readers[name].value_size
        assert size is not None
        return torch.cat([torch.zeros(0, size), *rows])

    def latents(self, name: str, rows: Tensor, places: Tensor, time: int, loss: bool) -> dict[str, Tensor]:
        """Entries of a batch for the latents of one signal.

        Args:
            name: the modality.
            rows: token ids [n], or values [n, P].
            places: coordinates [n, 3] in the signal.
            time: position of its first latent in the document.
            loss: whether its latents are targets.

        Returns:
            Entries by name, n each.
        """
        shape = (len(rows),)
        tokens = self.readers[name].value_size is None
        return {
            "kinds": torch.full(shape, FIRST + self.names.index(name)),
            "input_ids": rows if tokens else torch.zeros(shape, dtype=torch.int64),
            "coordinates": places + torch.tensor([float(time), 0.0, 0.0]),
            "latent_mask": torch.full(shape, loss),
        }

    def order(self, segment: Segment, found: Patches, seed: int) -> Tensor | None:
        """The permutation in which a segment's latents are read.

        Args:
            segment: it may name an order.
            found: its patches.
            seed: of random orders.

        Returns:
            int64 [N]; None is the natural order.
        """
        name = segment.get("order") or self.orders.get(segment["kind"], "raster")
        if name == "raster" or len(found.values) < 2:
            return None
        return order_of(name, found.coordinates, torch.Generator().manual_seed(seed % 2**63))

    def read(self, name: str, values: Tensor, shape: tuple[int, ...]) -> Any:
        """The signal that values stand for.

        Args:
            name: of the modality.
            values: [N, P], or ids [N], in natural order.
            shape: grid of the N latents.

        Returns:
            What the modality's `signal` gives: text, an image, samples.
        """
        return self.readers[name].signal(values, shape)

    def check(self, config: OmniConfig) -> None:
        """Compares the processor with a model's configuration.

        Args:
            config: of the model.

        Raises:
            ConfigError: they differ.
        """
        same = config.modalities == self.modalities and config.names == self.names
        if not same or config.tell_next != self.tell_next:
            raise ConfigError("the processor was made for other modalities than the model")


def as_documents(documents: Pieces) -> list[Sequence[Piece]]:
    """One piece, the pieces of one document, or several documents: as several."""
    if isinstance(documents, str | Image.Image | np.ndarray | Tensor | dict):
        return [[documents]]
    many = len(documents) > 0 and isinstance(documents[0], list | tuple)
    return cast(list[Sequence[Piece]], list(documents) if many else [documents])


def begin(index: int, time: int, loss: bool) -> dict[str, Tensor]:
    """The position of one begin (or end) latent."""
    return {
        "kinds": torch.tensor([BEGIN]),
        "input_ids": torch.tensor([index]),
        "coordinates": torch.tensor([[float(time), 0.0, 0.0]]),
        "latent_mask": torch.tensor([loss]),
    }


def next_places(following: Tensor, current: Tensor) -> Tensor:
    """The position of the next latent, as the model is told: steps ahead in time, and height and width. Half a step is
    added, so that no position is (0, 0, 0), which means unknown."""
    told = following.clone()
    told[:, 0] = (following[:, 0] - current[:, 0] + 0.5) / 16
    return told


def pad_left(encoded: Sequence[Encoded]) -> dict[str, Tensor]:
    """One row per document, all ending at the last position."""
    length = max(one.length for one in encoded)
    found: dict[str, Tensor] = {}
    for name, part in encoded[0].positions.items():
        found[name] = part.new_zeros(len(encoded), length, *part.shape[1:])
        for row, one in enumerate(encoded):
            found[name][row, length - one.length :] = one.positions[name]
    found["document_ids"] = (found["kinds"] > 0).long()
    return found | {name: torch.cat([one.values[name] for one in encoded]) for name in encoded[0].values}


def as_tensor(image: object) -> Tensor:
    """An image as uint8 [C, H, W]; transparent pixels on white. Raises ValueError for other values."""
    if isinstance(image, Image.Image):
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        return torch.from_numpy(image[None].copy() if image.ndim == 2 else image.transpose(2, 0, 1).copy())
    if isinstance(image, Tensor):
        return image
    raise ValueError(f"a piece of a document is text, an image or {{modality: value}}, not {type(image).__name__}")
