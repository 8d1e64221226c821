"""Groups of options: one parameter of a command, one option for each field of its class.

A class of settings gives the name, type, default and description of its fields, so that the command line says what
Python says. It is named by its place ("inference.settings:Sampling") and loaded when its command is run or asked for
--help, so that `nextembed --help` waits for nothing. A dataclass of the command line annotates its options itself.
"""

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypeVar

import typer
from typer.core import TyperCommand

from .app import app

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


F = TypeVar("F", bound=Callable[..., None])
SIMPLE = (str, int, float, bool, Path)


class Group(NamedTuple):
    """A class, or its location, with the command line's own defaults."""

    cls: str | type
    defaults: dict[str, object] = {}

    def load(self) -> type:
        """The class itself."""
        if isinstance(self.cls, type):
            return self.cls
        module, _, name = self.cls.partition(":")
        found: type = vars(importlib.import_module(f"nextembed.{module}"))[name]
        return found


def command(**groups: str | type | Group) -> Callable[[F], F]:
    """Registers a command. groups: by parameter, the class whose fields are its options."""
    known = {name: one if isinstance(one, Group) else Group(one) for name, one in groups.items()}

    def register(function: F) -> F:
        def named() -> None: ...

        class Command(WithGroups):
            whole = staticmethod(lambda: expanded(function, known))

        named.__doc__ = function.__doc__
        app.command(function.__name__, cls=Command)(named)
        return function

    return register


class WithGroups(TyperCommand):
    """A command whose options are loaded when needed."""

    whole: Callable[[], Callable[..., None]]
    filled = False

    def get_params(self, ctx: typer.Context) -> list:  # type: ignore[override]  # of click's or typer's own class
        if not self.filled:
            single = typer.Typer(add_completion=False)
            single.command()(self.whole())
            found = typer.main.get_command(single)
            self.params, self.callback, self.filled = found.params, found.callback, True
        return super().get_params(ctx)


def expanded(function: Callable[..., None], groups: Mapping[str, Group]) -> Callable[..., None]:
    """The function of single options. Raises ConfigError, when called, for values that a class refuses."""
    classes = {name: group.load() for name, group in groups.items()}
    parameters: list[inspect.Parameter] = []
    fields: dict[str, list[str]] = {}
    for name, own in inspect.signature(function).parameters.items():
        options = options_of(classes[name], groups[name].defaults) if name in classes else [own]
        fields[name] = [option.name for option in options]
        parameters += [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]

    def call(**values: object) -> None:
        made = {
            name: filled(classes[name], groups[name].defaults, {n: values[n] for n in own}, function.__name__)
            if name in classes
            else values[name]
            for name, own in fields.items()
        }
        function(**made)

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    return call


def filled(cls: type, defaults: Mapping[str, object], values: dict[str, object], where: str) -> object:
    """The class of the options that were given."""
    from ..core.config import Config, validated

    if not issubclass(cls, Config):
        return cls(**values)
    given = {name: value for name, value in values.items() if value is not None}
    return validated(cls, {**defaults, **given}, where)


def options_of(cls: type, defaults: Mapping[str, object]) -> list[inspect.Parameter]:
    """One parameter, as typer reads it, for each field of a class."""
    from ..core.config import Config

    if not issubclass(cls, Config):
        return list(inspect.signature(cls).parameters.values())
    return [option(name, field, defaults.get(name, field.default)) for name, field in cls.model_fields.items()]


def option(name: str, field: "FieldInfo", default: object) -> inspect.Parameter:
    """One option; None if not given, so that a class knows which were. `json_schema_extra` may name it otherwise
    (`option`) and say what a value looks like (`metavar`)."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    kind, is_list = simple(field.annotation)
    words = sentence(field.description or "")
    if default is not None and default is not False and not is_list and not field.is_required():
        words = f"{words}  [default: {default}]"
    flag = str(extra.get("option", f"--{name.replace('_', '-')}"))
    metavar = extra.get("metavar") or choices(field.annotation)
    made = typer.Option(flag, help=words, metavar=None if metavar is None else str(metavar), show_default=False)
    type_ = list[kind] if is_list else kind  # type: ignore[valid-type]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[type_ | None, made]
    )


def sentence(text: str) -> str:
    """A description as shown by --help."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def simple(annotation: object) -> tuple[type, bool]:
    """The type of an option, and whether it may be repeated; what is neither number, flag nor path is text."""
    members = [one for one in parts(annotation) if one is not type(None)]
    if len(members) == 1 and typing.get_origin(members[0]) is list:
        return simple(typing.get_args(members[0])[0])[0], True
    known = [one for one in members if one in SIMPLE]
    return (typing.cast(type, known[0]) if len(known) == len(members) == 1 else str), False


def choices(annotation: object) -> str | None:
    """ "raw|ema" of a Literal."""
    words = [
        str(word) for one in parts(annotation) if typing.get_origin(one) is Literal for word in typing.get_args(one)
    ]
    return "|".join(words) or None


def parts(annotation: object) -> tuple[object, ...]:
    """The members of a union, or the type itself."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)
