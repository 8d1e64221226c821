"""The folder of a comparison: a new one or its own, held by one process, with what it was begun with."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.belonging import check_own_folder, make_folder
from ..core.files import locked
from ..core.saved import load
from ..errors import ConfigError

SETTINGS, LOCK = "settings.json", ".lock"


@dataclass
class Asked:
    """settings.json of a comparison: what may not change when it goes on. config: as YAML; empty of runs that are
    there, which are compared as they are."""

    config: str
    settings: dict[str, object]
    threads: int


@contextlib.contextmanager
def held(place: Path) -> Iterator[Asked | None]:
    """The folder, made where it is missing, while no other process compares in it; yields what it was begun with.

    Raises ConfigError, and changes nothing, for a folder with anything in it that is no comparison's.
    """
    check_own_folder(place, (SETTINGS,), LOCK)
    file = place / SETTINGS
    if file.is_file():
        asked(file)
    make_folder(place)
    with locked(place / LOCK, f"another process is comparing in {place}: wait for it, or stop it"):
        yield asked(file) if file.is_file() else None


def asked(file: Path) -> Asked:
    try:
        return load(Asked, file)
    except ConfigError as err:
        raise ConfigError(
            f"{file.parent} contains something other than a comparison; choose another --folder ({err})"
        ) from None
