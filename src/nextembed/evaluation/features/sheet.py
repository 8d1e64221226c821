"""A contact sheet: the query and its nearest images with captions, as one picture."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from ...core.code import check_code
from ...core.config import DATA
from ...core.files import replacing
from ...core.types import IGNORE_LABEL
from ...data.images import ImagePart
from ...data.rows import Rows, rows_in_order
from ...data.sources import ImageData
from ...data.transforms import ImageReader, Unreadable
from ...errors import NextEmbedError
from .encoder import Picture
from .search import Hit
from .stored import StoredRows

TILE, GAP, MARGIN, CAPTION, HEADER = 176, 18, 28, 58, 66
INK, SOFT, PAGE, CARD, LINE, ACCENT = "#1b2330", "#5b6675", "#f6f7f9", "#ffffff", "#dfe4ea", "#d55e00"
SCALE = 2  # drawn at twice the size, to be sharp on any screen


def images_of(file: StoredRows, hits: Sequence[Hit]) -> list[Image.Image | None]:
    """The pictures of hits: by path, else from the source; None if that is not possible."""
    found: dict[int, Picture] = {hit.row: hit.path for hit in hits if hit.path and Path(hit.path).is_file()}
    missing = {hit.row: hit.key for hit in hits if hit.row not in found}
    found |= _from_source(file, missing) if missing else {}
    return [_picture(found[hit.row]) if hit.row in found else None for hit in hits]


def _from_source(file: StoredRows, wanted: dict[int, str]) -> dict[int, Picture]:
    """Images by row, of rows that still have the same key. A stream is read only where it lies on this machine."""
    values = file.origin.data
    if values is None:
        return {}
    check_code({"data": values}, file.path)
    try:
        data = DATA.parse(values)
        if not isinstance(data, ImagePart):
            return {}
        source = data.source if isinstance(data, ImageData) and data.streaming else "emoji"
        if source != "emoji" and not Path(source).expanduser().exists():
            return {}
        rows = data.rows("train")
        if isinstance(rows, Rows):
            pairs = [(n, rows[n]) for n in wanted if n < len(rows)]
        else:
            numbered = ((place.row - 1, row) for place, row in rows_in_order(rows))
            pairs = [(n, row) for n, row in itertools.islice(numbered, max(wanted) + 1) if n in wanted]
    except (NextEmbedError, OSError):
        return {}
    return {n: row["image"] for n, row in pairs if "image" in row and str(row.get("key", n)) == wanted[n]}


def _picture(image: Picture) -> Image.Image | None:
    try:
        return Image.fromarray(ImageReader(3).read(image).permute(1, 2, 0).numpy())
    except Unreadable:
        return None


def contact_sheet(
    query: Picture | None, name: str, hits: Sequence[Hit], pictures: Sequence[Image.Image | None], title: str = ""
) -> Image.Image:
    """The query, marked, followed by the hits, row by row.

    Args:
        query: the image; None leaves its place empty.
        name: what is written under it.
        hits: in order.
        pictures: of the hits; None leaves a place empty.
        title: one line at the top.
    """
    num = len(hits) + 1
    columns = min(num, min(range(4, 8), key=lambda c: (-num % c, abs(c - 5))))  # few empty places
    rows = -(-num // columns)
    width = 2 * MARGIN + max(columns, 3) * (TILE + GAP) - GAP
    height = HEADER + rows * (TILE + CAPTION + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width * SCALE, height * SCALE), PAGE)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (MARGIN, 16), "Nearest images", 20, INK, width - 2 * MARGIN, bold=True)
    _text(draw, (MARGIN, 41), title, 12, SOFT, width - 2 * MARGIN)
    shown = _picture(query) if query is not None else None
    tiles = [(shown, "query", name, "")]
    tiles += [(p, f"{h.rank}   cos {h.cosine:.4f}", _label(h), h.key) for p, h in zip(pictures, hits)]
    for number, (picture, head, label, key) in enumerate(tiles):
        x = MARGIN + number % columns * (TILE + GAP)
        y = HEADER + number // columns * (TILE + CAPTION + GAP)
        _tile(sheet, draw, picture, (x, y), marked=number == 0)
        _text(draw, (x, y + TILE + 6), head, 12, ACCENT if number == 0 else INK, TILE, bold=True)
        _text(draw, (x, y + TILE + 23), label or key, 12, INK, TILE)
        if label and key:
            _text(draw, (x, y + TILE + 39), key, 10, SOFT, TILE)
    return sheet


def save_sheet(sheet: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Writes a PNG atomically."""
    target = Path(path)
    with replacing(target) as scratch:
        sheet.save(scratch, "PNG")
    return target


def _label(hit: Hit) -> str:
    if hit.label_name:
        return hit.label_name
    return "" if hit.label in (None, IGNORE_LABEL) else f"class {hit.label}"


def _tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image | None, at: tuple[int, int], marked: bool
) -> None:
    left, top = (v * SCALE for v in at)
    side, edge = TILE * SCALE, (4 if marked else 1) * SCALE
    box = (left - edge, top - edge, left + side + edge - 1, top + side + edge - 1)
    draw.rounded_rectangle(box, radius=8 * SCALE, fill=CARD, outline=ACCENT if marked else LINE, width=edge)
    if picture is None:
        draw.text((left + side / 2, top + side / 2), "no picture", SOFT, _font(12, False), anchor="mm")
        return
    room = side - 8 * SCALE
    factor = room / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    # Pictures of few pixels look cleaner with square pixels than blurred.
    how = Image.Resampling.NEAREST if factor >= 3 else Image.Resampling.LANCZOS
    sheet.paste(picture.resize(size, how), (left + (side - size[0]) // 2, top + (side - size[1]) // 2))


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, room: int, bold: bool = False
) -> None:
    """One line, shortened in its middle to fit, because file names differ at their ends."""
    font = _font(size, bold)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]
    short = text
    for keep in itertools.takewhile(lambda n: n >= 2, range(len(text), 1, -1)):
        short = text if keep == len(text) else f"{text[: keep // 2]}…{text[len(text) - keep + keep // 2 :]}"
        if draw.textlength(short, font=font) <= room * SCALE:
            break
    draw.text((at[0] * SCALE, at[1] * SCALE), short, colour, font)


def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    # matplotlib's own fonts: most alphabets, and the same on every machine.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name), size * SCALE)
