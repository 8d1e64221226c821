"""A figure of a run's predictions for the README, made from its model and data in the same way as the report.

python benchmarks/banner.py runs/nepa_demo docs/assets/banner.png
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nextembed.core.files import replacing
from nextembed.errors import ConfigError
from nextembed.report.pictures import Scene, heat, neighbours, striking, to_array
from nextembed.report.prediction import look
from nextembed.runs import open_run

INK, SOFT, NEXT, CURRENT = "#1b2330", "#5b6675", "#e8590c", "#1c7ed6"


def write_banner(run_dir: str | Path, path: str | Path, images: list[int] | None = None) -> Path:
    """Writes a PNG: the part of an image read so far, the similarity map of the prediction, and its nearest patches.

    images: indices into the validation images of the report; by default four, evenly spaced.
    Raises ConfigError if the run has no model or its data cannot be read.
    """
    run = open_run(run_dir)
    causal = run.view().settings.objective.causal
    scene = look(run.model(device="cpu", attn_implementation="eager"), run.source(), causal, []).scene
    chosen = images if images is not None else scene.spread(4)
    if bad := [image for image in chosen if not 0 <= image < len(scene.images)]:
        raise ConfigError(f"images: {bad[0]} is not in 0..{len(scene.images) - 1}")
    rows = -(-len(chosen) // 2)
    figure = Figure(figsize=(12.2, 0.42 + 1.62 * rows), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    top = 1 - 0.36 / figure.get_figheight()
    for number, image in enumerate(chosen):
        column, row = number % 2, number // 2
        left, height = 0.012 + 0.502 * column, top / rows
        box = (left, top - height * (row + 1) + 0.012, 0.475, height - 0.03)
        patches = striking(scene, image)
        _row(figure, scene, image, patches[number % len(patches)], box, title=row == 0)
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
    return Path(path)


def _row(figure: Any, scene: Scene, image: int, patch: int, box: tuple[float, ...], title: bool) -> None:
    """Draws the image read so far, the map and the nearest patches in a box (left, bottom, width, height)."""
    left, bottom, _, height = box
    side = height * figure.get_figheight() / figure.get_figwidth()  # width of a square with the height of the box
    rows, columns = scene.grid
    veil = np.full((rows, columns, 4), 255, np.uint8)
    veil[..., 3] = 204 * (np.arange(rows * columns).reshape(rows, columns) >= patch)
    scores = scene.latents[image] @ scene.predictions[image, patch]
    pictures = [[to_array(scene.images[image]), veil], [heat(scores, scene.grid)]]
    titles = ["read so far", "similarity of the prediction"]
    for i, layers in enumerate(pictures):
        axes = figure.add_axes((left + i * side * 1.06, bottom, side, height))
        for pixels in layers:
            axes.imshow(pixels, interpolation="nearest", extent=(0, columns, rows, 0))
        _frame(axes)
        for place, colour, dash in ((patch - 1, CURRENT, (0, (2, 1.2))), (patch, NEXT, "solid")):
            corner = (place % columns + 0.07, place // columns + 0.07)
            axes.add_patch(Rectangle(corner, 0.86, 0.86, fill=False, ec=colour, lw=2, ls=dash))
        if title:
            axes.set_title(titles[i], fontsize=8.5, color=SOFT, pad=6)
    _patches(figure, scene, image, patch, (left + 2.2 * side, bottom, side, height), title)


def _patches(figure: Any, scene: Scene, image: int, patch: int, box: tuple[float, ...], title: bool) -> None:
    """Draws the true next patch and, to its right, the six nearest patches in two rows."""
    left, bottom, side, height = box
    small, tall, middle = 0.31 * side, 0.31 * height, bottom + height / 2
    axes = figure.add_axes((left, middle - tall / 2, small, tall))
    axes.imshow(to_array(scene.patch(image, patch)), interpolation="nearest")
    _frame(axes, NEXT, 2.5)
    for i, place in enumerate(neighbours(scene, image, patch, 6)):
        row = 1.06 if i > 2 else -0.06
        axes = figure.add_axes((left + small * (1.3 + 1.1 * (i % 3)), middle - tall * row, small, tall))
        axes.imshow(to_array(scene.patch(*place)), interpolation="nearest")
        _frame(axes)
    if title:
        style = {"fontsize": 8.5, "ha": "center", "va": "baseline"}
        line = bottom + height + 6 / 72 / figure.get_figheight()
        figure.text(left + small / 2, line, "true next", color=NEXT, **style)
        figure.text(left + small * 2.9, line, "nearest of other images", color=SOFT, **style)


def _frame(axes: Any, colour: str = "#d5dae2", width: float = 0.8) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a trained NEPA")
    parser.add_argument("out", help="PNG")
    parser.add_argument("--images", type=int, nargs="*", help="indices into the images of the report; default: four")
    args = parser.parse_args()
    print(write_banner(args.run, args.out, args.images))


if __name__ == "__main__":
    main()
