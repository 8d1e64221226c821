"""Image rows from the hub, folders, Parquet and webdataset archives: as rows."""

import math
import os
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import PrivateAttr

from ..core.config import DATA
from ..core.types import IGNORE_LABEL, Role
from ..errors import ConfigError, unknown
from .found import Found
from .images import ImagePart
from .labels import LABEL_COLUMNS, read_labels
from .listing import METADATA, shown
from .loading import Feature, Table, class_names_of, dtype_of, first_row, is_image, media_of, overlap, values_of
from .naming import parse_split
from .origins import Origin, find_origin
from .pairs import IMAGES
from .record import Folder, plain_path
from .rows import Row, Rows, RowSequence
from .stored import IndexedRows, Stored, Values
from .tables import TableSettings, parsed
from .transforms import Unreadable

FILE_LABEL = "label of label_file"
EXACT = 2**53  # above, not every integer is a float


@DATA.register("images")
class ImageData(TableSettings, ImagePart):
    """Images that Hugging Face `datasets` can read.

    Attributes:
        source: a hub id ("org/name"); a folder of images or of videos (class folders give labels); a Parquet file, or a
            folder of them named by split (train.parquet, test-00000-of-00002.parquet); webdataset archives
            ("shards/*.tar"); or "emoji", the sample that comes with the package.
        image_column: column of the image, or of the video for a model of clips; null: detected.
        label_column: column of the label (a class id, an integer or text); null: detected.
        label_file: a CSV file with a column of image files, relative to the source's folder, and one of labels.
    """

    image_column: str | None = None
    label_column: str | None = None
    label_file: str | None = None

    _class_names: list[str] | None = PrivateAttr(None)
    _notes: dict[str, str] = PrivateAttr(default_factory=dict)  # findings when opening a split, by topic
    _unused: list[str] = PrivateAttr(default_factory=list)  # other columns of images, and the one that is used

    def rows(self, split: Role) -> Rows | RowSequence:
        """Rows of a split.

        Args:
            split: "train", "validation" or "test".

        Returns:
            A list of rows, or a stream of them.

        Raises:
            ConfigError: source, split or column does not exist.
        """
        data, to_row, origin = self.chosen(split)
        columns = to_row.columns
        self._unused = unused_images(data, columns.image) if self.image_column is None else []
        why = why_no_labels(data) if columns.label is None else ""
        self._note("no labels", why, bool(why))
        wanted = (columns.image, *columns.others, columns.label, "__key__", "__url__")
        data = data.select_columns([c for c in wanted if c in (data.column_names or [])])
        return self.streamed(data, to_row, origin, split) if self.streaming else LabelledRows(data, to_row)

    def chosen(self, split: Role) -> tuple[Table, "ToImage", Origin]:
        """The rows of a split with all their columns. Raises as `rows`.

        Args:
            split: "train", "validation" or "test".

        Returns:
            The data set, a function that makes a row of one of its entries, and where the data comes from.
        """
        origin = find_origin(self.source, self.rules())
        with self.asked_for(split):
            data = self.opened(origin, split)
        columns = Columns.find(data, self.image_column, self._label(), str(self.source))
        return (
            data,
            ToImage(columns, self._label_ids(data, columns.label, split), origin.folder, self.max_bytes),
            origin,
        )

    def class_names(self) -> list[str]:
        if self._class_names is None:
            self.rows("train")
        return [str(name) for name in self._class_names or []]

    def _label(self) -> str | None:
        """The label column in the settings; None if it is detected."""
        if self.label_file is not None:
            return FILE_LABEL
        return self.label_column or ("group" if self.source == "emoji" else None)

    def loaded(self, origin: Origin, expression: str) -> Table:
        """The rows of a split as they are, with the labels of `label_file` where there is one.

        Args:
            origin: where the data comes from.
            expression: the split in the syntax of `datasets`.

        Returns:
            The data set.
        """
        data = super().loaded(origin, expression)
        if origin.builder in ("imagefolder", "videofolder") and not self.streaming:
            lost = unnamed(data, origin, expression)
            text = (
                f"{len(lost):,} files are left out, because the metadata do not name them (first: "
                f"{min(lost, default='')})"
            )
            self._note("metadata", text, bool(lost))
        if self.label_file is None:
            return data
        named = labelled(data, self.label_file, origin, self.streaming)
        self._note("unnamed", f"{len(data) - len(named):,} images are not in {self.label_file}", len(named) < len(data))
        return named

    def _note(self, about: str, text: str, holds: bool) -> None:
        self._notes.pop(about, None)
        if holds:
            self._notes[about] = text

    def around(self) -> Found:
        found = super().around()
        notes = [text for about, text in self._notes.items() if about != "no labels"]
        if alike := differ_in_little(self._class_names or []):
            what = "case only" if len(set(map(str.casefold, alike))) == 1 else "invisible characters"
            named = ", ".join(name if name.isprintable() else ascii(name) for name in alike)
            notes.append(f"classes whose names differ by {what} stay separate: {named}")
        if self._unused:
            used, *others = self._unused
            notes.append(
                f"images are read from column '{used}', not from {', '.join(others)} (data.image_column={others[0]})"
            )
        return replace(found, notes=(*found.notes, *notes))

    def _label_ids(self, data: Table, column: str | None, split: Role) -> dict[object, int]:
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
            raise ConfigError(f"data: the {split} images have a class that the training data lacks: '{strange[0]}'")
        return {i: ids[name] for i, name in enumerate(own)}

    def _training_names(self, column: str, own: list[str] | None) -> list[str] | None:
        """Classes of the training split: those of its feature, else its values, sorted. None for text in a stream."""
        if own is not None:
            return own
        everything = self.loaded(find_origin(self.source, self.rules()), self.stored_split("train"))
        own = class_names_of(everything.features[column])
        if own is not None or self.streaming:
            return own
        written: dict[Hashable, set[str]] = {}
        for value in values_of(everything, column):
            written.setdefault(plain_label(value, column), set()).add(repr(value))
        written.pop(None, None)
        merged = next((forms for label, forms in written.items() if isinstance(label, str) and len(forms) > 1), set())
        text = (
            f"labels that differ by white space or in their form of Unicode are one class: {', '.join(sorted(merged))}"
        )
        self._note("merged", text, bool(merged))
        values: set[Any] = set(written)
        return sorted(v for v in values if not isinstance(v, int) or v >= 0)  # some sources use -1 for no label

    def why_no_labels(self) -> str:
        return self._notes.get("no labels", "")


