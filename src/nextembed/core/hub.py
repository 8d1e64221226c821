"""Recognises at once that the hub cannot be reached, instead of after half a minute of retries."""

import os
import socket
import threading
import urllib.request
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from ..errors import ConfigError

SECONDS = 4.0  # for a first connection


@cache
def unreachable() -> str | None:
    """Why the hub cannot be reached, checked once; None if it can be, or if there is a proxy. Afterwards the libraries
    only use their caches and do not try again.
    """
    from huggingface_hub import constants

    host = urlparse(constants.ENDPOINT).hostname or constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        return f"{host} is not used (HF_HUB_OFFLINE is set)"
    if urllib.request.getproxies():
        return None
    problem = _no_connection(host, urlparse(constants.ENDPOINT).port or 443)
    if problem is None:
        return None
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"  # of worker processes
    return f"{host} cannot be reached ({problem})"


def check_reachable(name: str, what: str, kind: Literal["model", "dataset"] = "model") -> None:
    """Raises ConfigError, "WHAT: NAME ...", for a hub id that is not in the cache, if the hub cannot be reached or does
    not have it.

    Needs no torch.
    """
    if is_kept(name, kind):
        return
    if away := unreachable():
        raise ConfigError(f"{what}: {name} (it is not in the download cache, and {away})")
    if is_missing(name, kind):
        raise ConfigError(f"{what}: {name} (the hub has no {kind} of this name, or it needs a login)")


def is_missing(name: str, kind: Literal["model", "dataset"]) -> bool:
    """Whether the hub reports that there is no such repository. A gated one exists; no answer counts as False."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=SECONDS)
    except GatedRepoError:
        return False
    except RepositoryNotFoundError:
        return True
    except Exception:  # of whatever library makes the connection; whoever needs the repository says what is wrong
        return False
    return False


def is_kept(name: str, kind: Literal["model", "dataset"]) -> bool:
    """Whether some of a repository is in the cache."""
    from huggingface_hub import constants

    tables = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
    raw = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    return raw.exists() or (kind == "dataset" and (Path(tables) / name.replace("/", "___")).exists())


def _no_connection(host: str, port: int) -> str | None:
    """The connection error; None if there is a connection. A name lookup has no time limit of its own."""
    found = [f"no answer in {SECONDS:.0f} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=SECONDS).close()
            found.clear()
        except OSError as err:
            found[:] = [err.strerror or str(err)]

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return found[0] if found else None
