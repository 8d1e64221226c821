"""Rows that hold any modality: how each kind of segment is read."""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ..core.files import from_json
from ..core.types import Segment
from .audio import AudioReader, audio
from .documents import text
from .limits import Limits
from .record import Folder
from .transforms import ImageReader, Unreadable
from .video import VideoReader, video

Kind = Literal["text", "image", "video", "audio", "series"]
KINDS: tuple[Kind, ...] = ("text", "image", "video", "audio", "series")


def _raw_where_not_said(value: object) -> object:
    return dict.fromkeys(value, "raw") if isinstance(value, list) else value


OwnKinds = Annotated[dict[str, Kind | Literal["raw"]], BeforeValidator(_raw_where_not_said)]


class Media(Limits):
    """How segments of text, images, videos, sounds, series, and modalities of your own are decoded.

    Attributes:
        num_frames: number of frames read from a video.
        max_seconds: longest video or sound; longer ones count as unreadable.
        own_kinds: kinds of segments beside text, image, video, audio and series, each with what it is read as:
            {"touch": "series", "points": "raw"}; raw is the value as it stands in the row, and a list of names makes
            all of them raw.
    """

    num_frames: int = Field(8, gt=0, le=10_000)
    max_seconds: float = Field(600.0, gt=0, le=1e7)
    own_kinds: OwnKinds = Field(default_factory=dict)

    def kinds_known(self) -> list[str]:
        return [*KINDS, *self.own_kinds]

    def segment(self, kind: str, value: object, folder: Folder, loss: bool = True) -> Segment:
        """A value of one kind in a row, decoded. folder: of the files that it names. Raises Unreadable."""
        read_as = self.own_kinds.get(kind, kind)
        if value is None:
            raise Unreadable(f"no {kind}")
        if read_as == "text":
            if not isinstance(value, str):
                raise Unreadable("the text of a segment is not text")
            found = text(value, loss)
        elif read_as == "image":
            reader = ImageReader(3, self.background, self.max_pixels, self.max_bytes)
            found = {"kind": kind, "value": reader.read(folder.read(value)), "loss": loss}
        elif read_as == "video":
            frames = VideoReader(self.max_bytes, self.max_pixels, self.max_seconds)
            found = video(frames.read(folder.read(value), self.num_frames), loss)
        elif read_as == "audio":
            found = audio(AudioReader(self.max_bytes, self.max_seconds).read(folder.read(value)), loss)
        elif read_as == "series":
            found = series(parse_series(value, self.max_bytes), loss)
        else:
            found = {"kind": kind, "value": value, "loss": loss}
        found["kind"] = kind
        return found


def parse_series(value: object, max_bytes: int = 100_000_000) -> Tensor:
    """A series of any number of channels, float32 [C, T], of a nested list [C][T], one list [T], JSON text of either,
    or an array. Raises Unreadable for ragged channels, no samples, and values that are missing or not finite.
    """
    try:
        given = from_json(value) if isinstance(value, str | bytes) else value
        array = np.asarray(given)
        if array.dtype.kind not in "biufO" or any(isinstance(one, str) for one in array.flat if array.dtype == object):
            raise ValueError("text or dates, not numbers")
        with np.errstate(over="ignore"):
            found = array.astype(np.float32)
    except (TypeError, ValueError, OverflowError):
        raise Unreadable("not a series of numbers with channels of equal length") from None
    found = found[None] if found.ndim == 1 else found
    if found.ndim != 2:
        raise Unreadable(f"a series has channels and samples, not {found.ndim} axes")
    if not found.size:
        raise Unreadable("a series without samples")
    if found.nbytes > max_bytes:
        raise Unreadable(f"{found.nbytes} bytes, more than max_bytes={max_bytes}")
    if not np.isfinite(found).all():
        raise Unreadable("a series with values that are missing or not finite")
    return torch.from_numpy(np.ascontiguousarray(found))


def series(values: Tensor, loss: bool = True) -> Segment:
    return {"kind": "series", "value": values, "loss": loss}
