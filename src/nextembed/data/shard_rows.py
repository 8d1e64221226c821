"""Rows of a source prepared for shards: their columns, and the unchanged files that they name."""

import contextlib
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from ..core.code import trusting
from ..core.config import DATA, Part
from ..core.types import IGNORE_LABEL, Role
from ..errors import ConfigError
from .archives import is_member, place_of
from .draws import sample_seed
from .interleaved import Interleaved
from .labels import LABEL_COLUMNS
from .limits import Limits
from .listing import IMAGES, VIDEOS
from .loading import Feature, class_names, dtype_of, is_image, media_of, plain, storage
from .origins import find_origin, find_table
from .record import URL, Folder, Record, plain_path
from .rows import Row, RowPlace, Rows, RowSequence, row_key, rows_in_order
from .segmentation import SegmentationData
from .shard_files import Media, Packed
from .sources import FILE_LABEL, ImageData, ToImage, image_column
from .stored import IndexedRows, Stored, StreamedRows, Values
from .tables import DocumentTable, TableSettings, ToRecord, is_lines
from .transforms import ImageReader, Unreadable, is_video

MEDIA = ("image", "video", "audio")
SOUNDS = frozenset([".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff"])
PEEKED = 200  # rows that are checked for names of files
UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


class Draft(NamedTuple):
    """A row as it is stored. Nothing of what it names has been read."""

    record: Stored
    at: int | str


def drafted(record: Stored, index: int | str) -> Draft:
    """The row without conversion."""
    return Draft(record, index)


class Content(NamedTuple):
    """The rows of a split. pack: makes the `Draft` of a row, by its number in the source; raises Unreadable. key: names
    a row. formats: possible file formats, the best one first. left_out: columns that are not written."""

    rows: Rows | RowSequence
    pack: Callable[[int, object], Packed]
    schema: pa.Schema
    formats: tuple[str, ...]
    classes: list[str] = []
    left_out: tuple[str, ...] = ()
    key: Callable[[int, object], str] = lambda number, row: row.key if isinstance(row, Record) else str(number)


def named(kind: str, source: str) -> TableSettings:
    """Data settings that the user typed."""
    with trusting(True):
        return checked(DATA.parse({"kind": kind, "source": source}))


def part_of(source: str, kind: str | None) -> TableSettings:
    """The data settings of a source. kind: of data, as `data.kind` has it; None detects images or rows of a table.
    Raises ConfigError if both are possible."""
    if kind is not None:
        return named(kind, source)
    images = ImageData(source=source)
    try:
        origin = find_origin(source)
    except ConfigError as err:
        try:
            find_table(source)
        except ConfigError:
            raise err from None
        return named("records", source)
    if origin.files is None:
        return images
    try:
        other = find_table(source)
    except ConfigError:
        other = origin
    if other.builder != origin.builder:
        raise ConfigError(
            f"data.source: {source} contains {origin.builder} and rows ({other.builder}); choose one with "
            "--kind images, or --kind records, interleaved or messages"
        )
    if origin.builder == "parquet" and image_column(images.opened(origin, "train").features or {}) is None:
        return named("records", source)
    return images


def checked(part: Part) -> TableSettings:
    """Raises ConfigError for a kind of data that has no source of its own."""
    if isinstance(part, TableSettings):
        return part
    raise ConfigError(f"data.kind: '{part.kind}' is not read from a table or a folder, which shards are made from")


def content_of(part: TableSettings, split: Role, decodes: bool) -> Content:
    """The rows of a split, prepared for writing. decodes: whether images are decoded to find broken ones. Raises
    MissingSplit, and ConfigError for what no shard can hold."""
    reader = ImageReader()
    if isinstance(part, Limits):
        reader = ImageReader(3, part.background, part.max_pixels, part.max_bytes)
    if isinstance(part, ImageData):
        return image_content(part, split, reader, decodes)
    if isinstance(part, SegmentationData) and part.folders_of():
        every = part.rows(split)
        pairs = [of_pair(every[at], at) for at in range(len(every))]
        columns: dict[str, Feature] = {"image": "image", "mask": "image"}
        return Content(pairs, ToPacked(columns, reader, decodes).of_record, storage(columns, {}), ("parquet",))
    rows = table_rows(part, split)
    prefix = part.images_from if isinstance(part, Interleaved) else ""
    named = named_places(rows, prefix)
    if isinstance(rows, list) or is_lines(part.origin()):
        pack = ToPacked({}, reader, decodes, frozenset(named), prefix).of_record
        return Content(rows, pack, pa.schema([]), ("jsonl",))
    features = features_of(rows)
    for place in sorted(named):
        if len(place) > 1:
            raise ConfigError(
                f"data: '{'.'.join(place)}' names files inside lists or fields, which Parquet shards do not "
                "support: convert the rows to JSON lines first"
            )
        features[place[0]] = named[place]
    pack = ToPacked(features, reader, decodes, frozenset(named)).of_record
    return Content(rows, pack, storage(features, {}), ("parquet",))