def differ_in_little(names: Sequence[object]) -> list[str]:
    """The names of the first classes that look the same, but for their case: with invisible marks, other spaces."""
    found: dict[str, list[str]] = {}
    for name in map(str, names):
        seen = "".join(mark for mark in unicodedata.normalize("NFKC", name) if unicodedata.category(mark) != "Cf")
        found.setdefault(" ".join(seen.casefold().split()), []).append(name)
    return next((own for own in found.values() if len(own) > 1), [])


def unnamed(data: Table, origin: Origin, expression: str) -> set[str]:
    """The files of a split that no row of the metadata names, relative to the folder."""
    if not parse_split(expression)[1].is_whole:
        return set()
    named: set[str] = set()
    for column, feature in (data.features or {}).items():
        if media_of(feature) in ("image", "video"):
            named |= {os.path.normpath(path) for path in paths_of(data, column) if path}
    files = [file for file in origin.of_split(parse_split(expression)[0]) if Path(file).name not in METADATA]
    folder = origin.folder or Path()
    return {shown(Path(file).relative_to(folder).as_posix()) for file in files if os.path.normpath(file) not in named}


def paths_of(data: Table, column: str) -> list[str | None]:
    """The path of each row's file."""
    return [value.get("path") if isinstance(value, dict) else None for value in values_of(data, column)]


