"""Replaces every value of a document, one at a time, as in files that were edited by hand, damaged, or written with
bad intent."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ATTACK = "<script>alert(1)</script>\"'&{}|`\n---\n[red]\x1b[2J"
MARK = "alert(1)"
ELSE = (None, "text", ATTACK, -1, 10**400, 1e308, float("nan"), float("inf"), [], {}, True, [[1, "a"]], {"a": None})
DELETED, DOUBLED = "deleted", "doubled"


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values and groups, outermost first."""
    yield place
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inside:
        yield from leaves(one, (*place, name))


def altered(value: Any) -> Iterator[tuple[str, Any]]:
    """(description, altered document) for each place and replacement; also with the value deleted, or doubled in a
    list."""
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


def everywhere(value: Any, text: str = ATTACK, keep: tuple[str, ...] = ()) -> Any:
    """The value with `text` appended to every string, except under the keys in `keep`."""
    if isinstance(value, dict):
        return {name: one if name in keep else everywhere(one, text, keep) for name, one in value.items()}
    if isinstance(value, list):
        return [everywhere(one, text, keep) for one in value]
    return value + text if isinstance(value, str) else value


# -- files


def read(file: Path) -> Any:
    """The value of a .yaml, .json or .jsonl file (a list of its lines)."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".yaml":
        return yaml.safe_load(text)
    return json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def write(file: Path, value: Any) -> None:
    if file.suffix == ".yaml":
        file.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    elif file.suffix == ".jsonl" and isinstance(value, list):
        file.write_text("".join(json.dumps(line) + "\n" for line in value), encoding="utf-8")
    else:
        file.write_text(json.dumps(value), encoding="utf-8")


def texts(folder: Path) -> list[Path]:
    """All files of a folder and its subfolders that contain values as text."""
    return sorted(file for kind in ("yaml", "json", "jsonl") for file in folder.rglob(f"*.{kind}"))
