"""Layouts of documents: the pieces in reading order, like "image caption" or "image en|fr"."""

import itertools
from collections.abc import Callable, Collection
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field

from ..data.draws import Draws
from ..errors import unknown


def _equally_often(value: object) -> object:
    return dict.fromkeys([value] if isinstance(value, str) else value, 1.0) if isinstance(value, str | list) else value


# Relative frequency of each layout. In a list all are equally frequent.
Layouts = Annotated[dict[str, Annotated[float, Field(ge=0, le=1e9)]], BeforeValidator(_equally_often)]


def check_layouts(layouts: dict[str, float], names: Collection[str]) -> None:
    """Raises ValueError for an empty layout, an invalid name, and if all weights are 0."""
    for layout in layouts:
        if not layout.split():
            raise ValueError("a layout names at least one segment")
        for name in (name for place in layout.split() for name in place.split("|")):
            if name not in names:
                raise ValueError(unknown(f"'{layout}':", name, names))
    if not any(layouts.values()):
        raise ValueError("all weights are 0")


def choices(layout: str, has: Callable[[str], bool]) -> list[list[str]]:
    """Ways to fill a layout with the pieces that a row has. No alternative is chosen twice in a document."""
    places = [place.split("|") for place in layout.split()]
    found = []
    for names in itertools.product(*([name for name in place if has(name)] for place in places)):
        chosen = [name for name, place in zip(names, places) if len(place) > 1]
        if len(set(chosen)) == len(chosen):
            found.append(list(names))
    return found


def drawn_layout(layouts: dict[str, float], has: Callable[[str], bool], draw: Draws) -> list[str] | None:
    """The pieces of a document, drawn by weight among the possible layouts; None if none is possible."""
    possible = [(found, weight) for layout, weight in layouts.items() if weight and (found := choices(layout, has))]
    if not possible:
        return None
    edges = np.cumsum([weight for _, weight in possible])
    number = int(np.searchsorted(edges, draw.share() * edges[-1], side="right"))
    names = possible[min(number, len(possible) - 1)][0]
    return names[draw.below(len(names))]
