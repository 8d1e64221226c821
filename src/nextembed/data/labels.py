"""Labels: from a CSV file, a few per class, and checks before training."""

from collections import Counter
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from ..core.types import IGNORE_LABEL
from ..errors import ConfigError, DataError
from .lines import check_fields, check_written, encoding_of, opened, read_fields
from .origins import check_file
from .record import AnyRow, keyed
from .rows import Rows, RowSequence, row_key, row_label

FILE_COLUMNS = ("file", "file_name", "filename", "path", "image")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "category", "target")
NUM_LIKELY = 20  # classes that any labels may have
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif")


class Classed(Protocol):
    """Image data with classes, see `ImagePart`."""

    def class_names(self) -> list[str]: ...

    def training_rows(self) -> Rows | RowSequence: ...

    def why_no_labels(self) -> str: ...


@runtime_checkable
class Labelled(Protocol):
    """Rows whose labels are read without the images."""

    def labels(self) -> list[int]: ...


def classes_to_learn(data: Classed) -> list[str]:
    """The class names of image data (`ImagePart`), by class id, checked against the labels of its training rows.

    Raises ConfigError if there are no labels or fewer than two classes, or a row has no label or one out of range.
    """
    names = data.class_names()
    if not names:
        raise ConfigError(
            "data: fine-tuning needs labels: a folder for each of at least two classes, data.label_column, or "
            "data.label_file=labels.csv" + (f" ({why})" if (why := data.why_no_labels()) else "")
        )
    if len(names) < 2:
        raise ConfigError(f"data: there is only one class ('{names[0]}'); a classifier needs at least two")
    if len(set(names)) < len(names):
        raise ConfigError("data: two classes have the same name")
    rows = data.training_rows()
    if isinstance(rows, Rows):  # labels of a stream are checked as they come, by the objective
        check_labels(rows, names)
        if said := no_class(labels_of(rows.rows if isinstance(rows, FewRows) else rows)):
            raise ConfigError(f"data: {said}; name the column of the classes with data.label_column")
    return list(names)


def no_class(labels: list[int]) -> str:
    """A note about labels that are almost all different, like file names or measured values; else empty."""
    counts = Counter(label for label in labels if label != IGNORE_LABEL)
    alone, total = sum(count == 1 for count in counts.values()), sum(counts.values())
    if len(counts) <= NUM_LIKELY or alone * 2 <= total:
        return ""
    return (
        f"the labels have {len(counts):,} distinct values in {total:,} rows, which looks like an id or a "
        "measurement, not a class"
    )


def check_labels(rows: Rows, names: list[str]) -> None:
    """Raises ConfigError unless every row has a label, all are class ids, and there are at least two."""
    labels = labels_of(rows)
    wrong = next((i for i, label in enumerate(labels) if label != IGNORE_LABEL and not 0 <= label < len(names)), None)
    if wrong is not None:
        raise ConfigError(
            f"data: label {labels[wrong]} of {row_key(rows[wrong], wrong)} is not one of the {len(names)} classes "
            f"(0..{len(names) - 1})"
        )
    missing = [i for i, label in enumerate(labels) if label == IGNORE_LABEL]
    if missing:
        first = row_key(rows[missing[0]], missing[0])
        raise ConfigError(f"data: {len(missing)} of {len(labels)} training images have no label (first: {first})")
    if len(found := set(labels)) == 1:
        raise ConfigError(f"data: all training images are of one class ('{names[found.pop()]}')")


