"""The layout of a run folder, and readers of its files."""

import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError
from .answers import Answers
from .files import finite, from_json, read_text
from .places import NO_RUN, check_here
from .probe_table import ProbeTable
from .saved import Count, Number, checked, load, read_json
from .scores import ClassScores, SegmentScores
from .sizes import check_folder
from .yaml_text import read_yaml

TEACHER = "teacher"  # name of the weights, and folder in a run, of the network that features are read from

Line = dict[str, Any]  # of metrics.jsonl: finite numbers by name, and "warnings"
NUM_REASONS = 3  # that are named


@dataclass(frozen=True)
class Saved:
    """The models at a path. path: as given. run: the run folder that it is or lies in; None for a model without a run.
    folders: of models, by the name of their weights: "raw", "ema", "teacher" (if features are read from another network
    of the same class), "best" (of a run: best on validation), in this order; a hub id stands for its folder.
    """

    path: str
    run: Path | None
    folders: dict[str, Path | str]

    def folder(self, weights: str | None = None) -> Path | str:
        """The folder of these weights; None takes the first there is. Raises ConfigError for weights that are not
        there."""
        if weights is not None and weights not in self.folders:
            raise ConfigError(f"{self.path} has no {weights} weights; there is {', '.join(self.folders)}")
        return self.folders[weights or next(iter(self.folders))]

    def local_folder(self, weights: str | None = None) -> Path:
        """As `folder`, of a model that is here. Raises ConfigError for a hub id, too."""
        found = self.folder(weights)
        if isinstance(found, str):
            raise ConfigError(f"no such run or checkpoint: {self.path}")
        return found

    def name_of(self, folder: Path | str) -> str:
        """The name of the weights in a folder."""
        return next(name for name, own in self.folders.items() if own == folder)

    def first_of(self, *weights: str) -> Path | str:
        """The folder of the first of these weights that exist, else of any."""
        return self.folder(next((name for name in weights if name in self.folders), None))


def find_saved(path: str | os.PathLike[str]) -> Saved:
    """Models of a run folder (the finished ones, else those of the newest checkpoint), a checkpoint, a model folder, or
    a hub id "owner/name".

    A name that looks like a path never goes to a hub. Raises ConfigError if there is no such path, or no model in it,
    or one whose config.json names sizes that cannot be.
    """
    place = Path(path).expanduser()
    if not place.exists():
        check_here(path, NO_RUN)
        return Saved(str(path), None, {"raw": str(path)})
    folders: dict[str, Path | str] = {**weights_folders(place)}
    if (place / "best" / "config.json").is_file():
        folders["best"] = place / "best"
    return Saved(str(path), run_folder(place), folders)


def weights_folders(path: str | Path) -> dict[str, Path]:
    """Model folders by the name of their weights ("raw", "ema", "teacher").

    path: a run folder (its finished model, else its newest checkpoint), a checkpoint, or any saved model.
    Raises ConfigError if there is no model in it, or one whose config.json names sizes that cannot be.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"no such run or checkpoint: {path}")
    checkpoints = sorted((path / "checkpoints").glob("step-*/config.json"), key=lambda p: (len(str(p)), p))
    if (path / "config.json").is_file():
        found = {"ema": path} if path.name == "ema" else {"raw": path, "ema": path / "ema"}
    elif (path / "model" / "config.json").is_file():
        found = {"raw": path / "model", "ema": path / "ema", TEACHER: path / TEACHER}
    elif checkpoints:
        found = {"raw": checkpoints[-1].parent, "ema": checkpoints[-1].parent / "ema"}
    else:
        raise ConfigError(f"{path} contains no model: neither config.json nor model/ nor a finished checkpoint")
    folders = {name: folder for name, folder in found.items() if (folder / "config.json").is_file()}
    for folder in folders.values():
        check_folder(folder)
    return folders


def run_folder(path: str | Path) -> Path | None:
    """The run that a path is, or lies in: the nearest folder with a run's config.yaml, at most three up."""
    path = Path(path).expanduser().resolve()
    if (path / "config.yaml").is_file():
        return path
    # Folders above may contain another config.yaml; that of a run is next to an environment.json.
    above = (p for p in list(path.parents)[:3] if (p / "config.yaml").is_file())
    return next((p for p in above if (p / "environment.json").is_file()), None)


class RunFolder:
    """The files of a run folder, each checked when it is read, because it may have been changed since. Every reader
    raises ConfigError, one line that names the file and the fault; for a missing file it returns an empty value.
    """

    def __init__(self, folder: str | Path):
        self.dir = Path(folder)

    @property
    def values(self) -> dict[str, Any]:
        """config.yaml as plain values."""
        return read_config(self.dir)

    def history(self) -> list[Line]:
        """metrics.jsonl."""
        return read_history(self.dir)

    def environment(self) -> "Environment":
        """environment.json."""
        return read_environment(self.dir)

    def environment_values(self) -> dict[str, object]:
        """environment.json as plain values, to be listed."""
        file = self.dir / "environment.json"
        return checked(dict[str, Any], read_json(file), file) if file.is_file() else {}

    def probes(self) -> ProbeTable | None:
        """probe.json."""
        return ProbeTable.load(file) if (file := self.dir / "probe.json").is_file() else None

    def scores(self) -> ClassScores | SegmentScores | None:
        """scores.json, of a classifier or a segmenter as it says itself."""
        file = self.dir / "scores.json"
        if not file.is_file():
            return None
        values = read_json(file)
        if isinstance(values, dict) and values.get("task") == "segmentation":
            return checked(SegmentScores, values, file)
        return checked(ClassScores, values, file)

    def answers(self) -> Answers | None:
        """answers.json, of a model of documents."""
        return Answers.load(file) if (file := self.dir / "answers.json").is_file() else None

    def skipped(self) -> list[dict[str, object]]:
        """Lines of skipped.jsonl: what could not be read, and why."""
        return read_skipped(self.dir)

    def saved(self) -> "Saved":
        """Its models. Raises ConfigError if there is none."""
        return find_saved(self.dir)


