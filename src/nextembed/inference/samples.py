"""New images from a run whose objective draws them: in batches, of one class or of all in turn, on one sheet."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from ..core.code import check_code
from ..core.config import DATA
from ..core.objective import Objective, SampleSettings
from ..core.run_folder import find_saved, read_config
from ..core.types import IGNORE_LABEL, Backbone
from ..data.images import ImagePart
from ..errors import ConfigError, NotGenerative, unknown
from ..evaluation.features.encoder import preprocessing_of
from ..models.loading import load_model
from ..models.nepa import ViTNepaConfig
from ..objectives.saved import objective_of

GAP = 2  # pixels between the images of a sheet
SMALLEST = 96  # pixels a side of an image on a sheet: small ones are enlarged by whole numbers

Report = Callable[[int, int], None]  # images that are done, of how many


class Sampler:
    """A model that draws images, opened.

    path: a run, a checkpoint or a model folder. weights: "raw" or "ema"; None takes the first there is. What belongs to
    the objective (heads, tables) is as trained, not averaged. device: by name; None takes the accelerator if there is
    one.

    Raises:
        NotGenerative: it was trained by an objective that draws nothing.
        ConfigError: for what does not load.
    """

    def __init__(self, path: str | Path, weights: str | None = None, device: str | None = None):
        saved = find_saved(path)
        folder = saved.folder(weights)
        values = read_config(saved.run) if saved.run else {}
        self.model = load_model(folder, device=device)
        objective = objective_of(folder, self.model)
        if objective is None or not objective.generates or not isinstance(self.model.config, ViTNepaConfig):
            kind = (values.get("objective") or {}).get("kind") or "of this model"
            raise NotGenerative(f"{path}: objective {kind} draws no images")
        self.objective: Objective = objective
        self.pixels = preprocessing_of(self.model.config, saved.run, folder)
        self._data: object = values.get("data")
        self._config = None if saved.run is None else saved.run / "config.yaml"

    def class_names(self) -> list[str]:
        """Of the run's data, by class id; empty where it names none."""
        if self._config is None or self._data is None:
            return []
        check_code({"data": self._data}, self._config)
        data = DATA.parse(self._data)
        return data.class_names() if isinstance(data, ImagePart) else []

    def class_id(self, name: str) -> int:
        """The class of this number or name. Raises ConfigError where there is none."""
        num = self.objective.num_classes
        if not num:
            raise ConfigError("the model was trained without classes: objective.num_classes is 0")
        if name.isdecimal():
            if int(name) < num:
                return int(name)
            raise ConfigError(f"class {name}: the model knows {num} classes, from 0 to {num - 1}")
        names = self.class_names()[:num]
        if name not in names:
            raise ConfigError(unknown("class", name, names or map(str, range(num))))
        return names.index(name)

    def labels(self, num: int, classes: Sequence[str] = ()) -> Tensor:
        """What each of `num` images is told, int64 [num]: these classes in turn; of none given all that there are."""
        ids = [self.class_id(name) for name in classes] or list(range(self.objective.num_classes)) or [IGNORE_LABEL]
        return torch.tensor([ids[i % len(ids)] for i in range(num)])

    def __call__(
        self,
        labels: Tensor,
        settings: SampleSettings | None = None,
        seed: int = 0,
        batch_size: int = 64,
        report: Report | None = None,
    ) -> Tensor:
        """Draws images.

        Args:
            labels: int64 [N], a class for each, IGNORE_LABEL for none.
            settings: None takes the defaults.
            seed: of all random numbers; the same seed and batch size give the same images.
            batch_size: images at once.
            report: called after each batch.

        Returns:
            uint8 [N, C, H, W], on the CPU.
        """
        generator, done = torch.Generator().manual_seed(seed), []
        for part in labels.split(batch_size):
            told = {"labels": part.to(self.model.device)}
            drawn = self.objective.sample(cast(Backbone, self.model), told, settings, generator)  # type: ignore[arg-type]
            values = (drawn.float().cpu() * self.pixels.std + self.pixels.mean) * 255
            done.append(values.round().clamp(0, 255).to(torch.uint8))
            if report is not None:
                report(sum(map(len, done)), len(labels))
        return torch.cat(done)


def sheet(images: Tensor, columns: int | None = None) -> Image.Image:
    """Images uint8 [N, C, H, W] side by side on one picture. columns: None makes it about square."""
    num, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(num))
    times = max(1, SMALLEST // max(height, width))
    large = images.repeat_interleave(times, 2).repeat_interleave(times, 3).expand(-1, 3, -1, -1)
    tall, wide = height * times + GAP, width * times + GAP
    page = torch.full((3, math.ceil(num / columns) * tall + GAP, columns * wide + GAP), 255, dtype=torch.uint8)
    for number, image in enumerate(large):
        top, left = GAP + number // columns * tall, GAP + number % columns * wide
        page[:, top : top + height * times, left : left + width * times] = image
    return Image.fromarray(page.permute(1, 2, 0).numpy())
