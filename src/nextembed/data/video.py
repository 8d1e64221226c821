"""Videos: frames chosen as Emu's release chooses them, and video-text documents."""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..core.config import DATA
from ..core.types import Document, Role, Segment
from .containers import Containers
from .cut_files import WHOLE, is_cut
from .documents import DocumentPart, text
from .frames import as_shown, shown_width
from .pairs import TEXTS, ordered
from .record import Record
from .rows import Rows, RowSequence
from .tables import DocumentTable, field, first_of, words
from .transforms import Unreadable

if TYPE_CHECKING:
    from av import Packet, VideoStream
    from av.container import InputContainer

VIDEOS = ("video", "mp4", "webm", "mkv", "avi", "mov", "gif", "file_name", "video_path", "file")
SUBTITLES = ("subtitles", "srt", "vtt", "captions", "asr")
SMALL = 512 * 512  # pixels of a frame up to which starting threads takes longer than they save
ATTACHED = 1024  # FFmpeg's flag of a stream that is a picture: the cover of a sound
UP_FRONT = {"matroska", "flv", "asf", "avi"}  # formats with their duration in the header
TIME = re.compile(r"(?:(\d+):)?(\d+):(\d+)[.,](\d{1,3})")


def frame_indices(num_total: int, num_frames: int) -> list[int]:
    """Indices of the frames that are taken from `num_total`: int(s / 2) + round(s i) with s = (num_total - 1) /
    num_frames.

    Of a video with fewer frames some are taken more than once, as Emu's release does. Rounding is to even, as there.
    """
    step = (num_total - 1) / num_frames
    return [int(step / 2) + round(step * i) for i in range(num_frames)]


def even_indices(num_total: int, num_frames: int) -> list[int]:
    """Indices of the frames of a clip, with the first and the last. Raises Unreadable for a single frame."""
    if num_total < 2:
        raise Unreadable("a single frame is not a clip")
    return [round(i * (num_total - 1) / (num_frames - 1)) for i in range(num_frames)]


def clip_indices(times: list[float], num_frames: int) -> list[int]:
    """`even_indices`; for a variable frame rate, the frames that are shown at evenly spaced times."""
    indices = even_indices(len(times), num_frames)
    if comes_evenly(times):
        return indices
    return [shown_at(times, times[-1] * i / (num_frames - 1)) for i in range(num_frames)]


def comes_evenly(times: list[float]) -> bool:
    step = times[-1] / max(1, len(times) - 1)
    return all(abs(time - step * i) <= step / 2 for i, time in enumerate(times))


def shown_at(times: list[float], moment: float) -> int:
    """The frame that is shown at a moment: the last one that has begun by then."""
    return min(len(times) - 1, max(0, bisect_right(times, moment + 1e-6) - 1))


def spread_indices(times: list[float], num_frames: int) -> list[int]:
    """`frame_indices`; for a variable frame rate, the frames that are shown at the same times."""
    indices = frame_indices(len(times), num_frames)
    if comes_evenly(times):
        return indices
    step = times[-1] / max(1, len(times) - 1)
    return [shown_at(times, step * i) for i in indices]


