"""Decides whether a name is a local path or a hub id. Needs no torch, so a mistyped path fails at once."""

import difflib
import os
import re
from glob import has_magic
from pathlib import Path

from ..errors import ConfigError, shortened
from .remote import check_secrets, is_remote

NO_RUN = "no such run or checkpoint"
NO_SOURCE = "data.source: no such file or folder"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# Names that folders have but no owner on the hub, and endings of files that no repository has.
FOLDERS = {"runs", "run", "data", "datasets", "models", "checkpoints", "images", "photos", "pictures", "tmp", "home"}
ENDINGS = re.compile(
    r"\.(png|jpe?g|gif|webp|bmp|tiff?|avif|heic|mp4|mov|webm|mkv|avi|wav|mp3|flac|ogg|npy|npz|csv|tsv|jsonl?|ndjson|"
    r"parquet|txt|tar|zip|gz|tgz|7z|ya?ml|py|pt|pth|ckpt|safetensors|gguf|bin|onnx|html)$",
    re.IGNORECASE,
)


def is_hub_id(name: str | os.PathLike[str]) -> bool:
    """Whether a name that is not a local path may be a hub id: "owner/name" that does not look like a path. Not
    `runs/mien`, not `photos/dog.png`, and nothing below a folder that exists here or is spelled almost so."""
    if not isinstance(name, str) or not HUB_ID.fullmatch(name) or ENDINGS.search(name):
        return False
    owner = name.partition("/")[0]
    return owner.lower() not in FOLDERS and not Path(owner).exists() and not _folder_like(name)


def check_here(name: str | os.PathLike[str], what: str, hub: bool = True) -> None:
    """Raises ConfigError, "WHAT: NAME", with similar names, for a path that does not exist. hub: whether a hub id is
    accepted.
    """
    if Path(name).expanduser().exists() or (hub and is_hub_id(name)):
        return
    near = near_path(Path(name).expanduser())
    lone = hub and not near and re.fullmatch(r"[\w-]+", str(name))
    raise ConfigError(f"{what}: {shortened(str(name))}{near}{' (one on the hub is named owner/name)' if lone else ''}")


def check_source(source: str, hub: bool = True) -> None:
    """Raises ConfigError for a data source that does not exist here, is not bundled and cannot be on the hub, and for
    an address that contains a secret."""
    if is_remote(source):
        check_secrets(source)
        return
    if source not in ("emoji", "glosses") and not has_magic(source) and ".py:" not in source:
        check_here(source, NO_SOURCE, hub)


def is_run_folder(folder: Path) -> bool:
    """Whether it is a run folder, with models in `model/` or checkpoints."""
    return not (folder / "config.json").exists() and (
        (folder / "model" / "config.json").is_file() or (folder / "checkpoints").is_dir()
    )


def near_path(path: Path) -> str:
    """ ". Did you mean 'runs/mine'?", of the names that lie where a path should, or nothing."""
    found = _near(path)
    return f". Did you mean '{found}'?" if found else ""


def _near(path: Path) -> Path | None:
    """An existing path with nearly the same spelling, from the first part on that does not exist."""
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if not os.path.lexists(found / part):
            close = _close(part, found)
            if close is None:
                return None
            part = close
        found = found / part
    return found


def _close(name: str, folder: Path) -> str | None:
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    stems = {Path(own).stem.lower(): own for own in sorted(names, reverse=True)} | {own.lower(): own for own in names}
    near = difflib.get_close_matches(name.lower(), stems, 1, cutoff=0.5)
    return stems[near[0]] if near else None


def _folder_like(name: str) -> bool:
    """`rnus/mine` where runs/mine is here."""
    found = _near(Path(name))
    return found is not None and difflib.SequenceMatcher(None, str(found), name).ratio() > 0.7
