"""Image rows from the hub, folders, Parquet and webdataset archives: the only door to HF `datasets`."""

import contextlib
import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from glob import escape
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import numpy as np
from pydantic import Field, PrivateAttr

from ..core.config import DATA
from ..core.types import IGNORE_LABEL
from ..errors import ConfigError, unknown
from .collate import sample_seed
from .images import ImagePart, Role
from .labels import LABEL_COLUMNS, read_labels
from .origins import Origin, find_origin
from .stream import FIRST, Row, RowPlace, Rows, RowSequence

FILE_LABEL = "label of label_file"
TAR_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "JPG", "JPEG", "PNG")


@DATA.register("images")
class ImageData(ImagePart):
    """Images that Hugging Face `datasets` can read.

    source: a hub id ("org/name"); a folder of images (class folders give labels); a Parquet file, or a folder
    of them named by split (train.parquet, test-00000-of-00002.parquet); webdataset archives ("shards/*.tar");
    or "emoji", the sample that comes with the package. subset: configuration of a hub data set that has
    several. split, validation, test: which rows train, choose and measure; as in `load_dataset`:
    "train[:-5000]". where: keeps rows whose column has this value, or one of these: {"vendor": "noto"}.
    split_column: column that names each row's split, for sources that keep all splits in one file.
    image_column, label_column: null finds them. Labels may be class ids, integers or text. label_file: a CSV file
    with a column of image files, relative to the source's folder, and one of labels. streaming: reads in sequence,
    without a local copy; shuffle_buffer: rows to draw from, then.
    """

    source: str
    subset: str | None = None
    split: str = "train"
    validation: str = "validation"
    test: str = "test"
    where: dict[str, Any] = Field(default_factory=dict)
    split_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_file: str | None = None
    streaming: bool = False
    shuffle_buffer: int = Field(1000, gt=0, le=10_000_000)

    _class_names: list[str] | None = PrivateAttr(None)

    def rows(self, split: Role) -> Rows | RowSequence:
        """Rows of a split. Raises ConfigError for a source, split or column that does not exist."""
        origin = find_origin(self.source)
        expression = {"train": self.split, "validation": self.validation, "test": self.test}[split]
        data = self._load(origin, expression)
        columns = Columns.find(data, self.image_column, self._label(), str(self.source))
        ids = self._label_ids(data, columns.label, split)
        wanted = (columns.image, *columns.others, columns.label, "__key__", "__url__")
        keep = [c for c in wanted if c in (data.column_names or [])]
        data = data.select_columns(keep)
        to_row = ToRow(columns, ids, origin.folder)
        if self.streaming:
            return StreamedRows(data, to_row, self.shuffle_buffer)
        return IndexedRows(data, to_row)

    def class_names(self) -> list[str]:
        if self._class_names is None:
            self.rows("train")
        return [str(name) for name in self._class_names or []]

    def _label(self) -> str | None:
        """The label column that is asked for; None: the one that looks like it."""
        if self.label_file is not None:
            return FILE_LABEL
        return self.label_column or ("group" if self.source == "emoji" else None)

    def _split_column(self) -> str | None:
        return self.split_column or ("split" if self.source == "emoji" else None)

    def _load(self, origin: "Origin", expression: str) -> Any:
        """The data set of one split expression, filtered, with its columns as they are."""
        split_column = self._split_column()
        where = dict(self.where)
        if split_column:
            name, part = _parse_split(expression)
            data = self._read(origin, "train")
            where = {split_column: name, **where}
        else:
            part = slice(None)
            data = self._read(origin, expression)
        for column, wanted in where.items():
            data = _filter(data, column, wanted if isinstance(wanted, list) else [wanted], self.streaming)
        if part != slice(None):
            if self.streaming:
                raise ConfigError(f"data: split '{expression}' takes a part of the rows; that needs streaming=false")
            data = data.select(range(*part.indices(len(data))))
        return data

    def _read(self, origin: "Origin", expression: str) -> Any:
        """The rows of a split as they are, with the labels of `label_file` where there is one."""
        data = load(origin, expression, self.subset, self.streaming)
        return data if self.label_file is None else labelled(data, self.label_file, origin, self.streaming)

    def _label_ids(self, data: Any, column: str | None, split: Role) -> dict[Any, int]:
        """The class id of each label value; empty if the values are ids already.

        The training split names the classes, for every split: a folder of validation images may lack one of them, and
        then numbers the others differently. Raises ConfigError for a class that training does not know.
        """
        if column is None:
            return {}
        own = _names(data.features[column])
        if self._class_names is None:
            self._class_names = self._training_names(column, own if split == "train" else None)
        if own is None:
            return {name: i for i, name in enumerate(self._class_names or [])}
        if own == self._class_names:
            return {}
        ids = {name: i for i, name in enumerate(self._class_names or [])}
        if strange := [name for name in own if name not in ids]:
            raise ConfigError(f"data: the {split} images have a class that training does not know: '{strange[0]}'")
        return {i: ids[name] for i, name in enumerate(own)}

    def _training_names(self, column: str, own: list[Any] | None) -> list[Any] | None:
        """Classes of the training split: those of its feature, else its values, sorted. None for text in a stream."""
        if own is not None:
            return own
        split = "train" if self._split_column() else _parse_split(self.split)[0]
        everything = self._read(find_origin(self.source), split)
        own = _names(everything.features[column])
        if own is not None or self.streaming:
            return own
        values = {v for v in everything.unique(column) if v is not None and v != ""}
        return sorted(v for v in values if not isinstance(v, int) or v >= 0)  # -1 is how some say: no label


