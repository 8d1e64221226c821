"""What documents of a row hold, in reading order, written as words: "image caption", "image en|fr"."""

import itertools
from collections.abc import Callable, Collection
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field

from ..data.draws import Draws
from ..errors import unknown


def _equally_often(value: object) -> object:
    return dict.fromkeys([value] if isinstance(value, str) else value, 1.0) if isinstance(value, str | list) else value


# How often each layout is drawn. A list draws all equally often.
Layouts = Annotated[dict[str, Annotated[float, Field(ge=0, le=1e9)]], BeforeValidator(_equally_often)]


def check_layouts(layouts: dict[str, float], names: Collection[str]) -> None:
    """Raises ValueError for a layout without words or with a word that is no name, and if none is ever drawn."""
    for layout in layouts:
        if not layout.split():
            raise ValueError("a layout names at least one segment")
        for name in (name for place in layout.split() for name in place.split("|")):
            if name not in names:
                raise ValueError(unknown(f"'{layout}':", name, names))
    if not any(layouts.values()):
        raise ValueError("all weights are 0")


def choices(layout: str, has: Callable[[str], bool]) -> list[list[str]]:
    """The names that a layout may stand for, of those that a row has. No alternative is chosen twice in a document."""
    places = [place.split("|") for place in layout.split()]
    found = []
    for names in itertools.product(*([name for name in place if has(name)] for place in places)):
        chosen = [name for name, place in zip(names, places) if len(place) > 1]
        if len(set(chosen)) == len(chosen):
            found.append(list(names))
    return found


def drawn_layout(layouts: dict[str, float], has: Callable[[str], bool], draw: Draws) -> list[str] | None:
    """The names of a document's segments, drawn by weight among the layouts that are possible; None: none is."""
    possible = [(found, weight) for layout, weight in layouts.items() if weight and (found := choices(layout, has))]
    if not possible:
        return None
    edges = np.cumsum([weight for _, weight in possible])
    number = int(np.searchsorted(edges, draw.share() * edges[-1], side="right"))
    names = possible[min(number, len(possible) - 1)][0]
    return names[draw.below(len(names))]
