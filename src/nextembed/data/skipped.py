"""Counts samples that could not be read, and stops a run if there are too many."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from ..core.files import to_json
from ..errors import DataError

MIN_SEEN = 1000  # the share of unreadable samples is computed over at least this many, or over all if there are fewer


class SkipLog:
    """Counts unreadable samples, each place once, in a JSON-lines file that all workers, ranks and resumed runs share.

    path: `skipped.jsonl`; None counts in this process only. max_rate: share of samples that may be
    unreadable. length: number of samples if known. what: their name in messages. Raises DataError from
    `add` and `check` once the share is too high.
    """

    def __init__(self, path: Path | None, max_rate: float, length: int | None = None, what: str = "images"):
        self.path, self.max_rate, self.length, self.what = path, max_rate, length, what
        self.reasons: dict[str, str] = {}
        self._places: set[str] = set()
        self._num_counted = self._seen = 0
        self._offset, self._repair = 0, ""

    def add(self, key: str, reason: str, num_seen: int, place: str | None = None, counts: bool = True) -> None:
        """Names one unreadable sample.

        num_seen: approximate number of different samples that all workers and ranks have seen. place: identifies the
        sample in every epoch and worker; None uses the key. counts: whether it counts towards `max_rate`; not if the
        settings exclude it.
        """
        self._read_others()
        place = key if place is None else place
        if place not in self._places:
            self._note(key, reason, num_seen, place, counts)
            if self.path is not None:
                entry = {"key": key, "reason": reason, "place": place, "seen": num_seen, "counts": counts}
                self._write(to_json(entry) + "\n")
        self.check(num_seen)

    def leave_out(self, files: Mapping[str, str], writes: bool = True, counts: bool = True) -> None:
        """Names files or rows that were found to be of no use when the data were opened, by the reason; they are
        samples, too.

        writes: whether this process writes them down, one of those that share the file. counts: as of `add`. Raises
        DataError if they are too many.
        """
        if not files:
            return
        if self.length is not None:
            self.length += len(files)
        self._read_others()
        new = {key: reason for key, reason in files.items() if f"file {key}" not in self._places}
        for key, reason in new.items():
            self._note(key, reason, 0, f"file {key}", counts)
        if writes and new and self.path is not None:
            facts = {"seen": 0, "counts": counts}
            entries = ({"key": key, "reason": reason, "place": f"file {key}"} | facts for key, reason in new.items())
            self._write("".join(to_json(entry) + "\n" for entry in entries))
        self.check(0)

    def _write(self, lines: str) -> None:
        """One write to a file opened for appending: lines of several processes do not mix."""
        assert self.path is not None
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, (self._repair + lines).encode(errors="backslashreplace"))  # half a surrogate pair
        finally:
            os.close(file)

    def check(self, num_seen: int, at_least: int = MIN_SEEN) -> None:
        """Raises DataError if more than `max_rate` of the samples seen are unreadable.

        Samples seen count as `at_least` so many, so that one of the first few does not stop a run; but never more than
        exist.
        """
        self._read_others()
        total = max(num_seen, self._seen, at_least)
        if self.length is not None:
            total = min(total, self.length)
        count = self._num_counted
        if count > self.max_rate * total:
            where = f" (all in {self.path})" if self.path is not None else ""
            among = f"{total}" if total in (num_seen, self._seen, self.length) else f"the first {total}"
            raise DataError(
                f"{count} of {among} {self.what} are unreadable ({count / total:.1%}), more than "
                f"data.max_skipped_rate={self.max_rate:g}: {self.first()}{where}"
            )

    def count(self) -> int:
        """How many samples were named so far, by all that share the file."""
        self._read_others()
        return len(self._places)

    def first(self) -> str:
        """The first few with their reasons, in one line whatever the file names hold."""
        return " ".join("; ".join(f"{key}: {reason}" for key, reason in list(self.reasons.items())[:3]).split())

    def _read_others(self) -> None:
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                self._repair = "" if line.endswith(b"\n") else "\n"
                if self._repair:
                    break  # half a line, e.g. after a full disk: the next one starts on a new line
                self._offset += len(line)
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    place = entry.get("place", entry["key"])
                    counts = entry.get("counts", True)
                    self._note(entry["key"], entry["reason"], int(entry.get("seen", 0)), place, counts)

    def _note(self, key: str, reason: str, num_seen: int, place: str, counts: bool) -> None:
        self.reasons.setdefault(key, reason)
        self._num_counted += counts and place not in self._places
        self._places.add(place)
        self._seen = max(self._seen, num_seen)  # a resumed run has looked at what it had before the stop
