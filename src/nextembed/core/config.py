"""Typed run configuration: strict fields, kinds chosen by name, dotted overrides, YAML round trip.

A `Config` holds the settings of something; a `Part` is one of several kinds that fit the same slot of a run
(data, model, objective) and builds it. `kind` names it in a `Registry`; `kind: my_file.py:MyPart` takes the
user's own.
"""

import contextlib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, field_validator
from pydantic_core import CoreSchema

from ..errors import ConfigError, shortened, unknown
from .code import allow_code, load_class, named_code, trusting
from .described import describe, first_sentence
from .yaml_text import plain, read_written, read_yaml, write_yaml


class Config(BaseModel):
    """Base of all settings: unknown fields are errors, and values are also checked when they are assigned.

    A field's line in the docstring (`name: what it is.`) becomes its description in editors, JSON schemas, YAML
    comments, command options and the documentation.

    Values given in Python are trusted: a `my_file.py:MyPart` among them is run. Raises ConfigError, one line for the
    first wrong field, in place of pydantic's ValidationError.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        validate_default=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Pydantic calls this after collecting the fields and before building the schema; here they get their
        descriptions."""
        said = describe(cls.__doc__, cls.model_fields)
        for name, own in cls.model_fields.items():
            own.description = said.get(name) or own.description or _inherited(cls, name)
        return handler(source)

    @field_validator("*", mode="after")
    @classmethod
    def _plain(cls, value: object) -> object:
        check_plain(value)
        return plain(value)

    def __init__(self, /, **values: Any) -> None:
        try:
            with trusting(True):
                super().__init__(**values)
        except ValidationError as err:
            raise ConfigError(explain(err, type(self))) from None

    # Pydantic's own marker: nested configs do not pass here, so that an error contains the whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    if not TYPE_CHECKING:  # hidden from type checkers, which would otherwise accept any field name

        def __setattr__(self, name: str, value: object) -> None:
            try:
                with trusting(True):
                    super().__setattr__(name, value)
            except ValidationError as err:
                raise ConfigError(explain(err, type(self))) from None


def _inherited(cls: type[BaseModel], name: str) -> str | None:
    """Descriptions that base classes give to fields which a class redefines."""
    above = (base.model_fields for base in cls.__mro__[1:] if issubclass(base, Config))
    return next((fields[name].description for fields in above if name in fields), None)


def check_plain(value: object) -> None:
    """Raises ValueError for values that no setting can have, at any depth: numbers that are not finite or need more
    than 64 bits, text that is not valid in UTF-8 or in file names."""
    if isinstance(value, dict):
        for key, own in value.items():
            check_plain(key)
            check_plain(own)
    elif isinstance(value, list | tuple):
        for own in value:
            check_plain(own)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"should be a finite number, got {value}")
    elif isinstance(value, int) and value.bit_length() > 63:
        raise ValueError(f"should be a number of at most 63 bits, got one of {value.bit_length()}")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("text should be valid UTF-8") from None
        if "\0" in value:
            raise ValueError("text should have no NUL bytes")


class Part(Config):
    """Settings of a part that comes in kinds.

    Attributes:
        task: what models and objectives are for; those of a run have to agree ("pretraining", "classification", ...).
        also_for: tasks of models that an objective takes besides its own.
        becomes: kinds that a part turns into where a setting is given that it lacks and they have: {"source":
            "images"}.
        kind: name of the kind, or `my_file.py:MyPart` for your own.
    """

    task: ClassVar[str] = "pretraining"
    also_for: ClassVar[tuple[str, ...]] = ()
    becomes: ClassVar[Mapping[str, str]] = {}

    kind: str = ""


def common_task(objective: Part | type[Part], model: Part | type[Part]) -> str | None:
    """The task of a run with both parts; None if they do not fit."""
    return model.task if model.task in (objective.task, *objective.also_for) else None


P = TypeVar("P", bound=Part)
Own = TypeVar("Own", bound=type[Part])
C = TypeVar("C", bound=Config)
M = TypeVar("M", bound=BaseModel)


