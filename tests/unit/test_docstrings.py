"""The public API documents arguments, results and errors in Google sections, which the site shows as tables."""

import importlib
import inspect
import re
import types
from collections.abc import Iterator

import pytest
from torch import nn

import nextembed
from nextembed.core.config import Config

NAMES = sorted({*dir(nextembed)} - {"__version__", "recipes"})
PUBLIC = {name: getattr(nextembed, name) for name in NAMES}
FUNCTIONS = {name: one for name, one in PUBLIC.items() if isinstance(one, types.FunctionType)}
CLASSES = {name: one for name, one in PUBLIC.items() if isinstance(one, type)}
# Models consist of documented modules; errors need only their first line.
NO_FIELDS = (Exception, Config)

# Further modules with a page in the reference (`INTERNALS` in docs/gen_reference.py).
SHOWN = [
    "nn.losses",
    "nn.diagnostics",
    "nn.density",
    "nn.sampled",
    "nn.generative",
    "nn.orders",
    "nn.masks",
    "nn.quantize",
    "core.types",
    "core.objective",
    "tasks.base",
    "modalities.base",
    "core.sample_scores",
]
# Methods that transformers requires of every model: documented there, excluded here (`filters` in mkdocs.yml).
OF_TRANSFORMERS = re.compile(r"[gs]et_(input|output)_embeddings|get_(decoder|text_config)")


def shown_functions() -> Iterator[tuple[str, types.FunctionType]]:
    """Functions and methods that the reference describes; an override without a docstring inherits its base's."""
    classes = {f"nextembed.{name}": cls for name, cls in CLASSES.items()}
    for path in SHOWN:
        module = importlib.import_module(f"nextembed.{path}")
        for name, one in vars(module).items():
            if name[0] == "_" or not isinstance(one, type | types.FunctionType) or one.__module__ != module.__name__:
                continue
            if isinstance(one, type):
                classes[f"{path}.{name}"] = one
            else:
                yield f"{path}.{name}", one
    for where, cls in classes.items():
        for name, one in vars(cls).items():
            method = one.__func__ if isinstance(one, classmethod | staticmethod) else one
            own = isinstance(method, types.FunctionType) and method.__module__.startswith("nextembed")
            if (
                own
                and method.__doc__
                and (name[0] != "_" or name == "__call__")
                and not OF_TRANSFORMERS.fullmatch(name)
            ):
                yield f"{where}.{name}", method


FUNCTIONS_SHOWN = dict(shown_functions())


def section(doc: str, name: str) -> set[str]:
    """The entries of a docstring section."""
    found = re.search(rf"^{name}:\n((?:[ \t]+.*\n?|\n)*)", inspect.cleandoc(doc), re.MULTILINE)
    return set(re.findall(r"^    \*{0,2}(\w+):", found[1], re.MULTILINE)) if found else set()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function(name: str) -> None:
    function = FUNCTIONS[name]
    doc, signature = function.__doc__ or "", inspect.signature(function)
    assert section(doc, "Args") == set(signature.parameters)
    if signature.return_annotation not in (None, "None"):
        assert "Returns:\n" in inspect.cleandoc(doc)


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class(name: str) -> None:
    cls = CLASSES[name]
    doc = cls.__doc__ or ""
    assert len(doc.splitlines()[0]) > 10 and not re.search(r"^\s+Source: \S", doc, re.MULTILINE)
    if issubclass(cls, NO_FIELDS):
        return
    fields = {own for own in vars(cls).get("__annotations__", {}) if own[0] != "_" and own in dir(cls)}
    if vars(cls).get("__dataclass_fields__") or issubclass(cls, tuple):
        fields = {own for own in vars(cls)["__annotations__"] if own[0] != "_"}
        assert fields == section(doc, "Attributes") & fields, f"{name}: describe these fields"


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_method_is_described(name: str) -> None:
    """By its own docstring, or by that of a base class; what is named as in nn.Module is as there."""
    bases = [base for base in CLASSES[name].__mro__ if base.__module__.startswith("nextembed")]
    methods = {own for base in bases for own, value in vars(base).items() if own[0] != "_" and callable(value)}
    ours = sorted(methods - set(dir(nn.Module)))
    assert [own for own in ours if not inspect.getdoc(getattr(CLASSES[name], own))] == []


@pytest.mark.parametrize("name", FUNCTIONS_SHOWN)
def test_a_function_in_the_reference(name: str) -> None:
    """Each parameter has a type and a description; functions with parameters document what they return."""
    function = FUNCTIONS_SHOWN[name]
    signature, doc = inspect.signature(function), inspect.cleandoc(function.__doc__ or "")
    parameters = set(signature.parameters) - {"self", "cls"}
    assert section(doc, "Args") == parameters
    assert not [own for own in parameters if signature.parameters[own].annotation is inspect.Parameter.empty]
    if parameters and signature.return_annotation not in (None, "None", inspect.Signature.empty):
        assert "Returns:\n" in doc or "Yields:\n" in doc
