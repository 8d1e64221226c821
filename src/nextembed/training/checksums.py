"""Checksums of a checkpoint's files, written last and compared before anything is read; and reading that turns any
other fault of a file into one line that names it."""

import contextlib
import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

from ..core.files import first_line, reason_of, write_json
from ..errors import NextEmbedError, TrainingError

NAME = "checksums.json"


def write_checksums(folder: Path) -> None:
    """checksums.json: size and SHA-256 of every other file in the folder, by its path. About 0.7 s for each GB."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    write_json(folder / NAME, {path.relative_to(folder).as_posix(): _sum(path) for path in files})


def damage(folder: Path) -> str:
    """The file of a checkpoint that has changed, and how, in one line; "" if none has. Additional files are ignored."""
    file = folder / NAME
    try:
        expected = json.loads(file.read_bytes())
        if not isinstance(expected, dict) or "config.json" not in expected:
            return f"{file} is damaged (it names no files)"
    except FileNotFoundError:
        return f"{file} is missing"
    except (OSError, ValueError, RecursionError) as err:
        return f"{file} is damaged ({first_line(err)})"
    for name, entry in expected.items():
        file = folder / name
        try:
            found = _sum(file)
        except FileNotFoundError:
            return f"{file} is missing"
        except (OSError, ValueError) as err:
            return f"{file} cannot be read ({reason_of(err)})"
        if found != entry:
            size = entry.get("bytes") if isinstance(entry, dict) else None
            changed = (
                (f"it has {found['bytes']} bytes, but {size} were saved")
                if size != found["bytes"]
                else "its checksum differs"
            )
            return f"{file} is damaged ({changed})"
    return ""


def _sum(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns any error in the block into a TrainingError of one line that names the file."""
    try:
        yield
    except NextEmbedError:
        raise
    except Exception as err:  # foreign content may raise anything
        raise TrainingError(f"{file} cannot be read: {_reason(err)}") from err


def _reason(err: Exception) -> str:
    if isinstance(err, pickle.UnpicklingError):
        return "it contains more than tensors and numbers"
    if isinstance(err, EOFError):
        return "it is truncated"
    if isinstance(err, OSError) and err.strerror:
        return err.strerror
    text = first_line(err).split(". ")[0][:200]
    return text if isinstance(err, ValueError | OSError) else f"{type(err).__name__}: {text}"
