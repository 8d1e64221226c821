"""Which rows of a table are asked for, by the values of a column, whatever type the column has."""

import datetime
import decimal
import math
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator

from ..core.yaml_text import Number, Whole

Value = bool | int | float | str | None  # that a setting asks for
TRUTHS = {"true": True, "false": False}


def as_written(value: object) -> object:
    """The values of columns, of which numbers that are written in an unusual way (`1e3`, `1.50`) are text: a column
    of text has the characters, one of numbers the number."""
    if not isinstance(value, dict):
        return value
    for column, wanted in value.items():
        if isinstance(wanted, dict):
            raise ValueError(f"column '{column}': data.where selects rows by numbers or text only")
    return {
        str(column): [_written(one) for one in wanted] if isinstance(wanted, list | tuple) else _written(wanted)
        for column, wanted in value.items()
    }


def _written(value: object) -> object:
    return str(value) if isinstance(value, Whole | Number) else value


Where = Annotated[dict[str, Value | list[Value]], BeforeValidator(as_written)]


class Wanted:
    """The values that a column may have, by what they are in it: `7`, "7" and "007" are the number 7 in a column of
    numbers; in one of text each is its characters alone.

    values: those asked for. names: of class ids; a class is asked for by its name, or else by its id.
    """

    def __init__(self, values: list[Value], names: list[str] | None = None):
        self.values = values
        self.texts = {text for value in values for text in texts_of(value)}
        known = [value for value in values if names and str(value) in names]
        self.numbers = {number for value in values if value not in known for number in numbers_of(value)}
        self.numbers |= {(names or []).index(str(value)) for value in known}
        self.moments = {moment for text in self.texts for moment in moments_of(text)}

    def __contains__(self, value: object) -> bool:
        if value is None:
            return None in self.values
        if isinstance(value, str):
            return value in self.texts
        if isinstance(value, int | float | decimal.Decimal):
            return value in self.numbers
        if isinstance(value, datetime.datetime):
            return value in self.moments or value.replace(tzinfo=None) in self.moments
        return str(value) in self.texts  # dates, times


def texts_of(value: Value) -> list[str]:
    """How a value may be written in a column of text."""
    if isinstance(value, bool):
        word = str(value)
        return [word, word.lower(), word.upper()]
    return [] if value is None else [str(value)]


def numbers_of(value: Value) -> list[float | decimal.Decimal]:
    """What a value may be in a column of numbers: as whole, of 64 or 32 bits, or decimal."""
    if isinstance(value, bool) or value is None:
        return [] if value is None else [value]
    text = str(value)
    if text.lower() in TRUTHS:
        return [TRUTHS[text.lower()]]
    try:
        exact, near = decimal.Decimal(text), float(text)
    except (ValueError, decimal.InvalidOperation):
        return []
    return [exact, near, float(np.float32(near))] if math.isfinite(near) else [near]


def moments_of(text: str) -> list[datetime.datetime]:
    try:
        return [datetime.datetime.fromisoformat(text)]
    except ValueError:
        return []
