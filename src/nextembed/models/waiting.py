"""Lazy registration of our models in transformers' Auto classes. Every Auto class first looks up the `model_type` of a
folder in the mapping of configs. This adds our four types to it as placeholders: the first lookup imports the models,
which then register themselves in all Auto classes. So `import nextembed` costs neither torch nor transformers.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MODULE_OF = {"vit_nepa": "nepa", "spt_nepa": "nepa_spt", "emu": "emu", "omni": "omni"}  # by model_type
MAPPING = "transformers.models.auto.configuration_auto"


class Waiting(dict[str, Any]):
    """The mapping of registered configs; a lookup of one of ours imports our models first."""

    def __contains__(self, name: object) -> bool:
        if not super().__contains__(name) and isinstance(name, str) and name in MODULE_OF:
            importlib.import_module(f"nextembed.models.{MODULE_OF[name]}")
        return super().__contains__(name)


class _Finder(importlib.abc.MetaPathFinder):
    """Prepares transformers' mapping of configs right after it was imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != MAPPING:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _prepare(module)


def _prepare(module: ModuleType) -> None:
    mapping: Any = vars(module)["CONFIG_MAPPING"]
    mapping._extra_content = Waiting(mapping._extra_content)


def wait() -> None:
    """Makes our model types known to transformers, whether it was imported already or is imported later."""
    if MAPPING in sys.modules:
        _prepare(sys.modules[MAPPING])
    else:
        sys.meta_path.insert(0, _Finder())
