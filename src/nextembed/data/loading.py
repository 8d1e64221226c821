"""Reads data with Hugging Face `datasets` and turns its errors into one line each. The only module that imports it."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from glob import escape, glob
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import compute

from ..core.files import first_line
from ..core.hub import unreachable
from ..errors import ConfigError, DataError, MissingSplit, unknown
from .archives import check_tar
from .chosen import Value, Wanted
from .damaged_tables import cannot_read, find_fault, reason_in, remote_rows, with_rows
from .lines import stamp
from .listing import shown
from .metadata import csv_in, metadata_columns, metadata_fault
from .naming import Part, parse_split
from .origins import Origin
from .record import stored_path
from .remote import fetched
from .tar_tables import (
    archive_features,
    archive_stream,
    archive_table,
    first_kinds,
    kinds_in,
    named_kinds,
    own_classes,
    remote_samples,
)

Table: TypeAlias = datasets.Dataset | datasets.IterableDataset
Options = dict[str, Any]  # of `datasets.load_dataset`
Stamped = tuple[str, str]  # a file, and what tells its content from what stood there before
RowsOf = Callable[[list[Stamped]], Iterator[Mapping[str, str | None]]]
Feature: TypeAlias = object  # the type of a column, as `datasets` has it: a class of its own, a dict of fields

TAR_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "JPG", "JPEG", "PNG")
NUM_SHARDS = 64  # of image files that are streamed

# Readers log an error before they raise it; here it is reported once.
logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)


def class_names_of(feature: Feature) -> list[str] | None:
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def class_names(features: Mapping[str, Feature] | None) -> dict[str, list[str]]:
    """The names of the classes of each column that holds class ids."""
    return {column: names for column, feature in (features or {}).items() if (names := class_names_of(feature))}


def storage(columns: Mapping[str, Feature], classes: Mapping[str, list[str]]) -> pa.Schema:
    """The columns as a Parquet file holds them, with information for `datasets`. classes: names of class ids by column.
    Media are files' bytes with their names: "image", "video", "audio" says a column of them in one word."""
    media: Options = {"image": datasets.Image, "video": datasets.Video, "audio": datasets.Audio}
    fields: Options = {
        name: media[one](decode=False) if isinstance(one, str) else as_stored(one) for name, one in columns.items()
    }
    fields |= {name: datasets.ClassLabel(names=names) for name, names in classes.items()}
    return datasets.Features(fields).arrow_schema


def plain(dtype: str) -> Feature:
    """A column of plain values, such as "string"."""
    return datasets.Value(dtype)


def media_of(feature: Feature) -> str | None:
    """What a column holds: "image", "audio", "video", "label" (a class), "text" or "series"; None: anything else."""
    if isinstance(feature, datasets.Image | datasets.Audio | datasets.Video):
        return type(feature).__name__.lower()
    if isinstance(feature, datasets.ClassLabel):
        return "label"
    depth = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, depth = feature.feature, depth + 1
    kind = dtype_of(feature)
    if "string" in kind and depth < 2:
        return "text"
    return "series" if depth and kind.startswith(("float", "int", "uint")) else None


def is_image(feature: Feature) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Image) or dtype_of(feature) in ("binary", "large_binary")


def is_empty(data: Table, column: str) -> bool:
    """Whether no row has a value in a column; not known of a stream."""
    return (
        isinstance(data, datasets.Dataset) and len(data) > 0 and data.data.column(column).null_count == len(data.data)
    )


def overlap(data: Table, one: str, other: str) -> bool:
    """Whether some row has a value in both columns; not known of a stream of archives, whose samples differ."""
    if not isinstance(data, datasets.Dataset):
        return "__key__" not in (data.features or {})
    there, also = (data.data.column(name).combine_chunks().is_valid() for name in (one, other))
    return bool(compute.any(compute.and_(there, also)).as_py())


def dtype_of(feature: Feature) -> str:
    """The type of plain values; "" for anything else."""
    return str(feature.dtype) if isinstance(feature, datasets.Value | datasets.ClassLabel) else ""


