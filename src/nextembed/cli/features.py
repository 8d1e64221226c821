"""`embed` and `search`: features of any number of images in one file, and what lies near what."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.files import checked_file
from ..core.places import NO_RUN, check_here, check_source
from ..core.terminal import print
from ..errors import ConfigError
from .app import Settings, app
from .options import command

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..data.sources import ImageData
    from ..evaluation.features.embed import Embedded, Report
    from ..evaluation.features.encoder import Encoder
    from ..evaluation.features.search import FeatureFile, Hit, Retrieval
    from ..evaluation.features.settings import EmbedSettings


@command(settings="evaluation.features.settings:EmbedSettings")
def embed(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A run, a checkpoint, a saved model or a hub id.")
    ],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Images, as data.source takes them.")],
    settings: "EmbedSettings",
    overrides: Settings = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The Parquet file to write.")] = Path(
        "features.parquet"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Write features of all images of a source to a Parquet file.

    Any number of images; started again after a stop, it goes on where it was. Settings are those of data:
    data.split=test, data.streaming=true, data.label_column=species, ...
    """
    check_here(checkpoint, NO_RUN)
    check_source(source)
    from ..evaluation.features.embed import embed as write
    from ..evaluation.features.embed import encoder_of, fitting
    from ..evaluation.features.parts import Parts

    Parts(output).check(overwrite)  # before anything is loaded
    encoder = encoder_of(checkpoint, settings)
    data = data_settings(fitting(source, encoder.preprocessing), overrides or [])
    _say_what(encoder, data)
    with _progress() as report:
        done = write(encoder, data, output, overwrite=overwrite, report=report, **settings.model_dump())
    _say_done(done, encoder.width)


def data_settings(data: "ImageData", overrides: list[str]) -> "ImageData":
    """A data part with `data.name=value` settings applied. Raises ConfigError for settings of anything else."""
    from ..core.config import apply_overrides

    for text in overrides:
        if not text.startswith("data."):
            raise ConfigError(f"'{text}': only settings of the data mean anything here, e.g. data.split=test")
    return apply_overrides(data, [text.removeprefix("data.") for text in overrides])


def _say_what(encoder: "Encoder", data: "ImageData") -> None:
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

    def __enter__(self) -> "Report":
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from ..core.console import PlainConsole

        console = PlainConsole(stderr=True)
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


@app.command()
def search(
    features: Annotated[str, typer.Argument(metavar="FEATURES", help="A file that `nextembed embed` wrote.")],
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="An image file, or the key of a row of FEATURES.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=10**6, help="How many.")] = 12,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PNG", help="Write a contact sheet, too.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Where the model lies, if it was moved.")
    ] = None,
    by_label: Annotated[
        bool, typer.Option("--score", help="Measure instead how often near images share a label.")
    ] = False,
) -> None:
    """Find the images nearest to one, by cosine, in a file of features.

    Prints a table; with -o it writes the pictures side by side.
    """
    check_here(features, "no such file", hub=False)
    from ..evaluation.features import search as search_module

    if output is not None:
        checked_file(output)
    file = search_module.FeatureFile(features)
    if by_label:
        if query is not None:
            raise ConfigError("--score takes every image as a query; leave QUERY out")
        print(_say_score(search_module.score(file)))
        return
    if query is None:
        raise ConfigError("name an image file or a key to search for, or add --score")
    if output is not None and output.suffix.lower() != ".png":
        raise ConfigError(f"--output should end in .png, got {output}")
    vector, own = search_module.query_vector(file, query, checkpoint)
    hits = search_module.nearest(file, vector, top, own)
    _print_hits(hits)
    if output is not None:
        print(f"Sheet:  {_write_sheet(file, query, own, hits, output)}")


def _print_hits(hits: list["Hit"]) -> None:
    from rich.table import Table

    from ..core.console import PlainConsole

    labelled = any(hit.label is not None or hit.label_name for hit in hits)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("rank", justify="right")
    table.add_column("cosine", justify="right")
    table.add_column("key", overflow="fold")
    if labelled:
        table.add_column("label", overflow="fold")
    for hit in hits:
        label = hit.label_name or ("" if hit.label is None else str(hit.label))
        numbers = str(hit.rank), f"{hit.cosine:.4f}"
        table.add_row(*numbers, *((hit.key, label) if labelled else (hit.key,)))
    PlainConsole().print(table)


def _write_sheet(file: "FeatureFile", query: str, own: int | None, hits: list["Hit"], output: Path) -> Path:
    from ..evaluation.features.search import Hit
    from ..evaluation.features.sheet import contact_sheet, images_of, save_sheet

    pictures = images_of(file, hits)
    image: Image | str | None = query
    if own is not None:
        row = file.rows([own])[0]
        image = images_of(file, [Hit(0, 1.0, row.get("row", own), query, row.get("path"), None, None)])[0]
    made = file.origin
    named = f"layer {made.layer} of {made.num_layers}, {made.pooling}, {made.attention}"
    where = [named] if made.layer is not None else []
    title = " · ".join([f"{file.num_rows:,} images", *where, "cosine"])
    name = query if own is not None else Path(query).name
    return save_sheet(contact_sheet(image, name, hits, pictures, title), output)


def _say_score(found: "Retrieval") -> str:
    lines = [
        f"Nearest image has the same label (recall@1):  {100 * found.recall_at_1:.1f} %",
        f"Same label among the {found.k} nearest (precision@{found.k}):  {100 * found.precision_at_k:.1f} %",
        f"Mean average precision:  {100 * found.mean_average_precision:.1f} %",
        f"A random order would give about {100 * found.chance:.1f} % for each.",
        f"{found.num_queries:,} queries, each against all other {found.num_images - 1:,} images"
        + (f"; {found.num_left_out:,} rows without a label or alone with theirs were no queries." if found.num_left_out
           else "."),
    ]  # fmt: skip
    return "\n".join(lines)
