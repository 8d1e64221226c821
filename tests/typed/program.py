"""A user's program that a strict type checker accepts; only mypy reads this file."""

from pathlib import Path
from typing import assert_type

import numpy as np
from PIL import Image
from torch import Tensor

import nextembed
from nextembed import recipes


def pretrain(folder: Path) -> nextembed.Run:
    """A run on a folder of images."""
    config = recipes.nepa_demo()
    assert_type(config, nextembed.RunConfig)
    config.data = nextembed.ImageData(source=str(folder))
    config.train.max_steps = 10
    run = nextembed.fit(config)
    assert_type(run, nextembed.Run)
    return run


def look(run: nextembed.Run, image: Image.Image) -> None:
    """Attributes and methods of a run."""
    print(run.metrics["loss"], run.config.train.batch_size, run.verdict())
    found = nextembed.visualize(run.dir, image)
    assert_type(found, nextembed.Visualization)
    assert_type(nextembed.plan(run.config, devices=2), nextembed.Plan)


def compare(folder: Path) -> float:
    """The best accuracy of the linear probe over several objectives."""
    made = nextembed.compare(str(folder), ["nepa", "mae"], settings={"minutes": 1, "seeds": 2})
    assert_type(made, nextembed.Comparison)
    return max(row.cells["linear"].mean for row in made.rows)


class Halves(nextembed.Objective):
    """A custom objective."""

    def count_targets(self, batch: nextembed.Batch) -> Tensor:
        mask: Tensor = batch["latent_mask"]
        return mask.sum()

    def forward(self, backbone: nextembed.Backbone, batch: nextembed.Batch) -> nextembed.ObjectiveOutput:
        latents = backbone.embed(batch)
        hidden = backbone.encode(latents, "causal").last
        loss = (hidden - latents.z.detach()).square().mean(-1).sum()
        return nextembed.ObjectiveOutput(loss, self.count_targets(batch), {})


def features(run: nextembed.Run, images: list[str | Path]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """Features of files."""
    return nextembed.encode(run.dir, images).numpy()