def read_labels(label_file: str) -> dict[str, str]:
    """Label by file name ("" for none), of a CSV file with a header.

    The columns are found by name, otherwise they are the first two. Raises ConfigError for a file that cannot be read,
    has no header or not two columns, or gives one image two labels.
    """
    path = check_file("data.label_file", label_file)
    try:
        check_plain(path)
        (_, header), *rows = list(read_fields(path)) or [(1, [])]
        for number, row in ((1, header), *rows):
            check_fields(path, number, row, header)
            check_written(path, number, row)
    except (OSError, ValueError, DataError) as err:
        raise ConfigError(f"data.label_file: cannot read {label_file}: {err}") from None
    if len(header) < 2:
        raise ConfigError(f"data.label_file: {label_file} needs a header and two columns: file,label")
    if any(Path(name.strip()).suffix.lower() in IMAGE_SUFFIXES for name in header):
        raise ConfigError(f"data.label_file: {label_file} needs a header, e.g. file,label; its first line is an image")
    lower = [name.strip().lower() for name in header]
    label_at = next((lower.index(n) for n in LABEL_COLUMNS if n in lower), None)
    file_at = next((lower.index(n) for n in FILE_COLUMNS if n in lower), 1 if label_at == 0 else 0)
    label_at = (1 if file_at == 0 else 0) if label_at is None else label_at
    short = next((number for number, row in rows if len(row) <= max(file_at, label_at)), None)
    if short is not None:
        raise ConfigError(f"data.label_file: line {short} of {label_file} has too few columns")
    labels: dict[str, str] = {}
    for _, row in rows:
        name, label = row[file_at].strip().replace("\\", "/").removeprefix("./"), row[label_at].strip()
        if labels.setdefault(name, label) != label:
            raise ConfigError(f"data.label_file: {label_file} gives {name} two labels, '{labels[name]}' and '{label}'")
    return labels


def check_plain(path: Path) -> None:
    """Raises DataError for a file of labels that is not CSV in UTF-8: a wrong guess would mislabel every image."""
    if (encoding := encoding_of(path)) not in ("utf-8", "utf-8-sig"):
        raise DataError(f"it is {encoding.upper()}; save it as UTF-8")
    with opened(path, "") as file:
        first = file.readline()
    if "," not in first and ";" in first:
        raise DataError("its columns are separated by semicolons; save it with commas")


class FewRows:
    """Some rows of others, by index."""

    def __init__(self, rows: Rows, indices: list[int]):
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self) -> list[int]:
        every = labels_of(self.rows)
        return [every[i] for i in self.indices]

    def __getitem__(self, index: int) -> AnyRow:
        at = self.indices[index]
        return keyed(self.rows[at], at)  # a row keeps its key at any index


def labels_of(rows: Rows) -> list[int]:
    """The label of every row, -100 where there is none; read without the images if possible."""
    return rows.labels() if isinstance(rows, Labelled) else [row_label(rows[i]) for i in range(len(rows))]


def by_class(labels: list[int], seed: int) -> dict[int, list[int]]:
    """The indices of each label's rows, in an order drawn from the seed."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    found: dict[int, list[int]] = {}
    for index in order:
        found.setdefault(labels[index], []).append(index)
    return found


def draw_few(labels: list[int], per_class: int, seed: int, names: list[str]) -> list[int]:
    """Indices, in order, of `per_class` rows of each class. With the same seed, a larger choice contains a smaller one.

    names: by class id, for the ConfigError that a class with fewer rows raises; empty if they have none.
    """
    found = by_class(labels, seed)
    found.pop(IGNORE_LABEL, None)
    if not found:
        raise ConfigError("data.labels_per_class: the training images have no labels; set data.label_column")
    least = min(found, key=lambda label: (len(found[label]), label))
    if len(found[least]) < per_class:
        name = f"'{names[least]}'" if 0 <= least < len(names) else least
        raise ConfigError(f"data.labels_per_class {per_class}: class {name} has only {len(found[least])} images")
    return sorted(index for indices in found.values() for index in indices[:per_class])


def hold_out(labels: list[int], rate: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the rows that stay and of those held out: this share of each class, at least one if it has two or more
    rows."""
    kept = []
    for indices in by_class(labels, seed).values():
        if len(indices) > 1:
            kept += indices[: min(max(1, round(rate * len(indices))), len(indices) - 1)]
    apart = set(kept)
    return [i for i in range(len(labels)) if i not in apart], sorted(kept)
