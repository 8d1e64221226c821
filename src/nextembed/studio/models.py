"""Models in memory: loaded when first needed, a few at a time, and released again."""

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

import torch

T = TypeVar("T")


class Models:
    """A cache that releases the least recently used models first.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int):
        self.most = most
        self._kept: OrderedDict[Hashable, tuple[str, object]] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, load: Callable[[], T], name: str) -> T:
        """The result of `load` for this key. Others are released before something new is loaded. name: for display."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return cast(T, self._kept[key][1])
            while len(self._kept) >= self.most:
                self._kept.popitem(last=False)
            self._collect()
            made = load()
            self._kept[key] = (name, made)
            return made

    def unload(self) -> list[str]:
        """Releases all. Returns their names."""
        with self._lock:
            names = self.names()
            self._kept.clear()
            self._collect()
            return names

    def names(self) -> list[str]:
        """Names of the models in memory, the last used one at the end."""
        with self._lock:
            return list(dict.fromkeys(name for name, _ in self._kept.values()))

    def _collect(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
