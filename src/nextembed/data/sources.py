"""Image rows from the hub, folders, Parquet and webdataset archives: as rows."""

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
from pydantic import Field, PrivateAttr

from ..core.config import DATA
from ..core.types import IGNORE_LABEL
from ..errors import ConfigError, MissingSplit, unknown
from .draws import sample_seed
from .images import ImagePart, Role
from .labels import LABEL_COLUMNS, read_labels
from .loading import (
    cannot_read,
    check_tar,
    choose,
    class_names_of,
    is_image,
    load,
    media_of,
    metadata_fault,
    parse_split,
    values_of,
)
from .origins import Origin, find_origin
from .record import reason_of
from .shuffle import START, Mark, mixed
from .splits import asked_for
from .stream import FIRST, Row, RowPlace, Rows, RowSequence
from .transforms import Unreadable

FILE_LABEL = "label of label_file"


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
        with asked_for(self, split):
            data = self._load(origin, expression)
        columns = Columns.find(data, self.image_column, self._label(), str(self.source))
        ids = self._label_ids(data, columns.label, split)
        wanted = (columns.image, *columns.others, columns.label, "__key__", "__url__")
        keep = [c for c in wanted if c in (data.column_names or [])]
        data = data.select_columns(keep)
        to_row = ToRow(columns, ids, origin.folder)
        if self.streaming:
            read = parse_split("train" if self._split_column() else expression)[0]
            return StreamedRows(data, to_row, self.shuffle_buffer, origin, read)
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
            name, part = parse_split(expression)
            data = self._read(origin, "train")
            where = {split_column: name, **where}
        else:
            part = slice(None)
            data = self._read(origin, expression)
        for column, wanted in where.items():
            kind = MissingSplit if column == split_column else ConfigError
            data = choose(data, column, wanted if isinstance(wanted, list) else [wanted], self.streaming, kind)
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
        own = class_names_of(data.features[column])
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
        split = "train" if self._split_column() else parse_split(self.split)[0]
        everything = self._read(find_origin(self.source), split)
        own = class_names_of(everything.features[column])
        if own is not None or self.streaming:
            return own
        values = {v for v in set(values_of(everything, column)) if v is not None and v != ""}
        return sorted(v for v in values if not isinstance(v, int) or v >= 0)  # -1 is how some say: no label


def labelled(data: Any, label_file: str, origin: "Origin", streaming: bool) -> Any:
    """The data with the labels of a CSV file as a column; rows that it does not name are left out.

    Raises ConfigError if the file cannot be read, has no columns of files and labels, or names none of the images, or
    one that is not there.
    """
    folder = origin.folder
    if streaming or folder is None:
        raise ConfigError("data.label_file needs local files and streaming=false")
    labels = read_labels(label_file)
    column = next((n for n, feature in data.features.items() if media_of(feature) == "image"), None)
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
                others = tuple(name for name, feature in features.items() if media_of(feature) == "image")
            image = next((name for name, feature in features.items() if is_image(feature)), None)
        if image is None:
            raise ConfigError(
                f"data.image_column: none of the columns of '{source}' holds images: {', '.join(features)}"
            )
        if not is_image(features[image]):
            raise ConfigError(f"data.image_column: '{image}' holds no images but {features[image]}")
        if label is None:
            classes = [name for name, feature in features.items() if media_of(feature) == "label"]
            label = next((name for name in (*LABEL_COLUMNS, *classes) if name in features), None)
        return cls(image, label, others)


class ToRow(NamedTuple):
    """Makes a Row of what `datasets` gives. ids: class id by label value; empty if values are ids already."""

    columns: Columns
    ids: dict[Any, int]
    folder: Path | None

    def __call__(self, record: Any, index: int | str) -> Row:
        if isinstance(record, Unreadable):
            return {"image": record, "key": str(index), "place": str(index)}
        value = record[self.columns.image]
        if value is None:
            value = next((record[name] for name in self.columns.others if record[name] is not None), None)
        image, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if image is None and path is not None:
            image = self._file(path)
        row: Row = {"image": image, "key": self._key(record, path, index), "place": str(index)}
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

    def _key(self, record: dict[str, Any], path: str | None, index: int | str) -> str:
        if "__key__" in record:
            return f"{Path(str(record.get('__url__', ''))).name}/{record['__key__']}"
        if path and self.folder is not None and Path(path).is_absolute() and Path(path).is_relative_to(self.folder):
            return Path(path).relative_to(self.folder).as_posix()
        return f"{index}" + (f" {path}" if path else "")


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
        return self.to_row(record_at(self.data, index), index)

    def labels(self) -> list[int]:
        """The label of every row, without reading the images."""
        name = self.to_row.columns.label
        if name is None:
            return [IGNORE_LABEL] * len(self.data)
        return [self.to_row.label(value) for value in values_of(self.data, name)]

    def __iter__(self) -> Iterator[Row]:
        return (row for _, row in self.in_order())

    def in_order(self, start: RowPlace = FIRST) -> Iterator[tuple[RowPlace, Row]]:
        """The rows from a place on, each with the place after it."""
        for begin in range(start.row, len(self.data), 256):
            for index, record in enumerate(records_from(self.data, begin, begin + 256), begin):
                yield RowPlace(index + 1, 0, index + 1), self.to_row(record, index)


