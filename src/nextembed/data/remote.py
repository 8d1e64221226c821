"""Sources in object stores and on web servers: listing and fetching of files. The only module that imports fsspec."""

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, cast

import fsspec
from huggingface_hub import constants

from ..core.belonging import make_folder, stays_inside
from ..core.files import first_line, locked, replacing, write_text
from ..core.hub import unreachable
from ..core.remote import filled_in, without_secrets
from ..core.terminal import print
from ..errors import ConfigError, DataError, MissingExtra
from .listing import File, by_ending
from .shard_index import INDEX, JOURNAL, Index, parse_index

SECONDS = 5.0  # for a connection
TRIES = 3
KEPT = 600.0  # seconds for which a listing counts
LARGE = 100 * 2**20  # size above which a download is announced
EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
DENIED = ("forbidden", "access denied", "accessdenied", "unable to locate credentials", "401", "403",
          "invalidaccesskey", "signaturedoesnotmatch", "not authorized", "gated")  # fmt: skip
MISSING = ("nosuchbucket", "specified bucket does not exist", "not found", "no such", "404")


class Store(Protocol):
    """The part of an fsspec file system that is used."""

    def isfile(self, path: str) -> bool: ...
    def find(self, path: str, detail: bool) -> dict[str, dict[str, object]]: ...
    def glob(self, path: str, detail: bool) -> dict[str, dict[str, object]]: ...
    def info(self, path: str) -> dict[str, object]: ...
    def get_file(self, rpath: str, lpath: str) -> None: ...
    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes: ...


class There(NamedTuple):
    """A remote file. name: below the source; path: in its store; stamp: fingerprint of its content."""

    name: str
    path: str
    size: int
    stamp: str


class Listing(NamedTuple):
    """Content of a source. shards: of shards that the library wrote."""

    files: list[There]
    shards: Index | None


def store_of(address: str) -> tuple[Store, str]:
    """The file system of an address, and its path there. Raises MissingExtra."""
    scheme = address.partition("://")[0].lower()
    if scheme == "hf" and (away := unreachable()):
        raise ConnectionError(away)
    options: dict[str, object] = {}
    if scheme == "s3":
        options["config_kwargs"] = {"connect_timeout": SECONDS, "read_timeout": 60, "retries": {"max_attempts": 2}}
    if scheme in ("http", "https"):
        import aiohttp

        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=SECONDS, sock_read=60), "trust_env": True,
        }  # fmt: skip
    try:
        store, path = fsspec.core.url_to_fs(address, **options)
    except ImportError:
        raise MissingExtra(EXTRAS.get(scheme, f"the file system of {scheme}://"), "cloud") from None
    return cast(Store, store), str(path)