def of_pair(row: Row, number: int) -> Record:
    """An image with its mask, or why there is none."""
    return Record(
        {"image": row.get("image"), "mask": row.get("mask")}, row_key(row, number), error=row.get("no_mask") or None
    )


def table_rows(part: TableSettings, split: Role) -> Rows | RowSequence:
    """Every row of a split as a `Record`, whether a document can be made of it or not."""
    if isinstance(part, DocumentTable):
        return DocumentTable.rows(part, split)
    with part.asked_for(split):
        origin = part.origin()
        data = part.opened(origin, split)
    return IndexedRows(data, ToRecord(origin.folder, class_names=class_names(data.features)))


def features_of(rows: Rows | RowSequence) -> dict[str, Feature]:
    """The columns of a table; class ids have become the names of the classes."""
    if not isinstance(rows, IndexedRows | StreamedRows) or rows.data.features is None:
        raise ConfigError("data.source: its columns are not known; set streaming=false")
    named = class_names(rows.data.features)
    return {
        name: plain("string") if name in named else one
        for name, one in rows.data.features.items()
        if not name.startswith("__")
    }


def image_content(part: ImageData, split: Role, reader: ImageReader, decodes: bool) -> Content:
    """The rows of images: the image, its class, and all other columns that hold no media."""
    data, to_row, origin = part.chosen(split)
    columns, names = to_row.columns, part.class_names()
    features = data.features or {}
    kind = media_of(features[columns.image]) or "image"
    used = {columns.image, *columns.others, columns.label, FILE_LABEL, "__key__", "__url__"}
    rest = {name: one for name, one in features.items() if name not in used}
    media = [name for name, one in rest.items() if media_of(one) in MEDIA or is_image(one)]
    left_out = (*media, *(name for name in rest if name in (*LABEL_COLUMNS, "image", "video") and name not in media))
    rest = {name: one for name, one in rest.items() if name not in left_out}
    stored: dict[str, Feature] = {kind: kind}
    if columns.label is not None:
        stored["label"] = plain("int64" if names or to_row.ids else dtype_of(features[columns.label]) or "string")
    classes = {"label": names} if names and columns.label is not None else {}
    classes |= {name: own for name, own in class_names(rest).items()}
    pack = ToPacked({kind: kind}, reader, decodes and kind == "image").of_image(to_row, tuple(rest), kind)
    drafts = part.streamed(data, drafted, origin, split) if part.streaming else IndexedRows(data, drafted)
    formats = ("parquet", "tar") if rest else ("tar", "parquet")

    def key(number: int, draft: object) -> str:
        return str(to_row(draft.record, draft.at)["key"]) if isinstance(draft, Draft) else str(number)

    return Content(drafts, pack, storage(stored | rest, classes), formats, names, left_out, key)


