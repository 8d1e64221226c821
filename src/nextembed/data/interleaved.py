"""Rows of text and images that alternate, in the shapes of OBELICS and MMC4 and our own JSON lines."""

from collections import defaultdict
from typing import Any, Literal

from pydantic import Field

from ..core.config import DATA
from ..core.types import Document, Segment
from ..errors import DataError
from .collate import sample_seed
from .documents import text
from .tables import TablePart, field
from .transforms import Unreadable, uniform
from .video import VideoReader, video

Layout = Literal["segments", "obelics", "mmc4"]


@DATA.register("interleaved")
class Interleaved(TablePart):
    """Documents in which text and images alternate; all of both is learned.

    layout: "segments", {"segments": [{"text": ...}, {"image": "a.jpg"}, {"video": "b.mp4"}]}, each with an optional
    "loss"; "obelics", lists `images` and `texts` of one length, one of the two null at each place; "mmc4",
    `text_list` and `image_info` with image_name and matched_text_index. "auto" tells by the columns.
    images_from: folder of the images that a row names, within the source's. place: of an MMC4 image, before or after
    the text that it is matched with; "random" draws for each image.
    missing_images: of an image that cannot be read, "skip" leaves its document out (and logs it), "drop" the image
    alone.
    max_images: what comes after so many in a document is left out; null: all. num_frames: of a video.
    max_seconds: of a video.
    """

    layout: Literal["auto"] | Layout = "auto"
    images_from: str = ""
    place: Literal["before", "after", "random"] = "random"
    missing_images: Literal["skip", "drop"] = "skip"
    max_images: int | None = Field(None, gt=0)
    num_frames: int = Field(8, gt=0)
    max_seconds: float = Field(600.0, gt=0)

    def document(self, row: Any, seed: int) -> Document:
        layout = self.layout if self.layout != "auto" else layout_of(row)
        pieces = {"segments": from_segments, "obelics": from_obelics, "mmc4": from_mmc4}[layout](row, self.place, seed)
        segments: list[Segment] = []
        images = 0
        for piece in pieces:
            if piece["kind"] != "text":
                images += 1
                if self.max_images is not None and images > self.max_images:
                    break
            try:
                segments.append(self.decoded(piece, row["folder"]))
            except Unreadable:
                if self.missing_images == "skip" or piece["kind"] == "text":
                    raise
        if not segments:
            raise Unreadable("the document is empty")
        return {"key": row["key"], "segments": segments}

    def decoded(self, piece: Segment, folder: Any) -> Segment:
        """Raises Unreadable."""
        value, loss = piece["value"], piece.get("loss", True)
        if piece["kind"] == "text":
            return text(value, loss)
        if isinstance(value, str) and self.images_from:
            value = f"{self.images_from}/{value}"
        data = folder.read(value)
        if piece["kind"] == "video":
            reader = VideoReader(self.max_bytes, self.max_pixels, self.max_seconds)
            return video(reader.read(data, self.num_frames), loss)
        return self.image(data, loss)


def layout_of(row: dict[str, Any]) -> Layout:
    """Raises DataError for columns of no known layout."""
    if "broken" in row:
        raise Unreadable(row["broken"])
    if "segments" in row:
        return "segments"
    if "text_list" in row and "image_info" in row:
        return "mmc4"
    if "images" in row and "texts" in row:
        return "obelics"
    columns = ", ".join(name for name in row if name not in ("folder", "key"))
    raise DataError(f"data.layout: interleaved rows have segments, images and texts, or text_list; not {columns}")


def from_segments(row: dict[str, Any], place: str, seed: int) -> list[Segment]:
    found: list[Segment] = []
    for piece in as_list(field(row, "segments"), "segments"):
        given = {k: v for k, v in piece.items() if v is not None} if isinstance(piece, dict) else {}
        kinds = [kind for kind in ("text", "image", "video") if kind in given]
        if len(kinds) != 1 or not isinstance(given.get("loss", True), bool):
            raise Unreadable(f"a segment has one of text, image and video, not {str(piece)[:80]}")
        kind: Any = kinds[0]
        if kind == "text" and not isinstance(given["text"], str):
            raise Unreadable("the text of a segment is not text")
        found.append({"kind": kind, "value": given[kind], "loss": given.get("loss", True)})
    return found


def from_obelics(row: dict[str, Any], place: str, seed: int) -> list[Segment]:
    images, texts = as_list(field(row, "images"), "images"), as_list(field(row, "texts"), "texts")
    if len(images) != len(texts):
        raise Unreadable(f"{len(images)} images beside {len(texts)} texts")
    found: list[Segment] = []
    for shown, written in zip(images, texts):
        if shown is not None and written is not None:
            raise Unreadable("an image and a text at one place")
        if shown is not None:
            found.append({"kind": "image", "value": shown})
        elif written is not None:
            found.append({"kind": "text", "value": written})
    return found


def from_mmc4(row: dict[str, Any], place: str, seed: int) -> list[Segment]:
    texts = as_list(field(row, "text_list"), "text_list")
    matched: dict[int, list[str]] = defaultdict(list)
    for info in as_list(field(row, "image_info"), "image_info"):
        if not isinstance(info, dict) or "image_name" not in info or "matched_text_index" not in info:
            raise Unreadable("image_info needs image_name and matched_text_index")
        index = info["matched_text_index"]
        if not isinstance(index, int) or not 0 <= index < len(texts):
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


def as_list(value: Any, name: str) -> list[Any]:
    """Raises Unreadable for what is no list."""
    if not isinstance(value, list):
        raise Unreadable(f"'{name}' is not a list")
    return value
