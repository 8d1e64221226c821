"""Lists a folder: every file with its kind, links followed, and unusable files with the reason."""

import os
import stat
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import NamedTuple

IMAGES = frozenset(
    [
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".pjpeg",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".avif",
        ".avifs",
        ".jp2",
        ".j2k",
        ".jpf",
        ".jpx",
        ".jpc",
        ".j2c",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    ]
)
VIDEOS = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".mts",
        ".m2ts",
        ".wmv",
        ".flv",
        ".ogv",
        ".3gp",
    ]
)
HEIC = frozenset({".heic", ".heif", ".hif"})
UNREAD = frozenset(
    [
        ".jxl",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".dng",
        ".orf",
        ".rw2",
        ".raf",
        ".pef",
        ".srw",
        ".svg",
        ".svgz",
        ".psd",
        ".xcf",
        ".exr",
        ".hdr",
        ".tga",
        ".ico",
        ".icns",
        ".pcx",
        ".dds",
        ".eps",
        ".ai",
        ".wmf",
        ".emf",
        ".sgi",
        ".fits",
        ".dcm",
    ]
)
KINDS = {
    ".parquet": "parquet", ".tar": "tar", ".zip": "zip", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "txt",
    ".json": "json", ".csv": "csv", ".tsv": "csv", ".tab": "csv",
}  # fmt: skip
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar", ".gz", ".zst", ".lmdb", ".tfrecord",
          ".hdf5", ".h5", ".arrow", ".feather", ".orc", ".npz")  # fmt: skip
JUNK = frozenset(
    [
        ".ds_store",
        "thumbs.db",
        "desktop.ini",
        "__macosx",
        ".ipynb_checkpoints",
        "@eadir",
        "$recycle.bin",
        ".trash",
        ".trashes",
        ".git",
        ".svn",
        ".cache",
        "__pycache__",
        ".spotlight-v100",
        ".fseventsd",
        ".thumbnails",
    ]
)
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


LINK_TO_NOTHING = "a broken link"


class File(NamedTuple):
    """A file below a folder.

    name: relative, with slashes. kind: "image", "video", one of `KINDS`, "metadata", "packed" (an archive that is not
    read), "other"; reason: why it cannot be used although it may be data. A name that is not UTF-8 contains
    surrogates."""

    name: str
    path: str
    kind: str
    reason: str = ""

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple([part for part in self.name.split("/")[:-1] if part not in ("", ".")])


def shown(name: str) -> str:
    """A name that can be printed and saved: bytes that are no UTF-8 as \\udcff."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def listed(folder: Path, hidden: bool = False, folders: list[str] | None = None) -> list[File]:
    """Every file below a folder, by name. hidden: uses names with a leading dot. folders: collects the paths of visited
    folders."""
    return sorted(_walk(str(folder), "", (), False, hidden, [] if folders is None else folders))


def _walk(
    path: str, name: str, above: tuple[tuple[int, int], ...], is_hidden: bool, hidden: bool, folders: list[str]
) -> Iterator[File]:
    folders.append(path)
    try:
        at = os.stat(path)
        own = (at.st_dev, at.st_ino)
        if own in above:
            yield File(name, path, "other", "a link to one of its own parent folders")
            return
        with os.scandir(path) as found:
            entries = list(found)
    except OSError as err:
        yield File(name or ".", path, "image", f"the folder cannot be read: {err.strerror}")
        return
    for entry in entries:
        below = f"{name}/{entry.name}" if name else entry.name
        if entry.name.lower() in JUNK or entry.name.startswith("._"):
            continue  # files that systems create everywhere
        dotted = is_hidden or (entry.name.startswith(".") and not hidden)
        try:
            mode = entry.stat().st_mode
        except OSError:
            if (kind := by_ending(entry.name)) in ("image", "unread", "heic"):
                yield File(below, entry.path, "image", LINK_TO_NOTHING)
            else:
                yield File(below, entry.path, kind, LINK_TO_NOTHING)
            continue
        if stat.S_ISDIR(mode):
            yield from _walk(entry.path, below, (*above, own), dotted, hidden, folders)
        else:
            yield _file(below, entry.path, mode, dotted)


def _file(name: str, path: str, mode: int, is_hidden: bool) -> File:
    kind, reason = by_ending(name), ""
    if not stat.S_ISREG(mode):
        kind, reason = (
            ("image" if kind in ("heic", "unread") else kind),
            "not a regular file (a pipe, socket or device)",
        )
    elif kind == "other" and is_picture(_head(path, 16)):
        kind = "image"
    elif kind == "json" and not _is_list(path):
        kind = "other"  # settings, or the description of a data set
    if kind == "heic":
        kind, reason = "image", reason or ("" if find_spec("pillow_heif") else HEIC_HINT)
    if kind == "unread":
        kind, reason = "image", reason or f"{PurePosixPath(name).suffix.lower()} files cannot be read; convert them"
    if is_hidden and kind != "other":
        reason = reason or "hidden, because a name starts with a dot (data.hidden=true uses it)"
    return File(name, path, kind, reason)


def member_file(name: str, ref: str, reason: str = "") -> File:
    """A member of an archive, as a file; "junk" for what systems leave everywhere."""
    parts = PurePosixPath(name).parts
    if any(part.lower() in JUNK or part.startswith("._") for part in parts):
        return File(name, ref, "junk")
    kind = by_ending(name)
    if reason:
        return File(name, ref, "image" if kind in ("heic", "unread") else kind, reason)
    if kind == "heic":
        return File(name, ref, "image", "" if find_spec("pillow_heif") else HEIC_HINT)
    if kind == "unread":
        return File(name, ref, "image", f"{PurePosixPath(name).suffix.lower()} files cannot be read; convert them")
    return File(name, ref, kind)


HEIC_HINT = "HEIC needs pillow-heif: pip install 'nextembed[heic]'"


def by_ending(name: str) -> str:
    base = name.rstrip("/").rpartition("/")[2].lower()
    if base in METADATA:
        return "metadata"
    ending = os.path.splitext(base)[1]
    if ending in IMAGES or ending in VIDEOS:
        return "image" if ending in IMAGES else "video"
    if ending in HEIC or ending in UNREAD:
        return "heic" if ending in HEIC else "unread"
    if base.endswith(PACKED):
        return "packed"
    if base.endswith(".skipped.jsonl"):
        return "side"  # what `embed` writes beside its table
    return KINDS.get(ending, "other")


def _is_list(path: str) -> bool:
    """Whether JSON begins as a list, in whatever encoding."""
    return _head(path, 64).replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xfe\xff \t\r\n").startswith(b"[")


def _head(path: str, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return b""


def is_picture(head: bytes) -> bool:
    """Whether a file is a picture by its first 16 bytes."""
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
    if head.startswith(starts) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return True
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return True
    return head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"hevc")
