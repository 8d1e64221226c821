"""`sample`: new images from a run whose objective draws them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.files import check_target, checked_file, open_folder, replacing
from ..core.terminal import print
from ..errors import ConfigError
from .arguments import Model
from .features import progress
from .generate import PICTURES
from .options import command
from .prompting import Loading
from .words import check_model

if TYPE_CHECKING:
    from ..core.objective import SampleSettings


@dataclass
class Drawn:
    """Options of the images."""

    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help=("Class to generate, by number or name; may be repeated; all in turn if left out."),
        ),
    ] = None
    num: Annotated[int, typer.Option(min=1, max=10**6, help="Number of images to generate.")] = 64
    columns: Annotated[
        int | None,
        typer.Option(min=1, max=10**4, help=("Images per row of the contact sheet; about square if left out.")),
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all sampling.")] = 0
    batch_size: Annotated[int, typer.Option(min=1, max=10**5, help="Number of images generated at once.")] = 64
    nearest: Annotated[
        bool,
        typer.Option(
            "--nearest", help=("Below each row of the contact sheet, show the training images nearest in pixels.")
        ),
    ] = False


@command(drawn=Drawn, settings="core.objective:SampleSettings", loading=Loading)
def sample(
    target: Model,
    drawn: Drawn,
    settings: "SampleSettings",
    loading: Loading,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PATH", help=("A contact sheet (.png), or a new folder with one file per image.")
        ),
    ] = Path("sheet.png"),
) -> None:
    """Generate images with a trained generative run.

    Such runs come from the recipes llamagen_demo, var_demo and mar_demo.

    \b
    Examples:
      nextembed sample runs/var_demo --class 3 --num 64 -o sheet.png --guidance 2 --seed 0
      nextembed sample runs/llamagen_demo --num 1000 -o drawn --top-k 50
    """
    check_model(target)
    picture = output.suffix.lower() in PICTURES
    if (drawn.columns is not None or drawn.nearest) and not picture:
        raise ConfigError("--columns and --nearest need a contact sheet: -o sheet.png")
    if picture:
        checked_file(output)
    else:
        check_target(output)
    from PIL import Image

    from ..inference.samples import Sampler, in_pairs, sheet

    sampler = Sampler(target, loading.weights, loading.device)
    labels = sampler.labels(drawn.num, drawn.classes or ())
    with progress("sampling") as report:
        images = sampler(labels, settings, drawn.seed, drawn.batch_size, report)
    if picture:
        columns = drawn.columns or math.ceil(math.sqrt(drawn.num))
        if drawn.nearest:
            found, distance = sampler.nearest(images)
            images = in_pairs(images, found, columns)
            print(
                f"Distance to the nearest training image: {distance.mean():.1f} of 255 on average (root mean square), "
                f"{distance.min():.1f} at least"
            )
        with replacing(output) as file:
            sheet(images, columns).save(file)
    else:
        open_folder(output)
        for number, image in enumerate(images.expand(-1, 3, -1, -1)):
            with replacing(output / f"{number:05d}.png") as file:
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    print(f"Saved:  {output} ({drawn.num} image{'s' if drawn.num > 1 else ''})")
