"""Findings about the data when it was opened: rows that are used, files that are not, and classes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

NUM_CLASSES = 10  # number of names that are listed
NUM_REASONS = 3


@dataclass(frozen=True)
class Found:
    """A split of a source, as it was opened.

    Args:
        split: its name, or part: "train", "train[:-50]".
        used: number of rows, None for a stream. Rows that turn out to be unreadable are still among them.
        skipped: by file that may be data and cannot be used, the reason; these count as unreadable.
        beside: how many files of other kinds lie in the folder, by ending.
        classes: rows by class; empty where there are none, or they come as a stream.
        unlabelled: rows without a class, where others have one.
        splits: the splits of the source, where they are known.
        notes: what else is to be said.
    """

    split: str
    used: int | None
    skipped: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    unlabelled: int = 0
    splits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int | None:
        return None if self.used is None else self.used + len(self.skipped)

    def lines(self, what: str = "images") -> list[str]:
        """Sentences: what is used for training, what is not, and why."""
        number = "a stream of" if self.used is None else f"{self.used:,}"
        text = f"{number} {what}, split {self.split}"
        if self.classes:
            text += f", {len(self.classes)} classes: {_some(list(self.classes), NUM_CLASSES)}"
        found = [text]
        if self.unlabelled:
            found.append(f"{self.unlabelled:,} of them without a class")
        if self.skipped:
            reasons = Counter(self.skipped.values()).most_common()
            named = _some([f"{count:,} x {reason}" for reason, count in reasons], NUM_REASONS, "; ")
            first = " ".join(next(iter(self.skipped)).split())
            found.append(f"{len(self.skipped):,} files are not used: {named} (first: {first})")
        if self.beside:
            found.append(f"other files: {_some([f'{count:,} of {name}' for name, count in self.beside.items()], 5)}")
        if len(self.splits) > 1:
            found.append(f"splits: {', '.join(self.splits)}")
        return [*found, *self.notes]


def _some(names: list[str], most: int, mark: str = ", ") -> str:
    return mark.join(names[:most]) + (f"{mark}..." if len(names) > most else "")


def counted(labels: list[int], names: list[str]) -> dict[str, int]:
    """Rows by class, in the order of the classes."""
    counts = Counter(labels)
    return {name: counts[number] for number, name in enumerate(names)}
