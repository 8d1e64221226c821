"""Recipes: plain functions that return a RunConfig; the first line of the docstring says what you get.

`recipes.nepa_demo` is one, `recipes.load("nepa_demo")` its config. `NAME_tiny` is `tiny` of the recipe NAME: seconds on
any machine. What there is, is read from the files' text: a list of names needs no torch.
"""

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .loading import load as load
    from .loading import missing_stages as missing_stages
    from .loading import named as named
    from .loading import recipes as recipes
    from .shrunk import tiny as tiny

MODULES = (
    "nepa",
    "images",
    "families",
    "finetuning",
    "segmentation",
    "decoder",
    "emu",
    "omni",
    "candle",
    "series",
    "stamps",
)
HELPERS = {"load": "loading", "recipes": "loading", "named": "loading", "missing_stages": "loading", "tiny": "shrunk"}


class Listed(NamedTuple):
    """Where a recipe is, and the first line of its docstring."""

    module: str
    line: str


@cache
def listed() -> dict[str, Listed]:
    """All recipes by name: the public functions of MODULES, in this order."""
    found = {}
    for module in MODULES:
        for node in ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                found[node.name] = Listed(module, (ast.get_docstring(node) or "").partition("\n")[0])
    return found


def __getattr__(name: str) -> Any:
    module = HELPERS.get(name) or (listed()[name].module if name in listed() else None)
    if module is None:
        raise AttributeError(f"module 'nextembed.recipes' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{module}", __name__), name)


def __dir__() -> list[str]:
    return [*listed(), "load", "recipes", "tiny"]
