"""Files of sound and video, opened from memory within limits. The only module that imports PyAV."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from ..errors import MissingExtra
from .transforms import ImageReader, Unreadable

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
        self.av, self.what = av, what
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
