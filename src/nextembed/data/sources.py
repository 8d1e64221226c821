"""Image rows from the hub, folders, Parquet and webdataset archives: the only door to HF `datasets`."""

import contextlib
import difflib
import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from glob import escape, glob, has_magic
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
from .stream import Row, Rows, RowSequence

EMOJI = Path(__file__).parent / "sample" / "emoji32.parquet"

TAR_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "JPG", "JPEG", "PNG")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "category", "target")
SPLIT_NAMES = {"train": "train", "training": "train", "validation": "validation", "val": "validation",
               "valid": "validation", "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@DATA.register("images")
class ImageData(ImagePart):
    """Images that Hugging Face `datasets` can read.

    source: a hub id ("org/name"); a folder of images (class folders give labels); a Parquet file, or a folder
    of them named by split (train.parquet, test-00000-of-00002.parquet); webdataset archives ("shards/*.tar");
    or "emoji", the sample that comes with the package. subset: configuration of a hub data set that has
    several. split, validation, test: which rows train, choose and measure; as in `load_dataset`:
    "train[:-5000]". where: keeps rows whose column has this value, or one of these: {"vendor": "noto"}.
    split_column: column that names each row's split, for sources that keep all splits in one file.
    image_column, label_column: null finds them. Labels may be class ids, integers or text. streaming: reads
    in sequence, without a local copy; shuffle_buffer: rows to draw from, then.
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
    streaming: bool = False
    shuffle_buffer: int = Field(1000, gt=0)

    _class_names: list[str] | None = PrivateAttr(None)

    def rows(self, split: Role) -> Rows | RowSequence:
        """Rows of a split. Raises ConfigError for a source, split or column that does not exist."""
        origin = find_origin(self.source)
        expression = {"train": self.split, "validation": self.validation, "test": self.test}[split]
        data = self._load(origin, expression)
        columns = Columns.find(data, self.image_column, self.label_column or self._default_label(), str(self.source))
        names = self._label_names(data, columns.label)
        wanted = (columns.image, *columns.others, columns.label, "__key__", "__url__")
        keep = [c for c in wanted if c in (data.column_names or [])]
        data = data.select_columns(keep)
        to_row = ToRow(columns, {name: i for i, name in enumerate(names)}, origin.folder)
        if self.streaming:
            return StreamedRows(data, to_row, self.shuffle_buffer)
        return IndexedRows(data, to_row)

    def class_names(self) -> list[str]:
        if self._class_names is None:
            self.rows("train")
        return [str(name) for name in self._class_names or []]

    def _default_label(self) -> str | None:
        return "group" if self.source == "emoji" else None

    def _load(self, origin: "Origin", expression: str) -> Any:
        """The data set of one split expression, filtered, with its columns as they are."""
        split_column = self.split_column or ("split" if self.source == "emoji" else None)
        where = dict(self.where)
        if split_column:
            name, part = _parse_split(expression)
            data = load(origin, "train", self.subset, self.streaming)
            where = {split_column: name, **where}
        else:
            part = slice(None)
            data = load(origin, expression, self.subset, self.streaming)
        for column, wanted in where.items():
            data = _filter(data, column, wanted if isinstance(wanted, list) else [wanted], self.streaming)
        if part != slice(None):
            if self.streaming:
                raise ConfigError(f"data: split '{expression}' takes a part of the rows; that needs streaming=false")
            data = data.select(range(*part.indices(len(data))))
        return data

    def _label_names(self, data: Any, column: str | None) -> list[Any]:
        """What the class ids stand for, empty if the values are ids already.

        Other values are sorted over all rows of the training split's file, so that every split agrees.
        """
        if column is None:
            return []
        feature = data.features[column]
        if isinstance(feature, datasets.ClassLabel):
            self._class_names = list(feature.names)
            return []  # the values are ids already
        if self._class_names is None:
            if self.streaming:
                return []
            everything = load(find_origin(self.source), _parse_split(self.split)[0], self.subset, False)
            self._class_names = sorted({v for v in everything.unique(column) if v is not None})
        return self._class_names


class Origin(NamedTuple):
    """Where rows come from.

    builder: "parquet", "imagefolder", "webdataset", or a hub id. files: by split, for
    local builders. folder: what file paths are relative to, and may not leave; None for the hub."""

    builder: str
    files: dict[str, list[str]] | None
    folder: Path | None


def find_origin(source: str) -> Origin:
    """What kind of source a text names. Raises ConfigError with the nearest spelling if it names none."""
    path = EMOJI if source == "emoji" else Path(source).expanduser()
    if has_magic(source) and not path.exists():
        found = sorted(glob(str(path), recursive=True))
        if not found:
            raise ConfigError(f"data.source: no file fits '{source}'")
        return _from_files([Path(f) for f in found], source)
    if path.is_file():
        return _from_files([path], source)
    if path.is_dir():
        return _from_folder(path)
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix in (".parquet", ".tar")
    if looks_local or not HUB_ID.fullmatch(source):
        raise ConfigError(f"data.source: no such file or folder: {source}{_nearest(path)}")
    return Origin(source, None, None)


def _from_files(files: list[Path], source: str) -> Origin:
    builder = {".parquet": "parquet", ".tar": "webdataset"}.get(files[0].suffix.lower())
    if builder is None or any(f.suffix.lower() != files[0].suffix.lower() for f in files):
        raise ConfigError(f"data.source: '{source}' should name .parquet or .tar files, or a folder of images")
    return Origin(builder, {"train": [str(f.resolve()) for f in files]}, files[0].resolve().parent)


def _from_folder(folder: Path) -> Origin:
    folder = folder.resolve()
    for pattern, builder in (("*.parquet", "parquet"), ("*.tar", "webdataset")):
        files = sorted(folder.glob(pattern)) or sorted(folder.glob(f"data/{pattern}"))
        if files:
            return Origin(builder, _by_split(files), folder)
    parts = {SPLIT_NAMES[d.name.lower()]: d for d in folder.iterdir() if d.is_dir() and d.name.lower() in SPLIT_NAMES}
    if "train" not in parts:
        parts = {"train": folder}
    if not any(f.is_file() for f in folder.rglob("*")):
        raise ConfigError(f"data.source: the folder {folder} is empty")
    return Origin("imagefolder", {name: [f"{part}/**"] for name, part in parts.items()}, folder)


def _by_split(files: list[Path]) -> dict[str, list[str]]:
    """Files grouped by the split their names start with; all are "train" unless some say so."""
    groups: dict[str, list[str]] = {}
    for file in files:
        name = re.split(r"[-_.]", file.name.lower())[0]
        groups.setdefault(SPLIT_NAMES.get(name, name), []).append(str(file))
    return groups if "train" in groups else {"train": [str(f) for f in files]}


def _nearest(path: Path) -> str:
    """A hint: the entry of the nearest existing parent folder that is spelled most alike."""
    parent = path.absolute()
    while not parent.exists():
        missing, parent = parent.name, parent.parent
    names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    by_lower = {name.lower(): name for name in names}
    if missing.lower() in by_lower:
        return f". Did you mean '{parent / by_lower[missing.lower()]}'?"
    near = difflib.get_close_matches(missing, names, n=1)
    return f". Did you mean '{parent / near[0]}'?" if near else f" (there is no '{missing}' in {parent})"


def load(origin: Origin, split: str, subset: str | None, streaming: bool) -> Any:
    """`datasets.load_dataset`, with its many errors as one ConfigError line."""
    name = _parse_split(split)[0]
    if streaming and name != split:
        raise ConfigError(f"data: split '{split}' takes a part of the rows; that needs streaming=false")
    options: dict[str, Any] = {"split": split, "streaming": streaming}
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
            raise ConfigError(
                f"data: split '{split}' of {origin.folder or origin.builder} is empty: it has no images"
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
    """Images as file bytes or paths: a filter on a stream would else decode them, for good."""
    for name, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return data


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
            row["label"] = self.ids.get(label, IGNORE_LABEL) if self.ids else _class_id(label)
        return row

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

    def __iter__(self) -> Iterator[Row]:
        index = 0
        for records in self.data.iter(batch_size=256):
            for values in zip(*records.values()):
                yield self.to_row(dict(zip(records, values)), index)
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
