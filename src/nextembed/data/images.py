"""Images as the data of a run: the settings that all image sources share, and the loaders built from them."""

import itertools
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from ..core.config import Part
from ..core.objective import ViewSettings
from ..core.sizes import COLOURS
from ..core.types import IGNORE_LABEL, IGNORE_PIXEL, Loading, Role, Sample
from ..errors import ConfigError, DataError, MissingSplit
from .augment import Augment
from .clips import reader_of
from .collate import Collate
from .draws import Draw, sample_seed
from .found import Found, counted
from .labels import FewRows, draw_few, hold_out, labels_of, no_class
from .limits import Limits, expression_of
from .rows import Rows, RowSequence, row_key
from .skipped import SkipLog
from .stream import (
    ImageView,
    MapStream,
    SequentialStream,
    TrainLoader,
    View,
    build_cache,
    check_kind,
    decoded_bytes,
    tries,
)
from .transforms import ImageReader, RandomResizedCrop, Unreadable, normalize

CACHE_BYTES = 512 * 2**20


class Pixels(Protocol):
    """Settings that images with and without masks share."""

    mean: float
    std: float
    max_skipped_rate: float
    num_workers: int

    def left_out(self, split: Role) -> dict[str, str]: ...


class ImagePart(Limits, Part):
    """Settings of image data from any source.

    A source of your own is a subclass in your own file, chosen with `kind: my_file.py:MyImages`. It defines the rows,
    and raises MissingSplit for a split that it does not have:

        class MyImages(ImagePart):
            folder: str

            def rows(self, split):
                if split != "train":
                    raise MissingSplit(f"there is no {split} split")
                return [{"image": path, "label": 0, "key": path.name} for path in Path(self.folder).glob("*.png")]

    Attributes:
        crop_scale: [smallest, largest] share of the area that the random crop takes.
        crop_ratio: [smallest, largest] aspect ratio of the random crop.
        flip_rate: share of images that are flipped horizontally.
        rand_augment: [magnitude, its standard deviation] of RandAugment after the crop, e.g. [9, 0.5]; null: none.
        erase_rate: share of training images of which a random rectangle is erased to mid-grey.
        labels_per_class: train on this many images of each class, drawn with labels_seed; null: all.
        labels_seed: seed of the choice for labels_per_class and validation_rate.
        validation_rate: without a validation split, this share of each class of the training images, chosen by
            labels_seed, becomes one; null: none.
        mean: mean that pixels in [0, 1] are normalised with.
        std: standard deviation that pixels in [0, 1] are normalised with.
        cache: "auto" decodes data of up to 512 MB once and keeps it in memory; "on" any size, "off" never.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_rate: float = Field(0.5, ge=0, le=1)
    rand_augment: tuple[Annotated[float, Field(ge=0, le=10)], Annotated[float, Field(ge=0, le=10)]] | None = None
    erase_rate: float = Field(0.0, ge=0, le=1)
    labels_per_class: int | None = Field(None, gt=0)
    labels_seed: int = Field(0, ge=0, lt=2**63)
    validation_rate: float | None = Field(None, gt=0, lt=1)
    mean: float = Field(0.5, ge=0, le=1)
    std: float = Field(0.5, ge=0.001, le=1000)
    cache: Literal["auto", "on", "off"] = "auto"

    @model_validator(mode="after")
    def _crops_exist(self) -> "ImagePart":
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale {list(self.crop_scale)} should be [smallest, largest], in (0, 1]")
        if not 0.001 <= self.crop_ratio[0] <= self.crop_ratio[1] <= 1000:
            raise ValueError(f"crop_ratio {list(self.crop_ratio)} should be [smallest, largest], in [0.001, 1000]")
        return self

    def rows(self, split: Role) -> Rows | RowSequence:
        """The rows of a split.

        Keys of a row: "image", file bytes, a path, a PIL image or a uint8 array [H, W] or [H, W, C], not decoded yet if
        it is large (for models of clips a video as bytes or a path, or a uint8 array [F, H, W, 3]); "label" (optional),
        the class id; "key" (optional), a unique name that stays the same, else the row number.

        Args:
            split: "train", "validation" or "test".

        Returns:
            A list, or an object with `__len__` and `__getitem__`; for data that only comes in sequence, an object with
            `read(epoch, reader, num_readers)` (see `RowSequence`).
        """
        raise NotImplementedError

    def class_names(self) -> list[str]:
        """Names by class id; empty if there are no labels or no names."""
        return []

    def why_no_labels(self) -> str:
        """What in the source looks like labels but is not used as such; empty if there is nothing."""
        return ""

    def summary(self, split: Role) -> Found:
        """What opening a split finds: images that are used or left out, classes, files that are not images. Raises as
        `rows`.

        Args:
            split: "train", "validation" or "test".

        Returns:
            The findings.
        """
        rows = self.training_rows() if split == "train" else self.split_rows(split)
        found = replace(self.around(), split=expression_of(self, split), skipped=self.left_out(split))
        if not isinstance(rows, Rows):
            return found
        labels = labels_of(rows) if self.class_names() else []
        classes = counted(labels, self.class_names()) if labels else {}
        notes = (*found.notes, *filter(None, (self.why_no_labels(), no_class(labels))))
        return replace(found, used=len(rows), classes=classes, unlabelled=labels.count(IGNORE_LABEL), notes=notes)

    def training_rows(self) -> Rows | RowSequence:
        """The rows of the training split; with `labels_per_class`, this many of each class.

        Raises:
            ConfigError: If a class has fewer, or there are no labels, or for a stream.
        """
        rows = self.split_rows("train")
        if self.labels_per_class is None:
            return rows
        if not isinstance(rows, Rows):
            raise ConfigError("data.labels_per_class needs streaming=false")
        few = draw_few(labels_of(rows), self.labels_per_class, self.labels_seed, self.class_names())
        return FewRows(rows, few)

    def split_rows(self, split: Role) -> Rows | RowSequence:
        """`rows`, or the part of the training rows that `validation_rate` holds out where there is no validation split.

        Args:
            split: "train", "validation" or "test".

        Returns:
            See `rows`.
        """
        if self.validation_rate is None or split == "test":
            return self.rows(split)
        try:
            validation = self.rows("validation")
        except MissingSplit:
            pass
        else:
            return validation if split == "validation" else self.rows("train")
        rows = self.rows("train")
        if not isinstance(rows, Rows):
            raise ConfigError("data.validation_rate needs streaming=false")
        stay, apart = hold_out(labels_of(rows), self.validation_rate, self.labels_seed)
        return FewRows(rows, apart if split == "validation" else stay)

    def train_loader(
        self,
        loading: Loading,
        *,
        image_size: int,
        num_channels: int,
        num_latents: int,
        draw: Draw | None = None,
        views: int | ViewSettings = 1,
    ) -> TrainLoader:
        """Endless training batches of one rank (`core.types.Batch`), each of `loading.micro_batch_size` samples.

        Args:
            loading: batch size, rank, workers and seed.
            image_size: pixels of a side.
            num_channels: 1 or 3; for clips 3 times the frames.
            num_latents: T of `latent_mask`.
            draw: see `ObjectiveSettings`.
            views: see `ObjectiveSettings`.

        Returns:
            The loader; its state can be saved.

        Raises:
            ConfigError: For a source that cannot work; the loader raises DataError if more than `max_skipped_rate` of
                the images are unreadable.
        """
        crops, num_global = self.crops(image_size, views)
        augments = self.rand_augment is not None or self.erase_rate > 0
        if augments and num_channels > COLOURS:
            raise ConfigError("data.rand_augment and erase_rate are for images; do not set them for clips")
        augment = Augment(image_size, self.rand_augment, self.erase_rate) if augments else None
        rows, view = self.training_rows(), ImageView(self.reader(num_channels), crops)
        if isinstance(rows, Rows):
            check_kind(rows, view.reader)
        collate = Collate(self.mean, self.std, num_latents, draw, augment, num_global)
        cached = self.cache == "on" or (self.cache == "auto" and fits(rows, view.reader))
        return image_loader(self, rows, view, collate, loading, cached)

    def crops(self, image_size: int, views: int | ViewSettings) -> tuple[tuple[RandomResizedCrop, ...], int | None]:
        """The crops that are made from each image.

        Args:
            image_size: pixels of a side.
            views: see `ObjectiveSettings`.

        Returns:
            The transforms, and how many of several crops are large ones (None for a single crop).
        """
        one = RandomResizedCrop(image_size, self.crop_scale, self.crop_ratio, self.flip_rate)
        if isinstance(views, int):
            return (one,) * views, None if views == 1 else views
        large = replace(one, scale=views.global_scale)
        small = replace(one, size=views.local_size, scale=views.local_scale)
        return (large,) * views.num_global + (small,) * views.num_local, views.num_global

    def eval_samples(
        self,
        split: Role,
        *,
        image_size: int,
        num_channels: int,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> "EvalSamples":
        """Labelled samples of a split for probes: whole images resized to `image_size`, no augmentation.

        Args:
            split: "train", "validation" or "test".
            image_size: pixels of a side.
            num_channels: 1 or 3; for clips 3 times the frames.
            num_samples: a random subset from `seed` (of a stream: so many of its first); None takes all.
            seed: of the subset.

        Returns:
            Samples with pixel_values, label and key.

        Raises:
            ConfigError: If the split does not exist or is empty, or for all of a stream.
        """
        rows = self.training_rows() if split == "train" else self.split_rows(split)
        if not isinstance(rows, Rows):
            if num_samples is None:
                raise ConfigError("data.streaming: a whole stream cannot be probed; set streaming=false")
            rows = list(itertools.islice(rows.read(seed, 0, 0, 1), num_samples))
        view = ImageView(self.reader(num_channels), (RandomResizedCrop(image_size),))
        check_kind(rows, view.reader)
        return EvalSamples(self, rows, view, self.class_names(), Choice(split, image_size, num_samples, seed))

    def reader(self, num_channels: int) -> ImageReader:
        """The decoder with this part's limits: of images with 1 or 3 channels, of clips with 3 times their frames.

        Args:
            num_channels: 1 or 3; for clips 3 times the frames.

        Returns:
            The decoder; its `read` gives uint8 [C, H, W].

        Raises:
            ConfigError: another number of channels.
        """
        return reader_of(num_channels, self.background, self.max_pixels, self.max_bytes)


def checked_channels(num_channels: int) -> int:
    if num_channels not in (1, 3):
        raise ConfigError(f"num_channels: images have 1 (grey) or 3 (RGB), not {num_channels}")
    return num_channels


def image_loader(
    part: Pixels, rows: Rows | RowSequence, view: View, collate: Collate, loading: Loading, cached: bool = False
) -> TrainLoader:
    """cached: rows that can be indexed, of images without masks, are decoded once."""
    left_out = part.left_out("train")
    if not isinstance(rows, Rows):
        log = SkipLog(loading.skipped_path, part.max_skipped_rate)
        log.leave_out(left_out, loading.rank == 0)
        sequence = SequentialStream(rows, view, collate, log, loading, part.num_workers)
        return TrainLoader(sequence, part.num_workers, loading, log)
    not_empty(rows, "train")
    log = SkipLog(loading.skipped_path, part.max_skipped_rate, len(rows))
    log.leave_out(left_out, loading.rank == 0)
    cache = build_cache(rows, view, log) if cached and isinstance(view, ImageView) else None
    return TrainLoader(MapStream(rows, view, collate, log, loading, cache), part.num_workers, loading, log, len(rows))


def fits(rows: Rows | RowSequence, reader: ImageReader) -> bool:
    """Whether all rows fit in memory once they are decoded."""
    return isinstance(rows, Rows) and len(rows) <= CACHE_BYTES // 256 and decoded_bytes(rows, reader) <= CACHE_BYTES


class Choice(NamedTuple):
    """A choice of samples of a split: a number drawn from the seed, or all; and their size."""

    split: Role
    size: int
    num: int | None = None
    seed: int = 0

    def of(self, total: int) -> Tensor:
        if self.num is None or self.num >= total:
            return torch.arange(total)
        return torch.randperm(total, generator=torch.Generator().manual_seed(self.seed))[: self.num].sort().values


class EvalSamples(Dataset[Sample]):
    """Samples for probes and scores, in a fixed order: pixel_values float32, label (or mask int64 [H, W]), key.

    Unreadable ones are replaced by others without labels, so that they are not scored. `log.reasons` names it.
    class_names: by class id, empty if unknown.
    """

    def __init__(self, part: Pixels, rows: Rows, view: View, class_names: list[str], choice: Choice):
        not_empty(rows, choice.split)
        self.rows, self.view, self.class_names, self.size = rows, view, class_names, choice.size
        self.mean_std = part.mean, part.std
        self.indices, self.log = choice.of(len(rows)), SkipLog(None, part.max_skipped_rate, len(rows))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        own = int(self.indices[index])
        for at in tries(own, len(self.rows), sample_seed(0, own, "replacement")):
            row = self.rows[at]
            key = row_key(row, at)
            try:
                pixels, label = self.view.whole(row, self.size)
            except Unreadable as err:
                self.log.add(key, str(err), len(self), str(at))
                continue
            if at != own:
                label = torch.full_like(label, IGNORE_PIXEL) if isinstance(label, Tensor) else IGNORE_LABEL
            return {"key": key, "pixel_values": normalize(pixels, *self.mean_std), "label": label}
        raise DataError(f"none of the {len(self.rows)} images is readable")


def not_empty(rows: Rows, split: str) -> None:
    if len(rows) == 0:
        raise MissingSplit(f"data: the {split} split is empty")
