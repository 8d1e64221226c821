"""Rules that keep the code readable: import layers, one module that imports each optional library, small files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "nextembed"
FILES = sorted(SRC.rglob("*.py"))

# From the lowest layer up. A module may import from earlier rows only, not from its own row.
ROWS = [
    ["core", "errors"],
    ["nn"],
    ["modalities"],
    ["models"],
    ["objectives", "data"],
    ["toys"],  # above data: toys are kinds of data and are built from its parts
    ["training", "evaluation", "report"],
    ["tasks", "inference", "export"],
    ["runs"],
    ["planning"],  # below run, which calls it to fit a step into memory
    ["run"],
    ["recipes"],
    ["comparison"],  # above recipes, which define what is compared
    ["studio"],
    ["cli"],  # above studio: one command starts it
]
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
ONLY = {"data": {"core", "errors", "modalities"}, "objectives": {"core", "errors", "nn", "modalities"}}
DOORS = {
    "datasets": ("data/loading.py", "data/tar_tables.py"),
    "diffusers": "models/emu/visual_decoder",
    "peft": "training/adapt.py",
    "timm": ("models/emu/", "data/augment.py"),
    "gradio": "studio/",
    "ray": "evaluation/features/on_ray.py",
    "fsspec": ("data/remote.py", "data/record.py"),
}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8  # without self and cls
MANY_PARAMETERS = {
    "models/emu/modeling_emu.py:forward",  # the arguments that transformers passes to a model
    "report/visualize.py:visualize",  # the options of one figure; all but three are keyword-only
}
HEAVY = {"torch", "torchvision", "transformers", "datasets", "accelerate", "sklearn", "matplotlib", "numpy"}


def layer(file: Path) -> str:
    return file.relative_to(SRC).parts[0].removesuffix(".py")


def imports(tree: ast.Module, file: Path, top_level: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import; relative imports are made absolute."""
    package = ["nextembed", *file.relative_to(SRC).parts[:-1]]
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            for alias in node.names:
                yield node.lineno, ".".join([*module, alias.name])


def num_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def breaches(file: Path, text: str) -> list[str]:
    """Rule violations in a file with this text, one line each."""
    tree, name, own = ast.parse(text), file.relative_to(SRC).as_posix(), layer(file)
    if own != "__init__" and own not in ROW:
        return [f"{name}: '{own}' has no place in the import rule"]
    found = []
    for line, target in imports(tree, file):
        first, *rest = target.split(".")
        if first == "nextembed" and own != "__init__" and rest and rest[0] in ROW and rest[0] != own:
            if ROW[rest[0]] > ROW[own] or (ROW[rest[0]] == ROW[own] > 0):
                found.append(f"{name}:{line}: {own} may not import {rest[0]}")
            elif rest[0] not in ONLY.get(own, {rest[0]}):
                found.append(f"{name}:{line}: {own} imports only {', '.join(sorted(ONLY[own]))}")
        if first in DOORS and not name.startswith(DOORS[first]):
            found.append(f"{name}:{line}: {first} comes in only through {DOORS[first]}")
    if len(text.splitlines()) > MAX_FILE_LINES:
        found.append(f"{name}: longer than {MAX_FILE_LINES} lines")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES:
                found.append(f"{name}:{node.lineno}: {node.name} is longer than {MAX_FUNCTION_LINES} lines")
            if num_parameters(node) > MAX_PARAMETERS and f"{name}:{node.name}" not in MANY_PARAMETERS:
                found.append(f"{name}:{node.lineno}: {node.name} has more than {MAX_PARAMETERS} parameters")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(SRC).as_posix())
def test_rules_hold(file: Path) -> None:
    assert breaches(file, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("nn/x.py", "from ..training.loop import Loop", "nn may not import training"),
        ("nn/x.py", "import nextembed.models.nepa", "nn may not import models"),
        ("nn/x.py", "def f():\n    from nextembed import data", "nn may not import data"),
        ("training/x.py", "from .. import evaluation", "training may not import evaluation"),
        ("objectives/x.py", "from ..models.nepa import ViTNepaModel", "objectives imports only core"),
        ("data/x.py", "from ..nn.losses import mse", "data imports only core, errors, modalities"),
        ("data/collate.py", "import datasets", "datasets comes in only through ('data/loading.py'"),
        ("report.py", "from .run import fit", "report may not import run"),
        ("helpers.py", "", "'helpers' has no place"),
        ("nn/x.py", "x = 1\n" * 501, "longer than 500 lines"),
        ("nn/x.py", "def f():\n" + "    x = 1\n" * 60, "f is longer than 60 lines"),
        ("nn/x.py", "def f(a, b, c, d, /, e, f, *, g, h, i): ...", "f has more than 8 parameters"),
    ],
)
def test_each_breach_is_found(name: str, text: str, words: str) -> None:
    found = breaches(SRC / name, text)
    assert len(found) == 1 and words in found[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("core/x.py", "from ..errors import ConfigError"),
        ("models/nepa/x.py", "from ...nn.attention import Attention\nfrom .settings import NepaModel"),
        ("run.py", "from .training.loop import Loop\nimport torch"),
        ("data/loading.py", "import datasets"),
        ("__init__.py", "from .run import fit"),
        ("nn/x.py", "class C:\n    def f(self, a, b, c, d, e, f, g, h): ..."),
        ("models/emu/modeling_emu.py", "def forward(a, b, c, d, e, f, g, h, i): ..."),
    ],
)
def test_allowed_code_passes(name: str, text: str) -> None:
    assert breaches(SRC / name, text) == []


def test_exceptions_are_still_needed() -> None:
    for exception in MANY_PARAMETERS:
        file, _, function = exception.partition(":")
        nodes = ast.walk(ast.parse((SRC / file).read_text(encoding="utf-8")))
        found = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == function]
        assert any(num_parameters(node) > MAX_PARAMETERS for node in found), exception


def test_command_line_imports_nothing_heavy_at_the_top() -> None:
    files = sorted((SRC / "cli").glob("*.py"))
    assert files
    for file in files:
        names = {name.split(".")[0] for _, name in imports(ast.parse(file.read_text()), file, top_level=True)}
        assert not names & HEAVY


def test_the_guide_for_contributors_has_the_same_rows() -> None:
    text = (SRC.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = text.partition("## Import rule\n\n```\n")[2].partition("```")[0].split("\n")
    assert [sorted(row.split()) for row in reversed(rows) if row] == [sorted(row) for row in ROWS]
