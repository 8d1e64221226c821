"""The candle test: pictures of hot and cold things, and how they feel.

Through a hole in a box one sees a candle; it may be one, or a film of one. Only touch, a series of temperatures,
distinguishes them. So two continuations of the picture are possible, with known rates, with which a model can be
compared.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..core.config import DATA
from ..core.types import Document, Role, Segment
from ..data.documents import DocumentPart, text
from ..data.draws import Draws, sample_seed
from ..data.layouts import Layouts, check_layouts, drawn_layout
from ..data.media import series
from ..data.record import Record, key_of
from ..data.rows import Rows, RowSequence
from ..data.tables import DocumentTable, field, words
from ..errors import ConfigError, unknown
from .emoji_documents import moved

Warmth = Literal["hot", "cold", "room"]

# Names of emoji (Unicode CLDR). Of the sample that comes with the package, training and test have some of each, and
# validation has no cold ones.
HOT = (
    "fire, candle, diya lamp, sun, sun with face, hot beverage, hot springs, steaming bowl, pot of food, cooking, "
    "roasted sweet potato, light bulb, cigarette, teapot, firecracker, volcano, shallow pan of food, pancakes, sake, "
    "heart on fire, curry rice, cooked rice, mate"
)
COLD = (
    "ice, snowflake, snowman, snowman without snow, ice cream, soft ice cream, shaved ice, snow-capped mountain, "
    "cloud with snow, cup with straw, ice skate, sled, skis, tropical drink, bubble tea, mount fuji"
)
ROOM = (
    "books, soccer ball, key, teddy bear, guitar, pencil, scissors, chair, door, hammer, umbrella, violin, gem stone, "
    "basket, bell, running shoe, backpack, wrench, trophy, envelope, magnet, drum, crayon, ring, puzzle piece, "
    "screwdriver, baseball, mirror"
)
THINGS: dict[str, Warmth] = {
    name: cast(Warmth, warmth)
    for warmth, names in (("hot", HOT), ("cold", COLD), ("room", ROOM))
    for name in names.split(", ")
}

# Temperatures are series values: 0 is the room's 20 degrees Celsius, and 1 is 20 degrees more.
END = {"hot": 2.0, "cold": -1.0, "room": 0.0}  # temperature of a real thing: 60, 0 and 20 degrees
SPREAD = 0.15  # deviation of the final temperature within a kind, as a share
PACE = (5.0, 10.0)  # time constant in samples

WORDS = ("picture", "touch", "what", "hot", "cold", "name")
QUESTIONS = {"what": "what is it?", "hot": "is it hot?", "cold": "is it cold?"}
DEFAULT_LAYOUTS = {
    "picture touch what": 2.0,
    "picture touch hot": 3.0,
    "picture touch cold": 1.0,
    "picture what touch": 2.0,
    "picture hot touch": 2.0,
    "picture hot": 1.0,
    "name picture touch": 1.0,
    "picture touch name": 1.0,
    "touch hot": 1.0,
}


class Truth(NamedTuple):
    """The truth behind a document. name, warmth: of the thing in the picture. is_real: False for a picture or film of
    it, which stays at room temperature. real_rate: how often it is real. touch [1, num_samples], float32: all
    temperatures, of which documents contain the first `num_touched`. layout: of the document.
    """

    name: str
    warmth: Warmth
    is_real: bool
    real_rate: float
    touch: Tensor
    num_touched: int
    layout: str

    @property
    def is_hot(self) -> bool:
        return self.is_real and self.warmth == "hot"

    @property
    def is_cold(self) -> bool:
        return self.is_real and self.warmth == "cold"

    def answer(self, question: str) -> str:
        """To "what", "hot" or "cold"."""
        if question == "what":
            return self.name
        return "yes" if (self.is_hot if question == "hot" else self.is_cold) else "no"


@DATA.register("candle")
class Candle(DocumentTable, DocumentPart):
    """Pictures of hot, cold and other things, temperatures on touching them, and questions about them.

    Attributes:
        source: "emoji", the sample that comes with the package, or a table like it, with images and names.
        things: names with their warmth ("hot", "cold" or "room"); null: a list of emoji (`candle.THINGS`). Rows of
            other names are left out.
        image_column: column of the picture.
        name_column: column of the name.
        real_rate: share of hot or cold things that are real; the others are a picture or film of one, which feels like
            the room.
        real_rates: the same for single things, by their names.
        layouts: what documents hold, with how often, in words: picture; touch, the first so many temperatures, drawn
            from `touch_samples`; what, hot, cold, questions with their answers (what is it? is it hot? is it cold?),
            with loss on the answer alone; name, the thing's name. {"picture touch hot": 2, "picture what touch": 1}.
        touch_samples: lengths of a touch, of which one is drawn.
        num_samples: temperatures of a whole touch.
        noise: standard deviation of their noise. Values are (degrees Celsius - 20) / 20: a hot thing rises to about 2,
            a cold one falls to about -1; both come near that within 15 to 30 samples.
        touch_kind: the kind of the segment of temperatures.
        max_shift: random shift and change of size of the picture, as shares of its side.
        max_scale: random shift and change of size of the picture, as shares of its side.
        repeats: documents of each picture in an epoch.
    """

    source: str = "emoji"
    image_column: str = "image"
    name_column: str = "name"
    things: dict[str, Warmth] | None = None
    real_rate: float = Field(0.7, ge=0, le=1)
    real_rates: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    layouts: Layouts = Field(default_factory=lambda: dict(DEFAULT_LAYOUTS))
    touch_samples: list[Annotated[int, Field(gt=0)]] = Field(default=[4, 8, 16, 32], min_length=1)
    num_samples: int = Field(32, gt=0, le=100_000)
    noise: float = Field(0.05, ge=0, le=1000)
    touch_kind: str = "series"
    max_shift: float = Field(0.1, ge=0, lt=1)
    max_scale: float = Field(0.1, ge=0, lt=1)
    repeats: int = Field(16, gt=0, le=1_000_000)

    @model_validator(mode="after")
    def _fit_together(self) -> "Candle":
        check_layouts(self.layouts, WORDS)
        if max(self.touch_samples) > self.num_samples:
            raise ValueError(f"touch_samples: {max(self.touch_samples)} is more than num_samples={self.num_samples}")
        if strange := [name for name in self.real_rates if name not in self.warmths()]:
            raise ValueError(unknown("real_rates:", strange[0], self.warmths()))
        return self

    def warmths(self) -> dict[str, Warmth]:
        return THINGS if self.things is None else self.things

    def rows(self, split: Role) -> Rows:
        """`repeats` rows of each picture of a split."""
        if self.streaming:
            raise ConfigError("data.streaming: the candle test is made of a table that can be indexed")
        names = {self.name_column: list(self.warmths())}
        chosen = self.model_copy(update={"where": {**names, **self.where}})
        return RepeatedRows(indexed(super(Candle, chosen).rows(split)), self.repeats)

    def check(self, columns: list[str]) -> None:
        super().check(columns)
        for setting, column in (("image_column", self.image_column), ("name_column", self.name_column)):
            if column not in columns:
                raise ConfigError(unknown(f"data.{setting}:", column, columns))

    def document(self, row: Record, seed: int) -> Document:
        return self.drawn(row, seed)[0]

    # -- with the truth, for evaluation

    def drawn(self, row: Record, seed: int) -> tuple[Document, Truth]:
        """The document that training reads for a row with this seed, and its truth."""
        names = drawn_layout(self.layouts, lambda word: True, Draws(sample_seed(seed, 0, "layout")))
        assert names is not None
        return self.make(row, " ".join(names), seed)

    def make(
        self, row: Record, layout: str, seed: int = 0, is_real: bool | None = None, num_touched: int | None = None
    ) -> tuple[Document, Truth]:
        """A document of a row in one layout, and its truth. is_real, num_touched: None draws them."""
        check_layouts({layout: 1.0}, WORDS)
        truth = self.truth(row, layout, seed, is_real, num_touched)
        segments: list[Segment] = []
        for word in layout.split():
            if word == "picture":
                segments.append(self.picture(row, seed))
            elif word == "touch":
                if truth.num_touched:
                    segments.append({**series(truth.touch[:, : truth.num_touched]), "kind": self.touch_kind})
            elif word == "name":
                segments.append(text(f"{truth.name}."))
            else:
                segments += [text(QUESTIONS[word], loss=False), text(f" {truth.answer(word)}.")]
        return {"key": row.key, "segments": segments}, truth

    def truths(self, split: Role, num: int | None = None, seed: int = 0) -> Iterator[tuple[Document, Truth]]:
        """The documents of `documents(split, num, seed)`, each with its truth. Raises Unreadable."""
        rows = self.rows(split)
        for number in range(len(rows) if num is None else min(num, len(rows))):
            row = rows[number]
            yield self.drawn(row, sample_seed(seed, 0, key_of(row, number)))

    def truth(
        self, row: Record, layout: str, seed: int, is_real: bool | None = None, num_touched: int | None = None
    ) -> Truth:
        name = words(field(row, self.name_column), self.name_column)
        warmth = self.warmths()[name]
        rate = 1.0 if warmth == "room" else self.real_rates.get(name, self.real_rate)
        draw = Draws(sample_seed(seed, 0, "truth"))
        coin, number = draw.share() < rate, draw.below(len(self.touch_samples))
        real = coin if is_real is None else is_real
        touched = self.touch_samples[number] if num_touched is None else num_touched
        if not 0 <= touched <= self.num_samples:
            raise ValueError(f"num_touched is 0 to {self.num_samples}, not {touched}")
        end = END[warmth] if real else 0.0
        touch = temperatures(end, self.num_samples, self.noise, sample_seed(seed, 0, "touch"))
        return Truth(name, warmth, real, rate, touch, touched, layout)

    def picture(self, row: Record, seed: int | None) -> Segment:
        """The thing on its background, shifted and scaled if there is a seed. Raises Unreadable."""
        pixels = self.reader().read(row.folder.read(field(row, self.image_column)))
        if seed is not None and (self.max_shift or self.max_scale):
            draw = Draws(sample_seed(seed, 0, "move"))
            pixels = moved(pixels, draw, self.max_shift, self.max_scale, self.background)
        return {"kind": "image", "value": pixels, "loss": True}


def temperatures(end: float, num_samples: int, noise: float, seed: int) -> Tensor:
    """A touch, float32 [1, num_samples]: from the room's 0 towards about `end`, as a body warms up (Newton's law), with
    Gaussian noise."""
    draw = Draws(seed)
    end *= 1 + SPREAD * (2 * draw.share() - 1)
    pace = PACE[0] + (PACE[1] - PACE[0]) * draw.share()
    values = []
    for sample in range(num_samples):
        # Box and Muller (1958): a normal number from two uniform ones.
        spread = math.sqrt(-2 * math.log(1 - draw.share())) * math.cos(2 * math.pi * draw.share())
        values.append(end * (1 - math.exp(-sample / pace)) + noise * spread)
    return torch.tensor([values], dtype=torch.float32)


def indexed(rows: Rows | RowSequence) -> Rows:
    assert isinstance(rows, Rows)  # nothing here is streamed
    return rows


class RepeatedRows:
    """Rows that are repeated in an epoch, each repetition with its own key."""

    def __init__(self, rows: Rows, repeats: int):
        self.rows, self.repeats = rows, repeats

    def __len__(self) -> int:
        return len(self.rows) * self.repeats

    def __getitem__(self, index: int) -> Record:
        number, repeat = divmod(index, self.repeats)
        row: Record = self.rows[number]
        return row.but(key=f"{row.key}/{repeat}")