def labelled(data: Table, label_file: str, origin: Origin, streaming: bool) -> Table:
    """The data with the labels of a CSV file as a column; rows that it does not name are left out.

    Raises ConfigError if the file cannot be read, has no columns of files and labels, or names none of the images, or
    one that is not there.
    """
    folder = origin.folder
    if streaming or folder is None:
        raise ConfigError("data.label_file needs local files and streaming=false")
    labels = read_labels(label_file)
    column = next((n for n, feature in data.features.items() if media_of(feature) in ("image", "video")), None)
    if column is None:
        raise ConfigError("data.label_file needs images or videos with file names")
    paths = paths_of(data, column)
    names = [Path(p).relative_to(folder).as_posix() if p and Path(p).is_relative_to(folder) else p for p in paths]
    keep = [i for i, name in enumerate(names) if name in labels]
    if not keep:
        raise ConfigError(f"data.label_file: {label_file} names none of the images, e.g. '{names[0]}'")
    lost = (
        [name for name in labels if not (folder / name).is_file()]
        if origin.builder in ("images", "videos", "imagefolder", "videofolder")
        else []
    )
    if lost:
        raise ConfigError(
            f"data.label_file: {len(lost)} of the {len(labels)} files in {label_file} are not there, e.g. '{lost[0]}'"
        )
    return data.select(keep).add_column(FILE_LABEL, [labels[str(names[i])] or None for i in keep])


def why_no_labels(data: Table) -> str:
    """A column with the name of a label that is not used as one; empty if there is none."""
    features = data.features or {}
    if column := next((name for name in LABEL_COLUMNS if name in features), None):
        return (
            f"'{column}' contains lists or fields, not classes (data.label_column={column} accepts lists of "
            "one element)"
        )
    row = parsed(str(first_row(data).get("json")))[0] if "__key__" in features else {}
    if name := next((name for name in LABEL_COLUMNS if name in row), None):
        return f"'{name}' in the .json files is not read; the class of a sample is its .cls file, an id or a name"
    return ""


class Columns(NamedTuple):
    """Names of the image, the label and the mask column (None where there is none). others: columns that hold the image
    of a sample which has none in `image`; webdataset archives keep a column for each kind of file."""

    image: str
    label: str | None
    others: tuple[str, ...] = ()
    mask: str | None = None

    @classmethod
    def find(cls, data: Table, image: str | None, label: str | None, source: str) -> "Columns":
        """The columns in the settings, or the detected ones. Raises ConfigError for a missing one."""
        features = data.features
        if features is None:
            raise ConfigError(f"data.source: the columns of '{source}' are not known; set streaming=false")
        for field, name in (("image_column", image), ("label_column", label)):
            if name is not None and name not in features:
                raise ConfigError(unknown(f"data.{field}:", name, features))
        others: tuple[str, ...] = ()
        if image is None:
            image = image_column(features)
            if image is not None and "__key__" in features:
                kind = media_of(features[image]) or "image"
                others = tuple(name for name, feature in features.items() if media_of(feature) == kind)
        if image is None:
            raise ConfigError(
                f"data.image_column: none of the columns of '{source}' contains images or videos: {', '.join(features)}"
            )
        if not is_image(features[image]) and media_of(features[image]) != "video":
            raise ConfigError(f"data.image_column: '{image}' contains {features[image]}, not images")
        if label is None:
            classes = [name for name, feature in features.items() if media_of(feature) == "label"]
            usual = [name for name in LABEL_COLUMNS if name in features and dtype_of(features[name])]
            label = next(iter((*usual, *classes)), None)  # a list of boxes or tags is not a class
        return cls(image, label, others)


def image_column(features: Mapping[str, Feature]) -> str | None:
    """The column of images: by its name, else by what it is said to hold, else by bytes; where there is none, that of
    videos, which models of clips read, or None."""
    likely = [name for name, feature in features.items() if is_image(feature)]
    said = [name for name in likely if media_of(features[name]) == "image" or isinstance(features[name], dict)]
    videos = [name for name, feature in features.items() if media_of(feature) == "video"]
    return next((name for name in (*IMAGES, *said, *likely) if name in likely), next(iter(videos), None))


