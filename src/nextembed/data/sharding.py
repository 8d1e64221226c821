"""Writes any source as shards: files of equal size with an index, written one by one, so that finished ones survive a
stop. Meanwhile `index.partial` lists finished shards, one line each, with the position in the source after them. Rows
are cut by their number and size alone, so that shards are the same whether it was stopped or not.
"""

import contextlib
import itertools
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..core.belonging import check_own_folder, make_folder
from ..core.config import validated
from ..core.files import clean, first_line, from_json, locked, replacing, to_json, write_json, write_text
from ..core.types import Role
from ..errors import ConfigError, DataError, MissingSplit
from .rows import FIRST, RowPlace
from .shard_files import FILES, Media, Packed, ShardFile, digest
from .shard_index import INDEX, JOURNAL, SKIPPED, Index, Shard, Split, check_shard, read_index
from .shard_rows import Content, content_of, in_order, part_of
from .shard_settings import ShardSettings
from .tables import TableSettings
from .transforms import Unreadable

ROLES: tuple[Role, ...] = ("train", "validation", "test")
AHEAD = 64  # rows that are read and decoded while one is written
LOCK = "lock"

Report = Callable[[int, int | None], None]  # rows done, rows in all (None if unknown)
# Settings of the data that do not affect which rows there are or what they contain.
BESIDE = {"num_workers", "cache", "crop_scale", "crop_ratio", "flip_rate", "rand_augment", "erase_rate",
          "max_skipped_rate", "shuffle_buffer", "mean", "std"}  # fmt: skip


class Sharded(NamedTuple):
    """The result. num_resumed: shards that an earlier start had finished. skipped: of all splits; "split", "key" and
    "reason" of each row that was left out, also in `rows.skipped.jsonl`."""

    folder: Path
    shards: Index
    num_resumed: int
    skipped: list[dict[str, str]]


class Done(NamedTuple):
    """A line of the journal: a finished shard, if any, the position after it, and the rows that were left out
    before."""

    split: str
    place: RowPlace
    shard: Shard | None
    skipped: list[dict[str, str]]
    kinds: list[str]
    whole: bool  # the split ends here

    def line(self) -> str:
        shard = None if self.shard is None else self.shard.model_dump()
        return to_json({**self._asdict(), "shard": shard}) + "\n"

    @classmethod
    def of(cls, line: bytes) -> "Done":
        values = json.loads(line)
        shard = None if values["shard"] is None else Shard.model_validate(values["shard"])
        return cls(**{**values, "place": RowPlace(*values["place"]), "shard": shard})


def shard(
    source: str | os.PathLike[str] | TableSettings,
    output: str | Path,
    *,
    kind: str | None = None,
    report: Report | None = None,
    **settings: object,
) -> Sharded:
    """Writes the rows of a source as shards with `index.json`, for training as from the source; started again after a
    stop, it continues.

    Pictures, sounds and videos are written as their files are, byte for byte. A row that cannot be read is left out and
    named in `rows.skipped.jsonl`. Splits are called train, validation and test, whatever the settings call them.

    Args:
        source: what `data.source` takes, or data settings: of images (`ImageData`), of images with masks, or of any
            table of documents.
        output: the folder; a new one, or one that was begun with the same settings.
        kind: of data, as `data.kind` has it; found out if left out.
        report: is called with rows done, and rows in all (None where nobody knows).
        settings: see `ShardSettings`.

    Returns:
        What was written: shards, rows, and rows left out with the reason.

    Raises:
        ConfigError: for a folder that holds something else or is finished, and for a source that cannot be used.
        DataError: if no row can be read.
    """
    chosen, output = validated(ShardSettings, settings, "shard"), Path(output).expanduser()
    check_folder(output)
    part = source if isinstance(source, TableSettings) else part_of(str(source), kind)
    contents = opened(part, chosen)
    first = next(iter(contents.values()))
    if chosen.format is not None and chosen.format not in first.formats:
        raise ConfigError(f"--format {chosen.format}: these rows are written as {' or '.join(first.formats)}")
    form = chosen.format or first.formats[0]
    said = {
        "data": part.model_dump(mode="json", exclude=BESIDE),
        "format": form,
        **chosen.model_dump(mode="json", exclude={"format", "num_workers"}),
        "rows": {split: len(one.rows) if isinstance(one.rows, Sized) else None for split, one in contents.items()},
    }
    make_folder(output)
    with locked(output / LOCK, f"another process is writing {output}"):
        clean(output)
        journal = Journal(output, said)
        resumed = len(journal.shards())
        total = sum(len(one.rows) if isinstance(one.rows, Sized) else 0 for one in contents.values()) or None
        for split, content in contents.items():
            before = sum(one.place.row for one in journal.last().values() if one.split != split)
            told = None if report is None else added(report, before, total)
            Writer(output, split, content, chosen, form, journal).write(told)
        index = journal.finish(first.classes, form, said)
        (output / LOCK).unlink(missing_ok=True)
    read_index(output)
    return Sharded(output, index, resumed, journal.skipped())


