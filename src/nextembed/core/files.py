"""Atomic writing of files and folders, names that stay inside their folder, and locks. Nothing here removes what this
process did not make. Every output of the library is written through this module.
"""

import contextlib
import json
import math
import os
import re
import secrets
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import ConfigError, NextEmbedError, TrainingError

SCRATCH, ASIDE = ".tmp-", ".old-"  # names in a run folder that `clean` knows
SCRATCH_NAME = re.compile(r"\.(tmp|old)-.+-[0-9a-f]{8}(\.[^.]*)?")


# -- files


@contextlib.contextmanager
def replacing(file: str | Path) -> Iterator[Path]:
    """A temporary path next to `file`, with its suffix. When the block ends without an error, it is synced to disk and
    replaces `file`; otherwise it is removed and `file` stays as it was.

    A symlink is followed: the file that it names is replaced. A missing folder is made. Raises ConfigError, before the
    block, for a folder of that name or one that cannot be written to; also for errors while the block writes, such as a
    full disk.
    """
    file = output_file(file)
    scratch = file.with_name(f"{SCRATCH}{file.stem}-{secrets.token_hex(4)}{file.suffix}")
    try:
        os.close(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as err:
        raise ConfigError(f"cannot write {file}: {err.strerror}") from None
    try:
        with _writing(file):
            yield scratch
            _sync(scratch)
            os.replace(scratch, file)
            _sync(file.parent)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()


def free_file(pattern: str) -> Path:
    """A new, empty file, "painted-{:02d}.png" with the first free number, which no other process gets."""
    for number in range(1, 100_000):
        file = Path(pattern.format(number))
        try:
            file.open("x").close()
        except FileExistsError:
            continue
        except OSError as err:
            raise ConfigError(f"cannot write {file}: {err.strerror}") from None
        return file
    raise ConfigError(f"no free name left for {pattern}")


def output_file(file: str | Path) -> Path:
    """The resolved path of an output file that the user named; its folder is made. Errors as of `checked_file`."""
    found = checked_file(file)
    try:
        found.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"cannot write {file}: {err.strerror}") from None
    return found


def checked_file(file: str | Path) -> Path:
    """`output_file` without making its folder, for use before a long computation. Raises ConfigError for a name that is
    not a regular file (a folder, `.`, `..`, a device), and for a place that is not writable.
    """
    named = Path(file).expanduser()
    try:
        found = Path(os.path.realpath(named))
        if found.is_dir() or named.name in ("", "..") or str(file).endswith(("/", os.sep)):
            raise ConfigError(f"{file} is a folder; name a file")
        if found.exists() and not found.is_file():
            raise ConfigError(f"{file} is not a file")
    except (OSError, ValueError) as err:
        raise ConfigError(f"cannot write {file}: {reason_of(err)}") from None
    _check_above(found)
    return found


def _check_above(path: Path) -> None:
    """Raises ConfigError if a file or folder cannot be made here."""
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise ConfigError(f"cannot write {path}: {above} is not a folder")
    if not os.access(above, os.W_OK):
        raise ConfigError(f"cannot write {path}: {above} is read-only")


def write_text(file: str | Path, text: str) -> None:
    """Writes a UTF-8 text file atomically. A lone surrogate, which UTF-8 cannot encode, is written as "?"."""
    with replacing(file) as scratch:
        scratch.write_bytes(text.encode("utf-8", errors="replace"))


def write_json(file: str | Path, value: object, indent: int | None = 1) -> None:
    """Writes a JSON file atomically; see `to_json`."""
    write_text(file, to_json(value, indent) + "\n")


def to_json(value: object, indent: int | None = None) -> str:
    """JSON text that every reader accepts: numbers that are not finite become null."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def read_text(file: str | Path) -> str:
    """The text of a UTF-8 file. Raises ConfigError if it cannot be read or is not UTF-8."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as err:
        raise ConfigError(f"cannot read {file}: {reason_of(err)}") from None