def _names(feature: Any) -> list[Any] | None:
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def class_names(features: Any) -> dict[str, list[str]]:
    """The names of the classes of each column that holds class ids."""
    return {column: names for column, feature in (features or {}).items() if (names := _names(feature))}


def media_of(feature: Any) -> str | None:
    """What a column holds: "image", "audio", "video", "label" (a class), "text" or "series"; None: anything else."""
    if isinstance(feature, datasets.Image | datasets.Audio | datasets.Video):
        return type(feature).__name__.lower()
    if isinstance(feature, datasets.ClassLabel):
        return "label"
    depth = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, depth = feature.feature, depth + 1
    kind = str(getattr(feature, "dtype", ""))
    if "string" in kind and depth < 2:
        return "text"
    return "series" if depth and kind.startswith(("float", "int", "uint")) else None


def labelled(data: Any, label_file: str, origin: "Origin", streaming: bool) -> Any:
    """The data with the labels of a CSV file as a column; rows that it does not name are left out.

    Raises ConfigError if the file cannot be read, has no columns of files and labels, or names none of the images, or
    one that is not there.
    """
    folder = origin.folder
    if streaming or folder is None:
        raise ConfigError("data.label_file needs local files and streaming=false")
    labels = read_labels(label_file)
    column = next((n for n, feature in data.features.items() if isinstance(feature, datasets.Image)), None)
    if column is None:
        raise ConfigError("data.label_file needs images with file names")
    paths = data.data.column(column).combine_chunks().field("path").to_pylist()
    names = [Path(p).relative_to(folder).as_posix() if p and Path(p).is_relative_to(folder) else p for p in paths]
    keep = [i for i, name in enumerate(names) if name in labels]
    if not keep:
        raise ConfigError(f"data.label_file: {label_file} names none of the images, e.g. '{names[0]}'")
    lost = [name for name in labels if not (folder / name).is_file()] if origin.builder == "imagefolder" else []
    if lost:
        raise ConfigError(
            f"data.label_file: {len(lost)} of the {len(labels)} files in {label_file} are not there, e.g. '{lost[0]}'"
        )
    return data.select(keep).add_column(FILE_LABEL, [labels[names[i]] or None for i in keep])