def record_at(data: Any, index: int) -> Any:
    """A row; an Unreadable for one whose values cannot be decoded, such as text that is not UTF-8."""
    try:
        return data[index]
    except ValueError as err:
        return Unreadable(reason_of(err))


def records_from(data: Any, begin: int, end: int) -> list[Any]:
    """The rows of a stretch, each as of `record_at`."""
    try:
        records = data[begin:end]
        return [dict(zip(records, values)) for values in zip(*records.values())]
    except ValueError:  # one of them
        return [record_at(data, index) for index in range(begin, min(end, len(data)))]


class StreamedRows:
    """Rows of a `datasets.IterableDataset`, in an order that (seed, epoch) draws: shards (files) are dealt out anew,
    then every `shuffle_buffer` rows are mixed.

    Each reader owns shards if there are enough for all; else each takes every n-th row. A row is named by its shard and
    its number there, which stay the same. A stopped run reads on from the shard in which the rows of the
    buffer begin. Raises DataError, with the name of the file, for a shard that cannot be read to its end.
    """

    def __init__(self, data: Any, to_row: Any, shuffle_buffer: int, origin: Origin, split: str):
        self.data, self.to_row, self.shuffle_buffer = data, to_row, shuffle_buffer
        self.origin, self.files = origin, (origin.files or {}).get(split, [])

    def read(self, seed: int, epoch: int, reader: int, num_readers: int) -> Iterator[Row]:
        return (row for _, row in self.read_on(seed, epoch, reader, num_readers))

    def read_on(
        self, seed: int, epoch: int, reader: int, num_readers: int, mark: Mark = START
    ) -> Iterator[tuple[Mark, Row]]:
        """`read` from a mark on, with the mark after each row. Shards before the mark's are not read again."""
        order = np.random.default_rng(sample_seed(seed, epoch, "shards")).permutation(self.data.num_shards).tolist()
        deals = (order[reader::num_readers], 0, 1) if len(order) >= num_readers else (order, reader, num_readers)
        own = sample_seed(seed, epoch, f"reader {reader}")
        for after, one, record in mixed(self._dealt(*deals, mark), self.shuffle_buffer, own, mark):
            yield after, self.to_row(record, f"{self._name(one.file)}:{one.row}")

    def _dealt(self, shards: list[int], first: int, step: int, mark: Mark) -> Iterator["StoredRow"]:
        """Every `step`-th row of some shards, counted from the first one, but from the mark's shard on."""
        count = mark.before
        for shard in range(mark.shard, len(shards)):
            before = count
            for row, decode in enumerate(self._records(shards[shard])):
                if count % step == first:
                    yield StoredRow(count // step, shard, before, shards[shard], row, decode)
                count += 1

    def in_order(self, start: RowPlace = FIRST) -> Iterator[tuple[RowPlace, Row]]:
        """The rows as they are stored, unshuffled, from a place on, each with the place after it. Only the shard that
        the place lies in is read anew. Keys hold row numbers, as without streaming."""
        index = start.row
        for shard in range(start.shard, self.data.num_shards):
            passed = start.passed if shard == start.shard else 0
            for decode in itertools.islice(self._records(shard), passed, None):
                index, passed = index + 1, passed + 1
                yield RowPlace(index, shard, passed), self.to_row(decode(), index - 1)

    def _records(self, shard: int) -> Iterator[Callable[[], Any]]:
        """The rows of a shard, to be decoded."""
        try:
            if self.origin.builder == "webdataset" and self._is_file(shard):
                check_tar(self.files[shard])
            # Tables, for a value that cannot be decoded ends any other reader; and `iter`, not `__iter__`, which
            # would divide the rows among torch's workers a second time.
            for table in self.data.with_format("arrow").shard(self.data.num_shards, shard).iter(batch_size=1):
                yield partial(self._decoded, shard, table)
        except Exception as err:  # whatever the bytes of a file lead to
            raise cannot_read(*self._fault(shard, err), self.origin.builder) from err

    def _decoded(self, shard: int, table: Any) -> Any:
        """The row of a table; an Unreadable for values that cannot be decoded."""
        decode = getattr(self.data.features, "decode_example", dict)
        try:
            return decode(table.to_pylist()[0])
        except ValueError as err:
            return Unreadable(reason_of(err))
        except Exception as err:
            raise cannot_read(*self._fault(shard, err), self.origin.builder) from err

    def _is_file(self, shard: int) -> bool:
        return len(self.files) == self.data.num_shards and "/**" not in self.files[shard]

    def _fault(self, shard: int, err: Exception) -> tuple[Any, Exception]:
        if self._is_file(shard):
            return self.files[shard], err
        if self.origin.builder == "imagefolder":
            return metadata_fault(self.origin.folder, err)
        return self._name(shard), err

    def _name(self, shard: int) -> str:
        if not self._is_file(shard):
            return f"shard {shard}"
        file, folder = Path(self.files[shard]), self.origin.folder
        return file.relative_to(folder).as_posix() if folder and file.is_relative_to(folder) else str(file)


class StoredRow(NamedTuple):
    """See `shuffle.Stored`. file, row: the shard as it is stored, and the number of the row in it."""

    number: int
    shard: int
    before: int
    file: int
    row: int
    load: Callable[[], Any]
