"""Images with a mask of class ids: shared settings, reading, joint crops, batches."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms import v2

from ..core.config import Part
from ..core.objective import ViewSettings
from ..core.types import IGNORE_PIXEL, Loading, Role
from ..errors import ConfigError
from .collate import Collate, Label
from .draws import Draw, uniform
from .found import Found
from .images import Choice, EvalSamples, checked_channels, image_loader
from .limits import Limits, expression_of
from .rows import Row, Rows, row_key
from .stream import TrainLoader
from .transforms import ImageReader, Unreadable, _to_tensor, _unreadable

NUM_CHECKED = 64  # masks that are read before training starts
NUM_TRIES = 10  # attempts for a crop that one class does not fill


class MaskPart(Limits, Part):
    """Settings of images with masks, whatever they come from. A subclass says what the rows and the classes are.

    Attributes:
        scale_range: before the crop, the shorter side is resized to a random multiple, in this range, of the crop's
            side; missing area is filled with mid-grey and ignored.
        flip_rate: share of images that are flipped.
        max_class_rate: a crop of which one class fills a larger share is redrawn, up to 10 times.
        distort_colours: random brightness, contrast, saturation and hue.
        mean: mean that pixels in [0, 1] are normalised with.
        std: standard deviation that pixels in [0, 1] are normalised with.
        reduce_labels: id 0 in the files means no label, id k means class k - 1, as in ADE20K.
        mask_values: maps values in mask files to class ids where they differ: {255: 1} for masks of 0 and 255; mapping
            a value to 255 means no label.
    """

    has_masks: ClassVar[bool] = True  # labels are masks, so there are no classes to probe

    scale_range: tuple[float, float] = (0.5, 2.0)
    flip_rate: float = Field(0.5, ge=0, le=1)
    max_class_rate: float = Field(0.75, gt=0, le=1)
    distort_colours: bool = True
    reduce_labels: bool = False
    mask_values: dict[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0, le=IGNORE_PIXEL)]] = Field(
        default_factory=dict
    )
    mean: float = Field(0.5, ge=0, le=1)
    std: float = Field(0.5, ge=0.001, le=1000)

    @model_validator(mode="after")
    def _scales_exist(self) -> "MaskPart":
        if not 0 < self.scale_range[0] <= self.scale_range[1] <= 100:
            raise ValueError(f"scale_range {list(self.scale_range)} should be [smallest, largest], in (0, 100]")
        return self

    def rows(self, split: Role) -> Rows:
        """Rows of a split. Raises ConfigError for a split that does not exist."""
        raise NotImplementedError

    def class_names(self) -> list[str]:
        """Names by class id."""
        raise NotImplementedError

    def summary(self, split: Role) -> Found:
        """What opening a split finds: images used and not, what lies beside. Raises as `rows`."""
        rows = self.rows(split)
        return replace(self.around(), split=expression_of(self, split), used=len(rows), skipped=self.left_out(split))

    def reader(self, num_channels: int) -> "PairReader":
        """Raises ConfigError unless num_channels is 1 or 3."""
        limits = (checked_channels(num_channels), self.background, self.max_pixels, self.max_bytes)
        return PairReader(*limits, len(self.class_names()), self.reduce_labels, tuple(self.mask_values.items()))

    def view(self, image_size: int, num_channels: int) -> "MaskView":
        settings = (self.scale_range, self.flip_rate, self.max_class_rate, self.distort_colours)
        return MaskView(self.reader(num_channels), JointCrop(image_size, *settings, round(255 * self.mean)))

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
        """As `ImagePart.train_loader`; labels are [B, image_size, image_size]. `draw` is not used. Raises ConfigError
        for several views."""
        if views != 1:
            raise ConfigError(
                "objective: it compares several crops of an image, which segmentation data does not provide"
            )
        collate = Collate(self.mean, self.std, num_latents)
        return image_loader(self, self.rows("train"), self.view(image_size, num_channels), collate, loading)

    def eval_samples(
        self, split: Role, *, image_size: int, num_channels: int, num_samples: int | None = None, seed: int = 0
    ) -> EvalSamples:
        """Whole images whose shorter side is `image_size`, with their masks as they are; no augmentation.

        num_samples: a random subset from `seed`; None takes all. Raises ConfigError if the split does not exist.
        """
        choice = Choice(split, image_size, num_samples, seed)
        return EvalSamples(self, self.rows(split), self.view(image_size, num_channels), self.class_names(), choice)


@dataclass(frozen=True)
class PairReader(ImageReader):
    """Reads an image and its mask, or raises `Unreadable`.

    num_classes: ids are below it, or 255 (no label). reduce_labels: id 0 in the file is no label, id k class k - 1.
    A mask is a grey or palette picture whose pixels are ids: an index of the palette, never its colour.
    """

    num_classes: int = IGNORE_PIXEL
    reduce_labels: bool = False
    mask_values: tuple[tuple[int, int], ...] = ()

    def read_pair(self, row: Row) -> tuple[Image.Image, np.ndarray]:
        """The image, upright and opaque, and its class ids, uint8 [H, W], 255 for no class."""
        with _unreadable():
            image = self._convert(self._open(self._load(row.get("image"))))
        if row.get("mask") is None:
            raise Unreadable(str(row.get("no_mask", "it has no mask")))
        try:
            with _unreadable():
                ids = self.ids(self._open(self._load(row.get("mask"))))
        except Unreadable as err:
            raise Unreadable(f"mask: {err}") from None
        if ids.shape != (image.height, image.width):
            raise Unreadable(
                f"its mask is {ids.shape[1]}x{ids.shape[0]} pixels, the image {image.width}x{image.height}"
            )
        return image, ids

    def ids(self, mask: Image.Image) -> np.ndarray:
        """Class ids of a mask, uint8. Raises Unreadable for a colour picture, a JPEG or an id out of range."""
        if mask.format in ("JPEG", "MPO"):
            raise Unreadable("it is a JPEG, which does not keep the values of its pixels; masks are PNG or TIFF")
        values = np.asarray(mask)
        if values.ndim != 2 or values.dtype.kind == "f":
            raise Unreadable(f"it is a picture of mode {mask.mode}; class ids are grey values or a palette's indices")
        values = given = values.astype(np.int64)
        for value, class_id in self.mask_values:
            values = np.where(given == value, class_id, values)
        if self.reduce_labels:
            values = np.where((values == 0) | (values == IGNORE_PIXEL), IGNORE_PIXEL, values - 1)
        wrong = (values != IGNORE_PIXEL) & ((values < 0) | (values >= self.num_classes))
        if wrong.any():
            found = int(values[wrong][0]) + self.reduce_labels
            first, last = int(self.reduce_labels), self.num_classes - 1 + self.reduce_labels
            raise Unreadable(f"class {found} is out of range: {self.num_classes} classes are {first}..{last}")
        return values.astype(np.uint8)


@dataclass(frozen=True)
class JointCrop:
    """Scale, crop and flip of an image and its mask by the same random numbers; then the colours of the image.

    size: pixels a side. scale_range, flip_rate, max_class_rate, distort_colours: see `MaskPart`. fill: grey value of
    padding. Colours: torchvision's ColorJitter by an eighth of the brightness, half of contrast and saturation, and
    18 degrees of hue, about what is usual for ADE20K.
    """

    size: int
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip_rate: float = 0.5
    max_class_rate: float = 0.75
    distort_colours: bool = True
    fill: int = 128

    def __call__(self, image: Image.Image, ids: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
        """Pixels uint8 [C, size, size] and labels int64 [size, size]; the same seed gives the same."""
        mask, size = Image.fromarray(ids), self.size
        low, high = self.scale_range
        scale = size / min(image.size) * (low + uniform(seed, 0) * (high - low))
        width, height = (max(1, round(side * scale)) for side in image.size)
        crop_w, crop_h = min(size, width), min(size, height)
        x, y = image.width / width, image.height / height  # source pixels per output pixel
        for number in range(NUM_TRIES):
            left = int(uniform(seed, 2 + 2 * number) * (width - crop_w + 1))
            top = int(uniform(seed, 3 + 2 * number) * (height - crop_h + 1))
            box = (left * x, top * y, min((left + crop_w) * x, image.width), min((top + crop_h) * y, image.height))
            labels = np.asarray(mask.resize((crop_w, crop_h), Image.Resampling.NEAREST, box=box))
            if self.max_class_rate == 1 or not self._filled(labels):
                break
        pixels = _to_tensor(image.resize((crop_w, crop_h), Image.Resampling.BILINEAR, box=box))
        padding = [0, 0, size - crop_w, size - crop_h]
        pixels = v2.functional.pad(pixels, padding, fill=[float(self.fill)])
        found = v2.functional.pad(torch.from_numpy(labels.astype(np.int64))[None], padding, fill=[IGNORE_PIXEL])[0]
        if uniform(seed, 1) < self.flip_rate:
            pixels, found = pixels.flip(-1), found.flip(-1)
        return (self._distorted(pixels, seed) if self.distort_colours else pixels), found

    def _filled(self, labels: np.ndarray) -> bool:
        counts = np.bincount(labels[labels != IGNORE_PIXEL], minlength=1)
        return counts.max() > self.max_class_rate * max(1, counts.sum())

    def _distorted(self, pixels: Tensor, seed: int) -> Tensor:
        jitter = v2.ColorJitter(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            return jitter(pixels)


@dataclass(frozen=True)
class MaskView:
    """Images with a mask of class ids."""

    reader: PairReader
    cropped: JointCrop

    def crop(self, row: Row, seed: int) -> tuple[list[Tensor], Label]:
        pixels, labels = self.cropped(*self.reader.read_pair(row), seed)
        return [pixels], labels

    def whole(self, row: Row, size: int) -> tuple[Tensor, Label]:
        """The shorter side of the image is resized to this size; the mask stays as in the file."""
        image, ids = self.reader.read_pair(row)
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        pixels = _to_tensor(image.resize((width, height), Image.Resampling.BILINEAR))
        return pixels, torch.from_numpy(ids.astype(np.int64))


def classes_to_segment(data: MaskPart) -> list[str]:
    """The class names of data with masks, by class id, after a look at some of its masks.

    Raises ConfigError for fewer than two or more than 255 classes, a duplicate name, if more than `max_skipped_rate` of
    the checked masks (if many: more than half) cannot be used, or if they contain only one class.
    """
    names = [str(name) for name in data.class_names()]
    if not 2 <= len(names) <= IGNORE_PIXEL:
        raise ConfigError(f"data: segmentation needs 2 to {IGNORE_PIXEL} classes, the class list has {len(names)}")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ConfigError(f"data: the class list has '{twice}' twice")
    rows, reader = data.rows("train"), data.reader(3)
    if len(rows) == 0:
        raise ConfigError("data: the train split is empty")
    indices = np.unique(np.linspace(0, len(rows) - 1, min(NUM_CHECKED, len(rows))).astype(int)).tolist()
    reasons, seen = {}, np.zeros(IGNORE_PIXEL + 1, dtype=np.int64)
    for index in indices:
        row = rows[index]
        try:
            seen += np.bincount(reader.read_pair(row)[1].ravel(), minlength=IGNORE_PIXEL + 1)
        except Unreadable as err:
            reasons[row_key(row, index)] = str(err)
    allowed = data.max_skipped_rate * len(rows) if len(indices) == len(rows) else len(indices) / 2
    if len(reasons) > allowed:
        first = "; ".join(f"{key}: {reason}" for key, reason in list(reasons.items())[:2])
        raise ConfigError(f"data: {len(reasons)} of {len(indices)} images looked at cannot be used: {first}")
    if len(reasons) < len(indices):
        check_seen(seen, names, len(indices) - len(reasons), len(rows))
    return names


def check_seen(seen: np.ndarray, names: list[str], looked_at: int, total: int) -> None:
    """Raises ConfigError if masks contain fewer than two classes, and either all were checked or 255 may be a class.

    seen [256]: pixels by class id.
    """
    shown, none = np.flatnonzero(seen[:IGNORE_PIXEL]).tolist(), int(seen[IGNORE_PIXEL])
    if len(shown) > 1 or (not none and looked_at < total):
        return
    lost = next(name for number, name in enumerate(names) if number not in shown)
    what = f"all pixels of the {looked_at} masks looked at are '{names[shown[0]]}'" if shown else "no pixel has a class"
    if not none:
        raise ConfigError(f"data: {what}; none is '{lost}'")
    raise ConfigError(
        f"data: {what}, but for {none / seen.sum():.0%} of value 255, which means no label; if 255 is '{lost}', set "
        f"data.mask_values={{255: {names.index(lost)}}}"
    )
