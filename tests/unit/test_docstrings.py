"""Public functions and classes say in Google sections what they take, give and raise, so that the site shows tables."""

import inspect
import re
import types

import pytest

import nextembed
from nextembed.core.config import Config

NAMES = sorted({*dir(nextembed)} - {"__version__", "recipes"})
PUBLIC = {name: getattr(nextembed, name) for name in NAMES}
FUNCTIONS = {name: one for name, one in PUBLIC.items() if isinstance(one, types.FunctionType)}
CLASSES = {name: one for name, one in PUBLIC.items() if isinstance(one, type)}
# Models hold modules that exist already; errors say all in their first line.
NO_FIELDS = (Exception, Config)


def section(doc: str, name: str) -> set[str]:
    """The entries of a section."""
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
        assert fields == section(doc, "Attributes") & fields, f"{name}: say what these are"
