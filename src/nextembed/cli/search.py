"""`search` and `index`: nearest images among embedded ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.files import check_target, checked_file
from ..core.places import check_here
from ..core.terminal import print
from ..errors import ConfigError
from .app import app
from .completing import offer_models

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..evaluation.features.search import Bank, Hit, Retrieval


@app.command()
def search(
    features: Annotated[
        str, typer.Argument(metavar="FEATURES", help="A file of `nextembed embed`, or a folder of `nextembed index`.")
    ],
    query: Annotated[
        str | None,
        typer.Argument(metavar="QUERY", help="An image file, a folder of them, or the key of a row of FEATURES."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=10**6, help="Number of images to show.")] = 12,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Also write a contact sheet (.png) or a table (.csv)."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Path of the model, if it was moved.", autocompletion=offer_models),
    ] = None,
    by_label: Annotated[
        bool, typer.Option("--score", help="Instead of searching, measure how often nearest images share a label.")
    ] = False,
) -> None:
    """Find the nearest images to a query, by cosine, among embedded images.

    It prints a table; -o writes the images side by side, or the table. For a folder, each of its images is a query.

    \b
    Examples:
      nextembed search features.parquet cat.png --top 12 -o nearest.png
      nextembed search index/ path/to/new/images --top 3 -o nearest.csv
    """
    check_here(features, "no such file", hub=False)
    from ..evaluation.features import search as search_module
    from ..evaluation.features.stored import FeatureFile

    if output is not None:
        if output.suffix.lower() not in (".png", ".csv"):
            raise ConfigError(f"--output should end in .png or .csv, got {output}")
        checked_file(output)
    if by_label:
        if query is not None:
            raise ConfigError("--score takes every image as a query; leave QUERY out")
        print(_say_score(search_module.score(FeatureFile(features))))
        return
    if query is None:
        raise ConfigError("name an image file or a key to search for, or add --score")
    bank = search_module.open_features(features)
    if Path(query).is_dir():
        _search_folder(bank, query, top, output, checkpoint)
        return
    vector, own = search_module.query_vector(bank, query, checkpoint)
    hits = search_module.nearest(bank, vector, top, own)
    _print_hits(hits)
    if output is not None and output.suffix.lower() == ".csv":
        _write_table({query: hits}, output)
    elif output is not None:
        print(f"Sheet:  {_write_sheet(bank, query, own, hits, output)}")


def _search_folder(bank: "Bank", folder: str, top: int, output: Path | None, checkpoint: str | None) -> None:
    """Each image of a folder as a query. Broken ones are named and left out."""
    from ..evaluation.features.search import search_folder

    if output is not None and output.suffix.lower() != ".csv":
        raise ConfigError("a contact sheet shows one query only; for several write a table: -o nearest.csv")
    found = search_folder(bank, folder, top, checkpoint)
    for key, hits in found.hits.items():
        if output is None:
            print(f"\n{key}")
            _print_hits(hits)
    if output is not None:
        _write_table(found.hits, output)
    if found.skipped:
        first = next(iter(found.skipped))
        print(f"Skipped: {len(found.skipped):,} unreadable; the first is {first}: {found.skipped[first]}")


def _write_table(hits: dict[str, list["Hit"]], output: Path) -> None:
    """CSV with one row per hit."""
    import csv

    from ..core.files import replacing
    from ..evaluation.features.search import Hit

    with replacing(output) as file, file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as text:
        writer = csv.writer(text)
        writer.writerow(["query", *Hit._fields])
        writer.writerows([key, *hit] for key, rows in hits.items() for hit in rows)
    print(f"Table:  {output} ({len(hits):,} queries)")


@app.command()
def index(
    features: Annotated[str, typer.Argument(metavar="FEATURES", help="A file that `nextembed embed` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The new folder to write.")] = Path(
        "index"
    ),
    recall: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help=("Recall to reach: share of the true nearest 10 that a search finds.")),
    ] = 0.95,
) -> None:
    """Build an index of many features, so that a search takes milliseconds.

    Below 100,000 rows it is exact; above, it reaches the given recall of the true nearest rows, and reports the recall
    found. It needs faiss: pip install 'nextembed[search]'.

    \b
    Examples:
      nextembed index features.parquet -o index/
      nextembed index features.parquet -o index/ --recall 0.99
    """
    check_here(features, "no such file", hub=False)
    check_target(output)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..core.console import PlainConsole
    from ..evaluation.features.index import build_index

    console = PlainConsole(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        made = build_index(
            features,
            output,
            recall,
            report=lambda what, n, of: bar.update(task, description=what, completed=n, total=of),
        )
    facts = made.facts
    how = "exact" if facts.kind == "exact" else f"{facts.num_probes} of {facts.num_clusters:,} clusters are searched"
    print(f"Index:   {made.path} ({facts.num_rows:,} rows x {facts.width}, {made.num_bytes / 2**20:,.1f} MiB, {how})")
    if facts.kind == "clusters":
        print(f"Recall:  {100 * facts.recall:.1f} % of the true nearest 10, over {facts.num_queries} rows")
    print(f"Built in {facts.seconds:,.1f} s. Next: nextembed search {made.path} IMAGE")


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


def _write_sheet(file: "Bank", query: str, own: int | None, hits: list["Hit"], output: Path) -> Path:
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
        + (f"; {found.num_left_out:,} rows without a label, or alone in their class, were not used as "
"queries." if found.num_left_out
           else "."),
    ]  # fmt: skip
    return "\n".join(lines)
