"""Damaged and odd audio and video: unreadable, or finite samples and complete frames."""

import io
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch

from nextembed.data.audio import AudioReader
from nextembed.data.transforms import Unreadable
from nextembed.data.video import VideoReader

from .box import Box, Case
from .damage import DAMAGE

COUNT, SECONDS, MIB = 300, 20, 400
SOUNDS = """wav pcm_s16le 16000, wav pcm_u8 8000, wav pcm_f32le 44100, wav pcm_s24le 96000,
flac flac 16000, ogg libvorbis 22050, ogg libopus 48000, mp3 libmp3lame 44100, mp4 aac 16000, aiff pcm_s16be 16000,
au pcm_s16be 8000"""
VIDEOS = """mp4 mpeg4, mp4 libx264, matroska libx264, webm libvpx, avi mpeg4, gif gif,
mpegts mpeg2video, mpegts libx264, flv flv1, h264 libx264, mov mjpeg"""
SUBTITLES = "1\n00:00:00,000 --> 00:00:00,200\none\n\n2\n00:00:00,200 --> 00:00:01,000\n<b>two</b>\n"


def sound(form: str, codec: str, rate: int, channels: int, length: int) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout={1: "mono", 2: "stereo", 6: "5.1"}[channels])
        values = np.random.default_rng(0).integers(-9000, 9000, (1, length * channels)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(values, format="s16", layout=stream.layout.name)
        frame.sample_rate, frame.pts = rate, 0
        to = av.AudioResampler(stream.format.name, stream.layout.name, rate, frame_size=stream.frame_size or None)
        for part in to.resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return out.getvalue()


def video(form: str, codec: str, size: int, count: int) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = size
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


def cases(fixtures: Path, rng: Random) -> Iterator[Case]:
    for number in range(COUNT):
        damage = rng.choice(list(DAMAGE))
        if number % 2:
            kind = rng.choice(SOUNDS.split(",")).split()
            made = (kind[0], kind[1], int(kind[2]), rng.choice([1, 2, 6]), rng.choice([1, 700, 16_000]))
        else:
            kind = rng.choice(VIDEOS.split(",")).split()
            made = (*kind, rng.choice([16, 64]), rng.choice([1, 2, 9]))
        yield (
            f"{number} {' '.join(map(str, made))} {damage}",
            lambda box, made=made, damage=damage: one(box, made, damage),
        )


def one(box: Box, made: tuple, damage: str) -> str | None:
    import av

    try:
        data = sound(*made) if len(made) == 5 else video(*made)
    except (av.FFmpegError, ValueError, KeyError):
        return None  # this PyAV cannot write such files
    data = DAMAGE[damage](data, box.rng)
    (box.folder / "file").write_bytes(data)
    box.said()
    readers = {"sound": lambda: AudioReader(max_seconds=60).read(data), "frames": lambda: frames(data),
               "spans": lambda: spans(data)}  # fmt: skip
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read()
        except Unreadable as err:
            if "\n" in str(err) or not 0 < len(str(err)) < 400:
                return f"{name}: no line: {str(err)[:300]!r}"
    if said := box.said():
        return f"printed {said[:150]!r}"
    if (wave := found.get("sound")) is not None and not (len(wave) and wave.isfinite().all() and wave.abs().max() <= 1):
        return f"a sound of {tuple(wave.shape)} out of range"
    for shown in (found.get("frames"), *found.get("spans", [])):
        if shown is not None and (shown.dtype != torch.uint8 or shown.ndim != 4 or shown.shape[1] != 3):
            return f"frames of shape {tuple(shown.shape)}"
    whole = "sound" if len(made) == 5 else "frames"
    return f"a whole {made[0]} is not read as {whole}" if damage == "whole" and whole not in found else None


def frames(data: bytes) -> torch.Tensor:
    return VideoReader(10**8, 10**6, 60.0).read(data, 4)


def spans(data: bytes) -> list[torch.Tensor]:
    from nextembed.data.video import parse_subtitles

    return VideoReader(10**8, 10**6, 60.0).read_spans(data, parse_subtitles(SUBTITLES), 2)
