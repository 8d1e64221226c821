"""Descriptions of fields from the `Attributes:` (or `Args:`) section of a class docstring, for help and comments."""

import re
from collections.abc import Collection, Iterator

SECTION = re.compile(r"^([ \t]*)(?:Attributes|Args):[ \t]*\n((?:(?:\1[ \t]+.*|[ \t]*)(?:\n|\Z))*)", re.MULTILINE)
ENTRY = re.compile(r"^(\w+(?:, \w+)*)(?: \([^)]*\))?:\s+(.*)", re.DOTALL)


def describe(doc: str | None, names: Collection[str]) -> dict[str, str]:
    """The description of each name, from a Google-style section. Without such a section, `name: what it is.` is found
    at the start of a line or sentence. One description may serve several names: `log_steps, save_steps: every ...`.
    """
    if not doc or not names:
        return {}
    if sections := list(SECTION.finditer(doc)):
        entries = [entry for section in sections for entry in _entries(section[2])]
        return {name: text for own, text in reversed(entries) for name in own.split(", ") if name in names}
    return _in_prose(doc, names)


def _entries(section: str) -> Iterator[tuple[str, str]]:
    """(names, text) of a section; lines that are indented further continue the entry above."""
    lines = [line for line in section.splitlines() if line.strip()]
    depth = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    for entry in re.split(rf"\n(?=[ \t]{{{depth}}}\S)", "\n".join(lines)):
        if found := ENTRY.match(entry.strip()):
            yield found[1], " ".join(found[2].split())


def _in_prose(doc: str, names: Collection[str]) -> dict[str, str]:
    """`name: what it is.` anywhere in a docstring without sections."""
    one = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    start = re.compile(rf"(?:\n\s*|[.;]\s+)((?:{one})(?:(?:,\s+|\s\|\s|\sand\s)(?:{one}))*):\s")
    found: dict[str, str] = {}
    places = list(start.finditer(doc))
    for place, after in zip(places, [*(place.start() for place in places[1:]), len(doc)]):
        text = doc[place.end() : after]
        text = " ".join(re.split(r"\n\s*\n|\n\s*(?:Source|Args|Raises|Returns):", text)[0].split())
        for name in re.split(r",\s+|\s\|\s|\sand\s", place[1]):
            found.setdefault(name, text.rstrip(";,"))
    return found


def first_sentence(text: str, length: int = 90) -> str:
    """The beginning of a description, for a line."""
    sentence = re.split(r"(?<!e\.g)(?<!i\.e)(?<!\.)[.;](?:\s|$)", text, maxsplit=1)[0]
    return sentence if len(sentence) <= length else f"{sentence[: length - 3].rsplit(' ', 1)[0]}..."
