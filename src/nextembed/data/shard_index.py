"""index.json of a folder of shards: its content, and checks that nothing is missing."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..core.files import check_name, first_line
from ..errors import ConfigError, DamagedFile

INDEX, JOURNAL, SKIPPED = "index.json", "index.partial", "rows.skipped.jsonl"
VERSION = 1


class Shard(BaseModel):
    """A file next to the index. labels: number of rows by class id."""

    file: Annotated[str, AfterValidator(check_name)]
    rows: int
    bytes: int
    sha256: str
    labels: dict[str, int] = {}


class Split(BaseModel):
    """A split. skipped: rows that were left out. kinds: of the files that a sample of an archive has."""

    rows: int
    bytes: int
    skipped: int
    shards: list[Shard]
    kinds: list[str] = []


class Index(BaseModel):
    """Content of a folder of shards. classes: names by class id; empty if there are none."""

    model_config = ConfigDict(extra="ignore")

    nextembed_shards: int = Field(VERSION, ge=1, le=VERSION)
    format: str
    classes: list[str] = []
    splits: dict[str, Split]
    settings: dict[str, object] = {}

    def split_of(self, file: str) -> str | None:
        """The split of a file in the folder; None if it is not a shard."""
        return next(
            (name for name, split in self.splits.items() if any(one.file == file for one in split.shards)), None
        )


def parse_index(text: str, where: object) -> Index | None:
    """The index from JSON text; None if it is something else. Raises ConfigError for one of a later version."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or "nextembed_shards" not in value:
        return None
    try:
        return Index.model_validate(value)
    except ConfigError as err:
        raise ConfigError(f"{where}: {err}") from None
    except ValidationError as err:
        problem = err.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"{where}: {place}: {problem['msg']} (is it of a later version of nextembed?)") from None


def read_index(folder: Path, checked: bool = True) -> Index | None:
    """The index of a folder; None where it has none. checked: whether files have to exist with their original size.

    Raises ConfigError for shards that are not finished, DamagedFile for one that is missing or of another size.
    """
    if (folder / JOURNAL).exists():
        raise ConfigError(
            f"data.source: the shards in {folder} are not finished ({JOURNAL} is there): run the same "
            "`nextembed shard` again, which resumes"
        )
    try:
        found = parse_index((folder / INDEX).read_text(encoding="utf-8"), folder / INDEX)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        raise ConfigError(f"cannot read {folder / INDEX}: {first_line(err)}") from None
    for split in found.splits.values() if found is not None and checked else ():
        for shard in split.shards:
            check_shard(folder, shard)
    return found


def check_shard(folder: Path, shard: Shard) -> None:
    """Raises DamagedFile for a shard that is missing or has another size."""
    try:
        size = (folder / shard.file).stat().st_size
    except OSError:
        raise DamagedFile(f"data.source: {folder / shard.file} is missing; {INDEX} names it") from None
    if size != shard.bytes:
        raise DamagedFile(
            f"data.source: {folder / shard.file} has {size:,} bytes, not the {shard.bytes:,} that {INDEX} says: copy "
            "it again"
        )
