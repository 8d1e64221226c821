"""Recipes: plain functions that return a RunConfig; the first line of the docstring says what you get.

`recipes.nepa_demo` is one, `recipes.load("nepa_demo")` its config. `NAME_tiny` is `tiny` of the recipe NAME: seconds on
any machine. What there is, is read from the files' text: a list of names needs no torch.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from .listing import listed

if TYPE_CHECKING:
    from ..runs import RunConfig
    from .loading import load as load
    from .loading import missing_stages as missing_stages
    from .loading import named as named
    from .loading import recipes as recipes
    from .shrunk import tiny as tiny

HELPERS = {"load": "loading", "recipes": "loading", "named": "loading", "missing_stages": "loading", "tiny": "shrunk"}


def __getattr__(name: str) -> "Callable[..., RunConfig]":
    module = HELPERS.get(name) or (listed()[name].module if name in listed() else None)
    if module is None:
        raise AttributeError(f"module 'nextembed.recipes' has no attribute '{name}'")
    found: Callable[..., RunConfig] = getattr(importlib.import_module(f".{module}", __name__), name)
    return found


def __dir__() -> list[str]:
    return [*listed(), "load", "recipes", "tiny"]
