"""Samples of an objective during training: a row of images at each checkpoint, for the report."""

from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from ..core import distributed
from ..core.files import replacing
from ..core.objective import Objective
from ..core.types import IGNORE_LABEL, Backbone, Batch
from ..nn.modes import evaluating
from .watch import Training, Watcher

FOLDER = "samples"  # in the run folder
NUM = 10  # images of a row


class Drawings(Watcher):
    """RUN/samples/step-000200.png: one image of each class, of ten at most, with weights as they train.

    The seed is the same at every step, and training draws none of its random numbers from there.

    Args:
        run_dir: of the run.
        steps: between two rows.
        mean: of pixels, as the data are normalised.
        std: of pixels.
    """

    def __init__(self, run_dir: Path, steps: int, mean: float, std: float):
        self.folder, self.steps, self.mean, self.std = run_dir / FOLDER, steps, mean, std

    def stepped(self, loop: Training) -> None:
        if not distributed.is_main() or not (loop.step % self.steps == 0 or loop.step == loop.max_steps):
            return
        images = draw(loop.bare.objective, cast(Backbone, loop.bare.backbone))
        pixels = ((images.float().cpu() * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)
        row = torch.cat(list(pixels.expand(-1, 3, -1, -1)), -1).permute(1, 2, 0).numpy()
        self.folder.mkdir(exist_ok=True)
        with replacing(self.folder / f"step-{loop.step:06d}.png") as file:
            Image.fromarray(row).save(file)


@torch.no_grad()
def draw(objective: Objective, backbone: Backbone) -> Tensor:
    """Images [N, C, H, W] of the first classes, one each; ten where there are none."""
    classes = range(min(NUM, objective.num_classes)) if objective.num_classes else [IGNORE_LABEL] * NUM
    device = next(objective.parameters()).device
    condition: Batch = {"labels": torch.tensor(list(classes), device=device)}
    before, objective.draws_averaged = (
        objective.draws_averaged,
        False,
    )  # like the backbone, whose weights are not averaged here
    try:
        with evaluating(objective), evaluating(cast(torch.nn.Module, backbone)):
            return objective.sample(backbone, condition, None, torch.Generator().manual_seed(0))
    finally:
        objective.draws_averaged = before
