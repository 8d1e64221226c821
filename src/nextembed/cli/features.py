"""`embed` and `search`: features of any number of images in one file, and what lies near what."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, unknown
from .app import Settings, app

if TYPE_CHECKING:
    from ..evaluation.embed import Embedded
    from ..evaluation.encoder import Encoder

CHOICES = {
    "pooling": ("mean", "last", "first"),
    "attention": ("causal", "full"),
    "weights": ("raw", "ema"),
    "precision": ("float32", "bfloat16"),
    "dtype": ("float32", "float16"),
}


@app.command()
def embed(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A run, a checkpoint, a saved model or a hub id.")
    ],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Images, as data.source takes them.")],
    overrides: Settings = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The Parquet file to write.")] = Path(
        "features.parquet"
    ),
    layer: Annotated[
        int | None, typer.Option(help="0 is the latents, -1 the output; if left out, what RUN/probe.json found best.")
    ] = None,
    pooling: Annotated[str | None, typer.Option(help="mean, last or first.")] = None,
    attention: Annotated[str | None, typer.Option(help="causal or full.")] = None,
    weights: Annotated[str | None, typer.Option(help="raw or ema.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 64,
    precision: Annotated[str, typer.Option(help="Of the forward pass: float32 or bfloat16.")] = "float32",
    dtype: Annotated[str, typer.Option(help="Of the file: float32 or float16.")] = "float32",
    num_workers: Annotated[int, typer.Option(min=0, help="Threads that read and decode.")] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="The first images only.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Write features of all images of a source to a Parquet file.

    Any number of images; started again after a stop, it goes on where it was. Settings are those of data:
    data.split=test, data.streaming=true, data.label_column=species, ...
    """
    words = {"pooling": pooling, "attention": attention, "weights": weights, "precision": precision, "dtype": dtype}
    for name, value in words.items():
        if value is not None and value not in CHOICES[name]:
            raise ConfigError(unknown(f"--{name.replace('_', '-')}", value, CHOICES[name]))
    from ..evaluation.embed import embed as write
    from ..evaluation.embed import fitting
    from ..evaluation.encoder import Encoder
    from ..evaluation.parts import Parts

    Parts(output).check(overwrite)  # before anything is loaded
    del words["dtype"]
    encoder = Encoder(checkpoint, layer, **words)  # type: ignore[arg-type]
    data = data_settings(fitting(source, encoder.preprocessing), overrides or [])
    _say_what(encoder, data)
    with _progress() as report:
        done = write(
            encoder,
            data,
            output,
            dtype=dtype,  # type: ignore[arg-type]
            batch_size=batch_size,
            num_workers=num_workers,
            limit=limit,
            overwrite=overwrite,
            report=report,
        )
    _say_done(done, encoder.width)


def data_settings(data: Any, overrides: list[str]) -> Any:
    """A data part with `data.name=value` settings applied. Raises ConfigError for settings of anything else."""
    from ..core.config import apply_overrides

    for text in overrides:
        if not text.startswith("data."):
            raise ConfigError(f"'{text}': only settings of the data mean anything here, e.g. data.split=test")
    return apply_overrides(data, [text.removeprefix("data.") for text in overrides])


def _say_what(encoder: "Encoder", data: Any) -> None:
    layer, pooling, attention = encoder.place.key
    where = f"layer {layer} of {encoder.config.num_hidden_layers}, {pooling}, {attention} attention"
    print(f"Model:   {encoder.checkpoint}, {encoder.place.weights} weights")
    print(f"Feature: {where}, {encoder.width} wide ({encoder.place.why})")
    print(f"Images:  {data.source}, split {data.split}", flush=True)


def _say_done(done: "Embedded", width: int) -> None:
    if done.num_resumed:
        print(f"Resumed: the first {done.num_resumed:,} rows were there already")
    rate = (done.num_rows + len(done.skipped) - done.num_resumed) / max(done.seconds, 1e-9)
    size = done.file.stat().st_size / 2**20
    print(f"Saved:   {done.file} ({done.num_rows:,} rows x {width}, {size:,.1f} MiB, {rate:,.0f} images/s)")
    if done.skipped:
        first = done.skipped[0]
        print(
            f"Skipped: {len(done.skipped):,} unreadable, named in {done.skipped_file}; "
            f"the first is {first['key']}: {first['reason']}"
        )


class _progress:
    """A live bar with images/s on a terminal; elsewhere a line every ten seconds."""

    def __enter__(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True, highlight=False)
        columns = (TextColumn("embedding"), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=None, rate="")
        self.console = console
        self.first: tuple[float, int] | None = None
        self.said = 0.0
        self.bar.start()
        return self.report

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        if error and error[0] is KeyboardInterrupt:
            self.console.print("what is done is kept: the same command goes on from here")

    def report(self, done: int, total: int | None) -> None:
        import time

        now = time.monotonic()
        if self.first is None:
            self.first, self.said = (now, done), now
        began, before = self.first
        rate = f"{(done - before) / (now - began):,.0f} images/s" if now > began else ""
        self.bar.update(self.task, completed=done, total=total, rate=rate)
        if self.bar.disable and now - self.said >= 10:
            self.said = now
            self.console.print(f"{done:,} of {total:,}  {rate}" if total else f"{done:,}  {rate}")
