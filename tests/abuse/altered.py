"""Every value of a document, one at a time, replaced by something else: what a file looks like that was edited by
hand, damaged, or written by somebody with other things in mind."""

import copy
from collections.abc import Iterator
from typing import Any

ATTACK = "<script>alert(1)</script>\"'&{}|`\n---\n[red]\x1b[2J"
MARK = "alert(1)"
ELSE = (None, "text", ATTACK, -1, 10**400, 1e308, float("nan"), float("inf"), [], {}, True, [[1, "a"]], {"a": None})
DELETED, DOUBLED = "deleted", "doubled"


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all values that hold no others, and of all groups, the outermost first."""
    yield place
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inside:
        yield from leaves(one, (*place, name))


def altered(value: Any) -> Iterator[tuple[str, Any]]:
    """(what was done where, the whole value with it), for each place and each replacement; also deleted, and of a list
    doubled."""
    for place in leaves(value):
        name = ".".join(map(str, place)) or "all"
        for other in ELSE:
            yield f"{name} = {other!r:.30}", put(value, place, other)
        if place:
            yield f"{name} {DELETED}", put(value, place, delete=True)
            if isinstance(place[-1], int):
                yield f"{name} {DOUBLED}", put(value, place, double=True)


def put(value: Any, place: tuple[Any, ...], other: Any = None, delete: bool = False, double: bool = False) -> Any:
    if not place:
        return copy.deepcopy(other)
    whole = copy.deepcopy(value)
    group = whole
    for name in place[:-1]:
        group = group[name]
    if delete:
        del group[place[-1]]
    elif double:
        group.insert(place[-1], copy.deepcopy(group[place[-1]]))
    else:
        group[place[-1]] = copy.deepcopy(other)
    return whole


def everywhere(value: Any, text: str = ATTACK) -> Any:
    """The value with `text` behind every string."""
    if isinstance(value, dict):
        return {name: everywhere(one, text) for name, one in value.items()}
    if isinstance(value, list):
        return [everywhere(one, text) for one in value]
    return value + text if isinstance(value, str) else value
