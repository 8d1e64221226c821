"""The list of recipes, read from the text of their files: it needs no torch."""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

MODULES = (
    "nepa",
    "images",
    "families",
    "tokens",
    "finetuning",
    "segmentation",
    "decoder",
    "emu",
    "omni",
    "candle",
    "series",
    "stamps",
)


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
