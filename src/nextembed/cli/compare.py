"""`compare`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.places import check_here, check_source
from ..core.terminal import print
from ..errors import ConfigError
from .completing import offer_recipes
from .options import command
from .words import check_settings

if TYPE_CHECKING:
    from ..comparison.settings import CompareSettings
    from ..comparison.table import Comparison


@command(settings="comparison.settings:CompareSettings")
def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE | RUN ... | KEY=VALUE",
            help=(
                "A recipe, a config.yaml or an image source (as in data.source), or finished runs; then settings "
                "for all rows."
            ),
            autocompletion=offer_recipes,
        ),
    ],
    settings: "CompareSettings",
    objectives: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="Objectives to compare; all that support images if left out."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", "-o", metavar="FOLDER", help=("Output folder; runs/compare-SOURCE if left out.")),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Compare objectives at equal cost, with seeds and baselines, in one table.

    All have the same images, model, batch and budget. After a stop, the same command resumes; the folder
    contains comparison.json, .md, .csv and .html.

    \b
    Examples:
      nextembed compare fashion_mnist --objectives nepa,mae --minutes 5 --seeds 3
      nextembed compare photos --images-seen 200000 --tune 3
      nextembed compare runs/a runs/b
    """
    named = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    check_words(named, overrides)
    from ..comparison.compare import base_config, compare_objectives, is_run
    from ..comparison.compare import compare as compare_runs

    names = [name.strip() for name in objectives.split(",")] if objectives else None
    if all(is_run(word) for word in named) and (len(named) > 1 or names is None):
        if overrides or names:
            raise ConfigError("finished runs are compared as they are: leave out --objectives and settings")
        found = compare_runs(named, None, folder, settings)
    else:
        if len(named) > 1:
            missing = next(word for word in named if not is_run(word))
            raise ConfigError(f"{missing} is not a run; name several runs, or one recipe or data source")
        base = base_config(named[0], settings.budget_minutes, overrides)
        found = compare_objectives(base, named[0], names, settings, folder)
    show(found, open_page)


def show(found: "Comparison", open_page: bool) -> None:
    """The table, its notes, and where its page is."""
    from ..core.console import PlainConsole

    console = PlainConsole()
    console.print(found.render(console.width))
    for note in found.notes:
        print(f"- {note}")
    page = Path(found.folder) / "comparison.html"
    print(f"Page:  {os.path.relpath(page)}; next to it comparison.json, .md and .csv")
    if open_page:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def check_words(named: list[str], overrides: list[str]) -> None:
    """Checks that need no torch. Raises ConfigError."""
    from ..recipes import listed

    if not named:
        raise ConfigError("name a recipe, a data source, or runs to compare; `nextembed recipes` lists the recipes")
    for word in named:
        if word.removesuffix("_tiny") not in listed() and ".py:" not in word:
            if len(named) > 1:
                check_here(word, "no such run", hub=False)
            else:
                check_source(word)
    check_settings(overrides)