def load(origin: Origin, split: str, subset: str | None, streaming: bool, **more: Any) -> Any:
    """`datasets.load_dataset`, with its many errors as one ConfigError line. more: options of the builder."""
    name = _parse_split(split)[0]
    if streaming and name != split:
        raise ConfigError(f"data: split '{split}' takes a part of the rows; that needs streaming=false")
    options: dict[str, Any] = {"split": split, "streaming": streaming, **more}
    if origin.files is None:
        options["name"] = subset
    else:
        if name not in origin.files:
            raise ConfigError(unknown("data: split", name, origin.files))
        options["data_files"] = {name: list(map(_plain, origin.files[name]))}
    try:
        with _quiet(origin.files is not None):
            if origin.builder == "webdataset":
                options["features"] = _tar_features(options["data_files"])
            return _undecoded(datasets.load_dataset(origin.builder, **options))
    except (
        OSError,
        ValueError,
        datasets.exceptions.DatasetGenerationError,
        datasets.exceptions.DatasetsError,
        tarfile.TarError,
    ) as err:
        if "corresponds to no data" in str(err):
            kind = "images" if origin.builder == "imagefolder" else "rows"
            raise ConfigError(
                f"data: split '{split}' of {origin.folder or origin.builder} is empty: it has no {kind}"
            ) from None
        reason = str(err.__cause__ or err).strip().splitlines() or [type(err).__name__]
        what = "on the hub or as a local path" if origin.files is None else "as " + origin.builder
        files = (origin.files or {}).get(name, [])
        where = files[0] if len(files) == 1 else origin.folder or origin.builder
        raise ConfigError(f"data.source: cannot read '{where}' {what}: {reason[0]}") from err


def _tar_features(data_files: dict[str, list[str]]) -> datasets.Features:
    """Features of webdataset archives with a column for every kind of image.

    `datasets` takes the columns of the first samples for those of all, and refuses first samples that differ: a PNG
    among JPEGs would be lost, or stop everything.
    """
    try:
        split = next(iter(data_files))
        features = datasets.load_dataset("webdataset", data_files=data_files, split=split, streaming=True).features
        found = dict(features)
    except ValueError as err:
        if "the same types" not in str(err):
            raise
        text = datasets.Value("string")
        found = {"__key__": text, "__url__": text, "cls": datasets.Value("int64")}
    return datasets.Features(found | {name: datasets.Image() for name in TAR_IMAGES if name not in found})


def _plain(file: str) -> str:
    """A path, or FOLDER/**, for `datasets`, which takes brackets and stars in any name for a pattern."""
    folder, star, _ = file.partition("/**")
    return escape(folder) + star


def _undecoded(data: Any) -> Any:
    """Images, videos and sounds as file bytes or paths: a filter on a stream would else decode them, for good."""
    for name, feature in (data.features or {}).items():
        if (stored := as_stored(feature)) is not feature:
            data = data.cast_column(name, stored)
    return data


def as_stored(feature: Any) -> Any:
    """The feature with media as file bytes or paths, in lists and fields too; itself where it has none."""
    if isinstance(feature, datasets.Image | datasets.Video | datasets.Audio):
        return type(feature)(decode=False)
    if isinstance(feature, datasets.List | datasets.LargeList):
        inner = as_stored(feature.feature)
        return feature if inner is feature.feature else type(feature)(inner)
    if isinstance(feature, dict):
        fields = {name: as_stored(one) for name, one in feature.items()}
        return feature if all(fields[name] is feature[name] for name in fields) else fields
    return feature


@contextlib.contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """No progress bars for local files; a download keeps its own."""
    shown, level = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    if local:
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what is wrong comes as an error, too
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


def _parse_split(expression: str) -> tuple[str, slice]:
    """ "train[:-50]" -> ("train", slice(None, -50)). Parts in percent are left to `datasets`."""
    match = re.fullmatch(r"(\w+)(?:\[(-?\d*%?):(-?\d*%?)\])?", expression)
    if not match:
        raise ConfigError(f"data: split '{expression}' is not understood; write e.g. train, train[:-5000], train[90%:]")
    ends = [None if not end or "%" in end else int(end) for end in match.groups()[1:]]
    return match[1], slice(*ends)


