"""What a source is: a folder of images, tables, archives, or a hub id; and the split of each file."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from ..core.places import NO_SOURCE, check_here
from ..core.remote import is_remote
from ..errors import ConfigError
from .archives import zip_members
from .grouping import ClassFolder, Folders, by_folders, by_names
from .listing import KINDS, LINK_TO_NOTHING, File, listed, member_file
from .naming import WORDS, in_files
from .remote import cache_folder, listing, mirrored, remote_files
from .shard_index import Index, read_index

SAMPLE = Path(__file__).parent / "sample"
EMOJI = SAMPLE / "emoji32.parquet"
GLOSSES = SAMPLE / "glosses.parquet"

Format = Literal["images", "videos", "parquet", "tar", "zip", "jsonl", "json", "csv", "txt"]
BUILDERS = {"parquet": "parquet", "tar": "webdataset", "zip": "zip", "jsonl": "text", "txt": "text", "json": "json",
            "csv": "csv"}  # fmt: skip
OF_IMAGES = ("image", "video", "parquet", "tar", "zip")
OF_ROWS = ("parquet", "tar", "zip", "jsonl", "csv")
JSON_HINT = " (a .json file must contain a list; name JSON lines .jsonl)"
FORMATS = {"image": "images", "video": "videos"}  # as `data.format` says it
NAMES = {"image": "image", "video": "video", "tar": ".tar archive", "zip": ".zip archive"}


class Rules(NamedTuple):
    """How an ambiguous source is read. See `TableSettings`."""

    format: Format | None = None
    folders: Folders = None
    class_folder: ClassFolder = None
    hidden: bool = False
    streaming: bool = False


PLAIN = Rules()


class Origin(NamedTuple):
    """Where rows come from.

    builder: "images", "videos", "imagefolder" and "videofolder" (with metadata), "parquet", "webdataset", "zip",
    "text", "json", "csv", or a hub id. files: by split, for local builders. folder: base of file paths, which they may
    not leave; None for the hub. classes: of images and videos that have one. left_out: files that may be data but
    cannot be used, with reasons. beside: number of other files, by extension. unclear: why it is not clear which files
    are for training. shards: of a folder of shards that the library wrote. remote: the source, if its files are fetched
    as they are read."""

    builder: str
    files: dict[str, list[str]] | None
    folder: Path | None
    classes: dict[str, str] = {}
    left_out: tuple[File, ...] = ()
    beside: dict[str, int] = {}
    unclear: str = ""
    rules: Rules = PLAIN
    shards: Index | None = None
    remote: str = ""

    def named(self, split: str) -> str:
        """The name of a split among those of `files`. Raises MissingSplit, or ConfigError if it is unclear."""
        if self.unclear and split in WORDS:
            raise ConfigError(f"data.source: {self.unclear}")
        return in_files(split, self.files or {})

    def of_split(self, split: str) -> list[str]:
        """The files of a split."""
        return (self.files or {})[self.named(split)]


def find_origin(source: str, rules: Rules = PLAIN) -> Origin:
    """The origin of images for a source. Raises ConfigError with the nearest spelling if there is none."""
    return _found(source, rules, OF_IMAGES, ("parquet", "tar", "zip"))


def find_table(source: str, rules: Rules = PLAIN) -> Origin:
    """The origin of rows for a source: those of `find_origin`, and JSON-lines or text files (builder "text": one line a
    row), JSON lists ("json"), CSV files, folders of one of these, or "glosses", the short texts that come with the
    package."""
    if source == "glosses":
        return Origin("parquet", {"train": [str(GLOSSES)]}, GLOSSES.parent)
    return _found(source, rules, OF_ROWS, tuple(BUILDERS))


def check_file(setting: str, name: str) -> Path:
    """The path of a file. Raises ConfigError for a special file: a device or a pipe may never end."""
    path = Path(name).expanduser()
    if path.exists() and not path.is_file():
        raise ConfigError(f"{setting}: {name} is not a file")
    return path


def _found(source: str, rules: Rules, kinds: tuple[str, ...], single: tuple[str, ...]) -> Origin:
    """kinds: what a folder may hold. single: what a file may be."""
    if is_remote(source):
        return _from_remote(source, rules, kinds, single)
    path = EMOJI if source == "emoji" else Path(source).expanduser()
    if has_magic(source) and not path.exists():
        found = [Path(file) for file in sorted(glob(str(path), recursive=True)) if Path(file).is_file()]
        if not found:
            raise ConfigError(f"data.source: no file fits '{source}'")
        return _from_files(found, source, rules, single)
    if path.is_file():
        return _from_files([path], source, rules, single)
    if path.is_dir():
        return _from_folder(path, rules, kinds)
    if path.exists():
        raise ConfigError(f"data.source: {source} is not a file or folder")
    check_here(source, NO_SOURCE)
    return Origin(source, None, None)


def _from_remote(source: str, rules: Rules, kinds: tuple[str, ...], single: tuple[str, ...]) -> Origin:
    """The origin of a source in an object store or on a web server. Archives and Parquet files of a stream are fetched
    as they are read; everything else is first fetched into the cache."""
    files, folder = remote_files(source), cache_folder() / "none"  # files that rows name are not available
    if rules.streaming and files and {file.kind for file in files} <= {"tar", "parquet", "other", "side"}:
        kind = _kind(Path(source), files, rules, kinds)
        own = [file for file in files if file.kind == kind]
        groups, unclear, left_out = by_names(own, rules.folders)
        groups = {"train": own} if len(own) == 1 else groups
        index = listing(source).shards
        found = Origin(BUILDERS[kind], _paths(groups), folder, {}, tuple(left_out), {}, unclear, rules)
        return found._replace(shards=index, remote=source)
    here = mirrored(source)
    local = [here / file.name for file in files]
    return (
        _from_files(local, source, rules, single) if _names_files(source, files) else _from_folder(here, rules, kinds)
    )


def _names_files(source: str, files: list[File]) -> bool:
    """Whether an address names files instead of a folder."""
    return "*" in source or (len(files) == 1 and files[0].path == source.rstrip("/"))


def _from_files(files: list[Path], source: str, rules: Rules, single: tuple[str, ...]) -> Origin:
    """Files that are named one by one. They are for training, whatever their names, unless they are several splits."""
    kinds = {KINDS.get(file.suffix.lower(), file.suffix) for file in files}
    kind = next(iter(kinds))
    if len(kinds) > 1 or kind not in single:
        raise ConfigError(
            f"data.source: '{source}' should name .parquet or .tar files, or a folder of images"
            if "csv" not in single
            else f"data.source: '{source}' should name files of one kind ({', '.join(single)}), or a folder"
        )
    paths = [file.resolve() if not file.is_symlink() else file.absolute() for file in files]
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    named = [File(path.relative_to(folder).as_posix(), str(path), kind) for path in paths]
    groups, unclear, _ = by_names(named, rules.folders)
    if len(groups) == 1:
        groups = {"train": next(iter(groups.values()))}
    if kind == "zip":
        return _from_zips(_paths(groups), folder, rules)._replace(unclear=unclear)
    return Origin(BUILDERS[kind], _paths(groups), folder, unclear=unclear, rules=rules)


class Kept(NamedTuple):
    """Result of looking at a folder, and the time of the last change of each folder in it."""

    origin: Origin
    changed: dict[str, int]


KEPT: dict[tuple[Path, Rules, tuple[str, ...]], Kept] = {}
NUM_KEPT = 8
SETTLED = 2 * 10**9  # nanoseconds: two changes within one tick of a file system's clock cannot be distinguished


def _from_folder(folder: Path, rules: Rules, kinds: tuple[str, ...]) -> Origin:
    """The content of a folder; listed again only if one of its folders has changed, because every split asks for it."""
    folder, began = folder.resolve(), time.time_ns()
    shards = read_index(folder)
    kept = KEPT.get((folder, rules, kinds))
    if kept is not None and all(_changed(path) == at for path, at in kept.changed.items()):
        return kept.origin
    folders: list[str] = []
    files = listed(folder, rules.hidden, folders)
    if not files:
        raise ConfigError(f"data.source: the folder {folder} is empty")
    origin = _of_listed(folder, files, rules, kinds, shards)
    stamps = {path: _changed(path) for path in folders}
    for _ in range(len(KEPT) - NUM_KEPT + 1):
        del KEPT[next(iter(KEPT))]
    KEPT.pop((folder, rules, kinds), None)
    elsewhere = any(file.kind in ("zip", "json", "parquet") or file.reason == LINK_TO_NOTHING for file in files)
    if min(stamps.values()) and max(stamps.values()) < began - SETTLED and not (elsewhere or shards):
        KEPT[folder, rules, kinds] = Kept(origin, stamps)
    return origin


def _changed(folder: Path | str) -> int:
    """When files were last added to or removed from a folder, or its permissions changed; 0 if it is gone."""
    try:
        return os.stat(folder).st_ctime_ns
    except OSError:
        return 0


def _of_listed(folder: Path, files: list[File], rules: Rules, kinds: tuple[str, ...], shards: Index | None) -> Origin:
    kind = _kind(folder, files, rules, kinds)
    own = [file for file in files if file.kind == kind]
    left_out = [file for file in own if file.reason]
    good = [file for file in own if not file.reason]
    rest = [file for file in files if file.kind != kind]
    if kind not in FORMATS:
        groups, unclear, more = by_names(good, rules.folders)
        if kind == "zip":
            left_out += more
            return _from_zips(_paths(groups), folder, rules, left_out)._replace(unclear=unclear, beside=endings(rest))
        found = Origin(BUILDERS[kind], _paths(groups), folder, {}, (*left_out, *more), endings(rest), unclear, rules)
        return found._replace(shards=shards)
    groups, classes, more = by_folders(good, rules.folders, rules.class_folder)
    if any(file.kind == "metadata" for file in files) and rules.format is None:
        for split in groups:
            groups[split] += [file for file in rest if file.kind == "metadata" and _belongs(file, groups[split])]
        rest, classes = [file for file in rest if file.kind != "metadata"], {}
        return Origin(f"{kind}folder", _paths(groups), folder, classes, (*left_out, *more), endings(rest))
    return Origin(FORMATS[kind], _paths(groups), folder, classes, (*left_out, *more), endings(rest))


def _from_zips(archives: dict[str, list[str]], folder: Path, rules: Rules, left_out: Sequence[File] = ()) -> Origin:
    """The images, or else the videos, in zip archives, as if unpacked; the split follows from the archives' names, else
    from folders inside. Raises ConfigError for an archive that cannot be read or has neither."""
    files = []
    for split, names in archives.items():
        for name in names:
            try:
                members = zip_members(name)
            except (OSError, ValueError) as err:
                raise ConfigError(f"data.source: cannot read '{name}' as zip: {err}") from None
            above = f"{split}/" if len(archives) > 1 else ""
            files += [member_file(above + one.name, one.ref, one.reason) for one in members]
    kind = next((kind for kind in FORMATS if any(file.kind == kind for file in files)), "")
    others = [file for file in files if file.kind not in (kind, "junk")]
    if not kind:
        raise ConfigError(
            f"data.source: {folder} has no images or videos in its zip archives: {_counted(others) or 'empty'}"
        )
    files = [file for file in files if file.kind == kind]
    good = [file for file in files if not file.reason]
    groups, classes, more = by_folders(good, rules.folders, rules.class_folder)
    lost = [file for file in files if file.reason]
    return Origin(
        FORMATS[kind], _paths(groups), folder, classes, (*left_out, *lost, *more), endings(others), rules=rules
    )


def _belongs(metadata: File, images: list[File]) -> bool:
    """Whether there is a metadata file above some of the images."""
    return any(image.folders[: len(metadata.folders)] == metadata.folders for image in images)


def _kind(folder: Path, files: list[File], rules: Rules, kinds: tuple[str, ...]) -> str:
    """The kind of files that are the folder's data. Raises ConfigError if there are several, or none."""
    held = Counter(file.kind for file in files)
    if rules.format is not None:
        kind = rules.format.removesuffix("s") if rules.format in FORMATS.values() else rules.format
        if not held[kind]:
            raise ConfigError(f"data.format: {folder} has no {rules.format}: it contains {_counted(files)}")
        return kind
    there = [kind for kind in kinds if held[kind]]
    if there[:2] == ["image", "video"]:
        there.remove("video")  # as phones store them; data.format=videos selects them
    if kinds is OF_IMAGES and there[:1] != ["parquet"] and "parquet" in there:
        there = [kind for kind in there if kind != unneeded(files, there[0])]
    if len(there) > 1:
        named = " and ".join(_some(kind, [file for file in files if file.kind == kind]) for kind in there)
        ways = " or ".join(f"data.format={FORMATS.get(kind, kind)}" for kind in there)
        raise ConfigError(f"data.source: {folder} contains {named}; choose one with {ways}")
    if not there:
        order = ("image", "json", "txt") if held["metadata"] else ("json", "txt", "image")
        there = [kind for kind in order if held[kind] and (kind == "image" or kinds is OF_ROWS)]
    if not there:
        hint = " (compressed archives are not read; unpack them)" if held["packed"] else ""
        hint += JSON_HINT if kinds is OF_ROWS and any(file.name.lower().endswith(".json") for file in files) else ""
        what = "rows" if kinds is OF_ROWS else "images or videos"
        raise ConfigError(f"data.source: {folder} has no {what}: {_counted(files)}{hint}")
    return there[0]


