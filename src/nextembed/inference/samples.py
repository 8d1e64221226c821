"""New images from a generative run: in batches, of one class or of all in turn, on one sheet."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from ..core.code import check_code
from ..core.objective import Objective, SampleSettings
from ..core.run_folder import find_saved, read_config
from ..core.types import IGNORE_LABEL, Backbone, Role
from ..data.images import EvalSamples, ImagePart
from ..errors import ConfigError, NotGenerative, unknown
from ..evaluation.features.encoder import preprocessing_of
from ..evaluation.generators import open_generator
from ..models.nepa import ViTNepaConfig
from ..toys.kinds import DATA

GAP = 2  # pixels between the images of a sheet
MOST_COMPARED, CHUNK = 50_000, 1000  # images that samples are compared with, and at once
SMALLEST = 96  # pixels a side of an image on a sheet: small ones are enlarged by whole numbers

Report = Callable[[int, int], None]  # images that are done, of how many


class Sampler:
    """A generative model of images.

    Args:
        path: a run, a checkpoint or a model folder.
        weights: "raw" or "ema", of the model and of what belongs to the objective (heads, tables); None takes averaged
            ones where both were averaged.
        device: by name; None takes the accelerator if there is one.

    Attributes:
        weights: which draw, "raw" or "ema".

    Raises:
        NotGenerative: it was trained by an objective that draws nothing.
        ConfigError: for what does not load.
    """

    def __init__(self, path: str | Path, weights: str | None = None, device: str | None = None):
        saved = find_saved(path)
        values = read_config(saved.run) if saved.run else {}
        self.model, objective, self.weights, folder = open_generator(saved, weights, device)
        if objective is None or not objective.generates or not isinstance(self.model.config, ViTNepaConfig):
            kind = (values.get("objective") or {}).get("kind") or "of this model"
            raise NotGenerative(f"{path}: objective {kind} does not generate images")
        self.objective: Objective = objective
        self.pixels = preprocessing_of(self.model.config, saved.run, folder)
        self._data: object = values.get("data")
        self._config = None if saved.run is None else saved.run / "config.yaml"

    def data(self) -> ImagePart | None:
        """The data that the run was trained on; None for a lone model."""
        if self._config is None or self._data is None:
            return None
        check_code({"data": self._data}, self._config)
        found = DATA.parse(self._data)
        return found if isinstance(found, ImagePart) else None

    def class_names(self) -> list[str]:
        """Of the run's data, by class id; empty where it names none."""
        data = self.data()
        return [] if data is None else data.class_names()

    def nearest(self, images: Tensor, split: Role = "train", report: Report | None = None) -> tuple[Tensor, Tensor]:
        """The nearest image of the run's data, in pixels, which shows whether a sample is copied. Mirrored images count
        if training mirrors them.

        Args:
            images: uint8 [N, C, H, W].
            split: which part of the data; at most 50,000 images of it are looked at, without augmentation.
            report: called after each part of these.

        Returns:
            Those images, uint8 [N, C, H, W], and the root mean square difference of pixels in 0..255, [N].

        Raises:
            ConfigError: the model is not part of a run on images.
        """
        samples = self.real(split, MOST_COMPARED)
        wanted = [images.float().flatten(1)]
        if self._mirrors():
            wanted.append(images.flip(-1).float().flatten(1))
        best, where = torch.full((len(images),), torch.inf), torch.zeros(len(images), dtype=torch.int64)
        mirrored = torch.zeros(len(images), dtype=torch.bool)
        for start in range(0, len(samples), CHUNK):
            part = [samples[i]["pixel_values"] for i in range(start, min(start + CHUNK, len(samples)))]
            known = self.plain(torch.stack(part)).float().flatten(1)
            for flipped, own in enumerate(wanted):
                found = torch.cdist(own, known).min(1)
                nearer = found.values < best
                where = torch.where(nearer, found.indices + start, where)
                mirrored = torch.where(nearer, bool(flipped), mirrored)
                best = torch.minimum(best, found.values)
            if report is not None:
                report(min(start + CHUNK, len(samples)), len(samples))
        shown = self.plain(torch.stack([samples[int(i)]["pixel_values"] for i in where]))
        shown = torch.where(mirrored[:, None, None, None], shown.flip(-1), shown)
        return shown, (images.float() - shown.float()).square().flatten(1).mean(1).sqrt()  # exactly 0 if they are equal

    def _mirrors(self) -> bool:
        """Whether training saw images mirrored."""
        data = self.data()
        return data is not None and data.flip_rate > 0

    def real(self, split: Role, num_samples: int | None = None, seed: int = 0) -> EvalSamples:
        """Images of the run's data as the model reads them, without augmentation.

        Args:
            split: "train", "validation" or "test".
            num_samples: a random subset of this size; None takes all.
            seed: of the subset.

        Returns:
            Samples with pixel_values float32 [C, S, S], label and key.

        Raises:
            ConfigError: the model is not part of a run on images.
            MissingSplit: there is no such split.
        """
        data = self.data()
        if data is None:
            raise ConfigError("the model is not part of a run on images, so there are no training images to compare")
        sizes = {"image_size": self.pixels.size, "num_channels": self.pixels.num_channels}
        return data.eval_samples(split, num_samples=num_samples, seed=seed, **sizes)

    def plain(self, pixels: Tensor) -> Tensor:
        """Pixels without the model's normalisation.

        Args:
            pixels: float32 [B, C, H, W], normalised as the model reads them.

        Returns:
            uint8 [B, C, H, W].
        """
        values = (pixels.float().cpu() * self.pixels.std + self.pixels.mean) * 255
        return values.round().clamp(0, 255).to(torch.uint8)

    def class_id(self, name: str) -> int:
        """The id of a class.

        Args:
            name: its name, or its id as text.

        Returns:
            The class id.

        Raises:
            ConfigError: there is no such class.
        """
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
        """The class condition of each image to sample.

        Args:
            num: number of images.
            classes: names or ids, repeated in turn; empty takes all classes of the data.

        Returns:
            int64 [num].
        """
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
            done.append(self.plain(drawn))
            if report is not None:
                report(sum(map(len, done)), len(labels))
        return torch.cat(done)


def in_pairs(images: Tensor, others: Tensor, columns: int) -> Tensor:
    """For a sheet: rows of images alternating with rows of the others; the last rows are filled with white."""
    white = -len(images) % columns
    rows = [torch.cat((one, one.new_full((white, *one.shape[1:]), 255))).split(columns) for one in (images, others)]
    return torch.cat([row for pair in zip(*rows, strict=True) for row in pair])


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