def _filter(data: Any, column: str, wanted: list[Any], streaming: bool) -> Any:
    if column not in data.column_names:
        raise ConfigError(unknown("data.where: column", column, data.column_names))
    if streaming:
        return data.filter(lambda value: value in wanted, input_columns=[column])
    kept = [i for i, value in enumerate(data[column]) if value in wanted]
    if not kept:
        values = sorted({str(v) for v in data.unique(column)})
        some = ", ".join(values[:10]) + (", ..." if len(values) > 10 else "")
        raise ConfigError(f"data: no row has {column} = {', '.join(map(str, wanted))}; it is one of: {some}")
    return data.select(kept)


class Columns(NamedTuple):
    """Names of the image and the label column (None without labels). others: columns that hold the image of a sample
    which has none in `image`; webdataset archives keep a column for each kind of file."""

    image: str
    label: str | None
    others: tuple[str, ...] = ()

    @classmethod
    def find(cls, data: Any, image: str | None, label: str | None, source: str) -> "Columns":
        """The columns asked for, or those that look like it. Raises ConfigError for a missing one."""
        features = data.features
        if features is None:
            raise ConfigError(f"data.source: the columns of '{source}' are not known; set streaming=false")
        for field, name in (("image_column", image), ("label_column", label)):
            if name is not None and name not in features:
                raise ConfigError(unknown(f"data.{field}:", name, features))
        others: tuple[str, ...] = ()
        if image is None:
            if "__key__" in features:
                others = tuple(name for name, feature in features.items() if isinstance(feature, datasets.Image))
            image = next((name for name, feature in features.items() if _is_image(feature)), None)
        if image is None:
            raise ConfigError(
                f"data.image_column: none of the columns of '{source}' holds images: {', '.join(features)}"
            )
        if not _is_image(features[image]):
            raise ConfigError(f"data.image_column: '{image}' holds no images but {features[image]}")
        if label is None:
            classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
            label = next((name for name in (*LABEL_COLUMNS, *classes) if name in features), None)
        return cls(image, label, others)


def _is_image(feature: Any) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in (
        "binary",
        "large_binary",
    )


class ToRow(NamedTuple):
    """Makes a Row of what `datasets` gives. ids: class id by label value; empty if values are ids already."""

    columns: Columns
    ids: dict[Any, int]
    folder: Path | None

    def __call__(self, record: dict[str, Any], index: int | None) -> Row:
        value = record[self.columns.image]
        if value is None:
            value = next((record[name] for name in self.columns.others if record[name] is not None), None)
        image, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if image is None and path is not None:
            image = self._file(path)
        row: Row = {"image": image, "key": self._key(record, path, image, index)}
        if self.columns.label is not None:
            label = record[self.columns.label]
            if isinstance(label, str):
                row["label_name"] = label
            row["label"] = self.label(label)
        return row

    def label(self, value: Any) -> int:
        """The class id of a label column's value; -100 for none."""
        return self.ids.get(value, IGNORE_LABEL) if self.ids else _class_id(value)

    def _file(self, path: str) -> Any:
        if self.folder is None:  # the hub: a file of its cache, or a URL when streaming
            if "://" not in path:
                return Path(path)
            with fsspec.open(path, "rb") as file:
                return file.read()
        full = Path(self.folder / path)
        inside = Path(_absolute(full)).is_relative_to(self.folder)
        return full if inside else None  # a row cannot name files outside the data folder

    def _key(self, record: dict[str, Any], path: str | None, image: Any, index: int | None) -> str:
        if "__key__" in record:
            return f"{Path(str(record.get('__url__', ''))).name}/{record['__key__']}"
        if path and self.folder is not None and Path(path).is_absolute() and Path(path).is_relative_to(self.folder):
            return Path(path).relative_to(self.folder).as_posix()
        if index is not None:
            return f"{index}" + (f" {path}" if path else "")
        # A stream knows no row numbers under shuffling: the content names the row.
        content = blake2b(image, digest_size=8).hexdigest() if isinstance(image, bytes) else str(image)
        return f"{path or 'row'} {content}"


