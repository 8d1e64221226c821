"""Files of sound and video, opened from memory within limits. The only module that imports PyAV."""

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import MissingExtra
from .transforms import ImageReader, Unreadable

if TYPE_CHECKING:
    from av import AudioFrame, VideoFrame
    from av.filter import Graph

# Formats that hold what they play: no playlists, which would open other files.
FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,gif,flv,ogg,asf,h264,hevc,m4v,mpegvideo,"
    "wav,flac,mp3,aac,aiff,au,caf,w64,amr,wv,ac3"
)


def cut_mp4(data: bytes) -> bool:
    """Whether an MP4 or MOV file lacks the index that cameras write at its end."""
    return data[4:8] == b"ftyp" and b"moov" not in data


def said(err: Exception) -> str:
    """An error's message, without the decoration of its library."""
    reason = re.sub(r"^\[Errno -?\d+\] |: '[^']*'$", "", (str(err).splitlines() or [""])[0])
    return reason[:150] or type(err).__name__


class Containers:
    """Opens files of sound or video, or raises `Unreadable`.

    what: "video" or "sound", for messages. max_bytes: of the file. Raises MissingExtra without PyAV.
    """

    def __init__(self, what: str, max_bytes: int):
        try:
            import av
        except ImportError:
            raise MissingExtra("PyAV", "video") from None
        self.av: Any = av
        self.what = what
        self.files = ImageReader(max_bytes=max_bytes)

    def load(self, value: object) -> bytes:
        """The bytes of a file. value: bytes, a path, or {"bytes", "path"} with one of the two."""
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if value is None:
            raise Unreadable(f"no {self.what}")
        if not isinstance(value, bytes | str | os.PathLike):
            raise Unreadable(f"not a {self.what}: {type(value).__name__}")
        return cast(bytes, self.files._load(value))

    @contextmanager
    def open(self, data: bytes) -> Iterator[Any]:
        """An `av` container; what goes wrong inside becomes Unreadable of one line."""
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        try:
            with self.av.open(io.BytesIO(data), options=options) as container:
                yield container
        except (self.av.FFmpegError, ValueError) as err:
            reason = "it has no index (moov), as a file that is cut off" if cut_mp4(data) else said(err)
            raise Unreadable(f"not a {self.what} that can be decoded: {reason}") from None

    def converter(self) -> Callable[..., np.ndarray]:
        """(frame, format, width) -> the pixels of a frame. Make one for a file.

        A frame's own `to_ndarray` starts a thread for each core (PyAV 17 and later), which takes longer than converting
        a small frame.
        """
        shared = self.av.video.reformatter.VideoReformatter()
        threads = {"threads": 1} if int(self.av.__version__.split(".")[0]) >= 17 else {}

        def convert(frame: "VideoFrame", **wanted: object) -> np.ndarray:
            pixels: np.ndarray = shared.reformat(frame, **wanted, **threads).to_ndarray()
            return pixels

        return convert

    def resampler(self, rate: int) -> "Resampler":
        """For one sound. rate: Hz."""
        return Resampler(self.av, rate)


class Resampler:
    """Sound as float32 samples of one rate, channel by channel. What PyAV's AudioResampler gives, in one thread: its
    filters start one for each core, for every file."""

    def __init__(self, av: Any, rate: int):
        self.av, self.rate = av, rate
        self.first: tuple[str, str, int] | None = None
        self.graph: Graph | None = None  # None: the frames are as wanted

    def resample(self, frame: "AudioFrame | None") -> "list[AudioFrame]":
        """Frames of format fltp; None ends the sound. Raises ValueError if the format changes."""
        if frame is not None:
            found = (frame.format.name, frame.layout.name, frame.sample_rate)
            if self.first is None:
                self.first = found
                self.graph = None if found[::2] == ("fltp", self.rate) else self._made(frame)
            if found != self.first:
                raise ValueError("its format, layout or rate changes")
        if self.graph is None:
            return [] if frame is None else [frame]
        self.graph.push(frame)
        return list(pulled(self.graph))

    def _made(self, frame: "AudioFrame") -> "Graph":
        graph: Graph = self.av.filter.Graph()
        with suppress(AttributeError):  # older PyAV
            graph.threads = 1
        given = {"sample_rate": frame.sample_rate, "sample_fmt": frame.format.name, "time_base": frame.time_base}
        wanted = {"sample_rates": self.rate, "sample_fmts": "fltp", "channel_layouts": frame.layout.name}
        steps = [
            graph.add("abuffer", channel_layout=frame.layout.name, **as_text(given)),
            graph.add("aformat", **as_text(wanted)),
            graph.add("abuffersink"),
        ]
        for one, following in pairwise(steps):
            one.link_to(following)
        graph.configure()
        return graph


def pulled(graph: "Graph") -> "Iterator[AudioFrame]":
    """The frames that a graph of filters has ready."""
    while True:
        try:
            yield cast("AudioFrame", graph.pull())
        except (BlockingIOError, EOFError):  # of PyAV too: more is needed, or that was all
            return


def as_text(options: dict[str, object]) -> dict[str, str]:
    """Options of a filter, without those that are unknown (None)."""
    return {name: str(value) for name, value in options.items() if value is not None}