def from_json(text: str | bytes) -> Any:
    """The value of untrusted JSON text. Raises ValueError if it is invalid or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def finite(value: Any) -> Any:
    """Plain values with None in place of each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value


# -- folders


@contextlib.contextmanager
def new_folder(target: str | Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder next to `target`. When the block ends without an error, it is synced to disk and becomes
    `target`; otherwise it is removed.

    replace: an existing folder is replaced, which is only for folders of the library's own; otherwise one that is not
    empty is an error. Between the two renames the old folder is called `.old-NAME-...`, where `clean` finds it. Raises
    ConfigError, before the block, for a target that exists or cannot be written; also for errors while the block
    writes, such as a full disk.
    """
    target = Path(target)
    check_target(target, replace)
    scratch = _made_beside(target, SCRATCH)
    try:
        with _writing(target):
            yield scratch
            for path in (*scratch.rglob("*"), scratch):
                _sync(path)
            check_target(target, replace)  # checked again: another process may have been faster
            _put(scratch, target, replace)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # this process made it, a few lines above


def open_folder(target: Path) -> None:
    """A new or empty folder for files that are written one by one, so that finished ones survive a stop. Errors as of
    `new_folder`."""
    check_target(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"cannot write {target}: {err.strerror}") from None


def _put(scratch: Path, target: Path, replace: bool) -> None:
    """Renames a folder to `target`; an existing one that may be replaced is moved aside first."""
    aside = None
    if replace and target.is_dir() and any(target.iterdir()):  # an empty folder may be replaced by a rename
        aside = _made_beside(target, ASIDE)
        os.replace(target, aside)
    try:
        os.replace(scratch, target)
    except OSError:
        if aside is not None:
            os.replace(aside, target)
        raise
    _sync(target.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def check_target(target: Path, replace: bool = False) -> None:
    """Raises ConfigError for a path that `new_folder` would not write to. For use before a long computation."""
    if target.name in ("", "..") or str(target) == ".":
        raise ConfigError(f"{target}: name a new folder")
    if target.is_symlink():
        raise ConfigError(f"{target} is a symbolic link; name a new folder")
    if target.exists():
        if not target.is_dir():
            raise ConfigError(f"{target} is a file; name a new folder")
        if not replace and any(target.iterdir()):
            raise ConfigError(f"{target} exists; name a new folder")
    _check_above(target)


def _made_beside(target: Path, prefix: str) -> Path:
    folder = target.with_name(f"{prefix}{target.name}-{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as err:
        raise ConfigError(f"cannot write {target}: {err.strerror}") from None
    return folder


def clean(folder: Path) -> None:
    """Removes half-written files of a killed process from a folder of ours, and restores what it was about to replace.
    Only for folders that no other process writes to (see `locked`)."""
    for aside in (path for path in folder.glob(f"{ASIDE}*") if SCRATCH_NAME.fullmatch(path.name)):
        target = folder / aside.name.removeprefix(ASIDE).rpartition("-")[0]
        if not aside.is_symlink() and aside.is_dir():
            if target.exists():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.replace(aside, target)
    for scratch in (path for path in folder.glob(f"{SCRATCH}*") if SCRATCH_NAME.fullmatch(path.name)):
        if scratch.is_dir() and not scratch.is_symlink():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)


def free_folder(base: Path, name: str, exact: bool = False) -> Path:
    """A new, empty folder: base/name, or name-2, name-3, ... if that exists. No other process gets the same one.

    exact: only base/name will do. Raises ConfigError for a name that is not one part of a path, and where no folder can
    be made.
    """
    check_name(name)
    try:
        base.mkdir(parents=True, exist_ok=True)
        for number in range(1, 2 if exact else 100_000):
            folder = base / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except (OSError, ValueError) as err:
        raise ConfigError(f"cannot make a folder in {base}: {reason_of(err)}") from None
    raise ConfigError(f"{base / name} is taken")


def next_folder(folder: Path) -> Path:
    """The folder that `free_folder` would make: this one, or NAME-2, NAME-3, ..."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in range(2, 100_000))
    return next(path for path in numbered if not path.exists()) if folder.exists() else folder


def check_name(name: str) -> str:
    """The name, if it is a single path component. Raises ConfigError otherwise."""
    if not name or name in (".", "..") or any(mark in name for mark in "/\\\0") or len(name.encode()) > 200:
        raise ConfigError(f"'{name}' is not a valid name: give a single path component, without / and not . or ..")
    return name


# -- locks


@contextlib.contextmanager
def locked(file: Path, busy: str | None) -> Iterator[None]:
    """A lock that one process holds at a time and that is released if it is killed. busy: as of `acquire`."""
    handle = acquire(file, busy)
    try:
        yield
    finally:
        handle.close()


def acquire(file: Path, busy: str | None) -> IO[bytes]:
    """Takes the lock of `locked`, until the handle is closed. busy: message of the ConfigError if it is taken; None
    waits."""
    try:
        handle = file.open("ab")
    except OSError as err:
        raise ConfigError(f"cannot write {file.parent}: {err.strerror}") from None
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
    except BlockingIOError:
        handle.close()
        raise ConfigError(str(busy)) from None
    except (ImportError, OSError):  # Windows, and some network file systems, have no such lock
        return handle
    _held.add(handle)
    return handle


def is_locked(file: Path) -> bool:
    """Whether a process of this machine holds the lock of `locked`; found without taking it where the system allows."""
    if not file.is_file():
        return False
    device, number = (own := file.stat()).st_dev, own.st_ino
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{number}"
    with contextlib.suppress(OSError):
        held = Path("/proc/locks").read_text().splitlines()
        return any("FLOCK" in line and place in line.split() for line in held)
    try:
        import fcntl

        with file.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (ImportError, OSError) as err:
        return isinstance(err, BlockingIOError)
    return False


_held: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()


def _release_in_child() -> None:
    """Closes inherited locks in a forked data worker, which would otherwise hold them after its parent was killed."""
    for handle in list(_held):
        handle.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as err:
        if err.errno != 22:  # EINVAL: this kind of file system syncs no folders
            raise
    finally:
        os.close(handle)


def reason_of(err: BaseException) -> str:
    """The system's message of an error, else its first line."""
    return (isinstance(err, OSError) and err.strerror) or first_line(err)


def first_line(err: BaseException) -> str:
    """An error's message in one line."""
    return (str(err).strip().splitlines() or [type(err).__name__])[0]


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turns errors while writing a file or folder into one line. torch and safetensors report a full disk with errors
    of their own."""
    try:
        yield
    except Exception as err:
        if isinstance(err, OSError) or _disk_is_full(err):
            raise ConfigError(f"cannot write {target}: {write_error(err)}") from err
        raise


@contextlib.contextmanager
def saving(folder: Path, what: str) -> Iterator[None]:
    """Turns errors while writing to a run folder into a TrainingError of one line. A run folder that was deleted
    meanwhile is not made again, because it would hold half a run."""
    from safetensors import SafetensorError

    try:
        folder.stat()
        yield
    except (OSError, RuntimeError, SafetensorError, ConfigError) as err:
        reason = write_error(err) if folder.is_dir() else f"the run folder {folder} is gone"
        raise TrainingError(f"{what} failed: {reason}") from err


def write_error(err: BaseException) -> str:
    """The reason why a file could not be written."""
    if _disk_is_full(err):
        return "the disk is full (no space left on device)"
    return reason_of(err)


def _disk_is_full(err: BaseException) -> bool:
    if isinstance(err, NextEmbedError):
        return False  # it says so already
    marks = ("No space left", "os error 28", "unexpected pos", "PytorchStreamWriter", "Disk quota")
    return (isinstance(err, OSError) and err.errno in (28, 122)) or any(mark in first_line(err) for mark in marks)
