"""The current state of runs; each is read again only when its files have changed."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from ..core.objective import Verdict
from ..errors import NextEmbedError
from ..report.view import RunView, read_view
from ..runs import open_run
from .folders import Folders
from .status import Status, status_of, written

FILES = ("config.yaml", "metrics.jsonl", "environment.json", "probe.json", "scores.json", "answers.json",
         "skipped.jsonl")  # fmt: skip
KEPT = 500  # views

Stamp = tuple[tuple[int, int] | None, ...]


class KeptView(RunView):
    """A view whose verdict is reached once: the page asks for it at each refresh, and comparing answers is slow."""

    @cached_property
    def verdict(self) -> Verdict:
        return super().verdict


class Reader:
    """Views of runs by name; safe to ask from several threads."""

    def __init__(self, folders: Folders):
        self.folders = folders
        self._views: OrderedDict[Path, tuple[Stamp, RunView]] = OrderedDict()
        self._lock = threading.Lock()

    def view(self, name: str) -> RunView:
        """The view of a run. Raises ConfigError for a run that is not here or damaged."""
        place = self.folders.get("run", name)
        stamp = stamp_of(place)
        with self._lock:
            known = self._views.get(place)
        if known is not None and known[0] == stamp:
            return known[1]
        view = KeptView(**vars(read_view(open_run(place))))
        with self._lock:
            self._views[place] = (stamp, view)
            while len(self._views) > KEPT:
                self._views.popitem(last=False)
        return view

    def views(self, names: Iterable[str] | None = None) -> tuple[dict[str, RunView], dict[str, str]]:
        """Views by name, and why others cannot be read. names: None is all, the one that was written last first."""
        found: dict[str, RunView] = {}
        broken: dict[str, str] = {}
        for name in self._latest_first() if names is None else names:
            try:
                found[name] = self.view(name)
            except (NextEmbedError, OSError) as err:
                broken[name] = " ".join(str(err).split())[:300]
        return found, broken

    def _latest_first(self) -> list[str]:
        places = self.folders.look().run
        return sorted(places, key=lambda name: written(places[name]), reverse=True)

    def states(self, views: dict[str, RunView]) -> dict[str, Status]:
        """What each run is doing now."""
        return {name: status_of(view) for name, view in views.items()}


def stamp_of(folder: Path) -> Stamp:
    """When the files of a run were last written, and how large they are."""
    found: list[tuple[int, int] | None] = []
    for name in FILES:
        try:
            status = (folder / name).stat()
            found.append((status.st_mtime_ns, status.st_size))
        except OSError:
            found.append(None)
    return tuple(found)
