"""Selection of rows of a table by the values of a column, whatever its type."""

import datetime
import decimal
import math
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator

from ..core.yaml_text import Number, Whole

Value = bool | int | float | str | None  # values that a setting selects
TRUTHS = {"true": True, "false": False}


def as_written(value: object) -> object:
    """Values of columns; numbers in an unusual spelling (`1e3`, `1.50`) stay text: a text column is compared by
    characters, a number column by value."""
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
    """The selected values in the type of a column: `7`, "7" and "007" are the number 7 in a column of numbers; in a
    text column each is only its characters. values: the selection. names: of class ids; a class is selected by its
    name, or else by its id.
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
    """Spellings of a value in a text column."""
    if isinstance(value, bool):
        word = str(value)
        return [word, word.lower(), word.upper()]
    return [] if value is None else [str(value)]


def numbers_of(value: Value) -> list[float | decimal.Decimal]:
    """Representations of a value in a column of numbers: integer, float of 64 or 32 bits, or decimal."""
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