def _absolute(path: Path) -> str:
    return os.path.normpath(path.absolute())  # links that lie inside the folder may point where their owner wants


def _class_id(label: Any) -> int:
    return label if isinstance(label, int) and label >= 0 else IGNORE_LABEL


class IndexedRows:
    """Rows of a `datasets.Dataset`; only the image and its label are read."""

    def __init__(self, data: Any, to_row: ToRow):
        self.data, self.to_row = data, to_row

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Row:
        return self.to_row(self.data[index], index)

    def labels(self) -> list[int]:
        """The label of every row, without reading the images."""
        name = self.to_row.columns.label
        if name is None:
            return [IGNORE_LABEL] * len(self.data)
        return [self.to_row.label(value) for value in self.data[name]]

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.in_order())

    def in_order(self, start: RowPlace = FIRST) -> Iterator[tuple[RowPlace, Row]]:
        """The rows from a place on, each with the place after it."""
        index = start.row
        data = self.data.select(range(index, len(self.data))) if index else self.data
        for records in data.iter(batch_size=256):
            for values in zip(*records.values()):
                yield RowPlace(index + 1, 0, index + 1), self.to_row(dict(zip(records, values)), index)
                index += 1


class StreamedRows:
    """Rows of a `datasets.IterableDataset`, in an order that (seed, epoch) draws: shards (files) are dealt out anew,
    then rows are mixed within a buffer.

    Each reader owns shards if there are enough for all; else each takes every n-th row.
    """

    def __init__(self, data: Any, to_row: ToRow, shuffle_buffer: int):
        self.data, self.to_row, self.shuffle_buffer = data, to_row, shuffle_buffer

    def read(self, seed: int, epoch: int, reader: int, num_readers: int) -> Iterator[Row]:
        order = np.random.default_rng(sample_seed(seed, epoch, "shards")).permutation(self.data.num_shards).tolist()
        if len(order) >= num_readers:
            records = self._records(order[reader::num_readers])
        else:
            records = itertools.islice(self._records(order), reader, None, num_readers)
        for record in _mixed(records, self.shuffle_buffer, sample_seed(seed, epoch, f"reader {reader}")):
            yield self.to_row(record, None)

    def in_order(self, start: RowPlace = FIRST) -> Iterator[tuple[RowPlace, Row]]:
        """The rows as they are stored, unshuffled, from a place on, each with the place after it. Only the shard that
        the place lies in is read anew. Keys hold row numbers, as without streaming."""
        index = start.row
        for shard in range(start.shard, self.data.num_shards):
            passed = start.passed if shard == start.shard else 0
            for record in itertools.islice(self._records([shard]), passed, None):
                index, passed = index + 1, passed + 1
                yield RowPlace(index, shard, passed), self.to_row(record, index - 1)

    def _records(self, shards: list[int]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            # `iter` and not `__iter__`, which would divide the rows among torch's workers a second time.
            for batch in self.data.shard(self.data.num_shards, shard).iter(batch_size=1):
                yield {name: values[0] for name, values in batch.items()}


def _mixed(records: Iterator[dict[str, Any]], buffer_size: int, seed: int) -> Iterator[dict[str, Any]]:
    """All records, each drawn from a buffer that the next one refills. Unlike the shuffle of `datasets`, it reads in
    one thread and is the same in all its versions, so that a resumed run meets the same order."""
    rng, buffer = np.random.default_rng(seed), list[dict[str, Any]]()
    for record in records:
        if len(buffer) < buffer_size:
            buffer.append(record)
        else:
            at = int(rng.integers(buffer_size))
            yield buffer[at]
            buffer[at] = record
    for at in rng.permutation(len(buffer)):
        yield buffer[at]
