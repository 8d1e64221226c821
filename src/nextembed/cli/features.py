"""`embed`: features of any number of images in one file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.terminal import print
from ..errors import ConfigError, unknown
from .arguments import DataSettings, Model
from .known import fields_of
from .options import command
from .words import check_data, check_model, check_settings

if TYPE_CHECKING:
    from ..data.sources import ImageData
    from ..evaluation.features.embed import Embedded, Report
    from ..evaluation.features.embed_many import EmbeddedMany
    from ..evaluation.features.encoder import Encoder
    from ..evaluation.features.settings import ManySettings


@command(settings="evaluation.features.settings:ManySettings")
def embed(
    checkpoint: Model,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Images: a folder, a file or a hub id, as data.source takes them.")
    ],
    settings: "ManySettings",
    overrides: DataSettings = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The Parquet file to write, or a folder.")
    ] = Path("features.parquet"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write features of all images of a source to a Parquet file.

    There may be any number of images; after a stop, the same command resumes. --shard-rows writes a folder
    of files, on several machines with --engine ray. Settings are those of the data: data.split=test,
    data.streaming=true, data.label_column=species.

    \b
    Examples:
      nextembed embed runs/mine photos -o photos.parquet
      nextembed embed runs/mine emoji data.split=test --layer -1 --pooling mean
      nextembed embed runs/mine photos -o features --shard-rows 100000 --engine ray
    """
    check_model(checkpoint)
    check_data(source)
    check_data_settings(overrides or [])
    from ..evaluation.features.embed import embed as write
    from ..evaluation.features.embed import encoder_of, fitting
    from ..evaluation.features.embed_many import check_output, embed_many
    from ..evaluation.features.parts import Parts
    from ..evaluation.features.settings import MANY

    if settings.shard_rows is not None:
        check_output(output.expanduser(), overwrite)
    elif settings.engine == "ray":
        raise ConfigError("--engine ray writes a folder of files: give the rows of each file, e.g. --shard-rows 100000")
    else:
        Parts(output).check(overwrite)  # before anything is loaded
    encoder = encoder_of(checkpoint, settings)
    data = data_settings(fitting(source, encoder.preprocessing), overrides or [])
    _say_what(encoder, data)
    with progress("embedding", "finished work is kept: run the same command to resume") as report:
        if settings.shard_rows is not None:
            many = embed_many(encoder, data, output, overwrite=overwrite, report=report, **settings.model_dump())
        else:
            one = settings.model_dump(exclude=set(MANY))
            done = write(encoder, data, output, overwrite=overwrite, report=report, **one)
    if settings.shard_rows is not None:
        _say_many(many, encoder.width)
    else:
        _say_done(done, encoder.width)


def data_settings(data: "ImageData", overrides: list[str]) -> "ImageData":
    """A data part with `data.name=value` settings applied. Raises ConfigError for settings of anything else."""
    from ..core.config import apply_overrides

    check_data_settings(overrides)
    return apply_overrides(data, [text.removeprefix("data.") for text in overrides])


def check_data_settings(overrides: list[str]) -> None:
    """Raises ConfigError for settings of anything but the data."""
    for text in overrides:
        if not text.startswith("data."):
            raise ConfigError(f"'{text}': only data settings apply here, e.g. data.split=test")
        name, known = text.partition("=")[0].split(".")[1], fields_of("ImageData")
        if name not in known:
            raise ConfigError(unknown("data: field", name, known))
    check_settings(overrides)


def _say_what(encoder: "Encoder", data: "ImageData") -> None:
    layer, pooling, attention = encoder.place.key
    where = f"layer {layer} of {encoder.config.num_hidden_layers}, {pooling}, {attention} attention"
    print(f"Model:   {encoder.checkpoint}, {encoder.place.weights} weights")
    print(f"Feature: {where}, {encoder.width} wide ({encoder.place.why})")
    print(f"Images:  {data.source}, split {data.split}", flush=True)


def _say_done(done: "Embedded", width: int) -> None:
    if done.num_resumed:
        print(f"Resumed: the first {done.num_resumed:,} rows were finished before")
    rate = (done.num_rows + len(done.skipped) - done.num_resumed) / max(done.seconds, 1e-9)
    size = done.file.stat().st_size / 2**20
    print(f"Saved:   {done.file} ({done.num_rows:,} rows x {width}, {size:,.1f} MiB, {rate:,.0f} images/s)")
    _say_skipped(done)


def _say_many(done: "EmbeddedMany", width: int) -> None:
    if done.num_resumed:
        print(f"Resumed: {done.num_resumed:,} files were finished before")
    print(f"Saved:   {done.folder} ({done.num_rows:,} rows x {width} in {done.num_files:,} files)")
    _say_skipped(done)


class progress:
    """A live bar with images/s on a terminal; elsewhere a line every ten seconds. title: of the bar; stopped: message
    after Ctrl-C; what: name of the items."""

    def __init__(self, title: str, stopped: str = "", what: str = "images"):
        self.title, self.stopped, self.what = title, stopped, what

    def __enter__(self) -> "Report":
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from ..core.console import PlainConsole

        console = PlainConsole(stderr=True)
        columns = (TextColumn(self.title), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=None, rate="")
        self.console = console
        self.first: tuple[float, int] | None = None
        self.said = 0.0
        self.bar.start()
        return self.report

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        if error and error[0] is KeyboardInterrupt and self.stopped:
            self.console.print(self.stopped)

    def report(self, done: int, total: int | None) -> None:
        import time

        now = time.monotonic()
        if self.first is None:
            self.first, self.said = (now, done), now
        began, before = self.first
        rate = f"{(done - before) / (now - began):,.0f} {self.what}/s" if now > began else ""
        self.bar.update(self.task, completed=done, total=total, rate=rate)
        if self.bar.disable and now - self.said >= 10:
            self.said = now
            self.console.print(f"{done:,} of {total:,}  {rate}" if total else f"{done:,}  {rate}")


def _say_skipped(done: "Embedded | EmbeddedMany") -> None:
    if done.skipped:
        first = done.skipped[0]
        print(
            f"Skipped: {len(done.skipped):,} unreadable, named in {done.skipped_file}; "
            f"the first is {first['key']}: {first['reason']}"
        )
