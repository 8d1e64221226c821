"""`shard`: any source as files of equal size, to train from on many machines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.terminal import print
from ..errors import ConfigError
from .arguments import DataSettings
from .features import progress
from .options import command
from .words import check_data, check_settings

if TYPE_CHECKING:
    from ..data.shard_settings import ShardSettings
    from ..data.sharding import Sharded


@command(settings="data.shard_settings:ShardSettings")
def shard(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, files or a hub id, as data.source takes them.")
    ],
    settings: "ShardSettings",
    overrides: DataSettings = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to write.")] = Path(
        "shards"
    ),
    kind: Annotated[
        str | None,
        typer.Option(help="Kind of the rows, as in data.kind: images, segmentation, records; detected if left out."),
    ] = None,
) -> None:
    """Write any source as shards: tar or Parquet files of equal size.

    Files are kept byte for byte, with their splits and classes; broken rows are left out and named. After a
    stop, the same command resumes. Settings are those of the data: data.label_column=species, data.streaming=true.

    \b
    Examples:
      nextembed shard photos -o shards --shuffle 0
      nextembed shard org/name -o shards --format parquet --shard-size 512 data.streaming=true
    """
    check_data(source)
    for text in overrides or []:
        if not text.startswith("data."):
            raise ConfigError(f"'{text}': only data settings apply here, e.g. data.split=test")
    check_settings(overrides or [])
    from ..core.config import apply_overrides
    from ..data import kinds, sharding
    from ..data.shard_rows import part_of

    assert kinds.__all__  # so that every kind is known by its name
    sharding.check_folder(output.expanduser())
    part = apply_overrides(part_of(source, kind), [text.removeprefix("data.") for text in overrides or []])
    with progress("sharding", "finished shards are kept: run the same command to resume", "rows") as report:
        _say(sharding.shard(part, output, report=report, **settings.model_dump()))


def _say(done: "Sharded") -> None:
    if done.num_resumed:
        print(f"Resumed: {done.num_resumed:,} shards were finished before")
    for name, split in done.shards.splits.items():
        left_out = f", {split.skipped:,} left out" if split.skipped else ""
        files = f"{len(split.shards):,} {'shard' if len(split.shards) == 1 else 'shards'}"
        print(
            f"{name + ':':<12} {split.rows:,} rows in {files} of {done.shards.format} "
            f"({split.bytes / 2**20:,.1f} MiB{left_out})"
        )
    if done.shards.classes:
        print(f"Classes:     {len(done.shards.classes):,}")
    if done.skipped:
        first = done.skipped[0]
        print(
            f"Left out:    {len(done.skipped):,}, named in {done.folder / 'rows.skipped.jsonl'}; the first is "
            f"{first['key']}: {first['reason']}"
        )
    print(f"Saved:       {done.folder}; train with data.source={done.folder} data.streaming=true")
