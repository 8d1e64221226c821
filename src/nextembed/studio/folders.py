"""Runs, models, features and comparisons below the given folders. Nothing else is opened."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.places import check_here
from ..errors import ConfigError, unknown
from ..evaluation.features.index import FACTS, INDEX, ROWS

Kind = Literal["run", "model", "features", "comparison"]
DEPTH = 5  # folders below a given one that are looked into
MOST = 20_000  # folders that are looked into
OF_A_RUN = ("environment.json", "metrics.jsonl", "checkpoints", ".lock")  # files next to a run's config.yaml
INSIDE = ("model", "ema", "best", "teacher", "checkpoints", "tensorboard", "decoder", "readout", "visual_decoder")
OF_AN_INDEX = {INDEX, ROWS, FACTS}
FRESH = 2.0  # seconds for which a listing is cached


@dataclass
class Found:
    """Folders and files by their names, each kind sorted."""

    run: dict[str, Path] = field(default_factory=dict)
    model: dict[str, Path] = field(default_factory=dict)
    features: dict[str, Path] = field(default_factory=dict)
    comparison: dict[str, Path] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def of(self, kind: Kind) -> dict[str, Path]:
        """Those of one kind."""
        return {"run": self.run, "model": self.model, "features": self.features, "comparison": self.comparison}[kind]


class Folders:
    """The folders that may be read. Links are not followed, and a run with a link to another place is left out.

    Args:
        paths: run folders, folders of runs, models, files of features; at least one.

    Raises:
        ConfigError: a path that is not here.
    """

    def __init__(self, paths: Sequence[str | Path]):
        for path in paths:
            check_here(path, "no such run, checkpoint or folder", hub=False)
        self.roots = list(dict.fromkeys(Path(path).expanduser().resolve() for path in paths))
        self._lock = threading.Lock()
        self._seen: tuple[float, Found] | None = None

    def look(self) -> Found:
        """The current content, at most two seconds old."""
        with self._lock:
            if self._seen is None or time.monotonic() - self._seen[0] > FRESH:
                self._seen = (time.monotonic(), self._look())
            return self._seen[1]

    def get(self, kind: Kind, name: str) -> Path:
        """The folder of a name from `look`. Raises ConfigError for anything else, also for paths."""
        found = self.look().of(kind)
        if name not in found:
            raise ConfigError(unknown(kind, name, list(found)[:20]))
        return self.inside(found[name])

    def inside(self, path: str | Path) -> Path:
        """The path, links resolved. Raises ConfigError where it leaves the given folders."""
        try:
            place = Path(path).expanduser().resolve()
        except (OSError, ValueError, RuntimeError):
            raise ConfigError(f"not a path: {str(path)[:200]!a}") from None
        if not any(place == root or root in place.parents for root in self.roots):
            raise ConfigError(f"{path} lies outside the folders that the studio was started with; name its folder, too")
        return place

    def _look(self) -> Found:
        found = Found()
        for place, kind in self._places():
            if wrong := self.link_out(place):
                found.left_out.append(f"{place.name}: {wrong} is a link to another place")
                continue
            names = found.of(kind)
            names[self._name(place, names)] = place
            if kind == "run" and has_model(place):
                found.model[self._name(place, found.model)] = place
        for kind in ("run", "model", "features", "comparison"):
            names = found.of(kind)
            ordered = sorted(names.items())
            names.clear()
            names.update(ordered)
        return found

    def _places(self) -> Iterator[tuple[Path, Kind]]:
        looked = 0
        for root in self.roots:
            if root.is_file():
                if is_features(root):
                    yield root, "features"
                continue
            for folder, folders, files in os.walk(root):
                place = Path(folder)
                looked += 1
                depth = len(place.relative_to(root).parts)
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                if depth >= DEPTH or looked > MOST:
                    folders.clear()
                yield from self._here(place, folders, files)

    def _here(self, place: Path, folders: list[str], files: list[str]) -> Iterator[tuple[Path, Kind]]:
        """Classifies a folder; folders inside a run are not visited."""
        if "config.yaml" in files and any(name in files or name in folders for name in OF_A_RUN):
            folders[:] = [name for name in folders if name not in INSIDE]
            yield place, "run"
        elif "config.json" in files:
            folders.clear()
            yield place, "model"
        elif set(files) >= OF_AN_INDEX:
            folders.clear()
            yield place, "features"
            return
        if "comparison.json" in files:
            yield place, "comparison"
        for name in sorted(files):
            if name.endswith(".parquet") and is_features(place / name):
                yield place / name, "features"

    def _name(self, place: Path, taken: dict[str, Path]) -> str:
        """Where it lies below the given folder that holds it; with that folder's name where two would be alike."""
        root = next((root for root in self.roots if place == root or root in place.parents), place.parent)
        name = place.relative_to(root).as_posix() if place != root else place.name
        if name in taken and taken[name] != place:
            name = f"{root.name}/{name}"
        number = 2
        while name in taken and taken[name] != place:
            name, number = f"{name} ({number})", number + 1
        return name

    def link_out(self, place: Path) -> str:
        """The first file of a folder, four levels deep, that is a link to outside; none is ""."""
        if not place.is_dir():
            return self._out(place)
        for folder, folders, files in os.walk(place):
            depth = len(Path(folder).relative_to(place).parts)
            for name in [*files, *folders]:
                if (Path(folder) / name).is_symlink() and (wrong := self._out(Path(folder) / name)):
                    return wrong
            if depth >= 3:
                folders.clear()
        return ""

    def _out(self, file: Path) -> str:
        try:
            self.inside(file)
        except ConfigError:
            return file.name
        return ""


def has_model(run: Path) -> bool:
    """Whether a run holds a model that can be opened: the finished one, or a checkpoint."""
    return (run / "model" / "config.json").is_file() or any((run / "checkpoints").glob("step-*/config.json"))


def is_features(file: Path) -> bool:
    """Whether a Parquet file has a column of features."""
    try:
        return file.is_file() and "embedding" in pq.read_schema(file).names
    except (pa.ArrowException, OSError):
        return False
