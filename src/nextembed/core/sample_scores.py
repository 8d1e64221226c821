"""Scores of generated images: written to samples.json, shown in the terminal."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table

from .files import write_json
from .saved import Count, Number, load


@dataclass
class Estimate:
    """A value with its 95 % interval."""

    value: Number
    low: Number
    high: Number

    def overlaps(self, other: "Estimate") -> bool:
        """Whether two intervals have a value in common.

        Args:
            other: the other interval.

        Returns:
            True if they overlap.
        """
        return self.low <= other.high and other.low <= self.high


@dataclass
class SampleRow:
    """Figures of a set of images; None if not applicable. frechet: distance to the held-out images in features.
    accuracy: share that a classifier assigns to the class they were generated for. nearest: median distance to the
    nearest training image, root mean square of pixels in 0..255. copies: share that is at least as near to a training
    image as the nearest 1 % of the held-out images. sharpness: energy of differences between neighbouring pixels,
    relative to held-out images.
    """

    name: str
    num_images: Count
    frechet: Estimate | None
    accuracy: Estimate | None
    nearest: Estimate
    copies: Estimate
    sharpness: Estimate


@dataclass
class SampleScores:
    """Scores of generated images next to those of real ones. checkpoint, weights: the model. split: of the held-out
    images. features: description of the features; width: their size. num_training: images searched for the nearest.
    rows: "samples", "held-out" images, "training" images, the "mean image" of these. settings: of the measurement.
    """

    checkpoint: str
    weights: str
    split: str
    features: str
    width: Count
    num_training: Count
    rows: list[SampleRow]
    settings: dict[str, object] = field(default_factory=dict)

    def __getitem__(self, name: str) -> SampleRow:
        """The row with this name. Raises KeyError if there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def save(self, path: str | Path) -> Path:
        write_json(path, asdict(self) | {"sentences": self.sentences()})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "SampleScores":
        """Reads samples.json.

        Args:
            path: the file.

        Returns:
            The scores.

        Raises:
            ConfigError: the file is damaged; the message names the wrong value.
        """
        return load(cls, path)

    def render(self) -> RenderableType:
        """For the terminal."""
        table = Table(
            title=f"Samples of {self.checkpoint}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        table.add_column("images", no_wrap=True)
        for name in (
            "Fréchet distance",
            "correct class, %",
            "to nearest training image",
            "near copies, %",
            "sharpness",
        ):
            table.add_column(name, justify="right", min_width=11)
        for row in self.rows:
            table.add_row(row.name, _shown(row.frechet), _shown(row.accuracy, 100), _shown(row.nearest),
                          _shown(row.copies, 100), _shown(row.sharpness))  # fmt: skip
        numbers = ", ".join(f"{row.num_images:,} {row.name}" for row in self.rows[:3])
        table.caption = f"{numbers}; ±: half of the 95 % interval (bootstrap)"
        table.caption_justify = "left"
        return table

    def sentences(self) -> list[str]:
        """What the figures mean, and their limits."""
        found, held, floor = self["samples"], self["held-out"], self["training"]
        lines = []
        if found.frechet is not None and floor.frechet is not None:
            lines.append(
                f"Fréchet distance {found.frechet.value:.4g} to {held.num_images:,} {self.split} images, where as "
                f"many training images have {floor.frechet.value:.4g}, in {self.width} {self.features}. Compare "
                "it only with figures for the same features and numbers of images, not with the FID of papers "
                "(Inception features, 50,000 images)."
            )
            if min(found.num_images, held.num_images) <= self.width:
                lines.append(
                    "There are not more images than feature dimensions, so all distances are far too high: compare "
                    "rows with each other only, and use more images if possible."
                )
        if found.accuracy is not None and held.accuracy is not None:
            lines.append(
                f"The classifier assigns {100 * found.accuracy.value:.1f} % of the samples to their class, and "
                f"{100 * held.accuracy.value:.1f} % of the {self.split} images."
            )
        sharper = "sharper than" if found.sharpness.value > held.sharpness.value else "smoother than"
        said = "as sharp as" if found.sharpness.overlaps(held.sharpness) else sharper
        lines += [f"Samples are {said} real images ({found.sharpness.value:.2f}, real ones 1).", self.memory()]
        return lines

    def memory(self) -> str:
        """Whether the model repeats training images."""
        found, held = self["samples"], self["held-out"]
        near = (
            f"{100 * found.copies.value:.1f} % of the samples are as close to one of {self.num_training:,} training "
            f"images as the closest 1 % of the {self.split} images; the median distance is "
            f"{found.nearest.value:.1f} of 255, for {self.split} images {held.nearest.value:.1f}"
        )
        if found.copies.low > held.copies.high:
            smooth = found.sharpness.high < held.sharpness.low
            why = "; but smooth images are closer to all others, so check the contact sheet" if smooth else ""
            return f"It may repeat training images: {near}{why}."
        return f"No sign that it repeats training images: {near}."


def _shown(estimate: Estimate | None, times: float = 1.0) -> str:
    if estimate is None:
        return "-"
    value = times * estimate.value
    half = times * max(estimate.high - estimate.value, estimate.value - estimate.low)
    digits = 1 if times > 1 or abs(value) >= 10 else 2
    return f"{value:.{digits}f} ± {half:.{digits}f}"