def added(report: Report, before: int, total: int | None) -> Report:
    """Converts the progress of one split to that of all."""
    return lambda done, _: report(before + done, total)


def check_folder(output: Path) -> None:
    """Raises ConfigError for a folder that may not be written, because it is not ours or finished."""
    if (output / INDEX).exists() and not (output / JOURNAL).exists():
        raise ConfigError(f"{output} already contains shards; choose another folder, or remove it")
    check_own_folder(output, (JOURNAL,), LOCK)


def opened(part: TableSettings, settings: ShardSettings) -> dict[Role, Content]:
    """The splits that are to be written."""
    found: dict[Role, Content] = {}
    for split in settings.splits or ROLES:
        try:
            content = content_of(part, split, settings.check == "decode")
            if isinstance(content.rows, Sized) and len(content.rows) == 0:
                raise MissingSplit(f"data: the {split} split is empty")
            found[split] = content
        except MissingSplit:
            if settings.splits or split == "train":
                raise
    return found


class Journal:
    """Reads `index.partial`. Raises ConfigError if it was started with other settings."""

    def __init__(self, folder: Path, settings: dict[str, object]):
        self.folder, self.file = folder, folder / JOURNAL
        self.done: list[Done] = []
        if not self.file.exists():
            write_text(self.file, to_json(settings) + "\n")
            return
        head, *lines = self.file.read_bytes().splitlines(keepends=True) or [b""]
        before, now = begun_with(head), json.loads(to_json(settings))
        if before is None:
            raise ConfigError(f"{self.file} was not written by nextembed shard: choose another folder")
        if before != now:
            raise ConfigError(
                f"{folder} was started with other settings ({changed(before, now)}): repeat the original command, "
                "or choose another folder"
            )
        good = len(head)
        for line in lines:
            try:
                one = Done.of(line)
                if one.shard is not None:
                    check_shard(folder, one.shard)
            except (ValueError, KeyError, TypeError, ConfigError):
                break  # half a line, or a shard that was lost with a disk cache: everything from here on is done again
            self.done.append(one)
            good += len(line)
        os.truncate(self.file, good)

    def add(self, done: Done) -> None:
        with self.file.open("ab") as file:
            file.write(done.line().encode(errors="replace"))
            file.flush()
            os.fsync(file.fileno())
        self.done.append(done)

    def shards(self, split: str | None = None) -> list[Shard]:
        return [one.shard for one in self.done if one.shard is not None and split in (None, one.split)]

    def last(self) -> dict[str, Done]:
        """The last line of each split."""
        return {one.split: one for one in self.done}

    def skipped(self) -> list[dict[str, str]]:
        return [{"split": one.split, **row} for one in self.done for row in one.skipped]

    def finish(self, classes: list[str], form: str, settings: dict[str, object]) -> Index:
        """Writes the index, then removes the journal."""
        splits = {}
        for name in self.last():
            shards = self.shards(name)
            kinds = sorted({kind for one in self.done if one.split == name for kind in one.kinds})
            left_out = sum(len(one.skipped) for one in self.done if one.split == name)
            splits[name] = Split(
                rows=sum(one.rows for one in shards), bytes=sum(one.bytes for one in shards), skipped=left_out,
                shards=shards, kinds=kinds,
            )  # fmt: skip
        skipped = self.skipped()
        if not any(split.rows for split in splits.values()):
            first = f": {skipped[0]['key']}: {skipped[0]['reason']}" if skipped else ""
            raise DataError(f"none of the {len(skipped):,} rows can be read{first}")
        index = Index(format=form, classes=classes, splits=splits, settings=settings)
        if skipped:
            write_text(self.folder / SKIPPED, "".join(to_json(one) + "\n" for one in skipped))
        write_json(self.folder / INDEX, index.model_dump())
        self.file.unlink()
        return index


