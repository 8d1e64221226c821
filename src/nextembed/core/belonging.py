"""Checks that protect folders that may have come from somebody else: links and names that lead out of them are refused,
and a folder that is not recognisably ours is not written into."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import ConfigError
from .files import check_target, checked_file

DEPTH = 6  # folders below one of ours


def stays_inside(name: str) -> bool:
    """Whether a relative path from an untrusted source stays below the folder it is joined to."""
    parts = name.replace("\\", "/").split("/")
    return bool(name) and "\0" not in name and ".." not in parts and parts[0] != "" and not Path(name).drive


def own_file(folder: Path, name: str) -> Path:
    """A file that the library names in a folder, to be written: `checked_file`, and not behind a link to another place.

    Raises ConfigError, before anything is computed.
    """
    file = folder / name
    if file.is_symlink() and _leads_out(file, folder):
        raise ConfigError(f"{file} is a link to {os.readlink(file)}, outside of the folder: remove it")
    checked_file(file)
    return file


def check_links(folder: Path) -> None:
    """Raises ConfigError for a folder with a link that leads out of it, because writing or removing would then happen
    elsewhere, and for special files such as pipes, which would block a reader for ever."""
    for entry in _strange(folder, folder):
        if entry.is_symlink():
            raise ConfigError(
                f"{entry} is a link to {os.readlink(entry)}, outside of the folder: put the file itself there, or "
                f"link the whole folder {folder} instead"
            )
        raise ConfigError(f"{entry} is no file but a pipe, socket or device: remove it")


def check_own_folder(folder: Path, marks: Collection[str], lock: str) -> None:
    """Raises ConfigError unless a command may write a folder file by file: it is new or empty, or was begun before.

    marks: files of which one says that it was begun; an empty `lock` alone does so, too. Raises ConfigError also where
    nothing can be written, and for links that lead out of it.
    """
    names = os.listdir(folder) if folder.is_dir() else []
    is_begun = any((folder / mark).is_file() for mark in marks)
    only_lock = names == [lock] and (folder / lock).is_file() and not (folder / lock).stat().st_size
    if not (is_begun or only_lock):
        check_target(folder)
    if names:
        check_links(folder)


def make_folder(folder: Path) -> None:
    """Makes the folder if it does not exist. Raises ConfigError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"cannot write {folder}: {err.strerror}") from None


def _strange(place: Path, folder: Path, depth: int = 0) -> Iterator[Path]:
    """Links that lead out of the folder, and special files."""
    with os.scandir(place) as found:
        for entry in sorted(found, key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.is_symlink():
                if _leads_out(path, folder):
                    yield path
            elif entry.is_dir():
                if depth < DEPTH:
                    yield from _strange(path, folder, depth + 1)
            elif not entry.is_file():
                yield path


def _leads_out(link: Path, folder: Path) -> bool:
    try:
        return not link.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to itself
        return True
