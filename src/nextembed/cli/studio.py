"""`studio`: runs, models and features in the browser."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.places import check_here
from ..core.terminal import print
from ..errors import ConfigError, MissingExtra
from .completing import offer_runs
from .options import command

if TYPE_CHECKING:
    from ..studio.settings import StudioSettings


@command(settings="studio.settings:StudioSettings")
def studio(
    settings: "StudioSettings",
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN | CHECKPOINT | FOLDER ...",
            help="Runs, models and folders to show, with everything below them; runs/ if left out.",
            autocompletion=offer_runs,
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Watch runs, look inside models, search and compare, in the browser.

    It is served to this machine only; with --host 0.0.0.0 also to others, who need the printed link. Only files below
    the named folders can be opened. It needs gradio: pip install 'nextembed[studio]'.

    \b
    Examples:
      nextembed studio
      nextembed studio runs features.parquet --port 8000 --open
    """
    paths = list(paths or ["runs"])
    if paths == ["runs"] and not Path("runs").exists():
        raise ConfigError("there is no folder runs/ here; name the runs, models or feature files to show")
    for path in paths:
        check_here(path, "no such run, checkpoint or folder", hub=False)
    for package in ("gradio", "plotly"):
        if find_spec(package) is None:
            raise MissingExtra(package, "studio")
    from ..studio.server import serve

    def ready(link: str) -> None:
        print(f"Studio:  {link}   (Ctrl-C stops it)")
        if open_page:
            import webbrowser

            webbrowser.open(link)

    serve(paths, settings, ready)
