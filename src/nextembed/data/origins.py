"""What a source names: files of a folder, Parquet, webdataset archives, or a hub id."""

import re
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from ..core.places import NO_SOURCE, check_here
from ..errors import ConfigError

SAMPLE = Path(__file__).parent / "sample"
EMOJI = SAMPLE / "emoji32.parquet"
GLOSSES = SAMPLE / "glosses.parquet"
LINES = {".jsonl": "text", ".ndjson": "text", ".txt": "text", ".json": "json", ".csv": "csv",
         ".tsv": "csv"}  # fmt: skip

SPLIT_NAMES = {"train": "train", "training": "train", "validation": "validation", "val": "validation",
               "valid": "validation", "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip


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
        found = [Path(file) for file in sorted(glob(str(path), recursive=True)) if Path(file).is_file()]
        if not found:
            raise ConfigError(f"data.source: no file fits '{source}'")
        return _from_files(found, source)
    if path.is_file():
        return _from_files([path], source)
    if path.is_dir():
        return _from_folder(path)
    if path.exists():
        raise ConfigError(f"data.source: {source} is no file or folder")
    check_here(source, NO_SOURCE)
    return Origin(source, None, None)


def find_table(source: str) -> Origin:
    """As `find_origin`, and: JSON-lines or text files (builder "text": one line a row), a JSON list (builder "json"),
    CSV files, a folder of one of these, or "glosses", the short texts that come with the package."""
    if source == "glosses":
        return Origin("parquet", {"train": [str(GLOSSES)]}, GLOSSES.parent)
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in LINES:
        return Origin(LINES[path.suffix.lower()], {"train": [str(path.resolve())]}, path.resolve().parent)
    if has_magic(source) and not path.exists():
        found = [Path(file).resolve() for file in sorted(glob(str(path), recursive=True)) if Path(file).is_file()]
        kinds = {LINES.get(file.suffix.lower()) for file in found}
        if len(kinds) == 1 and None not in kinds:
            return Origin(str(kinds.pop()), {"train": list(map(str, found))}, found[0].parent)
    if path.is_dir() and not any(path.glob("*.parquet")):
        for suffix, builder in LINES.items():
            files = sorted(f for f in path.resolve().glob(f"*{suffix}") if f.is_file() and f.stem != "metadata")
            if files:
                return Origin(builder, _by_split(files), path.resolve())
    return find_origin(source)


def check_file(setting: str, name: str) -> Path:
    """The path of a file. Raises ConfigError for what is there and is none: a device or a pipe may never end."""
    path = Path(name).expanduser()
    if path.exists() and not path.is_file():
        raise ConfigError(f"{setting}: {name} is no file")
    return path


def _from_files(files: list[Path], source: str) -> Origin:
    builder = {".parquet": "parquet", ".tar": "webdataset"}.get(files[0].suffix.lower())
    if builder is None or any(f.suffix.lower() != files[0].suffix.lower() for f in files):
        raise ConfigError(f"data.source: '{source}' should name .parquet or .tar files, or a folder of images")
    return Origin(builder, {"train": [str(f.resolve()) for f in files]}, files[0].resolve().parent)


def _from_folder(folder: Path) -> Origin:
    folder = folder.resolve()
    for pattern, builder in (("*.parquet", "parquet"), ("*.tar", "webdataset")):
        found = (sorted(filter(Path.is_file, folder.glob(place))) for place in (pattern, f"data/{pattern}"))
        if files := next(filter(None, found), None):
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