def begun_with(line: bytes) -> dict[str, object] | None:
    """The settings that the first line of a journal holds; None where it is no journal."""
    with contextlib.suppress(ValueError):
        found = from_json(line)
        if isinstance(found, dict) and "data" in found:
            return found
    return None


def changed(before: object, now: object, name: str = "") -> str:
    """The first setting that is another one."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(key for key in before if key not in now)]:
            if before.get(key) != now.get(key):
                return changed(before.get(key), now.get(key), key)
    return f"{name} {before!r}, now {now!r}"


class Writer:
    """Writes one split."""

    def __init__(
        self, folder: Path, split: Role, content: Content, settings: ShardSettings, form: str, journal: Journal
    ):
        self.folder, self.split, self.content, self.journal = folder, split, content, journal
        self.settings, self.form = settings, form
        self.limit = int(settings.shard_size * 2**20)

    def write(self, report: Report | None) -> None:
        """All shards that are not there yet."""
        last = self.journal.last().get(self.split)
        if last is not None and last.whole:
            return
        rows = iter(self.packed(FIRST if last is None else last.place, report))
        number = len(self.journal.shards(self.split))
        while not self._one(rows, self.folder / f"{self.split}-{number:06d}.{self.form}"):
            number += 1

    def _one(self, rows: Iterator[tuple[RowPlace, Packed | dict[str, str]]], file: Path) -> bool:
        """The next shard; whether the split ends with it."""
        skipped: list[dict[str, str]] = []
        last = self.journal.last().get(self.split)
        place = FIRST if last is None else last.place  # position after the rows so far
        first: Packed | None = None
        while first is None:
            found = next(rows, None)
            if found is None:
                self.journal.add(Done(self.split, place, None, skipped, [], True))
                return True
            place = found[0]
            if isinstance(found[1], Packed):
                first = found[1]
            else:
                skipped.append(found[1])
        labels: Counter[str] = Counter()
        kinds: set[str] = set()
        size = count = 0
        is_last = True
        with replacing(file) as scratch:
            made: ShardFile = FILES[self.form](scratch, self.content.schema)
            for at, row in itertools.chain([(place, first)], rows):
                place = at
                if not isinstance(row, Packed):
                    skipped.append(row)
                    continue
                made.add(row)
                size, count = size + row.size, count + 1
                kinds |= kinds_of(row)
                labels.update([str(row.label)] if row.label is not None else [])
                if size >= self.limit:
                    is_last = False
                    break
            made.close()
        facts = {"rows": count, "bytes": file.stat().st_size, "sha256": digest(file)}
        whole = Shard(file=file.name, **facts, labels=dict(sorted(labels.items())))
        self.journal.add(Done(self.split, place, whole, skipped, sorted(kinds), is_last))
        return is_last

    def packed(self, start: RowPlace, report: Report | None) -> Iterator[tuple[RowPlace, Packed | dict[str, str]]]:
        """Rows ready to be written, in their order, each with the place after it; or the key and the reason of one that
        cannot be read."""
        rows = in_order(self.content.rows, start, self.settings.shuffle)
        total = len(self.content.rows) if isinstance(self.content.rows, Sized) else None
        ahead: deque[tuple[RowPlace, Future[Packed | dict[str, str]]]] = deque()
        with ThreadPoolExecutor(max(1, self.settings.num_workers), thread_name_prefix="read") as pool:
            try:
                for place, number, row in rows:
                    ahead.append((place, pool.submit(self._pack, number, row)))
                    if len(ahead) > AHEAD:
                        place, future = ahead.popleft()
                        yield place, future.result()
                        if report is not None:
                            report(place.row, total)
                while ahead:
                    place, future = ahead.popleft()
                    yield place, future.result()
                    if report is not None:
                        report(place.row, total)
            finally:
                pool.shutdown(cancel_futures=True)

    def _pack(self, number: int, row: object) -> Packed | dict[str, str]:
        try:
            return self.content.pack(number, row)
        except Unreadable as err:
            return {"row": str(number), "key": self.content.key(number, row), "reason": first_line(err)}


def kinds_of(row: Packed) -> set[str]:
    """The endings of its files in an archive."""
    kinds = {value.ending for value in row.columns.values() if isinstance(value, Media)}
    kinds |= {"cls"} if row.label is not None else set()
    rest = [value for value in row.columns.values() if value is not None and not isinstance(value, Media)]
    return kinds | ({"json"} if rest else set())