def load(origin: Origin, split: str, subset: str | None, streaming: bool) -> Table:
    """`datasets.load_dataset`.

    Raises ConfigError for what does not exist or is empty, DataError for a file that is damaged, which it names.
    """
    name, part = parse_split(split)
    if streaming and not part.is_whole:
        raise ConfigError(f"data: split '{split}' selects part of the rows, which needs streaming=false")
    away = unreachable() if origin.files is None else None
    if away:
        datasets.config.HF_HUB_OFFLINE = True  # it took its own copy
    options: Options = {"split": split, "streaming": streaming}
    if origin.files is None:
        options["name"] = subset
    else:
        name = origin.named(name)
        if origin.remote:
            return remote_stream(origin, name)
        if origin.builder in ("images", "videos"):
            data = image_table(origin, name)
            return take(data, part) if not streaming else as_stream(data)
        if origin.builder == "webdataset" and (kinds := kinds_in(origin, name)):
            data = archive_stream(origin, name, kinds) if streaming else archive_table(origin, name, kinds)
            return take(data, part)
        if origin.builder in ("imagefolder", "videofolder") and (tables := csv_in(origin, name)):
            columns, media = metadata_columns(tables, origin.builder.removesuffix("folder"))
            features = {column: _media(media[column]) if column in media else plain("string") for column in columns}
            data = datasets.Dataset.from_dict(columns, datasets.Features(features))
            return take(data, part) if not streaming else as_stream(data)
        options["split"] = name
        files = with_rows(origin.files[name]) if origin.builder == "parquet" else origin.files[name]
        if not files:
            raise MissingSplit(f"data: split '{name}' of {origin.folder} is empty: it has no rows")
        options["data_files"] = {name: list(map(_plain, files))}
        if origin.builder == "parquet" and not streaming:  # one replaced under its old time is seen
            stamps = blake2b("".join(map(stamp, origin.files[name])).encode(), digest_size=16).hexdigest()
            options["cache_dir"] = str(Path(datasets.config.HF_DATASETS_CACHE) / "stamped" / stamps)
    try:
        with quiet(origin.files is not None):
            data = _opened(origin.builder, options)
    except Exception as err:  # broken files may raise anything
        if "corresponds to no data" in str(err):
            kind = {"imagefolder": "images", "videofolder": "videos"}.get(origin.builder, "rows")
            raise MissingSplit(
                f"data: split '{split}' of {origin.folder or origin.builder} is empty: it has no {kind}"
            ) from None
        if origin.files is None:
            if away:
                raise ConfigError(
                    f"data.source: '{origin.builder}' is neither a local path nor in the download cache, and {away}"
                ) from err
            missing = str(err).startswith(("Unknown split", "Bad split"))  # `datasets` has no class for this error
            raise (MissingSplit if missing else ConfigError)(
                f"data.source: cannot read '{origin.builder}' on the hub or as a local path: {reason_in(err)}"
            ) from err
        with quiet(True):
            raise cannot_read(*_culprit(origin, name, options, err), origin.builder) from err
    return data if origin.files is None else take(data, part)


def remote_stream(origin: Origin, name: str) -> datasets.IterableDataset:
    """The rows of archives or Parquet files that are fetched one by one as they are read; each is a shard. The first
    one determines the columns."""
    files, index = origin.of_split(name), origin.shards
    given: Options = {"files": files}
    if origin.builder == "parquet":
        with fetched(files[0]) as local:
            try:
                features = datasets.Features.from_arrow_schema(pq.read_schema(local))
            except (OSError, pa.ArrowException) as err:
                raise cannot_read(files[0], err, "parquet") from err
        columns = {column: as_stored(one) for column, one in features.items()}
        return datasets.IterableDataset.from_generator(remote_rows, datasets.Features(columns), gen_kwargs=given)
    with fetched(files[0]) as local:
        kinds = index.splits[name].kinds if index is not None and name in index.splits else first_kinds(str(local))
        named = named_kinds([str(local)], kinds)
    features = datasets.Features(archive_features(kinds, [], named) | own_classes(origin))
    given |= {"kinds": tuple(kinds), "named": named}
    return datasets.IterableDataset.from_generator(remote_samples, features, gen_kwargs=given)


def image_table(origin: Origin, name: str) -> datasets.Dataset:
    """The files of images or videos of a split, with their classes where the folder has any. The rows hold paths."""
    files = (origin.files or {})[name]
    if not files:
        lost = next((f": {file.name} ({file.reason})" for file in origin.left_out), "")
        raise MissingSplit(
            f"data: split '{name}' of {origin.folder} is empty: it has no {origin.builder} that can be used{lost}"
        )
    name = origin.builder.removesuffix("s")
    paths = pa.array([stored_path(file) for file in files], pa.string())
    empty = pa.nulls(len(files), pa.binary())
    columns: Options = {name: pa.StructArray.from_arrays([empty, paths], ["bytes", "path"])}
    features: Options = {name: _media(name)}
    classes = [origin.classes.get(file) for file in files]
    if any(name is not None for name in classes):
        names = sorted({shown(name) for name in classes if name is not None})
        ids = {name: number for number, name in enumerate(names)}
        columns["label"] = pa.array([None if name is None else ids[shown(name)] for name in classes], pa.int64())
        features["label"] = datasets.ClassLabel(names=names)
    schema = datasets.Features(features).arrow_schema
    return datasets.Dataset(datasets.table.InMemoryTable(pa.table(list(columns.values()), schema)))


def first_row(data: Table) -> dict[str, object]:
    """The first row of a table; empty for a stream, which is not started for this, or without rows."""
    return dict(data[0]) if isinstance(data, datasets.Dataset) and len(data) else {}


def _media(kind: str) -> Feature:
    return (datasets.Video if kind == "video" else datasets.Image)(decode=False)


def as_stream(data: datasets.Dataset) -> datasets.IterableDataset:
    return data.to_iterable_dataset(num_shards=min(len(data), NUM_SHARDS))


