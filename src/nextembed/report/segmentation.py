"""Sections of a segmentation run: photographs with true and predicted classes in colour, the score of every class."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..core.config import Part
from ..core.scores import SegmentScores
from ..core.types import IGNORE_PIXEL, Role
from ..data.images import EvalSamples
from ..data.masks import MaskPart
from ..errors import ConfigError, MissingSplit
from ..models.nepa import ViTNepaConfig
from ..models.nepa.segmenter import trunk_config
from ..nn.windows import sliding_logits
from .page import head, verdict_card
from .pictures import data_uri
from .view import RunView

NUM_IMAGES = 8
MAX_SIDE = 256  # pixels a picture is shown with at most; it is stored in the page
MAX_BARS = 24  # classes shown at once; of more, the best and the worst
OPACITY = 0.62
# Distinguishable for colour-blind readers, as far as ten colours can be; more classes get hues in turn.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#7f3fbf", "#8c6d31", "#e7298a")
UNLABELLED = (128, 128, 128)


@dataclass
class Shown:
    """One image. pixels uint8 [H, W, 3]; truth, answer: class ids uint8 [H, W], truth 255 where there is no label."""

    key: str
    pixels: np.ndarray
    truth: np.ndarray
    answer: np.ndarray

    @property
    def right(self) -> float | None:
        """Share of the labelled pixels that are right."""
        known = self.truth != IGNORE_PIXEL
        return float((self.answer == self.truth)[known].mean()) if known.any() else None


@dataclass
class Overlays:
    """Answers of a segmenter. config: of its transformer."""

    config: ViTNepaConfig
    class_names: list[str] = field(default_factory=list)
    images: list[Shown] = field(default_factory=list)
    split: str = "validation"


def look(model: PreTrainedModel, data: Part, stride: int | None, num_images: int = NUM_IMAGES) -> Overlays:
    """Images with the answers of a segmenter.

    Args:
        model: with its classes in `config.id2label`.
        data: the run's.
        stride: of the sliding window, pixels; None: two thirds of it.
        num_images: how many are drawn.

    Raises:
        ConfigError: the data has no masks, or none of the splits.
    """
    if not isinstance(data, MaskPart):
        raise ConfigError(f"data of kind {data.kind} has no masks to look at")
    trunk = trunk_config(model.config)
    labels = dict(model.config.id2label or {})
    names = [str(name) for _, name in sorted(labels.items())]
    found = Overlays(trunk, names)
    window = trunk.image_shape[0]
    samples, found.split = _samples(data, window, trunk.num_channels, num_images)
    stride = stride or max(1, round(window * 2 / 3))
    for index in range(len(samples)):
        found.images.append(_shown(model, samples[index], window, stride, data.mean, data.std))
    return found


def _samples(data: MaskPart, size: int, num_channels: int, num: int) -> tuple[EvalSamples, str]:
    splits: tuple[Role, ...] = ("validation", "test", "train")
    for split in splits:
        try:
            return data.eval_samples(split, image_size=size, num_channels=num_channels, num_samples=num), split
        except MissingSplit:
            continue
    raise ConfigError("the data has no split to look at")


@torch.no_grad()
def _shown(
    model: PreTrainedModel, sample: Mapping[str, Any], window: int, stride: int, mean: float, std: float
) -> Shown:
    pixels, label = sample["pixel_values"][None], sample["label"]
    logits = sliding_logits(lambda x: model(pixel_values=x).logits, pixels, (window, window), (stride, stride))
    scale = min(1.0, MAX_SIDE / max(label.shape))
    size = [max(1, round(side * scale)) for side in label.shape]
    answer = F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)[0]
    truth = F.interpolate(label[None, None].float(), size, mode="nearest-exact")[0, 0]
    image = F.interpolate(pixels * std + mean, size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    shown: Tensor = (image.expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0)
    return Shown(str(sample["key"]), shown.numpy(), truth.byte().numpy(), answer.byte().numpy())


# -- the page


def class_colours(names: Sequence[str]) -> list[tuple[int, int, int] | None]:
    """A colour for each class; None, which is drawn as nothing, for one that is called background."""
    found: list[tuple[int, int, int] | None] = []
    number = 0
    for name in names:
        if name.lower() == "background":
            found.append(None)
            continue
        if number < len(COLOURS):
            found.append(_rgb(COLOURS[number]))
        else:  # the golden angle: neighbours in number are far apart in hue
            red, green, blue = colorsys.hls_to_rgb(number * 0.381966 % 1, (0.45, 0.6, 0.72)[number % 3], 0.7)
            found.append((round(255 * red), round(255 * green), round(255 * blue)))
        number += 1
    return found


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def painted(pixels: np.ndarray, ids: np.ndarray, colours: Sequence[tuple[int, int, int] | None]) -> np.ndarray:
    """The image in grey with its classes in colour over it; hatched grey where there is no label. uint8 [H, W, 3]."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32)[..., None].repeat(3, axis=2)
    out = 0.55 * grey
    for number in np.unique(ids):
        here = ids == number
        colour = colours[number] if number < len(colours) else UNLABELLED
        if colour is not None:
            out[here] = (1 - OPACITY) * grey[here] + OPACITY * np.asarray(colour, dtype=np.float32)
    rows, columns = np.indices(ids.shape)
    out[(ids == IGNORE_PIXEL) & ((rows + columns) // 2 % 2 == 0)] = 40
    return out.round().clip(0, 255).astype(np.uint8)


def mistakes(shown: Shown) -> np.ndarray:
    """The image in dark grey; wrong pixels in red. uint8 [H, W, 3]."""
    grey = np.asarray(Image.fromarray(shown.pixels).convert("L"), dtype=np.float32)[..., None].repeat(3, axis=2) * 0.55
    wrong = (shown.truth != IGNORE_PIXEL) & (shown.truth != shown.answer)
    grey[wrong] = 0.35 * grey[wrong] + np.asarray((240, 60, 50), dtype=np.float32) * 0.8
    return grey.round().clip(0, 255).astype(np.uint8)


def header(view: RunView, overlays: Overlays | None) -> str:
    """The result of the run in sentences, and its figures."""
    scores = scores_of(view)
    facts: list[tuple[str, str]] = []
    if scores:
        facts.append((f"{100 * scores.miou:.1f} %", f"mIoU, {scores.num_images:,} {scores.split} images"))
        facts.append((f"{100 * scores.pixel_accuracy:.1f} %", "pixel accuracy"))
    if overlays is not None:
        config = overlays.config
        layers = f"{config.num_hidden_layers} x {config.hidden_size}"
        facts.append((layers, f"layers x width, {view.settings.model.head} head"))
        facts.append((f"{config.image_shape[0]} / {config.patch_shape[0]} px", "window / patch"))
    data = view.settings.data
    source = str(data.source or data.kind or "its data").replace("_", " ")
    card = verdict_card(view, scores.sentence() if scores else "")
    return head(view, f"Segmentation of {source}", card, facts)


def scores_of(view: RunView) -> SegmentScores | None:
    return view.scores if isinstance(view.scores, SegmentScores) else None


def answers(view: RunView, overlays: Overlays | None) -> str:
    """Bars of every class, and the pictures."""
    scores = scores_of(view)
    return (_bars(scores) if scores else "") + (_images(overlays) if overlays is not None else "")


def what_was_trained(view: RunView, overlays: Overlays | None) -> str:
    """Initial weights, trained parts, and data of the run."""
    run = view.settings
    model, train, data, optim = run.model, run.train, run.data, run.optim
    layers = overlays.config.out_indices if overlays is not None else None
    low, high = data.scale_range
    colours = ", colour distortion" if data.distort_colours else ""
    changed = f"LoRA of rank {train.lora.rank}, and the head" if train.lora else train.what
    rows = [
        ("started from", model.start),
        ("head", model.head + (f", on layer {', '.join(map(str, layers))}" if layers else "")),
        ("attention", model.attention),
        ("trained", changed),
        ("augmentation", f"scales {low:g} to {high:g}, flips {data.flip_rate:g}{colours}"),
        ("learning rate", f"{optim.learning_rate:g}, batch {train.batch_size or '?'}"
                          f", layer decay {optim.layer_decay:g}"),
    ]  # fmt: skip
    body = "".join(f"<tr><td>{name}</td><td>{escape(str(text))}</td></tr>" for name, text in rows)
    return f'<h2>Training setup</h2><div class="card scroll"><table class="trained">{body}</table></div>'


def _bars(scores: SegmentScores) -> str:
    names = [row.name for row in scores.per_class]
    colours = dict(zip(names, class_colours(names)))
    rows = sorted(scores.per_class, key=lambda row: -1.0 if row.iou is None else -row.iou)
    never = [row.name for row in rows if row.iou is None]
    drawn = [_bar(row.name, row.iou, row.share, colours[row.name]) for row in rows if row.iou is not None]
    if len(drawn) > MAX_BARS:
        half = MAX_BARS // 2
        shown = f'<div class="two">{_card("Best classes", drawn[:half])}{_card("Worst classes", drawn[-half:])}</div>'
        shown += f"<details><summary>All {len(drawn)} classes</summary>{_card('Every class', drawn)}</details>"
    else:
        half = -(-len(drawn) // 2)
        shown = f'<div class="two">{_card("", drawn[:half])}{_card("", drawn[half:])}</div>'
    left_out = f"<p class='soft'>Absent from labels and predictions: {escape(', '.join(never))}.</p>" if never else ""
    return (
        '<h2>IoU by class</h2><p class="soft">Intersection over union of the true and the predicted pixels of a class, '
        "counted over the whole split, not image by image. In brackets: the class's share of "
        f"the true pixels.</p>{shown}{left_out}"
    )


def _bar(name: str, iou: float, share: float, colour: tuple[int, int, int] | None) -> str:
    paint = f"rgb{colour}" if colour else "var(--soft)"
    return (
        f'<span><i class="swatch" style="--c:{paint}"></i>{escape(name)} '
        f'<span class="soft">({100 * share:.1f} %)</span></span><div class="value"><div class="bar">'
        f'<i style="--w:{100 * iou:.1f}%;--c:{paint}"></i></div><b>{100 * iou:.1f} %</b></div>'
    )


def _card(title: str, bars: Sequence[str]) -> str:
    if not bars:
        return ""
    head = f"<h3>{title}</h3>" if title else ""
    return f'<div class="card">{head}<div class="bars">{"".join(bars)}</div></div>'


def _images(overlays: Overlays) -> str:
    if not overlays.images:
        return ""
    names, colours = overlays.class_names, class_colours(overlays.class_names)
    present = sorted(
        {int(i) for shown in overlays.images for ids in (shown.truth, shown.answer) for i in np.unique(ids)}
    )
    legend = "".join(
        f'<span class="chip"><i class="swatch" style="--c:rgb{colours[i]}"></i>{escape(names[i])}</span>'
        for i in present
        if i < len(names) and colours[i]
    )
    if IGNORE_PIXEL in present:
        legend += '<span class="chip"><i class="swatch" style="--c:rgb(128,128,128)"></i>no label (hatched)</span>'
    cards = "".join(_four(shown, colours) for shown in overlays.images)
    return (
        f'<h2>Predictions on images</h2><p class="soft">Images of the {escape(overlays.split)} data, '
        "drawn at random: the image, the true classes, the predicted classes, and in red where the two "
        f'differ.</p><div class="chips legend">{legend}</div><div class="segments">{cards}</div>'
    )


def _four(shown: Shown, colours: Sequence[tuple[int, int, int] | None]) -> str:
    right = "" if shown.right is None else f" {100 * shown.right:.1f} % pixel accuracy"
    tiles = (
        ("image", shown.pixels),
        ("truth", painted(shown.pixels, shown.truth, colours)),
        ("prediction", painted(shown.pixels, shown.answer, colours)),
        ("mistakes", mistakes(shown)),
    )
    pictures = "".join(
        f'<figure><img alt="{name}" src="{data_uri(pixels)}"><figcaption>{name}</figcaption></figure>'
        for name, pixels in tiles
    )
    return f'<div class="card"><div class="four">{pictures}</div><p>{escape(shown.key)}:{right}</p></div>'
