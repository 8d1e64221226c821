"""Labels: from a CSV file, a few of each class, and whether they are fit to train on."""

import csv
from pathlib import Path
from typing import Any

import torch

from ..core.types import IGNORE_LABEL
from ..errors import ConfigError
from .stream import Row, Rows, row_key, row_label

FILE_COLUMNS = ("file", "file_name", "filename", "path", "image")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "category", "target")


def classes_to_learn(data: Any) -> list[str]:
    """The class names of image data (`ImagePart`), by class id, checked against the labels of its training rows.

    Raises ConfigError if there are no labels or fewer than two classes, or a row has no label or one out of range.
    """
    names = data.class_names()
    if not names:
        raise ConfigError(
            "data: fine-tuning needs labels: a folder for each class, data.label_column, or data.label_file=labels.csv"
        )
    if len(names) < 2:
        raise ConfigError(f"data: there is only one class ('{names[0]}'); a classifier needs at least two")
    rows = data.training_rows()
    labels = labels_of(rows) if hasattr(rows, "labels") else []
    wrong = [i for i, label in enumerate(labels) if label != IGNORE_LABEL and not 0 <= label < len(names)]
    if wrong:
        raise ConfigError(
            f"data: label {labels[wrong[0]]} of row {rows[wrong[0]]['key']} is not one of the {len(names)} classes "
            f"(0..{len(names) - 1})"
        )
    missing = [i for i, label in enumerate(labels) if label == IGNORE_LABEL]
    if missing:
        raise ConfigError(
            f"data: {len(missing)} of {len(labels)} training images have no label (first: {rows[missing[0]]['key']})"
        )
    return list(names)


def read_labels(label_file: str) -> dict[str, str]:
    """Label by file name, of a CSV file with a header; the columns are found by their names, else the first two."""
    path = Path(label_file).expanduser()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = csv.reader(file) or [[]]
    except (OSError, ValueError, csv.Error) as err:
        raise ConfigError(f"data.label_file: cannot read {label_file}: {err}") from None
    if len(header) < 2:
        raise ConfigError(f"data.label_file: {label_file} needs a header and two columns: file,label")
    lower = [name.strip().lower() for name in header]
    file_at = next((lower.index(n) for n in FILE_COLUMNS if n in lower), 0)
    label_at = next((lower.index(n) for n in LABEL_COLUMNS if n in lower), 1 if file_at == 0 else 0)
    short = next((i for i, row in enumerate(rows, 2) if row and len(row) <= max(file_at, label_at)), None)
    if short is not None:
        raise ConfigError(f"data.label_file: line {short} of {label_file} has too few columns")
    return {row[file_at].strip().removeprefix("./"): row[label_at].strip() for row in rows if row}


class FewRows:
    """Some rows of others, by index."""

    def __init__(self, rows: Rows, indices: list[int]):
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self) -> list[int]:
        every = labels_of(self.rows)
        return [every[i] for i in self.indices]

    def __getitem__(self, index: int) -> Row:
        at = self.indices[index]
        row = self.rows[at]
        return {**row, "key": row_key(row, at)}  # the key of a row stays, wherever it stands


def labels_of(rows: Rows) -> list[int]:
    """The label of every row, -100 where there is none; read without the images where the rows can."""
    own: Any = getattr(rows, "labels", None)
    return own() if own is not None else [row_label(rows[i]) for i in range(len(rows))]


def draw_few(labels: list[int], per_class: int, seed: int) -> list[int]:
    """Indices, in order, of `per_class` rows of each class. More of a class contain fewer of it with the same seed."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    by_class: dict[int, list[int]] = {}
    for index in order:
        if labels[index] != IGNORE_LABEL:
            by_class.setdefault(labels[index], []).append(index)
    if not by_class:
        raise ConfigError("data.labels_per_class: the training images have no labels; set data.label_column")
    least = min(by_class, key=lambda label: (len(by_class[label]), label))
    if len(by_class[least]) < per_class:
        raise ConfigError(
            f"data.labels_per_class {per_class}: class {least} has only {len(by_class[least])} training images"
        )
    return sorted(index for found in by_class.values() for index in found[:per_class])
