"""Members of tar and zip archives, listed once and read in place, without unpacking."""

import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from .listing import is_picture, shown
from .transforms import Unreadable

TAR, ZIP = "tar-member:", "zip-member:"  # before what `refer` writes
MOST = 500_000_000  # default limit of bytes read of a member
OUTSIDE = "its name leads out of the archive"
LINK = "a link, which is not followed in archives"
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
BROKEN = (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error,
          lzma.LZMAError)  # fmt: skip
EXTRA = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)  # have content


class Member(NamedTuple):
    """A file in an archive. name: its path there; ref: input of `read_member`; reason: why it cannot be used."""

    name: str
    ref: str
    reason: str = ""


def refer(archive: str, name: str, offset: int | None = None, size: int = 0) -> str:
    """A reference to a member, as text. offset, size: of the bytes in a tar archive."""
    head = ZIP if offset is None else f"{TAR}{offset}:{size}:"
    return f"{head}{len(archive)}:{archive}/{name}"


def is_member(ref: str) -> bool:
    return ref.startswith((TAR, ZIP))


def place_of(ref: str) -> tuple[str, str]:
    """The archive, and the name of the member. Raises ValueError for a text that is not a reference."""
    numbers = ref.split(":", 4 if ref.startswith(TAR) else 2)
    length, path = int(numbers[-2]), numbers[-1]
    return path[:length], path[length + 1 :]


def read_member(ref: str, max_bytes: int = MOST) -> bytes:
    """The bytes of a member. Raises Unreadable, also for more than `max_bytes`, without unpacking any."""
    try:
        archive, name = place_of(ref)
        if ref.startswith(ZIP):
            opened_zip = _opened_zip(archive, os.path.getmtime(archive), os.getpid())
            _check_size(opened_zip.getinfo(name).file_size, max_bytes)
            with opened_zip.open(name) as file:
                return file.read()
        _, offset, size, _ = ref.split(":", 3)
        _check_size(int(size), max_bytes)
        with open(archive, "rb") as opened:
            opened.seek(int(offset))
            return opened.read(int(size))
    except BROKEN as err:
        raise Unreadable(f"a member of an archive cannot be read: {str(err)[:150]}") from None


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise Unreadable(f"{size} bytes, more than max_bytes={max_bytes}")


@lru_cache(4)
def _opened_zip(archive: str, changed: float, process: int) -> zipfile.ZipFile:
    """An open archive; each process has its own, because the position in the file is shared."""
    return zipfile.ZipFile(archive)


def zip_members(archive: str) -> list[Member]:
    """Raises ValueError or OSError for a file that is no zip archive."""
    try:
        with zipfile.ZipFile(archive) as opened:
            found = {one.filename: one for one in opened.infolist()}
            num_found = len(opened.infolist())
    except (zipfile.BadZipFile, NotImplementedError) as err:
        raise ValueError(str(err)) from None
    if len(found) < num_found:
        names = Counter(one.filename for one in opened.infolist())
        raise ValueError(f"two members are '{names.most_common(1)[0][0]}'")
    return [
        Member(name, refer(archive, name), _zip_reason(found[name]))
        for name in sorted(found)
        if not found[name].is_dir()
    ]


def _zip_reason(one: zipfile.ZipInfo) -> str:
    if leads_out(one.filename):
        return OUTSIDE
    if one.flag_bits & 1:
        return "encrypted with a password"
    return LINK if stat.S_ISLNK(one.external_attr >> 16) else ""


def leads_out(name: str) -> bool:
    """Whether a name in an archive leads out of the folder that it would be unpacked in. Nothing is unpacked."""
    return ".." in re.split(r"[/\\]", name)


