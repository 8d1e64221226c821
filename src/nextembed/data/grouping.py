"""The rules by which names of files and folders determine splits and classes, for tables and images."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from ..errors import ConfigError
from .listing import File
from .naming import paired, split_of, splits_named

Folders = Literal["splits", "classes"] | None
ClassFolder = Literal["top", "last", "none"] | None
Groups = dict[str, list[File]]
WRAPPERS = frozenset(
    [
        "images",
        "image",
        "imgs",
        "img",
        "data",
        "dataset",
        "pictures",
        "photos",
        "files",
        "jpg",
        "jpegs",
        "jpegimages",
        "videos",
        "video",
        "clips",
        "mp4",
        "all",
    ]
)
NUM_NAMED = 5
ASK = (
    "set data.folders=classes to treat every name as a class, or data.folders=splits to use the "
    "splits only and leave out the rest"
)


def by_names(files: list[File], folders: Folders) -> tuple[Groups, str, list[File]]:
    """Tables or archives by split, from their names or those of their folders. Also returns what is unclear, and files
    that are left out. If no name is that of a split, all are for training; if only `test` is named, the others are.
    """
    if folders == "classes":
        return {"train": files}, "", []
    groups: Groups = {}
    rest = []
    pairs = paired({part for file in files for part in file.name.split("/")})
    for file in files:
        split = _split_in(file, tuple(pairs.get(part, part) for part in file.name.split("/")))
        if split is None:
            rest.append(file)
        else:
            groups.setdefault(split, []).append(file)
    _check_trainval(groups)
    if rest and folders == "splits" and groups:
        return groups, "", [file._replace(reason="its name matches no split") for file in rest]
    if "train" not in groups and rest:
        return {"train": rest, **groups}, "", []
    for file in rest:  # usable by their own names on request
        groups.setdefault(re.split(r"[-_.]", file.name.rsplit("/", 1)[-1].lower())[0], []).append(file)
    unclear = f"{_names(file.name for file in rest)}: not in a split, although other files are; {ASK}" if rest else ""
    return groups, unclear, []


def by_folders(
    files: list[File], folders: Folders, class_folder: ClassFolder
) -> tuple[Groups, dict[str, str], list[File]]:
    """Images or videos by the split of a folder above them; the class by path; and files left out. A class is the top
    folder below the split, or above it. Raises ConfigError if only some folders are splits, or if there are several
    folders both above and below the splits.
    """
    groups: Groups = {}
    rest, below = [], {}
    known: dict[tuple[str, ...], tuple[str | None, tuple[str, ...]]] = {}  # many files lie in one folder
    pairs = {} if folders == "classes" else paired({part for file in files for part in file.folders})
    if pairs:
        files = [_renamed(file, pairs) for file in files]
    for file in files:
        if (parts := file.folders) not in known:
            named = [] if folders == "classes" else [part for part in parts if splits_named(part)]
            known[parts] = _split_in(file, tuple(named)), tuple(part for part in parts if part not in named)
        split, below[file.path] = known[parts]
        if split is None and folders != "classes":
            rest.append(file)
        else:
            groups.setdefault(split or "train", []).append(file)
    _check_trainval(groups)
    if not groups:
        groups, rest = {"train": rest}, []
    if rest and folders is None:
        splits = sorted(
            {part for found in groups.values() for file in found for part in file.folders if splits_named(part)}
        )
        others = _names(file.folders[0] if file.folders else file.name for file in rest)
        raise ConfigError(
            f"data.source: cannot tell whether {_names(splits)} are splits or classes, because {others} are "
            f"there as well; {ASK}"
        )
    left_out = [file._replace(reason="it is not in the folder of a split") for file in rest]
    used = [file for found in groups.values() for file in found]
    if folders != "classes" and class_folder is None and _are_below(used):
        below = {file.path: _around_split(file.folders)[1] for file in used}
    return groups, _classes({file.path: below[file.path] for file in used}, class_folder), left_out


def _renamed(file: File, pairs: dict[str, str]) -> File:
    """The file with its folders renamed to the splits that they stand for."""
    *above, last = file.name.split("/")
    return file._replace(name="/".join((*(pairs.get(part, part) for part in above), last)))


@lru_cache(10_000)
def _around_split(folders: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The folders above the first that names a split, and those below it that do not; without such a folder, all are
    below."""
    at = next((at for at, part in enumerate(folders) if splits_named(part)), -1)
    return folders[: max(at, 0)], tuple(part for part in folders[at + 1 :] if not splits_named(part))


def _are_below(files: list[File]) -> bool:
    """Whether the classes are folders below those of splits. Raises ConfigError if they may be above as well: in
    `v1/train/cat` the version comes first, in `cat/train/monday` the class."""
    sides: tuple[set[str], set[str]] = set(), set()
    for above, below in map(_around_split, {file.folders for file in files}):
        sides[0].update(above[-1:])
        sides[1].update(below[:1])
    are_above, are_below = (len({side.lower() for side in found} - WRAPPERS) > 1 for found in sides)
    if are_above and are_below:
        raise ConfigError(
            f"data.source: the classes may be {_names(sorted(sides[0]))} above the splits, or "
            f"{_names(sorted(sides[1]))} below; set data.class_folder=top for the folders above, last for the "
            "lowest ones, none for no classes"
        )
    return are_below


def _classes(below: dict[str, tuple[str, ...]], class_folder: ClassFolder) -> dict[str, str]:
    """The class of each file that has one, by the folders above it that are not splits; empty if there is only one
    class."""
    while (tops := {parts[:1] for parts in below.values()}) and len(tops) == 1:
        (top,) = tops
        if not top or top[0].lower() not in WRAPPERS:
            break
        below = {path: parts[1:] for path, parts in below.items()}
    at = -1 if class_folder == "last" else 0
    forms = {name: unicodedata.normalize("NFC", name) for name in {parts[at] for parts in below.values() if parts}}
    found = {path: forms[parts[at]] for path, parts in below.items() if parts}
    return found if class_folder != "none" and len(set(found.values())) > 1 else {}


def _split_in(file: File, parts: tuple[str, ...]) -> str | None:
    found = {split for part in parts if (split := split_of(part))}
    if len(found) > 1:
        raise ConfigError(f"data.source: '{file.name}' matches several splits ({' and '.join(sorted(found))}); {ASK}")
    return next(iter(found), None)


def splits_of_path(file: File) -> set[str]:
    """The splits named by the folders above a file, and by its own name unless it is an image or video."""
    parts = file.folders if file.kind in ("image", "video") else file.name.split("/")
    return {split for part in parts for split in splits_named(part)}


def _check_trainval(groups: Groups) -> None:
    """Raises ConfigError for `trainval` next to `train` or `val`, whose rows it repeats."""
    parts = {part for found in groups.values() for file in found for part in file.name.split("/")}
    names = {part.lower().split(".")[0] for part in parts}
    whole = next((name for name in names if re.match(r"trainval([^a-z]|$)", name)), None)
    if whole and ("validation" in groups or any(re.match(r"train([^a-z]|$)", name) for name in names)):
        raise ConfigError(
            f"data.source: '{whole}' repeats the rows of train and val, which are there as well; name the "
            "files to use in data.source"
        )


def _names(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    return ", ".join(f"'{name}'" for name in found[:NUM_NAMED]) + (", ..." if len(found) > NUM_NAMED else "")
