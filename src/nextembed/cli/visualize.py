"""`visualize`: what happens inside a model on one image."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.terminal import print
from ..errors import ConfigError, unknown
from .arguments import Decoders, Model
from .options import command
from .words import check_data, check_model


@dataclass
class Look:
    """Options of what is shown."""

    index: Annotated[int, typer.Option(metavar="N", help="Index of the image in a data source, from 0.")] = 0
    patch: Annotated[
        str | None,
        typer.Option(
            metavar="N|ROW,COL",
            help="The query patch, counted from 0; the one before a high-contrast patch if left out.",
        ),
    ] = None
    layer: Annotated[
        str | None, typer.Option(metavar="N,...", help="Layers of attention and PCA; 0 is the latents, -1 the output.")
    ] = None
    head: Annotated[
        str | None, typer.Option(metavar="N,...", help="Heads, counted from 1; all, at most 16, if left out.")
    ] = None
    attention: Annotated[
        str | None, typer.Option(metavar="causal|full", help="Attention mode; as in training if left out.")
    ] = None
    weights: Annotated[str, typer.Option(metavar="raw|ema", help="Trained weights (raw) or their average (ema).")] = (
        "raw"
    )
    decoder: Decoders = None
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW", help=("Image size in pixels, a multiple of the patch size; the model's own if left out.")
        ),
    ] = None
    known: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of patches the rollout starts from; the top half if left out."),
    ] = None
    length: Annotated[
        str,
        typer.Option(
            metavar="mean|true",
            help=("Norm given to predictions for least squares: the mean over the image, or each true one."),
        ),
    ] = "mean"
    foreground: Annotated[bool, typer.Option("--foreground", help="Fit the PCA on the foreground only.")] = False

    def options(self) -> dict[str, Any]:
        """Arguments of `nextembed.visualize`. Raises ConfigError for an unknown value."""
        check_choice("attention", self.attention, ("causal", "full"))
        check_choice("weights", self.weights, ("raw", "ema"))
        check_choice("length", self.length, ("mean", "true"))
        return {
            "index": self.index,
            "patch": parse_patch(self.patch) if self.patch else None,
            "layers": parse_numbers(self.layer, "layer"),
            "heads": parse_numbers(self.head, "head"),
            "attention": self.attention,
            "weights": self.weights,
            "decoders": self.decoder or (),
            "size": parse_size(self.size) if self.size else None,
            "num_known": self.known,
            "length": self.length,
            "foreground": self.foreground,
        }


@command(look=Look)
def visualize(
    checkpoint: Model,
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="An image file; or, with --index, a folder, a hub id or emoji.")
    ],
    look: Look,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help=("A .png file, or a folder, which gets the single panels as well.")
        ),
    ] = None,
) -> None:
    """Show what happens inside a model on one image.

    One PNG shows the attention of a query patch, the cosine map of its prediction, surprise, PCA of features, latents
    decoded to pixels, and a rollout.

    \b
    Examples:
      nextembed visualize runs/mine dog.png
      nextembed visualize runs/mine emoji --index 7 --patch 2,1 -o panels
    """
    options = look.options()
    check_model(checkpoint)
    check_data(image)
    from ..report.visualize import visualize as make

    found = make(checkpoint, image, output or f"{Path(image).stem or 'image'}_inside.png", **options)
    more = f"    and {len(found.paths) - 1} panels next to it" if len(found.paths) > 1 else ""
    print(f"Saved:  {os.path.relpath(found.paths[0])}{more}")


def parse_patch(text: str) -> int | tuple[int, int]:
    """ "7" or "1,3". Raises ConfigError for anything else."""
    parts = text.replace(" ", "").split(",")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"patch '{text}' should be a number such as 9, or ROW,COLUMN such as 2,1, counted from 0")
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def parse_size(text: str) -> int | tuple[int, int]:
    """ "96" or "64x96", height first. Raises ConfigError for anything else."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"size '{text}' should be pixels such as 96, or HEIGHTxWIDTH such as 64x96")
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def parse_numbers(text: str | None, what: str) -> list[int] | None:
    """ "1,3,-1" as numbers; None stays None. Raises ConfigError for anything else."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{what} '{text}' should be numbers with commas between, such as 1,3") from None


def check_choice(name: str, value: str | None, allowed: Sequence[str]) -> None:
    """Raises ConfigError with the nearest spelling for a value that is not allowed."""
    if value is not None and value not in allowed:
        raise ConfigError(unknown(name, value, allowed))
