"""`evaluate --task samples`: generated images of a run, compared with training and held-out images."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor

from ..core.config import Config
from ..core.objective import SampleSettings
from ..core.sample_scores import SampleScores
from ..core.types import IGNORE_LABEL, Role
from ..errors import ConfigError, MissingSplit
from ..evaluation.drawn import Bootstrap, measured, open_judge, row_of
from .samples import MOST_COMPARED, Report, Sampler, in_pairs, sheet

SHOWN, COLUMNS = 24, 12  # images of a band of the sheet, and of a row
HEAD = 22  # pixels of the line above a band

Stages = Callable[
    [str], AbstractContextManager[Report]
]  # name of the work -> function that is called with its progress


class SampleEval(Config):
    """How drawn images are measured.

    Attributes:
        features: a classifier of the same classes: a run, a checkpoint, a model folder or a hub id; or any other vision
            model, which then says nothing about classes.
        num_images: number of images to generate, and maximum number of real ones they are compared with.
        split: split of the held-out images; null: test, or validation where there is no test.
        seed: seed of all sampling.
        batch_size: images per batch.
        weights: "raw" or "ema"; null: averaged ones, where model and objective have them.
        draws: number of bootstrap resamples; 0 or 1 gives no intervals.
        sampling: settings of sampling, e.g. sampling.guidance=2.
    """

    features: str
    num_images: int = Field(1000, ge=2, le=10**6)
    split: Role | None = None
    seed: int = Field(0, ge=0, lt=2**32)
    batch_size: int = Field(64, ge=1, le=10**5)
    weights: str | None = None
    draws: int = Field(100, ge=0, le=10**5)
    sampling: SampleSettings = SampleSettings()


class Real(NamedTuple):
    """Images uint8 [N, C, H, W] of the data and their classes, int64 [N]."""

    images: Tensor
    labels: Tensor


class Samples(NamedTuple):
    """The scores, and a picture: samples above their nearest training images, and held-out images."""

    scores: SampleScores
    sheet: Image.Image


def silent(title: str) -> AbstractContextManager[Report]:
    """No progress."""
    return nullcontext(lambda done, total: None)


def measure_samples(path: str | Path, settings: SampleEval, stages: Stages = silent) -> Samples:
    """Generates images with a run and scores them, next to held-out images, training images and the mean image. Classes
    are as frequent as in the training images. Images are compared at the size of the run.

    Args:
        path: a run whose objective draws images, or its folder.
        settings: how.
        stages: called with what is done next; the context's function with how far it is.

    Returns:
        Figures and a picture.

    Raises:
        NotGenerative: the run draws nothing.
        ConfigError: no run on images, no such classifier, or one of other classes.
        MissingSplit: there are no held-out images.
    """
    sampler = Sampler(path, settings.weights)
    split, held = held_out(sampler, settings)
    judge = open_judge(settings.features, sampler.class_names(), settings.batch_size)
    known = real(sampler, "train", settings.num_images, settings.seed)
    labels = known.labels if sampler.objective.num_classes else torch.full_like(known.labels, IGNORE_LABEL)
    missing = settings.num_images - len(labels)
    if missing > 0:  # fewer training images than samples
        labels = torch.cat((labels, labels.repeat(-(-missing // len(labels)))[:missing]))
    with stages("drawing") as report:
        drawn = sampler(labels, settings.sampling, settings.seed, settings.batch_size, report)
    mean = known.images.float().mean(0, keepdim=True).round().to(torch.uint8).expand_as(known.images)
    parts = {
        "samples": Real(drawn, labels),
        "held-out": held,
        "training": known,
        "mean image": Real(mean, known.labels),
    }
    with stages("comparing with training images") as report:
        everything = torch.cat([one.images for one in parts.values()])
        others, distances = sampler.nearest(everything, report=report)
    near = dict(zip(parts, distances.split([len(one.labels) for one in parts.values()]), strict=True))
    with stages("measuring") as report:
        found = {}
        for number, (name, one) in enumerate(parts.items()):
            found[name] = measured(judge, one.images, one.labels, near[name])
            report(number + 1, 2 * len(parts))
        rows, bootstrap = [], Bootstrap(settings.draws, settings.seed)
        for number, (name, own) in enumerate(found.items()):
            rows.append(row_of(name, own, found["held-out"], bootstrap))
            report(len(parts) + number + 1, 2 * len(parts))
    scores = SampleScores(
        str(path), sampler.weights, split, judge.name, found["samples"].judged.features.shape[1],
        min(MOST_COMPARED, len(sampler.real("train"))), rows, settings.model_dump(mode="json"),
    )  # fmt: skip
    return Samples(scores, contact_sheet(drawn, others[: len(drawn)], held.images))


def held_out(sampler: Sampler, settings: SampleEval) -> tuple[Role, Real]:
    """Held-out images, and their split. Raises MissingSplit without such images."""
    splits: tuple[Role, ...] = (settings.split,) if settings.split else ("test", "validation")
    for split in splits:
        try:
            found = real(sampler, split, settings.num_images, settings.seed)
        except MissingSplit:
            if split == splits[-1]:
                raise
            continue
        if len(found.labels) < 2:
            raise ConfigError(f"data: the {split} split has {len(found.labels)} images, too few to compare with")
        return split, found
    raise AssertionError("there is at least one split to look for")


def real(sampler: Sampler, split: Role, num: int, seed: int) -> Real:
    """At most `num` images of a split, drawn with a seed."""
    samples = sampler.real(split, num, seed)
    rows = [samples[i] for i in range(len(samples))]
    labels = torch.tensor([int(row["label"]) for row in rows])
    return Real(sampler.plain(torch.stack([row["pixel_values"] for row in rows])), labels)


def contact_sheet(drawn: Tensor, nearest: Tensor, held: Tensor) -> Image.Image:
    """Bands of images uint8 [N, C, H, W] with a line above each."""
    bands = [("samples, and below each row the training images nearest to them in pixels",
              in_pairs(drawn[:SHOWN], nearest[:SHOWN], COLUMNS)),
             ("held-out images", held[:SHOWN])]  # fmt: skip
    pages = [(title, sheet(images, COLUMNS)) for title, images in bands]
    whole = Image.new(
        "RGB", (max(page.width for _, page in pages), sum(page.height + HEAD for _, page in pages)), "white"
    )
    pen, top = ImageDraw.Draw(whole), 0
    for title, page in pages:
        pen.text((4, top + 4), title, fill="black", font_size=13)
        whole.paste(page, (0, top + HEAD))
        top += page.height + HEAD
    return whole
