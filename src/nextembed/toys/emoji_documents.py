"""Documents about emoji: captions in both directions, keywords, questions about the group, two pictures in context."""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from ..core.config import DATA, Config
from ..core.types import Document, Role, Segment
from ..data.documents import DocumentPart, RowSource, text
from ..data.draws import Draws, sample_seed
from ..data.record import Record
from ..data.rows import Rows
from ..data.tables import DocumentTable, field, words
from ..data.transforms import Unreadable
from ..errors import ConfigError
from .emoji_chat import Facts, conversation
from .restyle import restyled

CACHE_BYTES = 256 * 2**20

# Questions about the group; the last ones are never trained on, and show whether a model understands the question.
FORMS: dict[str, tuple[str, ...]] = {
    "train": (
        "Question: what kind of thing is this? Answer:",
        "Question: which group does it belong to? Answer:",
        "Question: what group is this emoji in? Answer:",
        "Q: what kind of emoji is this? A:",
        "What kind of thing is shown? It belongs to",
        "This is a picture from the group",
    ),
    "heldout": (
        "Question: to which kind does this thing belong? Answer:",
        "Q: which group is it in? A:",
        "Tell me the group of this emoji:",
    ),
}


class KindWeights(Config):
    """How often each kind of document is made.

    Attributes:
        caption: relative frequency of "<image> name.".
        paint: relative frequency of "name: <image>".
        tags: relative frequency of "<image> keywords: a, b.".
        question: relative frequency of a question about the group, with loss on the answer alone.
        context: relative frequency of two captioned images in one document.
        chat: relative frequency of one or two questions answered in sentences.
    """

    caption: float = Field(3.0, ge=0, le=1e9)
    paint: float = Field(3.0, ge=0, le=1e9)
    tags: float = Field(1.0, ge=0, le=1e9)
    question: float = Field(2.0, ge=0, le=1e9)
    context: float = Field(1.0, ge=0, le=1e9)
    chat: float = Field(0.0, ge=0, le=1e9)

    @model_validator(mode="after")
    def _some(self) -> "KindWeights":
        if not any(self.model_dump().values()):
            raise ValueError("all weights are 0")
        return self


@DATA.register("emoji_documents")
class EmojiDocuments(DocumentTable, DocumentPart):
    """Documents about emoji, drawn anew for each emoji in each epoch.

    Attributes:
        source: "emoji", the sample that comes with the package, or a folder like it: Parquet with the columns image,
            name, tags and group, and perhaps vendor.
        vendor: keeps the pictures of one, or of some; null: all.
        kinds: relative frequency of each kind of document.
        forms: the questions that are asked, "train" or "heldout".
        prompt_loss: whether the name before a picture that is painted is predicted, too; nothing says which it will be.
        max_shift: random shift, as a share of the side, of the pictures that are read, not generated, on their white
            ground, in training; 0 leaves them as they are.
        max_scale: random change of their size, as a share; 0 leaves them as they are.
        restyle_rate: share of the pictures that are read, not generated, whose style is changed at random in training:
            colours, flat areas, lines, a turn, something covered.
    """

    source: str = "emoji"
    vendor: str | list[str] | None = None
    kinds: KindWeights = Field(default_factory=KindWeights)
    forms: Literal["train", "heldout"] = "train"
    prompt_loss: bool = True
    max_shift: float = Field(0.0, ge=0, lt=1)
    max_scale: float = Field(0.0, ge=0, lt=1)
    restyle_rate: float = Field(0.0, ge=0, le=1)

    def rows(self, split: Role) -> Rows:
        if self.streaming:
            raise ConfigError("data.streaming: documents about emoji are made of tables that can be indexed")
        return EmojiRows(self._vendored().table(split))

    def row_sources(self, split: Role) -> list[RowSource]:
        """Pictures are only changed in training."""
        if split == "train" or not (self.max_shift or self.max_scale or self.restyle_rate):
            return super().row_sources(split)
        still = {"max_shift": 0.0, "max_scale": 0.0, "restyle_rate": 0.0}
        return self.model_copy(update=still).row_sources(split)

    def table(self, split: Role) -> Rows:
        rows = super().rows(split)
        assert isinstance(rows, Rows)  # it is not streamed
        return rows

    def check(self, columns: list[str]) -> None:
        super().check(columns)
        wanted = ["image", "name", "tags", "group", *(["vendor"] if self.vendor is not None else [])]
        if lacking := [name for name in wanted if name not in columns]:
            raise ConfigError(f"data.source: {self.source} has no column '{lacking[0]}': {', '.join(columns)}")

    def _vendored(self) -> "EmojiDocuments":
        if self.vendor is None:
            return self
        return self.model_copy(update={"where": {**self.where, "vendor": self.vendor}})

    def document(self, row: Record, seed: int) -> Document:
        assert isinstance(row, EmojiRow)
        draw = Draws(seed)
        kinds = list(self.kinds.model_dump().items())
        at = draw.share() * sum(weight for _, weight in kinds)
        kind = drawn_kind(kinds, at)
        make = {"caption": self.caption, "paint": self.paint, "tags": self.keywords, "chat": self.chat}
        if kind == "question":
            return self.question(row, seed, draw.below(len(FORMS[self.forms])))
        if kind == "context":
            return self.context([row, row.others.another(row, draw)], seed)
        return make[kind](row, seed)

    # -- the kinds, also for evaluation: the prompt ends before the first segment with loss, if there is one

    def caption(self, row: "EmojiRow", seed: int | None = None) -> Document:
        return self._made(row, [self.picture(row, seed), text(f"{name_of(row)}.")])

    def paint(self, row: "EmojiRow", seed: int | None = None) -> Document:
        return self._made(row, [text(f"{name_of(row)}:", loss=self.prompt_loss), self.picture(row, seed, painted=True)])

    def keywords(self, row: "EmojiRow", seed: int | None = None) -> Document:
        tags = ", ".join(tags_of(row)) or name_of(row)
        return self._made(row, [self.picture(row, seed), text("keywords:", loss=False), text(f" {tags}.")])

    def question(self, row: "EmojiRow", seed: int | None = None, form: int = 0) -> Document:
        asked = text(FORMS[self.forms][form], loss=False)
        answer = text(f" {words(field(row, 'group'), 'group')}.")
        return self._made(row, [self.picture(row, seed, loss=False), asked, answer])

    def context(self, rows: list["EmojiRow"], seed: int | None = None) -> Document:
        """Captions of several emoji, one after the other."""
        segments: list[Segment] = []
        for number, row in enumerate(rows):
            own = None if seed is None else sample_seed(seed, number, "context")
            segments += [self.picture(row, own), text(f"{name_of(row)}.")]
        return self._made(rows[0], segments)

    def chat(self, row: "EmojiRow", seed: int | None = None) -> Document:
        """One question or two, answered in sentences."""
        facts = Facts(name_of(row), tags_of(row), words(field(row, "group"), "group"))
        picture = self.picture(row, seed, loss=False)
        return self._made(row, conversation(picture, facts, Draws(sample_seed(seed or 0, 0, "chat"))))

    def _made(self, row: "EmojiRow", segments: list[Segment]) -> Document:
        return {"key": row.key, "segments": segments}

    def picture(self, row: "EmojiRow", seed: int | None, loss: bool = True, painted: bool = False) -> Segment:
        """The emoji on its background, uint8 [3, H, W]. Raises Unreadable.

        With a seed, one that is read is shifted, scaled and restyled. One that is painted stays as it is: its mean over
        shifts would be blurred.
        """
        pixels = row.pixels
        if pixels is None:
            pixels = self.reader().read(row.folder.read(field(row, "image")))
            row.others.keep(row, pixels)
        if seed is not None and not painted and (self.max_shift or self.max_scale):
            pixels = moved(pixels, Draws(sample_seed(seed, 0, "move")), self.max_shift, self.max_scale, self.background)
        if seed is not None and self.restyle_rate and not painted:
            draw = Draws(sample_seed(seed, 0, "style"))
            if draw.share() < self.restyle_rate:
                pixels = restyled(pixels, draw, self.background)
        return {"kind": "image", "value": pixels, "loss": loss}


