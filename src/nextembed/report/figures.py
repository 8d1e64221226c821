"""One picture of what happens inside a model on an image: sections of titled panels, in readable sizes."""

import io
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .inside import Inside
from .pictures import heat
from .readouts import psnr

INK, SOFT, LINE, NEXT, CURRENT = "#1b2330", "#5b6675", "#d5dae2", "#e8590c", "#1c7ed6"
DPI = 150
WIDTH, MARGIN, GAP = 12.0, 0.3, 0.16  # inches
TITLE, BAR, HEAD, LINE_HEIGHT = 0.24, 0.34, 0.36, 0.165
LARGEST = 2.15  # side of a panel
LETTERS_LARGE = 180  # of a line under the title
LETTERS = 208  # of a line of text
MAKER = "nextembed"  # in each file
MAX_SHOWN = 448  # pixels a side that an image is drawn with


@dataclass
class Panel:
    """pixels: uint8 [rows, columns, 3 or 4], stretched over the image. marks: outlined patches, by colour. veil_from:
    patches from this one on are veiled. bar: (colour map, least, greatest). corner: words inside. name: of its file."""

    name: str
    title: str
    pixels: np.ndarray
    marks: dict[str, int] = field(default_factory=dict)
    veil_from: int | None = None
    bar: tuple[str, float, float] | None = None
    grid: bool = False
    corner: str = ""


@dataclass
class Section:
    """A heading, text, and rows of panels of one size: that of the longest row."""

    title: str
    text: str
    rows: list[list[Panel]]

    @property
    def num_columns(self) -> int:
        return max(len(panels) for panels in self.rows)


def draw(inside: Inside, patch: int, heads: list[int], title: str, subtitle: str, foreground: bool) -> "Drawing":
    """The figure of image 0. patch: the query patch. heads: from 1; those that are shown."""
    sections = [first_section(inside, patch, foreground)]
    if inside.attention:
        sections.append(attention_section(inside, patch, heads))
    if inside.readouts:
        sections.append(readout_section(inside))
    if any(readout.rollout is not None for readout in inside.readouts):
        sections.append(rollout_section(inside))
    return Drawing(inside, sections, title, subtitle)


def first_section(inside: Inside, patch: int, foreground: bool) -> Section:
    """The image, the cosine map of the prediction, surprise, and features as colours."""
    has_next = patch + 1 < inside.num_patches
    marks = {CURRENT: patch} | ({NEXT: patch + 1} if has_next else {})
    image = photograph(inside.images[0])
    cosines, surprise = inside.cosines(patch), inside.surprise[0]
    low, high = cosines.min().item(), cosines.max().item()
    top = max(surprise.max().item(), 1e-6)
    panels = [
        Panel("image", f"the image, {inside.grid[0]} x {inside.grid[1]} patches", image, marks, grid=True),
        Panel("cosine", "cosine to the prediction", heat(cosines, inside.grid), marks, bar=("viridis", low, high)),
        Panel(
            "surprise",
            f"surprise, mean {surprise.mean():.3f}",
            glow(inside.images[0], heat(surprise, inside.grid, low=0.0, cmap="inferno")),
            bar=("inferno", 0.0, top),
        ),
    ]
    for layer in inside.layers:
        colours = inside.colours(layer, foreground)[0].view(*inside.grid, 3)
        panels.append(Panel(f"pca_layer{layer}", f"PCA, {layer_name(inside, layer)}", as_bytes(colours.numpy())))
    if has_next:
        place = 1 + int((cosines > cosines[patch + 1]).sum())
        found = f"The true next patch is number {place} of {inside.num_patches} by cosine ({cosines[patch + 1]:.2f}; "
        found += f"current {cosines[patch]:.2f}, highest {high:.2f})."
    else:
        found = f"Patch {patch} is the last: nothing follows it."
    text = (
        f"Query patch {patch} (row {patch // inside.grid[1]}, column {patch % inside.grid[1]}) in dashed blue"
        + (", the one that follows it in orange. " if has_next else ". ")
        + f"{found} Surprise: 1 - cosine of each patch with its prediction; its mean is 1 + NEPA's loss on this image. "
        "PCA: the first three components of the patches' features as red, green, blue"
        + (", foreground only (split by the first component)." if foreground else ".")
    )
    return Section("Prediction and surprise", text, [panels])


