"""Rows of segments in any order, in our own JSON lines and in the formats of OBELICS and MMC4."""

from collections import defaultdict
from typing import Any, Literal, cast

from pydantic import Field, field_validator

from ..core.config import DATA
from ..core.types import Document, Segment
from ..errors import DataError
from .documents import DocumentPart
from .draws import sample_seed, uniform
from .media import Media
from .record import Record, check_readable
from .stored import Values
from .tables import DocumentTable, field
from .transforms import Unreadable

Layout = Literal["segments", "obelics", "mmc4"]
FILES = ("image", "video", "audio")


# Keys of a segment besides its value.
MARKS = ("type", "value", "loss", "order", "bytes", "path")


@DATA.register("interleaved")
class Interleaved(Media, DocumentTable, DocumentPart):
    """Documents in which text, images and other modalities alternate; all of them are learned.

    Attributes:
        layout: "segments", {"segments": [{"text": ...}, {"image": "a.jpg"}, {"type": "audio", "value": "b.flac"}]},
            each with an optional "loss"; "obelics", lists `images` and `texts` of one length, one of the two null at
            each place; "mmc4", `text_list` and `image_info` with image_name and matched_text_index. "auto" tells by the
            columns.
        images_from: folder of the files that a row names, within the source's.
        place: whether an MMC4 image stands before or after its text; "random" chooses for each image.
        missing_images: how an image, video, sound or series that cannot be read is handled: "skip" leaves its document
            out (and logs it), "drop" only the segment, "error" stops the run.
        unknown_kinds: the same for a segment of an unknown kind.
        max_images: limit of images and videos in a document; what follows is left out. null: no limit.
    """

    layout: Literal["auto"] | Layout = "auto"
    images_from: str = ""
    place: Literal["before", "after", "random"] = "random"
    missing_images: Literal["skip", "drop", "error"] = "skip"
    unknown_kinds: Literal["skip", "drop", "error"] = "skip"
    max_images: int | None = Field(None, gt=0)

    @field_validator("own_kinds")
    @classmethod
    def _are_no_marks(cls, kinds: dict[str, str]) -> dict[str, str]:
        if taken := [name for name in kinds if name in MARKS]:
            raise ValueError(f"'{taken[0]}' is a reserved key of segments; choose another name")
        return kinds

    def document(self, row: Record, seed: int) -> Document:
        layout = self.layout if self.layout != "auto" else layout_of(row)
        segments: list[Segment] = []
        images = 0
        for piece in self.pieces(layout, row, seed):
            if self.own_kinds.get(piece["kind"], piece["kind"]) in ("image", "video"):
                images += 1
                if self.max_images is not None and images > self.max_images:
                    break
            segments += self.decoded(piece, row)
        if not segments:
            raise Unreadable("the document is empty")
        return {"key": row.key, "segments": segments}

    def pieces(self, layout: Layout, row: Values, seed: int) -> list[Segment]:
        """The segments of a row, not decoded yet. Raises Unreadable."""
        if layout == "obelics":
            return from_obelics(row)
        if layout == "mmc4":
            return from_mmc4(row, self.place, seed)
        return from_segments(row, self.kinds_known())

    def decoded(self, piece: Segment, row: Record) -> list[Segment]:
        """The segment, or nothing if it is dropped. Raises Unreadable."""
        kind, value = piece["kind"], piece["value"]
        known = kind in self.kinds_known()
        try:
            if not known:
                raise Unreadable(f"a segment has one of {', '.join(self.kinds_known())}, not '{kind}'")
            if isinstance(value, str) and self.images_from and self.own_kinds.get(kind, kind) in FILES:
                value = f"{self.images_from}/{value}"
            read = self.segment(kind, value, row.folder, piece.get("loss", True))
        except Unreadable as err:
            setting = self.missing_images if known else self.unknown_kinds
            if setting == "error":
                raise DataError(f"document {row.key}: {err}") from None
            if setting == "skip" or kind == "text":
                raise
            return []
        return [cast(Segment, {**piece, **read})]


