"""Tiny runs for the tests of the studio, made once for all workers."""

import fcntl
from pathlib import Path

from PIL import Image

import nextembed
from nextembed import recipes
from nextembed.comparison.scores import Point, RunScores
from nextembed.comparison.table import rows_of


def make(folder: Path) -> Path:
    """The folder of runs, made by the first worker while the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".made-by-one").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "runs" / "done").is_file():
            fill(folder / "runs")
            (folder / "runs" / "done").touch()
    return folder / "runs"


def fill(runs: Path) -> None:
    """Makes two NEPA runs (one with probes), Emus, Omnis, a MAR, features of two models, and a comparison."""
    for name, rate in (("nepa", 1e-3), ("faster", 2e-3)):
        config = recipes.load("nepa_demo_tiny").model_copy(update={"name": name, "output_dir": str(runs)})
        config.optim.learning_rate = rate
        config.probe.enabled = name == "nepa"
        nextembed.fit(config)
    for name in ("emu_emoji", "omni_stamps", "omni_series", "mar_demo", "omni_emoji"):
        nextembed.fit(recipes.load(f"{name}_tiny").model_copy(update={"name": name, "output_dir": str(runs)}))
    painter = recipes.load("emu_emoji_decoder_tiny")
    model = painter.model.model_copy(update={"pretrained": str(runs / "emu_emoji")})
    nextembed.fit(
        painter.model_copy(update={"name": "emu_painter", "output_dir": str(runs), "after": [], "model": model})
    )
    (runs / "photos").mkdir()
    for number in range(12):
        colour = (20 * number, 255 - 20 * number, 40 * (number % 3))
        Image.new("RGB", (24, 24), colour).save(runs / "photos" / f"{number:02d}.png")
    Image.new("RGB", (24, 24), (0, 255, 0)).save(runs / "photos" / "same.png")  # identical to 00.png
    nextembed.embed(str(runs / "nepa"), str(runs / "photos"), str(runs / "features.parquet"))
    nextembed.embed(str(runs / "omni_emoji"), str(runs / "photos"), str(runs / "omni.parquet"))
    points = [Point(10, 1.0, 1.0, 0.2, 0.2), Point(20, 2.0, 2.0, 0.4, 0.3)]
    scores = [RunScores(row, values={"linear": value}, curve=points) for row, value in (("nepa", 0.5), ("mae", 0.75))]
    (runs / "compare-x").mkdir()
    nextembed.Comparison("x", "20 images", rows_of(scores), scores).save(runs / "compare-x")