class ToPacked:
    """Makes what is written of a row: files that it names become `Media`.

    features: columns, "image", "video" or "audio" for those of files that are named in text. reader: of images.
    decodes: whether each has to be decoded, so that broken ones are found. named: places (keys of a row, "[]" for
    lists) where text names a file. prefix: of these names.
    """

    def __init__(
        self,
        features: Mapping[str, Feature],
        reader: ImageReader,
        decodes: bool,
        named: frozenset[tuple[str, ...]] = frozenset(),
        prefix: str = "",
    ):
        self.features, self.reader, self.decodes = features, reader, decodes
        self.named, self.prefix = named, prefix

    def of_record(self, number: int, record: object) -> Packed:
        """Raises Unreadable for a row of which something cannot be read."""
        assert isinstance(record, Record)
        if record.error is not None:
            raise Unreadable(record.error)
        columns = {
            name: self._embedded(value, record.folder, (name,)) for name, value in record.items() if name[:2] != "__"
        }
        return Packed(name_of(number, record.key), columns)

    def of_image(self, to_row: ToImage, rest: tuple[str, ...], kind: str) -> Callable[[int, object], Packed]:
        """The function that makes a `Draft` of images. rest: columns to keep besides the image and its class."""

        def pack(number: int, draft: object) -> Packed:
            assert isinstance(draft, Draft)
            if isinstance(draft.record, Unreadable):
                raise draft.record
            record = draft.record
            row = to_row(record, draft.at)
            media = self._read(row.get("image"), stored_name(record, to_row))
            label: int | str | None = row.get("label")
            if label == IGNORE_LABEL:
                label = None if to_row.ids else row.get("label_name")
            own: dict[str, object] = {kind: media} | {name: record[name] for name in rest}
            return Packed(name_of(number, media.name), own, label)

        return pack

    def _embedded(self, value: object, folder: Folder, place: tuple[str, ...]) -> object:
        if isinstance(value, Path):
            return self._read(value, value.name)
        if isinstance(value, str) and place in self.named:
            named = f"{self.prefix}/{value}" if self.prefix else value
            return self._read(folder.read(named), value)
        if isinstance(value, dict) and value.keys() >= {"bytes", "path"}:
            if value["bytes"] is None and value["path"] is None:
                return None
            return self._read(folder.read(value), str(value["path"] or ""))
        if isinstance(value, dict):
            return {key: self._embedded(own, folder, (*place, str(key))) for key, own in value.items()}
        if isinstance(value, list):
            return [self._embedded(own, folder, (*place, "[]")) for own in value]
        return value

    def _read(self, value: object, name: str) -> Media:
        """The bytes of a file as they are. Raises Unreadable for none, or for an image that cannot be decoded."""
        data = self.reader.load(value)
        ending = Path(name).suffix.lower()
        if ending not in (*VIDEOS, *SOUNDS):
            found = "" if ending in IMAGES and not self.decodes else picture_ending(data)
            if found and self.decodes:
                self.reader.read(data)
            elif self.decodes and (ending in IMAGES or not ending):
                raise Unreadable("not an image file of a known format")
            if ending not in IMAGES and (found or is_video(data)):
                name = f"{name or 'file'}{found or '.mp4'}"
        return Media(data, Path(name).name)


def picture_ending(data: bytes) -> str:
    """ ".png" of a picture, by its first bytes; "" of anything else."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return f".{str(picture.format).lower()}"
    except Exception:  # whatever a header leads to
        return ""


def stored_name(record: Values, to_row: ToImage) -> str:
    """The name of the file that an image had, where it is known."""
    value = next((record[n] for n in (to_row.columns.image, *to_row.columns.others) if record.get(n) is not None), None)
    path = value.get("path") if isinstance(value, dict) else None
    if not path:
        return str(record.get("__key__", ""))
    return place_of(path)[1] if is_member(path) else plain_path(path)


def name_of(number: int, text: str) -> str:
    """The name of a row: its number in the source, and what it was called there, as far as names of files go."""
    stem = UNSAFE.sub("_", Path(text).stem if "." in Path(text).name else text.rpartition("/")[2]).strip("_")[:60]
    return f"{number:09d}_{stem}" if stem and stem != str(number) else f"{number:09d}"


def named_places(rows: Rows | RowSequence, prefix: str) -> dict[tuple[str, ...], str]:
    """Where rows name files that are there, and of what kind they are ("image", "video", "audio")."""
    found: dict[tuple[str, ...], str] = {}
    for _, record in itertools.islice(rows_in_order(rows), PEEKED):
        for place, value in texts(dict(record), ()):
            kind = kind_of(value)
            if kind and place not in found and not URL.match(value):
                with contextlib.suppress(Unreadable, OSError):
                    if record.folder.inside(f"{prefix}/{value}" if prefix else value).is_file():
                        found[place] = kind
    return found


def kind_of(name: str) -> str:
    """What a file of this name is; "" for anything but media."""
    ending = Path(name[-300:]).suffix.lower()
    kinds = {"image": IMAGES, "video": VIDEOS, "audio": SOUNDS}
    return next((kind for kind, endings in kinds.items() if ending in endings), "")


def texts(value: object, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """All texts in a row, but those of media, with where they stand."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict) and not value.keys() >= {"bytes", "path"}:
        for key, own in value.items():
            yield from texts(own, (*place, str(key)))
    elif isinstance(value, list):
        for own in value:
            yield from texts(own, (*place, "[]"))


def in_order(rows: Rows | RowSequence, start: RowPlace, shuffle: int | None) -> Iterator[tuple[RowPlace, int, object]]:
    """Rows from a place on, each with the place after it and its number in the source. shuffle: seed of an order that
    mixes all of them. Raises ConfigError for a stream that is to be mixed."""
    if shuffle is None:
        yield from ((place, place.row - 1, row) for place, row in rows_in_order(rows, start))
        return
    if not isinstance(rows, Rows):
        raise ConfigError(
            "--shuffle shuffles all rows, which needs streaming=false; a stream is shuffled when it is read"
        )
    order = np.random.default_rng(sample_seed(shuffle, 0, "shards")).permutation(len(rows))
    for at in range(start.row, len(rows)):
        yield RowPlace(at + 1, 0, at + 1), int(order[at]), rows[int(order[at])]
