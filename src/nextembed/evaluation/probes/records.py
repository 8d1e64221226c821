"""Labelled rows of any modality of an Omni as samples, so that probes read them like images."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ...core.config import Part
from ...core.types import IGNORE_LABEL, Encoded, Role, Sample
from ...data.documents import DocumentPart
from ...data.images import ImagePart
from ...data.labels import LABEL_COLUMNS
from ...data.media import KINDS, Media
from ...data.record import Record, reading, row_at
from ...data.rows import Rows
from ...data.tables import DocumentTable, field
from ...data.transforms import Unreadable
from ...errors import ConfigError, DataError, MissingSplit, unknown
from ...modalities import Image, Modality, Video
from ...modalities.vision import as_pixels
from ...models.omni import OmniProcessor
from ..features.extract import PIXEL_SIZE
from .samples import load_data
from .sweep import ProbeConfig, ProbeData, draw

RAW_STEPS = 16  # intervals of time over which a raw signal is averaged, so that all have one length
RAW_FRAMES, RAW_SIDE = 4, 16  # of a raw video
# Settings of a table that determine its rows and their decoding.
FIELDS = ("source", "subset", "split", "validation", "test", "where", "split_column", "background", "max_pixels",
          "max_bytes", "max_skipped_rate", "num_frames", "max_seconds")  # fmt: skip


class Labelled(Media, DocumentTable, DocumentPart):
    """Rows of which a column is probed."""


def segment_data(data: Part, config: ProbeConfig, processor: OmniProcessor) -> ProbeData:
    """The splits of labelled rows, each row one segment of `config.modality`, as an Omni reads them.

    data: a table of rows (`DocumentTable`), or images (`ImagePart`). processor: of the model. Raises ConfigError for
    modalities and columns that do not exist, DataError where nothing can be read.
    """
    if config.attentive:
        raise ConfigError(
            "probe.attentive: an attentive probe needs images and a NEPA model; set it to false for an Omni"
        )
    name = chosen_modality(data, config, processor)
    if isinstance(data, ImagePart):
        return image_data(data, config, processor, name)
    if not isinstance(data, DocumentTable):
        raise ConfigError(f"data of kind {data.kind} is not a table of labelled rows: name one with --data SOURCE")
    if data.streaming:
        raise ConfigError("data.streaming: probes sample rows, which needs streaming=false")
    kind = processor.modalities[name].get("kind", name)
    own = {} if kind in KINDS else {name: "raw"}
    given = {key: value for key, value in data if key in FIELDS}
    table = Labelled(**given, own_kinds=own | (data.own_kinds if isinstance(data, Media) else {}))
    splits: dict[str, Rows] = {}
    for role, num in (("train", config.num_train), ("validation", config.num_validation), ("test", config.num_test)):
        if (rows := rows_if_there(table, role)) is not None:  # type: ignore[arg-type]
            splits[role] = draw(rows, num)
    rows = splits["train"]
    first = next((row for i in range(len(rows)) if (row := row_at(rows, i)).error is None), Record({}, ""))
    column = chosen_column(first, config.column, [name, kind], "column")
    label = chosen_column(first, config.label_column, list(LABEL_COLUMNS), "label_column")
    values = {role: [label_of(row_at(rows, i), label) for i in range(len(rows))] for role, rows in splits.items()}
    classes = sorted({one for found in values.values() for one in found if one is not None})
    read = Reader(table, processor, name, name if name in table.own_kinds else kind, column)
    found: dict[str, Any] = {
        role: read(rows, [IGNORE_LABEL if one is None else classes.index(one) for one in values[role]], role)
        for role, rows in splits.items()
    }
    return ProbeData(found["train"], found.get("validation"), found.get("test"), classes,
                     raw_name(processor.readers[name]), "rows", tuple(read.notes))  # fmt: skip


def image_data(data: ImagePart, config: ProbeConfig, processor: OmniProcessor, name: str) -> ProbeData:
    """Labelled images for an Omni, as `ImageData` reads them."""
    reader = processor.readers[name]
    if not isinstance(reader, Image):
        raise ConfigError(f"probe.modality={name}: the data are images; name a table of rows with --data SOURCE")

    sizes = SimpleNamespace(image_shape=(reader.image_size, reader.image_size), num_channels=reader.num_channels)
    found = load_data(data, config, sizes)

    def encoded(samples: Any) -> Any:
        if samples is None:
            return None
        rows = []
        for i in range(len(samples)):
            sample = samples[i]
            pixels = sample["pixel_values"]
            raw = raw_values(reader, pixels, None)
            rows.append({"encoded": encode(processor, name, pixels), "raw": raw, "label": sample["label"]})
        return rows

    return found._replace(train=encoded(found.train), validation=encoded(found.validation), test=encoded(found.test))


def chosen_modality(data: Part, config: ProbeConfig, processor: OmniProcessor) -> str:
    """`config.modality`, or the only possible one."""
    if config.modality is not None:
        if config.modality not in processor.readers:
            raise ConfigError(unknown("probe.modality:", config.modality, processor.names))
        return config.modality
    images = [name for name, reader in processor.readers.items() if isinstance(reader, Image)]
    likely = images if isinstance(data, ImagePart) else processor.names
    if len(likely) != 1:
        raise ConfigError(f"probe.modality: choose which one to probe: {', '.join(processor.names)}")
    return likely[0]


def rows_if_there(table: Labelled, role: Role) -> Rows | None:
    """Rows of a split; None if there is no such split, unless it is the training split."""
    try:
        rows = table.rows(role)
    except MissingSplit:
        if role == "train":
            raise
        return None
    if isinstance(rows, Rows) and len(rows):
        return rows
    if role == "train":
        raise DataError("the train split has no rows")
    return None


def chosen_column(row: Mapping[str, object], given: str | None, likely: list[str], setting: str) -> str:
    """The column in the settings, or the first likely one. Raises ConfigError where there is none."""
    columns = list(row)
    if given is not None:
        if given.split(".")[0] not in columns:
            raise ConfigError(unknown(f"probe.{setting}:", given, columns))
        return given
    found = next((name for name in likely if name in columns), None)
    if found is None:
        raise ConfigError(f"probe.{setting}: name one of the columns {', '.join(columns)}")
    return found


def label_of(row: Record, column: str) -> str | None:
    try:
        value = field(row, column)
    except Unreadable:
        return None
    if isinstance(value, bool | int | str):
        return str(value)
    if value is None:
        return None
    raise ConfigError(f"probe.label_column: '{column}' contains {type(value).__name__}, not classes")


class Reader:
    """Rows to samples: "encoded", "raw", "label". Unreadable rows are left out; notes: how many, and why."""

    def __init__(self, table: Labelled, processor: OmniProcessor, name: str, kind: str, column: str):
        self.table, self.processor, self.name, self.kind, self.column = table, processor, name, kind, column
        self.notes: list[str] = []

    def __call__(self, rows: Rows, labels: list[int], role: str) -> list[Sample]:
        """Raises DataError if more than `max_skipped_rate` of the rows (and more than one) cannot be read."""
        samples: list[Sample] = []
        skipped: list[str] = []
        for i, label in enumerate(labels):
            row = row_at(rows, i)
            try:
                with reading(row.key):
                    value = self.table.segment(self.kind, field(row, self.column), row.folder)["value"]
                    encoded = encode(self.processor, self.name, value)
            except Unreadable as err:
                skipped.append(f"{row.key}: {err}")
                continue
            raw = raw_values(self.processor.readers[self.name], value, encoded)
            samples.append({"encoded": encoded, "raw": raw, "label": label, "key": row.key})
        if skipped:
            said = (
                f"{len(skipped)} of {len(labels)} {role} rows cannot be read as {self.name}; the first is {skipped[0]}"
            )
            if len(skipped) > max(self.table.max_skipped_rate * len(labels), 1) or not samples:
                raise DataError(said)
            self.notes.append(said)
        return samples


def encode(processor: OmniProcessor, name: str, value: object) -> Encoded:
    """One segment as an open document. Raises ValueError for other values, or one without latents."""
    encoded = processor.encode_document({"key": "", "segments": [{"kind": name, "value": value}]}, end=False)
    if encoded.length < 2:
        raise ValueError("it is empty")
    return encoded


def raw_name(reader: Modality) -> str:
    if reader.value_size is None:
        return "bag of tokens"
    return "raw pixels" if isinstance(reader, Image | Video) else "raw signal"


def raw_values(reader: Modality, value: Any, encoded: Encoded | None) -> Tensor:
    """The input of a probe without a model, [R]: shares of tokens; pixels of an image, at most 32 a side, or of a
    video, averaged to 4 frames of 16 a side; of any other signal its patches, averaged over 16 stretches."""
    table: Any = reader.table if reader.value_size is None else None
    if table is not None and encoded is not None:
        ids = encoded.positions["input_ids"][1:]
        return ids.bincount(minlength=table.num_embeddings).float() / len(ids)
    if isinstance(reader, Image):
        return as_pixels(value, reader.num_channels, min(reader.image_size, PIXEL_SIZE)).flatten()
    if isinstance(reader, Video):
        frames = as_pixels(value, reader.num_channels, RAW_SIDE).transpose(0, 1)  # [C, F, H, W]
        return F.adaptive_avg_pool3d(frames[None], (RAW_FRAMES, RAW_SIDE, RAW_SIDE)).flatten()
    assert encoded is not None  # only images have no time axis
    patches = next(rows for rows in encoded.values.values() if len(rows))  # [N, P]
    return F.adaptive_avg_pool1d(patches.T[None], RAW_STEPS).flatten()