def attention_section(inside: Inside, patch: int, heads: list[int]) -> Section:
    """One panel a head, one row a layer; several layers in a row where there are few heads."""
    panels: list[Panel] = []
    for layer, weights in inside.attention.items():
        for head in heads:
            row = weights[0, head - 1, patch + 1]
            found = glow(inside.images[0], heat(row[1:], inside.grid, low=0.0, cmap="inferno"))
            name, title = f"attention_layer{layer}_head{head}", f"layer {layer}, head {head}"
            panels.append(Panel(name, title, found, {CURRENT: patch}, corner=f"begin {row[0]:.0%}"))
    layers_per_row = max(1, 9 // len(heads))
    per_row = len(heads) * layers_per_row if len(heads) <= 12 else -(-len(heads) // 2)
    rows = [panels[start : start + per_row] for start in range(0, len(panels), per_row)]
    text = (
        f"Weights of the query patch (dashed blue) to all patches, {inside.mode} attention, each map "
        "scaled from 0 to its maximum; 'begin' is the share of the begin token."
    )
    return Section("Attention maps", text, rows)


def readout_section(inside: Inside) -> Section:
    """The image's latents and its predictions as pixels."""
    panels = [Panel("original", "the image", photograph(inside.images[0]))]
    for number, readout in enumerate(inside.readouts):
        for name, words, found in (
            ("latents", "its latents", readout.true),
            ("predictions", "predictions", readout.predicted),
        ):
            if found is not None:
                db = psnr(inside.images[:1], found[:1]).item()
                shown = f"{db:.1f} dB" if db < 99.9 else "exact"
                title = f"{words}, {short(readout.name)}: {shown}"
                panels.append(Panel(f"readout{number + 1}_{name}", title, photograph(found[0])))
    notes = " ".join(readout.note for readout in inside.readouts)
    seen = (
        "Predictions: each patch is predicted from the true patches before it."
        if inside.mode == "causal"
        else "Predictions: under full attention, so the model has seen the patch that it predicts."
    )
    return Section("Latents as pixels", f"{seen} {notes}", chunks(panels))


def rollout_section(inside: Inside) -> Section:
    """The known part, and the rest as predicted."""
    image = photograph(inside.images[0])
    panels = [Panel("known", f"known: {inside.num_known} patches", image, veil_from=inside.num_known)]
    for number, readout in enumerate(inside.readouts):
        if readout.rollout is not None:
            found = photograph(readout.rollout[0])
            panels.append(Panel(f"rollout{number + 1}", f"the rest, {short(readout.name)}", found))
    panels.append(Panel("rollout_truth", "the image", image))
    text = (
        f"The model is given {inside.num_known} of {inside.num_patches} patches and continues on its own: each "
        "prediction is fed back, at the mean length of the known latents, as the latent that the next one is predicted "
        "from."
    )
    return Section("Rollout", text, chunks(panels))


def chunks(panels: list[Panel], size: int = 6) -> list[list[Panel]]:
    """Rows of at most `size` panels, as even as they come."""
    num = -(-len(panels) // size)
    size = -(-len(panels) // num)
    return [panels[start : start + size] for start in range(0, len(panels), size)]


def short(name: str) -> str:
    """A readout's name where there is little room."""
    return {"decoder of latents": "decoder L", "decoder of predictions": "decoder P"}.get(name, name)


def layer_name(inside: Inside, layer: int) -> str:
    return {0: "latents", inside.num_layers: f"layer {layer}, output"}.get(layer, f"layer {layer}")


def photograph(image: Tensor) -> np.ndarray:
    """[3, H, W] in [0, 1] -> uint8 [H, W, 3], shrunk if it is larger than it is drawn."""
    scale = MAX_SHOWN / max(image.shape[-2:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.shape[-2:]]
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    return as_bytes(image.permute(1, 2, 0).numpy())


def as_bytes(values: np.ndarray) -> np.ndarray:
    """[0, 1] -> uint8."""
    return (values * 255).round().astype(np.uint8)


def glow(image: Tensor, overlay: np.ndarray) -> np.ndarray:
    """A map over the image in dark grey, blended as light, so that both are seen: uint8 [H, W, 3]."""
    grey = photograph(image.mean(0, keepdim=True).expand(3, -1, -1)).astype(np.float32) / 255 * 0.45
    large = np.asarray(Image.fromarray(overlay[..., :3]).resize(grey.shape[1::-1], Image.Resampling.NEAREST))
    return as_bytes(1 - (1 - grey) * (1 - large.astype(np.float32) / 255))


def made_here() -> PngInfo:
    """Metadata of our PNG files."""
    info = PngInfo()
    info.add_text("Software", MAKER)
    return info


def is_made_here(file: Path) -> bool:
    """Whether a file is a picture that this library wrote."""
    with file.open("rb") as opened:
        return f"Software\0{MAKER}".encode() in opened.read(1000)


class Drawing:
    """Sections laid out on one matplotlib `figure`; `png()` and `panels()` are its files."""

    def __init__(self, inside: Inside, sections: list[Section], title: str, subtitle: str):
        self.inside = inside
        self.boxes: dict[str, tuple[float, float, float, float]] = {}
        texts = [textwrap.wrap(section.text, LETTERS) for section in sections]
        notes = [line for note in inside.notes for line in textwrap.wrap(note, LETTERS_LARGE)]
        heading = textwrap.wrap(subtitle, LETTERS_LARGE)
        height = 0.72 + LINE_HEIGHT * (len(heading) + len(notes)) + MARGIN
        for section, lines in zip(sections, texts, strict=True):
            height += HEAD + LINE_HEIGHT * len(lines) + 0.06
            height += sum(self._row_height(section, panels) for panels in section.rows)
        self.height = height
        self.figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.y = height - 0.2  # inches from the bottom, going down
        self._text(title, 14, INK, 0.34, weight="bold")
        for line in (*heading, *notes):
            self._text(line, 8.5, SOFT, LINE_HEIGHT)
        self.y -= 0.1
        for section, lines in zip(sections, texts, strict=True):
            self._section(section, lines)

    def png(self) -> bytes:
        """The whole picture as a PNG file; the same each time."""
        out = io.BytesIO()
        self.figure.savefig(out, format="png", metadata={"Software": MAKER})
        return out.getvalue()

    def panels(self) -> dict[str, bytes]:
        """Every panel with its title as a PNG file, by name."""
        whole = Image.open(io.BytesIO(self.png())).convert("RGB")
        found = {}
        for name, (left, top, right, bottom) in self.boxes.items():
            out = io.BytesIO()
            edges = [round(edge * DPI) for edge in (left, self.height - top, right, self.height - bottom)]
            whole.crop((edges[0], edges[1], edges[2], edges[3])).save(out, "PNG", optimize=True, pnginfo=made_here())
            found[name] = out.getvalue()
        return found

    def _side(self, section: Section) -> tuple[float, float]:
        """Width and height of a section's panels, inches."""
        columns = max(section.num_columns, 5)
        width = min((WIDTH - 2 * MARGIN - GAP * (columns - 1)) / columns, LARGEST)
        return width, width * self.inside.images.shape[-2] / self.inside.images.shape[-1]

    def _row_height(self, section: Section, panels: list[Panel]) -> float:
        return TITLE + self._side(section)[1] + (BAR if any(p.bar for p in panels) else 0.0) + GAP

    def _text(self, text: str, size: float, colour: str, height: float, **style: Any) -> None:
        self.y -= height
        self.figure.text(
            MARGIN / WIDTH,
            self.y / self.height,
            text,
            fontsize=size,
            color=colour,
            va="bottom",
            parse_math=False,
            **style,
        )

    def _section(self, section: Section, lines: list[str]) -> None:
        self._text(section.title, 11, INK, HEAD, weight="bold")
        for line in lines:
            self._text(line, 7.5, SOFT, LINE_HEIGHT)
        self.y -= 0.06
        width, height = self._side(section)
        for panels in section.rows:
            top = self.y
            for i, panel in enumerate(panels):
                left = MARGIN + i * (width + GAP)
                self._panel(panel, (left, top - TITLE - height, width, height))
                bottom = top - TITLE - height - (BAR if panel.bar else 0.02)
                self.boxes[panel.name] = (left - 0.05, top, left + width + 0.08, bottom)
            self.y -= self._row_height(section, panels)

    def _panel(self, panel: Panel, box: tuple[float, float, float, float]) -> None:
        rows, columns = self.inside.grid
        axes = self._axes(box)
        axes.imshow(panel.pixels, interpolation="nearest", extent=(0, columns, rows, 0), aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(edgecolor=LINE, linewidth=0.8)
        if panel.grid:
            axes.vlines(range(1, columns), 0, rows, color=SOFT, lw=0.5, alpha=0.5)
            axes.hlines(range(1, rows), 0, columns, color=SOFT, lw=0.5, alpha=0.5)
        if panel.veil_from is not None:
            veil = np.full((rows, columns, 4), 232, np.uint8)
            veil[..., 3] = 255 * (np.arange(rows * columns).reshape(rows, columns) >= panel.veil_from)
            axes.imshow(veil, interpolation="nearest", extent=(0, columns, rows, 0), aspect="auto")
        for colour, patch in panel.marks.items():
            inset = 0.06 if max(rows, columns) <= 8 else -0.3  # around a small patch, so that it stays visible
            corner, side = (patch % columns + inset, patch // columns + inset), 1 - 2 * inset
            style: Any = (0, (2, 1.2)) if colour == CURRENT else "solid"
            thick = min(1.8, max(1.1, 5 * box[2] / columns))
            axes.add_patch(Rectangle(corner, side, side, fill=False, ec=colour, lw=thick, ls=style))
        axes.set_xlim(0, columns)
        axes.set_ylim(rows, 0)
        if panel.corner:
            axes.text(0.04, 0.03, panel.corner, transform=axes.transAxes, fontsize=6.5, color="white", va="bottom")
        axes.set_title(panel.title, fontsize=min(8.0, 5.0 + 1.6 * box[2]), color=INK, pad=3.5, parse_math=False)
        if panel.bar:
            cmap, low, high = panel.bar
            left, bottom, width, _ = box
            bar = self._axes((left + 0.1 * width, bottom - 0.13, 0.8 * width, 0.07))
            scale = ScalarMappable(Normalize(low, max(high, low + 1e-9)), cmap)
            ticks = [low, (low + high) / 2, high]
            self.figure.colorbar(scale, bar, orientation="horizontal", ticks=ticks, format="%.2f")
            bar.tick_params(labelsize=6.5, length=2, pad=1.5, colors=SOFT)

    def _axes(self, box: tuple[float, float, float, float]) -> Any:
        left, bottom, width, height = box
        sizes = (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(sizes)