@contextlib.contextmanager
def told(source: str) -> Iterator[None]:
    """Turns errors of a store into one line without secrets."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except Exception as err:  # each store has its own error classes
        said = without_secrets(first_line(err), source)[:200]
        lower = re.sub(r"\w+://\S+", "", f"{type(err).__name__} {said}".lower())  # addresses have ports such as 40123
        if isinstance(err, PermissionError) or any(word in lower for word in DENIED):
            hint = "credentials come from the environment, such as AWS_ACCESS_KEY_ID, or HF_TOKEN"
            raise ConfigError(f"data.source: {source}: no permission to read it ({said}; {hint})") from None
        if isinstance(err, FileNotFoundError) or any(word in lower for word in MISSING):
            raise ConfigError(f"data.source: {source}: no such bucket, folder or file ({said})") from None
        raise ConfigError(f"data.source: {source} cannot be reached ({said or type(err).__name__})") from None


def listing(source: str) -> Listing:
    """The files of a source: one file, a folder, or all matches of a pattern; cached for a while. Raises ConfigError,
    one line, if it does not exist, may not be read or cannot be reached.
    """
    return _listing(source, int(time.monotonic() // KEPT))


@cache
def _listing(source: str, moment: int) -> Listing:
    address = filled_in(source)
    with told(source):
        store, path = store_of(address)
        is_web = address.lower().startswith("http")
        if "*" in path:
            found = store.glob(path, detail=True)
            base = path.partition("*")[0].rpartition("/")[0]
            return Listing(_files(found, base), None)
        path, _, query = path.partition("?") if is_web else (path, "", "")
        query = f"?{query}" if query else ""
        named = PurePosixPath(path)
        if named.suffix and by_ending(named.name) != "other" and (is_web or store.isfile(path)):
            return Listing([_there(named.name, path + query, _about(store, path + query, is_web))], None)
        return _folder(store, path.rstrip("/"), query, source)


def _about(store: Store, path: str, is_web: bool) -> dict[str, object]:
    """Size and stamp of a file. Raises the store's error; web servers may report a file as missing that may not be
    read."""
    try:
        return store.info(path)
    except FileNotFoundError:
        if is_web:
            store.cat_file(path, 0, 1)
        raise


def _folder(store: Store, path: str, query: str, source: str) -> Listing:
    index = None
    with contextlib.suppress(FileNotFoundError):
        index = parse_index(store.cat_file(f"{path}/{INDEX}{query}").decode("utf-8", "replace"), f"{source}/{INDEX}")
    if index is not None:
        shards = [one for split in index.splits.values() for one in split.shards]
        files = [There(one.file, f"{path}/{one.file}{query}", one.bytes, one.sha256) for one in shards]
        return Listing(files, index)
    files = _files(store.find(path + "/" * path.startswith("http"), detail=True), path)
    if any(one.name == JOURNAL for one in files):
        raise ConfigError(f"data.source: the shards in {source} are not finished ({JOURNAL} is there)")
    if not files:
        raise ConfigError(f"data.source: {source}: no such bucket, folder or file, or an empty one")
    return Listing(files, None)


def _files(found: dict[str, dict[str, object]], base: str) -> list[There]:
    inside = {path: about for path, about in found.items() if about.get("type") != "directory"}
    return sorted(_there(path.removeprefix(base).lstrip("/"), path, about) for path, about in inside.items())


def _there(name: str, path: str, about: dict[str, object]) -> There:
    """A file of a listing, which is not trusted. Raises ConfigError for a name that leads out of the source."""
    if not stays_inside(name):
        raise ConfigError(f"data.source: {name[:200]!a} is a file outside of the source that lists it")
    size = about.get("size")
    stamp = next((str(about[key]) for key in ("ETag", "etag", "oid", "LastModified", "mtime") if about.get(key)), "")
    return There(name, path, int(size) if isinstance(size, int | float) else -1, stamp)


def remote_files(source: str) -> list[File]:
    """The files of a source with their kinds; the path of each is the source and its name, for `fetched`."""
    base = source.rstrip("/")
    files = listing(source).files
    alone = len(files) == 1 and base.partition("?")[0].endswith(f"/{files[0].name}")
    return [File(one.name, base if alone else f"{base}//{one.name}", by_ending(one.name)) for one in files]


def _find(path: str) -> tuple[str, There]:
    """The source and the file that `remote_files` named."""
    scheme, _, rest = path.partition("://")
    head, slashes, name = rest.partition("//")
    source = f"{scheme}://{head}"
    files = listing(source if slashes else path).files
    there = next((one for one in files if not slashes or one.name == name), None)
    if there is None:
        raise DataError(f"data.source: {source}: {name} no longer exists")
    return source, there


def fetch(source: str, there: There, target: Path) -> None:
    """Fetches one file atomically, with retries. Raises ConfigError as `listing`, and DataError for a file that is
    still truncated."""
    with told(source):
        store, _ = store_of(filled_in(source))
        for left in reversed(range(TRIES)):
            try:
                with replacing(target) as scratch:
                    store.get_file(there.path, str(scratch))
                    if there.size >= 0 and scratch.stat().st_size != there.size:
                        raise DataError(
                            f"data.source: {source}: {there.name} was downloaded with {scratch.stat().st_size:,} bytes "
                            f"instead of {there.size:,}"
                        )
                return
            except (FileNotFoundError, PermissionError, ConfigError):
                raise
            except Exception:
                if not left:
                    raise


@contextlib.contextmanager
def fetched(path: str) -> Iterator[Path]:
    """Context with a local copy of a file from `remote_files`."""
    source, there = _find(path)
    with tempfile.TemporaryDirectory(prefix="nextembed-") as folder:
        target = Path(folder) / PurePosixPath(there.name).name
        fetch(source, there, target)
        yield target


def cache_folder() -> Path:
    """The cache folder of remote sources."""
    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets") / "remote"


def mirrored(source: str) -> Path:
    """Fetches all files of a source into a folder of the cache; changed files are fetched again, removed ones deleted.
    If several processes or ranks do this, one fetches and the others wait."""
    found = listing(source)
    folder = cache_folder() / blake2b(source.encode(), digest_size=16).hexdigest()
    make_folder(folder)
    with locked(folder / "lock", None):
        _mirror(source, found, folder)
    return folder / "files"


def _mirror(source: str, found: Listing, folder: Path) -> None:
    """Files are fetched next to the folder, which others may be listing, and are then moved into it."""
    arriving = folder / "arriving"
    shutil.rmtree(arriving, ignore_errors=True)  # left by a killed process; this process has the lock
    new = [one for one in found.files if not _is_here(folder, one)]
    size = sum(max(one.size, 0) for one in new)
    if size > LARGE:
        print(f"Fetching {len(new):,} files ({size / 2**30:,.1f} GiB) of {source} to {folder}", flush=True)
    for one in new:
        fetch(source, one, arriving / one.name)
        _move(arriving / one.name, folder / "files" / one.name)
        write_text(folder / "stamps" / f"{one.name}.stamp", f"{one.size} {one.stamp}")
    if found.shards is not None:
        write_text(arriving / INDEX, found.shards.model_dump_json())
        _move(arriving / INDEX, folder / "files" / INDEX)
    known = {one.name for one in found.files} | ({INDEX} if found.shards else set())
    for path in sorted((folder / "files").rglob("*")):
        if path.is_file() and path.relative_to(folder / "files").as_posix() not in known:
            path.unlink()


def _move(file: Path, target: Path) -> None:
    make_folder(target.parent)
    try:
        os.replace(file, target)
    except OSError as err:
        raise ConfigError(f"cannot write {target}: {err.strerror}") from None


def _is_here(folder: Path, one: There) -> bool:
    with contextlib.suppress(OSError):
        stamp = (folder / "stamps" / f"{one.name}.stamp").read_text()
        return bool(one.stamp) and stamp == f"{one.size} {one.stamp}" and (folder / "files" / one.name).is_file()
    return False


def forget() -> None:
    """Clears the cached listings."""
    _listing.cache_clear()