def read_config(run: Path) -> dict[str, Any]:
    """The resolved config of a run as plain values; empty where there is none.

    Raises ConfigError if it is not YAML, or holds no settings.
    """
    file = run / "config.yaml"
    if not file.is_file():
        return {}
    values = read_yaml(read_text(file), str(file))
    return checked(dict[str, Any], values or {}, file)


def read_skipped(run: Path) -> list[dict[str, object]]:
    """What a run left out, without duplicates, which several processes may have written."""
    rows = read_lines(run / "skipped.jsonl")
    return list({str(row.get("place", row.get("key"))): row for row in reversed(rows)}.values())[::-1]


def skipped_in_words(rows: list[dict[str, object]]) -> str:
    """How many rows and files were left out, and the most frequent reasons; empty if none was."""
    if not rows:
        return ""
    reasons = Counter(" ".join(str(row.get("reason", "")).split())[:100] for row in rows).most_common()
    named = "; ".join(f"{count:,} x {reason}" for reason, count in reasons[:NUM_REASONS])
    return f"{len(rows):,} could not be read and were left out: {named}{'; ...' * (len(reasons) > NUM_REASONS)}"


def data_in_words(history: list[Line], rows: list[dict[str, object]]) -> str:
    """How much of the data a run used, what it left out and why, and how many documents were cut; empty if unknown.

    history: lines of metrics.jsonl. rows: lines of skipped.jsonl.
    """
    total = next((line["data_rows"] for line in reversed(history) if "data_rows" in line), None)
    found = [] if total is None else [f"{max(0, int(total) - len(rows)):,} of {int(total):,} used"]
    found += [skipped_in_words(rows)] if rows else []
    cut = [float(line["truncated_rate"]) for line in history if "truncated_rate" in line]
    if any(cut):
        found.append(f"{sum(cut) / len(cut):.1%} of the documents read were cut at their end (too long)")
    return "; ".join(found)


def read_lines(file: Path) -> list[Line]:
    """The objects of a .jsonl file, without a truncated last line; empty for a missing file."""
    rows = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = from_json(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return rows


def read_history(run: Path) -> list[Line]:
    """Lines of RUN/metrics.jsonl, oldest first: finite numbers by name, and "warnings", a list of sentences. Values
    that were not finite are left out. Raises ConfigError that names line and metric if a value is not a number.
    """
    file = run / "metrics.jsonl"
    rows: list[Line] = []
    for number, row in enumerate(read_lines(file), 1):
        given = {name: value for name, value in finite(row).items() if value is not None}
        where = f"{file}, line {number}"
        checked(_Warned, given, where)
        checked(dict[str, Number], {name: value for name, value in given.items() if name != "warnings"}, where)
        rows.append(given)
    return rows


@dataclass
class _Warned:
    warnings: list[str] = field(default_factory=list)


@dataclass
class Parameters:
    """How much of a backbone was trained."""

    trained: Count
    all: Count


@dataclass
class DataCounts:
    """The counts of the data that a run started with, as shown everywhere.

    train, validation, test: images, clips or documents of each split, 0 if there is no such split, None if not counted
    (a stream, or data that would have to be downloaded). classes: 0 if there are none.
    """

    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None
    classes: Count = 0
    what: Literal["images", "clips", "documents"] = "images"


@dataclass
class Environment:
    """The part of environment.json that code uses. started: when the run began."""

    parameters: Parameters | None = None
    command: list[str] = field(default_factory=list)
    started: datetime | None = None
    data: DataCounts = field(default_factory=DataCounts)


def read_environment(run: Path) -> Environment:
    """RUN/environment.json; empty where there is none. Raises ConfigError that names the value that is wrong."""
    file = run / "environment.json"
    return load(Environment, file) if file.is_file() else Environment()


@dataclass
class ModelFile:
    """The part of a model's config.json that identifies it."""

    model_type: str = ""
    architectures: list[str] | None = None


def read_model_file(folder: Path) -> ModelFile:
    """Reads FOLDER/config.json. Raises ConfigError if it is missing or not valid."""
    return load(ModelFile, folder / "config.json")


@dataclass
class Processor:
    """The part of a preprocessor_config.json that describes the normalisation of pixels, by channel."""

    image_mean: list[Number] | None = None
    image_std: list[Number] | None = None


def read_processor(folder: Path) -> Processor:
    """FOLDER/preprocessor_config.json; empty where there is none. Raises ConfigError that names the wrong value."""
    file = folder / "preprocessor_config.json"
    return load(Processor, file) if file.is_file() else Processor()
