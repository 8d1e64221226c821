"""Generated images compared with real ones: distance in features, sharpness, and distance to training images.

Shapes: N images, D features.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from ..core.pretrained import load_pretrained
from ..core.run_folder import find_saved
from ..core.sample_scores import Estimate, SampleRow
from ..data.clips import reader_of
from ..data.transforms import normalize, resize
from ..errors import ConfigError
from ..models.loading import load_model, load_processor
from ..models.nepa import ViTNepaConfig
from .classification import ids_by_name
from .features.encoder import preprocessing_of
from .images import feature_space, frechet_distance

NEAR = 0.01  # quantile of held-out images that defines "near to a training image"
Statistic = Callable[..., float]


class Judged(NamedTuple):
    """features float32 [N, D]; answers int64 [N]: class ids of the data, None without a classifier."""

    features: Tensor
    answers: Tensor | None


class Judge(NamedTuple):
    """Evaluates images. look: uint8 [N, C, H, W] -> `Judged`; name: description of the features."""

    look: Callable[[Tensor], Judged]
    name: str


def open_judge(path: str | Path, class_names: Sequence[str], batch_size: int = 64) -> Judge:
    """Features that enter the last layer of a classifier, or those of any other vision model, as in `feature_space`.

    Args:
        path: a run (its best weights), a checkpoint, a model folder or a hub id.
        class_names: of the data, by class id.
        batch_size: images a forward pass.

    Raises:
        ConfigError: there is no such model, or it is a classifier of other classes.
    """
    saved = find_saved(path)
    folder = saved.first_of("best", "ema", "raw")
    config = load_pretrained(AutoConfig, folder)
    if not any(name.endswith("ForImageClassification") for name in config.architectures or []):
        space = feature_space(path, batch_size)
        return Judge(lambda images: Judged(space.encode(pictures(images)), None), space.name)
    model = load_model(folder, AutoModelForImageClassification, dtype=torch.float32)
    ids = torch.tensor(ids_by_name(model, list(class_names)))
    classes = torch.full((int(model.config.num_labels or 0),), -1).scatter(
        0, ids, torch.arange(len(ids))
    )  # of the data
    read = _reading(model, saved.run, folder)

    def look(images: Tensor) -> Judged:
        found = [last_features(model, read(part).to(model.device)) for part in images.split(batch_size)]
        answers = torch.cat([logits for _, logits in found]).argmax(1)
        return Judged(torch.cat([features for features, _ in found]), classes[answers])

    return Judge(look, f"features before the last layer of the classifier {path}")


def _reading(model: PreTrainedModel, run: Path | None, folder: Path | str) -> Callable[[Tensor], Tensor]:
    """uint8 [N, C, H, W] -> what a classifier reads."""
    if not isinstance(model.config, ViTNepaConfig):
        processor = load_processor(folder, AutoImageProcessor)
        return lambda images: processor(images=[one.convert("RGB") for one in pictures(images)],
                                        return_tensors="pt")["pixel_values"]  # fmt: skip
    seen = preprocessing_of(model.config, run, folder)
    reader = reader_of(seen.num_channels, seen.background, 64_000_000, 100_000_000)

    def read(images: Tensor) -> Tensor:
        pixels = torch.stack([resize(reader.read(one), seen.size) for one in pictures(images)])
        return normalize(pixels, seen.mean, seen.std)

    return read


@torch.no_grad()
def last_features(model: PreTrainedModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of the last linear layer of a classifier, and its logits, [N, D] and [N, C], on the CPU; twice the logits
    if it does not end with such a layer."""
    entered: list[Tensor] = []
    last = [
        one for one in model.modules() if isinstance(one, nn.Linear) and one.out_features == model.config.num_labels
    ]
    hooks = [one.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0])) for one in last[-1:]]
    try:
        logits = cast(Tensor, model(pixel_values=pixels).logits).float().cpu()
    finally:
        for hook in hooks:
            hook.remove()
    return (entered[-1].flatten(1).float().cpu() if entered else logits), logits


def pictures(images: Tensor) -> list[Image.Image]:
    """uint8 [N, 1 or 3, H, W] as grey or RGB pictures."""
    arrays = images.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in arrays]


def sharpness(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, down plus across, [N], of images [N, C, H, W]."""
    pixels = images.double()
    return pixels.diff(dim=-1).square().flatten(1).mean(1) + pixels.diff(dim=-2).square().flatten(1).mean(1)


def estimate(statistic: Statistic, *samples: np.ndarray, draws: int, seed: int, high: float = np.inf) -> Estimate:
    """A statistic of sets of rows with its 95 % interval: 1.96 standard deviations over bootstrap samples of each set,
    between 0 and `high`. Centred on the value itself, since distances of bootstrap samples are too high: duplicate rows
    make a set narrower.
    """
    value, generator = float(statistic(*samples)), np.random.default_rng(seed)
    again = [statistic(*(one[generator.integers(len(one), size=len(one))] for one in samples)) for _ in range(draws)]
    half = 1.96 * float(np.std(again, ddof=1)) if draws > 1 else 0.0
    return Estimate(value, max(0.0, value - half), min(high, value + half))


class Bootstrap(NamedTuple):
    """draws: number of bootstrap samples; seed: of these."""

    draws: int
    seed: int

    def __call__(self, statistic: Statistic, *samples: np.ndarray, high: float = np.inf) -> Estimate:
        return estimate(statistic, *samples, draws=self.draws, seed=self.seed, high=high)


class Measured(NamedTuple):
    """Images, measured one by one. labels int64 [N]: negative for no class. nearest [N]: distance to the nearest
    training image."""

    judged: Judged
    labels: Tensor
    nearest: Tensor
    sharpness: Tensor


def measured(judge: Judge, images: Tensor, labels: Tensor, nearest: Tensor) -> Measured:
    return Measured(judge.look(images), labels, nearest, sharpness(images))


def row_of(name: str, found: Measured, held: Measured, bootstrap: Bootstrap) -> SampleRow:
    """A row of the table. held: the held-out images, for which no distance to themselves is computed."""
    frechet = None
    if found is not held and min(len(found.labels), len(held.labels)) > 1:
        frechet = bootstrap(frechet_distance, found.judged.features.numpy(), held.judged.features.numpy())
    accuracy, known = None, found.labels >= 0
    if found.judged.answers is not None and bool(known.any()):
        right = (found.judged.answers == found.labels)[known].double().numpy()
        accuracy = bootstrap(np.mean, right, high=1.0)
    near = np.quantile(held.nearest.numpy(), NEAR, method="inverted_cdf")
    real = float(held.sharpness.mean())
    if real == 0:
        raise ConfigError("all held-out images are of one colour: there is nothing to compare with")
    return SampleRow(
        name, len(found.labels), frechet, accuracy,
        bootstrap(np.median, found.nearest.numpy()),
        bootstrap(np.mean, (found.nearest <= near).double().numpy(), high=1.0),
        bootstrap(np.mean, found.sharpness.numpy() / real),
    )  # fmt: skip
