"""Small videos for tests."""

from pathlib import Path

import numpy as np
import pytest


def write_video(path: Path, start: int = 20, end: int = 230, side: int = 32) -> None:
    """Nine frames from one grey to another. Skips the test without PyAV."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width = stream.height = side
        for grey in np.linspace(start, end, 9):
            pixels = np.full((side, side, 3), round(grey), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