def unneeded(files: list[File], media: str) -> str:
    """If images (or videos) and Parquet files are in one folder: which of them are not the data. Tables without images,
    such as features, or images that the tables name. "" if neither."""
    names = {file.path for file in files if file.kind == media}
    found = {held_in(Path(file.path), names) for file in files if file.kind == "parquet"}
    return "parquet" if found == {"nothing"} else media if found == {"names"} else ""


def held_in(table: Path, images: set[str]) -> str:
    """How a Parquet file contains images: "nothing", the "names" of files, or "bytes"."""
    try:
        with parquet.ParquetFile(table) as file:
            fields = list(file.schema_arrow)
            named = [
                one.name for one in fields if pa.types.is_struct(one.type) and one.type.get_field_index("path") >= 0
            ]
            if not named and not any(one.type in (pa.binary(), pa.large_binary()) for one in fields):
                return "nothing"
            rows = next(file.iter_batches(32, columns=named)).to_pylist() if named else []
    except (OSError, pa.ArrowException, StopIteration):
        return "bytes"
    paths = [value["path"] for row in rows for value in row.values() if value and not value.get("bytes")]
    return "names" if any(path and str(table.parent / path) in images for path in paths) else "bytes"


def _some(kind: str, files: list[File]) -> str:
    what = NAMES.get(kind, f".{kind} file") + ("s" if len(files) > 1 else "")
    return f"{len(files)} {what}" + ("" if kind in FORMATS else f" ({files[0].name}{', ...' * (len(files) > 1)})")


def endings(files: list[File]) -> dict[str, int]:
    """Number of files by extension."""
    return dict(Counter(os.path.splitext(file.name)[1].lower() or "no ending" for file in files).most_common())


def _counted(files: list[File]) -> str:
    return ", ".join(f"{count} of {ending}" for ending, count in list(endings(files).items())[:5])


def _paths(groups: dict[str, list[File]]) -> dict[str, list[str]]:
    return {split: [file.path for file in files] for split, files in groups.items()}