class Registry(Generic[P]):
    """Part classes by `kind`, for one slot of the run ("data", "model", "objective"); all of them are `base`s."""

    def __init__(self, slot: str, base: type[P]):
        self.slot, self.base = slot, base
        self.classes: dict[str, type[P]] = {}

    def register(self, kind: str) -> Callable[[Own], Own]:
        """Class decorator: the Part is found under `kind`."""

        def add(cls: Own) -> Own:
            part: type[Any] = cls
            self.classes[kind] = part
            part.model_fields["kind"].default = kind
            part.model_rebuild(force=True)
            return cls

        return add

    def parse(self, value: object) -> P:
        """The typed Part of a dict with `kind`, or of a kind alone; a Part comes back as it is.

        A part from the user's own file gets the file's absolute path in `kind`, so that a saved config
        finds it from any folder. Raises ConfigError for an unknown kind or field, CodeRefused for a file that is not
        allowed.
        """
        if isinstance(value, self.base):
            found: P = value
            return found if found.kind else found.model_copy(update={"kind": _own_kind(type(found))})
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
            raise ConfigError(f"{self.slot}: needs 'kind', one of: {', '.join(sorted(self.classes))}")
        cls = self.find(value["kind"])
        if other := next((kind for name, kind in cls.becomes.items() if name in value), None):
            own = {name for name in cls.model_fields if name not in self.find(other).model_fields}
            return self.parse({name: given for name, given in value.items() if name not in own} | {"kind": other})
        kind = value["kind"] if value["kind"] in self.classes else _own_kind(cls)
        part = validated(cls, {**value, "kind": kind}, self.slot)
        assert isinstance(part, self.base)
        return part

    def find(self, kind: str) -> type[P]:
        """The Part class of a kind. Raises ConfigError with the nearest spelling if there is none."""
        if ".py:" in kind:
            found: type[P] = load_class(kind, self.base, f"{self.slot}.kind")
            return found
        if kind not in self.classes:
            raise ConfigError(unknown(f"{self.slot}.kind", kind, self.classes))
        return self.classes[kind]


def _own_kind(cls: type[Part]) -> str:
    """`/path/file.py:Class` of a user's own class; empty where there is no file (a notebook)."""
    try:
        return f"{Path(inspect.getfile(cls)).resolve()}:{cls.__qualname__}"
    except (OSError, TypeError):
        return ""


DATA = Registry("data", Part)
MODELS = Registry("model", Part)
DECODERS = Registry("objective.decoder", Part)


def apply_overrides(config: C, overrides: Iterable[str]) -> C:
    """A new config with `a.b.c=value` settings applied, checked once all are in.

    Values are read as YAML: `null`, `true`, `[1, 2]`, `3e-4`, `{kind: x, field: 1}`, text (as it stands there,
    without comments). What reads as a number or as true or false and stands where text is wanted, in lists too, is
    that text: a folder may be called "1e5". `objective.kind=x`
    switches to another kind with its default settings; `data.kind=my_file.py:MyData` runs the caller's own file. Raises
    ConfigError naming the field, the nearest spelling and the allowed fields.
    """
    given = list(overrides)
    try:
        return _with(config, map(_typed, given))
    except ConfigError:
        with contextlib.suppress(ConfigError):
            return _with(config, [_typed(text, booleans=False) for text in given])
        raise


def _typed(text: str, booleans: bool = True) -> tuple[str, object]:
    """Name and value of an override."""
    path, eq, raw = text.partition("=")
    if not eq or not path:
        raise ConfigError(f"'{text}' is not an override; write field.name=value")
    value = read_written(raw, f"value of {path}", booleans) if raw else ""
    if isinstance(value, str) and raw.strip()[:1] not in ("'", '"'):
        value = raw.strip()  # a folder may be called "a #1"
    for key, own in value.items() if isinstance(value, dict) else ():
        if own is None and ":" in str(key):  # YAML reads {a:1} as a name without a value
            raise ConfigError(f"{path}: write a space after the colon: {{{str(key).replace(':', ': ')}}}")
    return path.strip(), value


def _with(config: C, changes: Iterable[tuple[str, object]]) -> C:
    values: dict[str, Any] = _shallow(config)
    for path, value in changes:
        _put(values, path, value)
    with trusting(True):
        return validated(type(config), values)


def with_values(config: C, changes: Mapping[str, Any]) -> C:
    """As `apply_overrides`, with values instead of text."""
    return _with(config, changes.items())


def allow_typed(word: str) -> None:
    """Allows the files in a word that the user typed: `my_file.py:my_recipe`, `data={kind: my_file.py:MyData}`."""
    _, equals, value = word.partition("=")
    with contextlib.suppress(ConfigError):  # the command reports what is wrong
        for _, spec in named_code({"": read_yaml(value, word) if equals else word}):
            allow_code(spec.rpartition(":")[0])


def _shallow(config: Config) -> dict[str, object]:
    """Values that were set, nested configs, and kind; other values may depend on these and are computed again."""
    keep = {name for name, value in config if isinstance(value, Config | dict) or name == "kind"}
    return {name: value for name, value in config if name in keep | config.model_fields_set}


def _put(values: dict[str, object], path: str, value: object) -> None:
    *folders, last = path.split(".")
    for name in folders:
        child = values.get(name)
        if isinstance(child, Config):
            child = _shallow(child)
        elif child is None or isinstance(child, dict):
            child = dict(child or {})
        else:
            raise ConfigError(f"{path}: '{name}' is a single value, not a group of settings")
        values[name] = child
        values = child
    if last == "kind" and value != values.get("kind"):
        values.clear()
    values[last] = value


