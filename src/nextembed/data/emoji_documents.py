"""Emoji with their names, keywords and groups as documents of pictures and text: captions both ways, questions, and
pairs in one context."""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from ..core.config import DATA
from ..core.types import Document, Segment
from ..errors import ConfigError
from .documents import DocumentPart, Role
from .origins import find_origin
from .sources import load

KINDS = ("caption", "naming", "keywords", "question", "pair")
FORMS = {
    "train": (
        "Question: what kind of thing is this? Answer:",
        "Question: which group does this picture belong to? Answer:",
        "Question: what sort of picture is it? Answer:",
        "To which kind of things does it belong? Answer:",
    ),
    "heldout": (
        "Question: what category is shown here? Answer:",
        "Tell me the group of this picture. Answer:",
        "Question: this is a kind of what? Answer:",
    ),
}


@DATA.register("emoji_documents")
class EmojiDocuments(DocumentPart):
    """The bundled emoji (Noto, 32 px), or a folder like it: Parquet files with image, name, tags, group, hexcode and
    maybe vendor and split.

    source: "emoji" or the folder. vendor: keeps these drawings only. split: which names train; a Parquet folder
    has a file for each split, the bundled sample a column. weights: how often each kind of document is drawn:
    "caption" (picture, then name), "naming" (name, then picture), "keywords" (picture, keywords), "question" (picture,
    question, group), "pair" (two captions in one context). forms: wordings of the questions, "train" or "heldout".
    shift: pixels by which a training picture is moved at most. answers_only: loss on answers alone, as in instruction
    tuning. image_size: pixels a side that pictures are reduced to.
    """

    source: str = "emoji"
    vendor: str | None = None
    weights: dict[Literal["caption", "naming", "keywords", "question", "pair"], float] = Field(
        {"caption": 0.3, "naming": 0.3, "keywords": 0.1, "question": 0.15, "pair": 0.15}
    )
    forms: Literal["train", "heldout"] = "train"
    shift: int = Field(3, ge=0)
    answers_only: bool = False
    image_size: int = Field(32, ge=8)

    def read(self, split: Role) -> "EmojiRows":
        if not any(self.weights.values()):
            raise ConfigError("data.weights: all are 0")
        return EmojiRows(self, read_emoji(self.source, split, self.vendor, self.image_size), split == "train")


class EmojiRows:
    """`Documents` of emoji. rows: name, tags, group, key and image, uint8 [3, S, S]."""

    def __init__(self, settings: EmojiDocuments, rows: list[dict[str, Any]], augment: bool):
        self.settings, self.rows, self.augment = settings, rows, augment

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return self.rows[index]["key"]

    def document(self, index: int, seed: int) -> Document:
        rng = np.random.default_rng(seed)
        weights = self.settings.weights
        total = sum(weights.values())
        kind = str(rng.choice(list(weights), p=[value / total for value in weights.values()]))
        row = self.rows[index]
        segments = self.segments(kind, row, rng)
        return {"key": row["key"], "segments": segments}

    def segments(self, kind: str, row: dict[str, Any], rng: np.random.Generator) -> list[Segment]:
        """The segments of one kind of document."""
        given = not self.settings.answers_only
        picture: Segment = {"kind": "image", "value": self.picture(row, rng), "loss": given}
        if kind == "naming":
            return [text(f"{row['name']}.", given), {**picture, "loss": True}]
        if kind == "keywords":
            return [picture, text("Keywords:", given), text(" " + ", ".join(row["tags"] or [row["name"]]) + ".")]
        if kind == "question":
            forms = FORMS[self.settings.forms]
            return [picture, text(forms[rng.integers(len(forms))], given), text(f" {row['group']}.")]
        if kind == "pair":
            other = self.rows[rng.integers(len(self.rows))]
            second: Segment = {"kind": "image", "value": self.picture(other, rng), "loss": given}
            return [picture, text(f"{row['name']}."), second, text(f"{other['name']}.")]
        return [picture, text(f"{row['name']}.")]

    def picture(self, row: dict[str, Any], rng: np.random.Generator) -> Tensor:
        """The picture, moved at random in training; what comes in is white."""
        image, most = row["image"], self.settings.shift
        if not self.augment or most == 0:
            return image
        size = image.shape[-1]
        padded = torch.nn.functional.pad(image, (most,) * 4, value=255)
        top, left = rng.integers(0, 2 * most + 1, 2)
        return padded[:, top : top + size, left : left + size]


def text(value: str, loss: bool = True) -> Segment:
    return {"kind": "text", "value": value, "loss": loss}


def read_emoji(source: str, split: Role, vendor: str | None, size: int) -> list[dict[str, Any]]:
    """Rows of a split: name, tags, group, subgroup, hexcode, key, and image, uint8 [3, size, size], on white.

    Raises ConfigError for a folder, split or vendor that is not there.
    """
    origin = find_origin(source)
    bundled = source == "emoji"
    data = load(origin, "train" if bundled else split, None, False)
    missing = [name for name in ("image", "name", "group", "hexcode") if name not in data.column_names]
    if missing:
        raise ConfigError(f"data.source: '{source}' has no column '{missing[0]}'")
    rows = []
    for row in data:
        if (bundled and row["split"] != split) or (vendor is not None and row.get("vendor") != vendor):
            continue
        key = "-".join(filter(None, [row.get("vendor"), row["hexcode"]]))
        stored = row["image"]
        raw = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
        rows.append({"name": row["name"], "tags": row.get("tags"), "group": row["group"], "hexcode": row["hexcode"],
                     "subgroup": row.get("subgroup"), "key": key, "image": on_white(raw, size)})  # fmt: skip
    if not rows:
        raise ConfigError(f"data.vendor: no emoji of '{vendor}' in the {split} split of '{source}'")
    return rows


def on_white(raw: bytes, size: int) -> Tensor:
    image = Image.open(io.BytesIO(raw)).convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, image).convert("RGB")
    if flat.size != (size, size):
        flat = flat.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(flat).copy()).permute(2, 0, 1).contiguous()
