"""Pictures as addresses that hold them, and fragments that show them."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image


def address(picture: Image.Image | np.ndarray) -> str:
    """A PNG as a data: address. picture: PIL, or uint8 [H, W, 3 or 4]."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def tiles(pictures: Sequence[tuple[Image.Image | np.ndarray | None, str, str]]) -> str:
    """A grid of (picture, bold words, words)."""
    boxes = "".join(
        f'<div class="tile-box">{shown(picture, words)}<span><b>{escape(bold)}</b> {escape(words)}</span></div>'
        for picture, bold, words in pictures
    )
    return f'<div class="tiles">{boxes}</div>'


def shown(picture: Image.Image | np.ndarray | None, words: str) -> str:
    """An image, or what stands for one that is not there."""
    if picture is None:
        return '<div class="no-picture">no picture</div>'
    return f'<img alt="{escape(words, quote=True)}" src="{address(picture)}">'
