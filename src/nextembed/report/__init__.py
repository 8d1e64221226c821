"""Run folder to one HTML page that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path

from ..core.files import write_text
from ..objectives.latent_decoder import load_decoder
from .page import render
from .run_view import read_run

__all__ = ["write_report"]


def write_report(run_dir: str | Path, path: str | Path | None = None, decoders: Sequence[str | Path] = ()) -> Path:
    """Writes the report of a run, finished or not, to RUN/report.html (or `path`) and returns where it is.

    decoders: runs of the recipe latent_decoder on this model, to show its latents as pixels.
    Works with whatever the folder holds, and says on the page what is missing. Raises ConfigError if the folder
    does not exist or holds no run, or a decoder does not load.
    """
    for decoder in decoders:
        load_decoder(decoder)  # a wrong name is an error, not a remark on the page
    view = read_run(run_dir, decoders=decoders)
    path = Path(path) if path is not None else view.dir / "report.html"
    write_text(path, render(view))
    return path
