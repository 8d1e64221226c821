"""Run folder to one HTML page that needs nothing else, and to a picture for a README."""

from pathlib import Path

from .banner import write_banner
from .page import render
from .run_view import read_run

__all__ = ["write_banner", "write_report"]


def write_report(run_dir: str | Path, path: str | Path | None = None) -> Path:
    """Writes the report of a run, finished or not, to RUN/report.html (or `path`) and returns where it is.

    Works with whatever the folder holds, and says on the page what is missing. Raises ConfigError if the folder
    does not exist or holds no run.
    """
    view = read_run(run_dir)
    path = Path(path) if path is not None else view.dir / "report.html"
    path.write_text(render(view), encoding="utf-8")
    return path