def drawn_kind(kinds: list[tuple[str, float]], at: float) -> str:
    """The kind at position `at` in [0, sum of weights)."""
    possible = [(name, weight) for name, weight in kinds if weight > 0]
    for name, weight in possible:
        at -= weight
        if at < 0:
            return name
    return possible[-1][0]  # rounding at the last edge


def name_of(row: Record) -> str:
    return words(field(row, "name"), "name")


def tags_of(row: Record) -> list[str]:
    found = field(row, "tags") or []
    if not isinstance(found, list) or not all(isinstance(tag, str) for tag in found):
        raise Unreadable("'tags' is not a list of texts")
    return found


def moved(pixels: Tensor, draw: Draws, max_shift: float, max_scale: float, background: tuple[int, int, int]) -> Tensor:
    """The picture in another size and position on its background, cropped at the edges."""
    _, height, width = pixels.shape
    scale = 1 + (2 * draw.share() - 1) * max_scale
    left, top = ((2 * draw.share() - 1) * max_shift * side + (1 - scale) / 2 * side for side in (width, height))
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    ground = Image.new("RGB", (width, height), background)
    ground.paste(picture.resize(size, Image.Resampling.BILINEAR), (round(left), round(top)))
    return torch.from_numpy(np.array(ground)).permute(2, 0, 1)


class EmojiRow(Record):
    """A row with access to the others, its index, and its decoded picture."""

    def __init__(self, row: Record, others: "EmojiRows", number: int, pixels: Tensor | None = None):
        super().__init__(row, row.key, row.folder, row.error)
        self.others, self.number, self.pixels = others, number, pixels


class EmojiRows:
    """Rows with access to each other, for documents of two. Rows that were read stay in memory with decoded pictures,
    up to a limit."""

    def __init__(self, rows: Rows):
        self.rows = rows
        self.kept: dict[int, EmojiRow] = {}
        self.bytes_left = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EmojiRow:
        if index in self.kept:
            return self.kept[index]
        return EmojiRow(self.rows[index], self, index)

    def keep(self, row: "EmojiRow", pixels: Tensor) -> None:
        if pixels.nbytes <= self.bytes_left and row.number not in self.kept:
            self.bytes_left -= pixels.nbytes
            row["image"] = None
            self.kept[row.number] = EmojiRow(row, self, row.number, pixels)

    def another(self, row: "EmojiRow", draw: Draws) -> EmojiRow:
        """Another row; the same one only if there is no other."""
        index = draw.below(len(self))
        found = self[index]
        return self[(index + 1) % len(self)] if found.key == row.key else found
