"""What a class says of its fields: the `name: what it is.` parts of its docstring, for help and comments."""

import re
from collections.abc import Collection


def describe(doc: str | None, names: Collection[str]) -> dict[str, str]:
    """What a docstring says of each of these names. One text may stand for several: `log_steps, save_steps: every ...`.

    A name begins a line or follows the end of a sentence.
    """
    if not doc or not names:
        return {}
    one = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    start = re.compile(rf"(?:\n\s*|[.;]\s+)((?:{one})(?:(?:,\s+|\s\|\s|\sand\s)(?:{one}))*):\s")
    found: dict[str, str] = {}
    places = list(start.finditer(doc))
    for place, after in zip(places, [*(place.start() for place in places[1:]), len(doc)]):
        text = doc[place.end() : after]
        text = " ".join(re.split(r"\n\s*\n|\n\s*(?:Source|Args|Raises|Returns):", text)[0].split())
        for name in re.split(r",\s+|\s\|\s|\sand\s", place[1]):
            if not text.startswith("see `"):  # the class that is named says it
                found.setdefault(name, text.rstrip(";,"))
    return found


def first_sentence(text: str, length: int = 90) -> str:
    """The beginning of a description, for a line."""
    sentence = re.split(r"(?<!e\.g)(?<!i\.e)(?<!\.)[.;](?:\s|$)", text, maxsplit=1)[0]
    return sentence if len(sentence) <= length else f"{sentence[: length - 3].rsplit(' ', 1)[0]}..."