def layout_of(row: Values) -> Layout:
    """Raises Unreadable for columns of no known layout."""
    check_readable(row)
    if "segments" in row:
        return "segments"
    if "text_list" in row and "image_info" in row:
        return "mmc4"
    if "images" in row and "texts" in row:
        return "obelics"
    columns = ", ".join(map(str, row))[:200]
    raise Unreadable(f"interleaved rows have segments, images and texts, or text_list (data.layout); not {columns}")


def from_segments(row: Values, known: list[str]) -> list[Segment]:
    found: list[Segment] = []
    for piece in as_list(field(row, "segments"), "segments"):
        given = {k: v for k, v in piece.items() if v is not None} if isinstance(piece, dict) else {}
        kind = kind_of(given, known)
        if kind is None or not isinstance(given.get("loss", True), bool):
            raise Unreadable(f"a segment has one of {', '.join(known)}, not {str(piece)[:80]}")
        value = given.get(kind, given.get("value"))
        if value is None and ("bytes" in given or "path" in given):
            value = {"bytes": given.get("bytes"), "path": given.get("path")}
        segment = {"kind": kind, "value": value, "loss": given.get("loss", True)}
        found.append(cast(Segment, segment | ({"order": given["order"]} if "order" in given else {})))
    return found


def kind_of(given: Values, known: list[str]) -> str | None:
    """The kind of a segment: its "type", or the only name of a kind among its keys; None if unclear."""
    if "type" in given:
        return given["type"] if isinstance(given["type"], str) else None
    names = [name for name in given if name in known] or [name for name in given if name not in MARKS]
    return names[0] if len(names) == 1 else None


def from_obelics(row: Values) -> list[Segment]:
    images, texts = as_list(field(row, "images"), "images"), as_list(field(row, "texts"), "texts")
    if len(images) != len(texts):
        raise Unreadable(f"{len(images)} images and {len(texts)} texts")
    found: list[Segment] = []
    for shown, written in zip(images, texts):
        if shown is not None and written is not None:
            raise Unreadable("both an image and a text at the same position")
        if shown is not None:
            found.append({"kind": "image", "value": shown})
        elif written is not None:
            found.append({"kind": "text", "value": written})
    return found


def from_mmc4(row: Values, place: str, seed: int) -> list[Segment]:
    texts = as_list(field(row, "text_list"), "text_list")
    if not all(isinstance(written, str) for written in texts):
        raise Unreadable("'text_list' contains values that are not text")
    matched: dict[int, list[str]] = defaultdict(list)
    for info in as_list(field(row, "image_info"), "image_info"):
        if not isinstance(info, dict) or "image_name" not in info or "matched_text_index" not in info:
            raise Unreadable("image_info needs image_name and matched_text_index")
        index = info["matched_text_index"]
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(texts):
            raise Unreadable(f"matched_text_index {index} of {len(texts)} texts")
        matched[index].append(info["image_name"])
    found: list[Segment] = []
    for index, written in enumerate(texts):
        shown: list[Segment] = [{"kind": "image", "value": name} for name in matched[index]]
        coins = [uniform(sample_seed(seed, index, "place"), i) < 0.5 for i in range(len(shown))]
        early = [place == "before" or (place == "random" and coin) for coin in coins]
        found += [image for image, first in zip(shown, early) if first]
        if found and found[-1]["kind"] == "text":
            found[-1] = {"kind": "text", "value": f"{found[-1]['value']} {written}"}  # sentences of one text
        else:
            found.append({"kind": "text", "value": written})
        found += [image for image, first in zip(shown, early) if not first]
    return found


def as_list(value: object, name: str) -> list[Any]:
    """Raises Unreadable for what is no list."""
    if not isinstance(value, list):
        raise Unreadable(f"'{name}' is not a list")
    return value