def tar_members(archive: str) -> Iterator[Member]:
    """The files of a tar archive. Raises ValueError, tarfile.TarError or OSError for one that is damaged or
    compressed."""
    with open(archive, "rb") as file:
        head = file.read(6)
    if packer := next((packer for mark, packer in COMPRESSED.items() if head.startswith(mark)), None):
        raise ValueError(f"it is compressed, and tar archives are read where they lie; unpack it with {packer}")
    check_tar(archive)
    refs: dict[str, str] = {}
    with tarfile.open(archive, "r:") as opened:
        for one in opened:
            name = shown(one.name)
            if one.isdir():
                continue
            reason = _tar_reason(one)
            if one.isreg():
                refs[one.name] = refer(archive, name, one.offset_data, one.size)
            yield Member(name, refs.get(one.linkname if one.islnk() else one.name, ""), reason)


def _tar_reason(one: tarfile.TarInfo) -> str:
    if leads_out(one.name):
        return OUTSIDE
    if one.issparse():
        return "stored with holes (tar --sparse)"
    if one.issym():
        return LINK
    return "" if one.isreg() or one.islnk() else "not a regular file (a pipe or device)"


def check_tar(file: str | Path) -> None:
    """Raises ValueError for an archive that is truncated or broken in the middle, which `tarfile` mistakes for its
    end."""
    size, at, num = os.path.getsize(file), 0, 0
    with open(file, "rb") as archive:
        while at < size:
            archive.seek(at)
            block = archive.read(tarfile.BLOCKSIZE)
            if not any(block):
                return
            try:
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.TarError as err:
                if num == 0:
                    return  # compressed or not an archive: the reader reports it
                raise ValueError(f"{err} after {num} members") from None
            blocks = -(-member.size // tarfile.BLOCKSIZE) if member.isreg() or member.type in EXTRA else 0
            at, num = at + (1 + blocks) * tarfile.BLOCKSIZE, num + 1
    if at > size:
        raise ValueError(f"the file is truncated within member {num}")


def samples(members: list[Member]) -> dict[str, dict[str, str]]:
    """Members that belong together, by key: their refs by extension in lower case, as in webdataset: what follows the
    first dot of a name. If few samples have that extension, dots are part of the name.

    Raises ValueError for two members of one kind in a sample.
    """
    parted = [(one, *_parted(one.name)) for one in members if one.ref and not one.reason]
    kinds = Counter(kind for _, _, kind in parted)
    keys = len({key for _, key, _ in parted})
    found: dict[str, dict[str, str]] = {}
    for one, key, kind in parted:
        if not kind and picture_inside(one):
            kind = "png"  # or another format: pictures are read by their content
        if not kind:
            continue
        inner, dot, last = kind.rpartition(".")
        if dot and (not inner[0].isalpha() or kinds[kind] * 2 <= keys):
            key, kind = f"{key}.{inner}", last
        sample = found.setdefault(key, {})
        if sample.setdefault(kind.lower(), one.ref) != one.ref:
            raise ValueError(f"two members are '{key}.{kind.lower()}'")
    return found


def picture_inside(one: Member) -> bool:
    """Whether a member of a tar archive without extension, which is not hidden, is a picture by its first bytes."""
    if is_unneeded(one.name) or not one.ref.startswith(TAR):
        return False
    offset = int(one.ref.split(":", 2)[1])
    with open(place_of(one.ref)[0], "rb") as archive:
        archive.seek(offset)
        return is_picture(archive.read(16))


def is_unneeded(name: str) -> bool:
    """Whether a member is hidden, or a system file such as Thumbs.db."""
    parts = name.split("/")
    return parts[-1].startswith(".") or parts[-1] == "" or "__MACOSX" in parts


def unnamed(members: list[Member]) -> list[str]:
    """The names of members that are left out because neither extension nor content identifies them."""
    bare = (one for one in members if "." not in one.name.rpartition("/")[2] and not is_unneeded(one.name))
    return [one.name for one in bare if one.ref and not one.reason and not picture_inside(one)]


def unusable(members: list[Member]) -> dict[str, str]:
    """Members that cannot be used, with the reason."""
    lost = (one for one in members if one.reason or not one.ref)
    lost = (one for one in lost if one.reason == OUTSIDE or not is_unneeded(one.name))
    return {one.name: one.reason or "a broken link" for one in lost}


def _parted(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    if not stem or base.startswith("._") or "__MACOSX" in folder:
        return name, ""  # a hidden file is not a sample
    return folder + slash + stem, kind
