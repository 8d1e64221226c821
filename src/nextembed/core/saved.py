"""Reads files that the library wrote, and checks them once, so that the rest of the code works on values of the right
type. Numbers that are not finite are null, as `files.to_json` writes them."""

import reprlib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from ..errors import ConfigError
from .files import finite, from_json, read_text

T = TypeVar("T")

Count = Annotated[int, Field(ge=0, le=10**15)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e60, le=1e60, strict=True)]
OrEmpty = BeforeValidator(lambda value: {} if value is None else value)  # for values that may be null


def read_json(file: str | Path) -> Any:
    """The value of a JSON file. Raises ConfigError, one line that names the file, if it cannot be read or is not
    JSON."""
    text = read_text(file)
    try:
        return finite(from_json(text))
    except ValueError as err:
        raise ConfigError(f"{file} is not JSON: {err}") from None


def load(cls: type[T], file: str | Path) -> T:
    """A JSON file as a dataclass or a model of pydantic. Raises ConfigError that names the file and the value."""
    return checked(cls, read_json(file), file)


def checked(cls: type[T], values: object, where: str | Path) -> T:
    """Plain values converted to `cls`. Raises ConfigError, one line: where, what is wrong and what is expected."""
    try:
        return cast(T, _adapter(cast(Any, cls)).validate_python(values))
    except ValidationError as err:
        raise ConfigError(f"{where}: {_explain(err)}") from None


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _explain(err: ValidationError) -> str:
    problem, *more = err.errors(include_url=False)
    place = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if problem["type"] == "missing":
        text = f"{place} is missing"
    elif message.startswith("Input should be "):
        wanted = message.removeprefix("Input should be ").partition(", unable")[0]
        wanted = wanted.partition(" or an instance of")[0]
        text = f"{place or 'it'} should be {wanted}, got {reprlib.repr(problem['input'])}"
    else:
        text = f"{place}: " * bool(place) + message
    return text + (f" ({len(more)} more wrong)" if more else "")