def text_table(rows: RowsOf, columns: list[str], files: list[Stamped]) -> datasets.Dataset:
    """The rows that `rows` reads of files, all columns text, kept in the cache under the stamps of the files."""
    with quiet(True):
        return datasets.Dataset.from_generator(rows, features=_of_text(columns), gen_kwargs={"files": files})


def streamed_text(rows: RowsOf, columns: list[str], files: list[Stamped]) -> datasets.IterableDataset:
    """As `text_table`, read anew each time; each file is a shard."""
    return datasets.IterableDataset.from_generator(rows, features=_of_text(columns), gen_kwargs={"files": files})


def _of_text(columns: list[str]) -> datasets.Features:
    return datasets.Features({column: datasets.Value("string") for column in columns})


def _opened(builder: str, options: Options) -> Table:
    if builder == "webdataset":
        options = {**options, "features": _tar_features(options["data_files"])}
    if builder == "webdataset" and not options["streaming"]:
        made = {name: options[name] for name in ("features", "data_files")}
        if not Path(
            datasets.load_dataset_builder(builder, **made).cache_dir
        ).exists():  # otherwise this was done already
            for pattern in itertools.chain(*options["data_files"].values()):
                check_tar(glob(pattern)[0])
    data = datasets.load_dataset(builder, **options)
    return _undecoded(data)


def _culprit(origin: Origin, name: str, options: Options, err: Exception) -> tuple[object, Exception]:
    """The file that cannot be read, and why; the folder if each can be read, but not all together."""
    files = (origin.files or {})[name]
    if origin.builder in ("imagefolder", "videofolder") and origin.folder is not None:
        return metadata_fault(origin.folder, err)
    if origin.builder == "parquet" and (fault := find_fault(files)) is not None:
        return fault
    if len(files) == 1:
        return files[0], err
    for file in files:
        try:
            if origin.builder == "webdataset":
                check_tar(file)
            one = {**options, "split": name, "streaming": True, "data_files": {name: [_plain(file)]}}
            for _ in _opened(origin.builder, one).iter(batch_size=100):
                pass
        except Exception as own:
            return file, own
    return origin.folder, err


def _tar_features(data_files: dict[str, list[str]]) -> datasets.Features:
    """Features of webdataset archives with a column for every kind of image.

    `datasets` assumes the columns of the first samples for all, and fails if these differ: a PNG among JPEGs would be
    lost or stop the run.
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


def _undecoded(data: Table) -> Table:
    """Images, videos and sounds as file bytes or paths: otherwise a filter on a stream would decode them
    permanently."""
    for name, feature in (data.features or {}).items():
        if (stored := as_stored(feature)) is not feature:
            data = data.cast_column(name, stored)
    return data


def as_stored(feature: Feature) -> Feature:
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
def quiet(local: bool) -> Iterator[None]:
    """No progress bars for local files; a download keeps its own."""
    shown, level = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    if local:
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # faults are also raised as errors
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


def take(data: Table, part: Part) -> Table:
    """A part of the rows. Raises ConfigError for a stream, or rows that do not exist."""
    if part.is_whole:
        return data
    if isinstance(data, datasets.IterableDataset):
        raise ConfigError("data: selecting part of a split needs streaming=false")
    if not (rows := part.of(len(data))):
        raise MissingSplit(f"data: the part [{part.start}:{part.stop}] of {len(data)} rows is empty")
    return data.select(rows)


def choose(
    data: Table, column: str, values: list[Value], streaming: bool, none: type[ConfigError] = ConfigError
) -> Table:
    """The rows of which a column has a value that is wanted. Raises `none` if there is not one."""
    if column not in data.column_names:
        raise ConfigError(unknown("data.where: column", column, data.column_names))
    feature = (data.features or {}).get(column)
    if feature is not None and not _is_plain(feature):
        raise ConfigError(
            f"data.where: column '{column}' contains {_what(feature)}; data.where selects rows by numbers or text only"
        )
    wanted = Wanted(values, names := class_names_of(feature))
    if streaming:
        return data.filter(lambda value: value in wanted, input_columns=[column])
    kept = [i for i, value in enumerate(values_of(data, column)) if value in wanted]
    if not kept:
        there = sorted(names or {str(v) for v in data.unique(column)})
        some = ", ".join(there[:10]) + (", ..." if len(there) > 10 else "")
        raise none(f"data: no row has {column} = {', '.join(map(str, values))}; it is one of: {some}")
    return data.select(kept)


def values_of(data: Table, column: str) -> list[Hashable]:
    """All values of a column. Raises DataError if one cannot be decoded."""
    try:
        return list(data[column][:])  # at once: row by row takes five times as long
    except ValueError as err:  # text that is not UTF-8
        raise DataError(f"data: column '{column}' cannot be read: {first_line(err)}") from err


def _is_plain(feature: Feature) -> bool:
    return dtype_of(feature) != "" and "binary" not in dtype_of(feature)


def _what(feature: Feature) -> str:
    found = media_of(feature)
    if found in ("image", "audio", "video"):
        return {"image": "images", "audio": "sounds", "video": "videos"}[found]
    return "bytes" if "binary" in dtype_of(feature) else "lists or fields"