class Span(NamedTuple):
    """A text from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


class VideoReader:
    """Decodes some frames of a video, or raises `Unreadable`.

    max_bytes: of the file; max_pixels: of one frame; max_seconds: of the whole. Raises MissingExtra without PyAV.
    """

    def __init__(self, max_bytes: int, max_pixels: int, max_seconds: float):
        self.files = Containers("video", max_bytes)
        self.max_pixels, self.max_seconds = max_pixels, max_seconds

    def read(self, video: object, num_frames: int) -> Tensor:
        """`num_frames` frames over the whole video, uint8 [F, 3, H, W]. video: bytes or a path."""
        data = self.files.load(video)
        return self._frames(data, lambda times: spread_indices(times, num_frames)).contiguous()

    def read_clip(self, video: object, num_frames: int) -> Tensor:
        """`num_frames` frames evenly from the first to the last, uint8 [F, 3, H, W], with channels last in memory.
        A single frame is not a clip.
        """
        return self._frames(self.files.load(video), lambda times: clip_indices(times, num_frames))

    def read_spans(self, video: object, spans: list[Span], num_frames: int) -> list[Tensor]:
        """`num_frames` frames of each span, uint8 [F, 3, H, W]. A span between two frames gets the nearer one."""
        data = self.files.load(video)
        frames = self._frames(data, lambda times: [i for span in spans for i in within(times, span, num_frames)])
        return list(frames.contiguous().split(num_frames))

    def _frames(self, data: bytes, choose: Callable[[list[float]], list[int]]) -> Tensor:
        times: list[float] | None = None
        for _ in range(2):
            with self.files.open(data) as container:
                stream, packets = self._stream(container), list(container.demux())
                times = self._times(container, stream, packets, data) if times is None else times
                if not times:
                    raise Unreadable("a video without frames")
                wanted = choose(times)
                found, num_decoded = self._decode(stream, packets, set(wanted))
            if all(i in found for i in wanted):
                return torch.from_numpy(np.stack([found[i] for i in wanted])).permute(0, 3, 1, 2)
            times = times[:num_decoded]  # packets that hold no frame: the count was too high
        raise Unreadable("its frames cannot be counted")

    def _times(
        self, container: "InputContainer", stream: "VideoStream", packets: "list[Packet]", data: bytes
    ) -> list[float]:
        """When each frame is shown, in seconds from the first, without decoding."""
        packets = [p for p in packets if p.size]
        found = [p.pts for p in packets if p.stream is stream and not p.is_discard]
        base, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
        ends = [float((p.pts + (p.duration or 0)) * p.time_base) for p in packets if p.pts is not None]
        there = max(ends, default=0.0) - (container.start_time or 0) / 1e6
        check_whole(container.format.name, (container.duration or 0) / 1e6, there, data)
        times = sorted(pts * base for pts in found if pts is not None)
        if len(times) < len(found):  # raw streams have no times
            times = [i / (rate or 25.0) for i in range(len(found))]
        times = [t - times[0] for t in times]
        if times and times[-1] > self.max_seconds:
            raise Unreadable(f"{times[-1]:.0f} seconds, more than max_seconds={self.max_seconds:g}")
        return times

    def _decode(
        self, stream: "VideoStream", packets: "list[Packet]", wanted: set[int]
    ) -> tuple[dict[int, np.ndarray], int]:
        """Frames by number, uint8 [H, W, 3], up to the last one wanted; and how many were decoded."""
        found: dict[int, np.ndarray] = {}
        count, convert = 0, self.files.converter()
        ratio = min(8.0, max(1 / 8, float(stream.sample_aspect_ratio or 1)))
        # Those that were counted, with the empty one at the end: reading the file again takes as long as decoding some.
        for frame in (frame for packet in packets if packet.stream is stream for frame in packet.decode()):
            if (
                shown_width(frame.width, ratio) * frame.height > self.max_pixels
                or frame.width * frame.height > self.max_pixels
            ):
                raise Unreadable(f"{frame.width}x{frame.height} pixels, more than max_pixels={self.max_pixels}")
            if count in wanted:
                found[count] = as_shown(frame, ratio, convert)
                if found[count].shape != found[min(found)].shape:
                    raise Unreadable("its frames differ in size")
            count += 1
            if len(found) == len(wanted):
                break
        return found, count

    def _stream(self, container: "InputContainer") -> "VideoStream":
        stream = next((one for one in container.streams.video if not one.disposition & ATTACHED), None)
        if stream is None:
            raise Unreadable("a file without video")
        if stream.codec_context is None:
            raise Unreadable("a video of an unknown codec")
        context = stream.codec_context
        if (context.width or 0) * (context.height or 0) > self.max_pixels:
            raise Unreadable(f"{context.width}x{context.height} pixels, more than max_pixels={self.max_pixels}")
        if (context.width or 0) * (context.height or 0) <= SMALL:
            context.thread_count = 1
        return stream


def check_whole(formats: str, said: float, there: float, data: bytes) -> None:
    """Raises Unreadable for a file that ends before the duration in its header; formats without one are not checked.
    said, there: seconds.
    """
    if is_cut(data):
        raise Unreadable(f"the file is cut off after {there:.1f} s")
    if UP_FRONT & set(formats.split(",")) and there < WHOLE * said:
        raise Unreadable(f"the file is cut off after {there:.1f} of {said:.1f} s")


def within(times: list[float], span: Span, num_frames: int) -> list[int]:
    """Frames of a span, chosen among those shown in it as `frame_indices` does."""
    inside = [i for i, t in enumerate(times) if span.start <= t < span.end]
    if not inside:
        inside = [min(range(len(times)), key=lambda i: abs(times[i] - span.start))]
    return [inside[i] for i in frame_indices(len(inside), num_frames)]


def parse_subtitles(value: Any) -> list[Span]:
    """Spans of SRT or WebVTT text, or of a list of {"start", "end", "text"} in seconds. Raises Unreadable."""
    if isinstance(value, bytes):
        value = words(value, "subtitles")
    try:
        if isinstance(value, str):
            found = list(_from_text(value))
        elif isinstance(value, dict):  # a list of objects, as some versions of `datasets` give it
            found = [_span(*one) for one in zip(value["start"], value["end"], value["text"])]
        else:
            found = [_span(one["start"], one["end"], one["text"]) for one in value or []]
    except (KeyError, TypeError, ValueError) as err:
        raise Unreadable(f"subtitles need start, end and text: {err}") from None
    found = [span for span in found if span.text.strip()]
    if not found:
        raise Unreadable("no subtitles")
    return sorted(found)


def _span(start: float, end: float, said: str) -> Span:
    span = Span(float(start), float(end), said)
    if not isinstance(said, str) or not math.isfinite(span.start + span.end):
        raise ValueError(f"not {str(span[:3])[:80]}")
    return span


def _from_text(value: str) -> Iterator[Span]:
    for block in re.split(r"\n\s*\n", value.replace("\r\n", "\n")):
        lines = block.strip().split("\n")
        timed = next((i for i, line in enumerate(lines) if "-->" in line), None)
        if timed is None:
            continue  # a header or a note
        marks = TIME.findall(lines[timed])
        if len(marks) < 2:
            raise ValueError(f"'{lines[timed]}' is not a time span")
        start, end = (int(h or 0) * 3600 + int(m) * 60 + int(s) + float(f"0.{f}") for h, m, s, f in marks[:2])
        yield Span(start, end, re.sub(r"<[^>]+>", "", " ".join(lines[timed + 1 :])).strip())


@DATA.register("video_text")
class VideoText(DocumentTable, DocumentPart):
    """A video and its text, or its subtitles between its frames.

    Attributes:
        video_column: column of the video; null: detected.
        text_column: column of the text; null: detected.
        subtitles_column: column of the subtitles, a list of {"start", "end", "text"} (seconds), or SRT or WebVTT text;
            null: detected.
        with_subtitles: true: for each subtitle, frames of its time span and its text; false: a video and one text, in
            the order that `order` gives.
        num_frames: number of frames taken from a video, chosen as in Emu's release; a video with fewer repeats some.
        order: whether the video or its text comes first.
        frames_per_subtitle: frames of each subtitle.
        max_seconds: longest video; a longer one makes its document unreadable. max_pixels applies to a frame.
    """

    default_bytes: ClassVar[int] = 500_000_000

    video_column: str | None = None
    text_column: str | None = None
    subtitles_column: str | None = None
    with_subtitles: bool = False
    order: Literal["image_first", "text_first", "random"] = "random"
    num_frames: int = Field(8, gt=0, le=10_000)
    frames_per_subtitle: int = Field(1, gt=0, le=10_000)
    max_bytes: int = Field(default_bytes, gt=0)
    max_seconds: float = Field(600.0, gt=0, le=1e7)

    def rows(self, split: Role) -> Rows | RowSequence:
        self.video_reader()  # a missing extra is said before anything is read
        return super().rows(split)

    def video_reader(self) -> VideoReader:
        return VideoReader(self.max_bytes, self.max_pixels, self.max_seconds)

    def document(self, row: Record, seed: int) -> Document:
        column = self.video_column or first_of(row, VIDEOS, "a video", "video_column")
        reader = self.video_reader()
        if self.with_subtitles:
            name = self.subtitles_column or first_of(row, SUBTITLES, "subtitles", "subtitles_column")
            spans = parse_subtitles(field(row, name))
            shown = reader.read_spans(row.folder.read(field(row, column)), spans, self.frames_per_subtitle)
            segments = [s for frames, span in zip(shown, spans) for s in (video(frames), text(span.text.strip()))]
            return {"key": row.key, "segments": segments}
        name = self.text_column or first_of(row, TEXTS, "text", "text_column")
        written = text(words(field(row, name), name))
        shown_whole = video(reader.read(row.folder.read(field(row, column)), self.num_frames))
        return {"key": row.key, "segments": ordered(shown_whole, written, self.order, seed)}


def video(frames: Tensor, loss: bool = True) -> Segment:
    return {"kind": "video", "value": frames, "loss": loss}
