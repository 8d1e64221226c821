"""The split that the name of a folder or file stands for: train_images, mnist_test.parquet, val2017, dev."""

import re
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

from ..errors import ConfigError, MissingSplit, unknown

EXTRA = r"(s|set|sets|data|dataset|images?|imgs?|labels?|masks?|files?|split|samples)?"
WORDS = {
    "train": re.compile(rf"(train|training|trn){EXTRA}"),
    "validation": re.compile(rf"(val|valid|validation|validate|dev|devel|development|minival){EXTRA}"),
    "test": re.compile(rf"(test|testing|tst|eval|evaluation|holdout|heldout){EXTRA}"),
}
WHOLE = {"imagestr": "train", "labelstr": "train", "imagests": "test", "labelsts": "test"}  # as nnU-Net writes them
TOKEN = re.compile(r"[^\W\d_]+")
OUT = re.compile(r"(?<=held|hold)[-_. ]out", re.IGNORECASE)
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


@lru_cache(10_000)
def splits_named(name: str) -> frozenset[str]:
    """The splits whose names occur anywhere in a name (`wiki.test.raw.txt`); several for `train_test_pairs`."""
    stem = name.split(".")[0].lower()
    if stem in WHOLE:
        return frozenset({WHOLE[stem]})
    if TOKEN.findall(stem)[:1] == ["trainval"]:
        return frozenset({"train"})
    parts = TOKEN.findall(OUT.sub("out", name))
    tokens = [token.lower() for part in parts for token in (part, *CAMEL.split(part))]
    found = frozenset(split for split, word in WORDS.items() if any(word.fullmatch(token) for token in tokens))
    return found - {"validation"} if "test" in found and "train" not in found else found  # COCO's test-dev


PAIRED = re.compile(r"(.*[a-z0-9])(train|test|val|valid|validation)", re.IGNORECASE)


def paired(names: Collection[str]) -> dict[str, str]:
    """The splits of names without separators, if they occur as a pair: mnisttrain and mnisttest. A single such name
    proves nothing: contest, latest, interval."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        stem, dot, rest = name.partition(".")
        if (match := PAIRED.fullmatch(stem)) and not splits_named(name):
            found.setdefault(f"{match[1].lower()}{dot}{rest.lower()}", {})[name] = match[2].lower()
    return {
        name: "validation" if word.startswith("val") else word
        for words in found.values()
        if "train" in words.values() and len(set(words.values())) > 1
        for name, word in words.items()
    }


def split_of(name: str) -> str | None:
    """The split that a name stands for; None if it does not name one. Raises ConfigError for a name of several."""
    found = splits_named(name)
    if len(found) > 1:
        raise ConfigError(f"data.source: '{name}' could be the {' or the '.join(sorted(found))} split; rename it")
    return next(iter(found), None)


class Part(NamedTuple):
    """A range of rows of a split, as numbers or in percent; negative ones count from the end."""

    start: str = ""
    stop: str = ""

    @property
    def is_whole(self) -> bool:
        return self == Part()

    def of(self, total: int) -> range:
        """The indices, given the number of rows. Raises ConfigError for a row that does not exist."""
        return range(self._at(self.start, 0, total), self._at(self.stop, total, total))

    def _at(self, end: str, default: int, total: int) -> int:
        if not end:
            return default
        percent = end.endswith("%")
        number = int(end.rstrip("%"))
        at = round(total * number / 100) if percent else number
        if abs(number) > 100 if percent else abs(at) > total:
            raise ConfigError(f"data: split [{self.start}:{self.stop}] exceeds the {total} rows of the data")
        return at + total if number < 0 else at


def parse_split(expression: str) -> tuple[str, Part]:
    """ "train[:-50]" -> ("train", Part("", "-50"))."""
    match = re.fullmatch(r"([\w.-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", expression)
    if not match:
        raise ConfigError(f"data: split '{expression}' is not understood; write e.g. train, train[:-5000], train[90%:]")
    return match[1], Part(match[2] or "", match[3] or "")


def in_files(name: str, files: Collection[str]) -> str:
    """The name of a split as files are grouped: "val" stands for "validation". Raises MissingSplit if there is none."""
    found = name if name in files else next(iter(splits_named(name)), name)
    if found not in files:
        raise MissingSplit(unknown("data: split", name, files))
    return found
