"""Every setting has a description, shared by editors, JSON schemas, YAML, options, completion and documentation."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType

import pytest

import nextembed
from nextembed.cli.known import classes, fields_of, settings
from nextembed.core.config import DATA, DECODERS, MODELS, Config, Registry, to_yaml
from nextembed.core.described import describe, first_sentence
from nextembed.core.objective import OBJECTIVES
from nextembed.core.optim import OptimConfig

FEWEST_WORDS = 3


def below(cls: type[Config]) -> Iterator[type[Config]]:
    for one in cls.__subclasses__():
        yield one
        yield from below(one)


def package() -> list[ModuleType]:
    names = [module.name for module in pkgutil.walk_packages(nextembed.__path__, "nextembed.")]
    return [importlib.import_module(name) for name in names if ".cli" not in name]


def all_settings() -> list[type[Config]]:
    """Every class of settings in the package, including all registered ones."""
    modules = package()
    found = [cls for cls in below(Config) if cls.__module__.startswith("nextembed.")]
    registries = {id(own): own for module in modules for own in vars(module).values() if isinstance(own, Registry)}
    registered = [cls for one in registries.values() for cls in one.classes.values()]
    own = [cls for cls in registered if cls.__module__.startswith("nextembed.")]
    assert len(registries) >= 4 and len(own) > 25 and set(own) < set(found)
    return found


def text_of(cls: type[Config], name: str) -> str:
    return cls.model_fields[name].description or ""


def test_every_setting_has_a_description() -> None:
    found = all_settings()
    assert nextembed.RunConfig in found
    silent = [
        f"{cls.__name__}.{name}: {text_of(cls, name)!r}"
        for cls in found
        for name in cls.model_fields
        if len(text_of(cls, name).split()) < FEWEST_WORDS
    ]
    assert not silent, f"describe these in the docstring of the class: {silent}"


def test_settings_are_described_under_attributes() -> None:
    """The site and editors show `Attributes:` as a table; `name: text` elsewhere in the docstring is not part of it."""
    loose = [
        cls.__name__
        for cls in all_settings()
        if cls.__doc__ and "Attributes:" not in cls.__doc__ and describe(cls.__doc__, cls.model_fields)
    ]
    unknown = {
        f"{cls.__name__}.{name}"
        for cls in all_settings()
        for name in re.findall(r"^        (\w+): ", (cls.__doc__ or "").partition("Attributes:")[2], re.MULTILINE)
        if name not in {*cls.model_fields, *cls.__annotations__}
    }
    assert not loose and not unknown


def test_completion_reads_the_same_text_from_the_source() -> None:
    real = {cls.__name__: cls for cls in all_settings()}
    assert set(classes()) & set(real)
    for name in set(classes()) & set(real) - {"Config"}:
        assert {own: one.text for own, one in fields_of(name).items()} == {
            own: text_of(real[name], own) for own in real[name].model_fields
        }
    assert all(len(one.text.split()) >= FEWEST_WORDS for one in settings().values())


@pytest.mark.parametrize("registry", [DATA, MODELS, DECODERS, OBJECTIVES], ids=lambda one: one.slot)
def test_the_json_schema_has_the_text(registry: Registry) -> None:
    for cls in registry.classes.values():
        shown = cls.model_json_schema()["properties"]
        assert {name: shown[name].get("description", "") for name in shown} == {
            name: text_of(cls, name) for name in cls.model_fields
        }


def test_yaml_has_the_first_sentence_as_a_comment() -> None:
    lines = to_yaml(OptimConfig()).splitlines()
    for name in OptimConfig.model_fields:
        (line,) = [line for line in lines if line.startswith(f"{name}:")]
        assert line.partition("  # ")[2] == first_sentence(text_of(OptimConfig, name))


class Above(Config):
    """Something. size: how large it is; name: what it is called."""

    size: int = 1
    name: str = "a"


class Sections(Config):
    """Something.

    Attributes:
        size: how large it is. One more sentence.
    """

    size: int = 1


def test_a_google_section_describes_the_fields() -> None:
    assert text_of(Sections, "size") == "how large it is. One more sentence."
    assert "size: 1  # how large it is\n" in to_yaml(Sections())


class Own(Above):
    """Less. name: what it is called here."""

    size: int = 2


def test_a_class_inherits_and_overrides_descriptions() -> None:
    assert text_of(Own, "size") == "how large it is"
    assert text_of(Own, "name") == "what it is called here."
    assert text_of(Above, "name") == "what it is called."