def unused_images(data: Table, used: str) -> list[str]:
    """The column of images that is used, and others that are said to hold images in the same rows; empty where there
    are none."""
    features = data.features or {}
    said = [
        name for name, one in features.items() if media_of(one) == "image" or (isinstance(one, dict) and is_image(one))
    ]
    others = [name for name in sorted(said) if name != used and overlap(data, name, used)]
    return [used, *others] if others else []


class ToImage(NamedTuple):
    """Makes a Row of what `datasets` gives. ids: class id by label value; empty if values are ids already."""

    columns: Columns
    ids: Mapping[object, int]
    folder: Path | None
    max_bytes: int

    def __call__(self, record: Stored, index: int | str) -> Row:
        if isinstance(record, Unreadable):
            return {"image": record, "mask": record, "key": str(index), "place": str(index)}
        value = record[self.columns.image]
        if value is None:
            value = next((record[name] for name in self.columns.others if record[name] is not None), None)
        image, path = self._picture(value)
        row: Row = {"image": image, "key": self._key(record, path, index), "place": str(index)}
        if self.columns.mask is not None:
            row["mask"] = self._picture(record[self.columns.mask])[0]
        if self.columns.label is not None:
            label = plain_label(record[self.columns.label], self.columns.label)
            if isinstance(label, str):
                row["label_name"] = label
            row["label"] = self.label(label)
        return row

    def _picture(self, value: object) -> tuple[object, str | None]:
        """The image in a column, or why it cannot be read, and its path if it has one."""
        path = value.get("path") if isinstance(value, dict) else None
        try:
            path = path and plain_path(path)
            return Folder(self.folder, self.max_bytes).read(value), path
        except Unreadable as err:
            return err, path

    def label(self, value: object) -> int:
        """The class id of a label column's value; -100 for none."""
        value = plain_label(value, str(self.columns.label))
        return self.ids.get(value, IGNORE_LABEL) if self.ids else _class_id(value)

    def _key(self, record: Values, path: str | None, index: int | str) -> str:
        if "__key__" in record:
            return f"{Path(str(record.get('__url__', ''))).name}/{record['__key__']}"
        if path and self.folder is not None and path.startswith(f"{self.folder}{os.sep}".replace("//", "/")):
            return shown(Path(path).relative_to(self.folder).as_posix())
        return f"{index}" + (f" {shown(path)}" if path else "")


def plain_label(value: object, column: str) -> Hashable:
    """A normalised label: whole numbers written as fractions (pandas writes 1.0 if others are missing), lists of one,
    text without white space around it, in one form of Unicode; None for nothing and NaN. Raises ConfigError for several
    labels of one image, and bytes that are no text."""
    if isinstance(value, list) and len(value) < 2:
        value = value[0] if value else None
    if isinstance(value, list | dict):
        raise ConfigError(
            f"data.label_column: '{column}' has several values per image; a class is a single number or text"
        )
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() and abs(value) < EXACT else value
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ConfigError(
                f"data.label_column: '{column}' contains bytes that are not text: {value[:20]!r}"
            ) from None
    if isinstance(value, str):
        value = unicodedata.normalize("NFC", value.strip())
    return None if value == "" else cast(Hashable, value)


def _class_id(label: object) -> int:
    return label if isinstance(label, int) and label >= 0 else IGNORE_LABEL


class LabelledRows(IndexedRows[Row]):
    """Rows of images whose labels are read without them."""

    def __init__(self, data: Table, to_row: ToImage):
        super().__init__(data, to_row)
        self.to_image = to_row

    def labels(self) -> list[int]:
        name = self.to_image.columns.label
        if name is None:
            return [IGNORE_LABEL] * len(self.data)
        values = values_of(self.data, name)
        known = {value: self.to_image.label(value) for value in values if isinstance(value, Hashable)}
        return [known[value] if isinstance(value, Hashable) else self.to_image.label(value) for value in values]