def validated(cls: type[M], values: dict[str, Any], where: str = "") -> M:
    """`cls(**values)`. Raises ConfigError, one line, with the fields' names below `where`."""
    try:
        return cls.model_validate(values)
    except ValidationError as err:
        raise ConfigError(explain(err, cls, where)) from None


def explain(err: ValidationError, cls: type[BaseModel], where: str = "") -> str:
    """One line for the first field that pydantic found wrong, and how many more there are."""
    fields: dict[str, list[Any]] = {}
    for error in err.errors(include_url=False):
        names, owner = _locate(cls, error["loc"])
        fields.setdefault(".".join([where] * bool(where) + names), []).append((error, owner))
    (name, problems), more = next(iter(fields.items())), len(fields) - 1
    first, owner = problems[0]
    if first["type"] in ("extra_forbidden", "no_such_attribute"):
        group, _, field = name.rpartition(".")
        text = unknown(f"{group}: field" if group else "field", field, owner.model_fields)
    else:
        text = f"{name}: " * bool(name) + _say([problem for problem, _ in problems])
    return text + (f" ({more} more wrong)" if more else "")


def _locate(cls: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel] | None]:
    """Field names along pydantic's location (without marks of union members), and the class of the last."""
    names: list[str] = []
    owner: type[BaseModel] | None = None
    group: type[BaseModel] | None = cls
    in_union = False
    for part in loc:
        if group is not None and isinstance(part, str) and (part in group.model_fields or not in_union):
            names.append(part)
            owner, field = group, group.model_fields.get(part)
            members = [m for m in _members(field.annotation if field else None) if m is not type(None)]
            group = next((m for m in members if isinstance(m, type) and issubclass(m, BaseModel)), None)
            in_union = len(members) > 1
        elif isinstance(part, int) or not in_union:
            names.append(str(part))
        else:
            in_union = False
    return names, owner


def _members(annotation: object) -> list[object]:
    """The types of a union, the item types of a container, or the type itself."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return [m for arg in args for m in (arg, *_members(arg)[1:])]
    return list(args[:1]) if origin in (list, tuple) else [annotation]


def _say(problems: list[Any]) -> str:
    """Pydantic's problems with one field, in one line; a union gives one per member."""
    wanted = []
    for problem in problems:
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if problem["type"] == "missing":
            return "is required"
        if problem["type"] == "literal_error" and isinstance(problem["input"], str):
            wanted += re.findall("'([^']*)'", problem["ctx"]["expected"])
        elif problem["type"] == "int_parsing_size":
            wanted.append("a whole number of at most 63 bits")
        elif problem["type"] == "model_type":
            wanted.append("a group of settings, {field: value, ...}")
        elif message.startswith("Input should be "):
            wanted.append(message.removeprefix("Input should be ").partition(",")[0])
        else:
            return shortened(" ".join(message.split()), 500)
    value = problems[0]["input"]
    if all(p["type"] == "literal_error" for p in problems) and isinstance(value, str):
        return unknown("value", value, wanted)
    return f"should be {' or '.join(wanted)}, got {shortened(repr(value))}"


def to_yaml(config: Config) -> str:
    """The whole config, defaults included, as YAML, with what each setting is as a comment; `from_yaml` gives it
    back."""
    return "".join(_lines(config, config.model_dump(mode="json", serialize_as_any=True), ""))


def _lines(config: Config, values: dict[str, Any], indent: str) -> Iterator[str]:
    fields = type(config).model_fields
    for name, value in values.items():
        own = getattr(config, name, None)
        note = first_sentence(fields[name].description or "")
        if isinstance(own, Config) and isinstance(value, dict) and value:
            yield f"{indent}{name}:{f'  # {note}' if note else ''}\n"
            yield from _lines(own, value, f"{indent}  ")
            continue
        text = write_yaml({name: value})
        first, *rest = text.splitlines()
        fits = note and not rest and len(indent + first) + len(note) + 4 <= 140
        yield f"{indent}{first}{f'  # {note}' if fits else ''}\n"
        yield from (f"{indent}{line}\n" for line in rest)


def from_yaml(cls: type[M], text: str, where: str = "config") -> M:
    """A config from YAML text, which is not trusted: code that it names is run only if the user allowed it.

    Raises ConfigError, after `where`, for text that does not fit.
    """
    values = read_written(text, where)
    if values is None:
        raise ConfigError(f"{where} is empty: put the settings back, e.g. those of `nextembed recipes RECIPE`")
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is not a mapping of settings")
    try:
        with trusting(False):
            try:
                return validated(cls, values)
            except ConfigError:
                with contextlib.suppress(ConfigError):  # true and false where text is expected
                    return validated(cls, dict(read_written(text, where, booleans=False)))
                raise
    except ConfigError as err:
        err.args = (f"{where}: {err}",)
        raise
