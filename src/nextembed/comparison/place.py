"""The folder of a comparison, new or its own, locked by one process, with its settings."""

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
    """settings.json of a comparison: settings that must not change when it resumes. config: as YAML; empty for existing
    runs."""

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
