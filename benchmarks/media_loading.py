"""Clips and seconds of sound per second on one core: the readers of this package against PyAV by hand.

    NEXTEMBED_DATA=DATA python benchmarks/media_loading.py

Files are those of --source (DATA): videos of video/train.parquet, as they are and enlarged to 320 px with four times as
many frames; sounds of speech/train.parquet (FLAC, also written at 44.1 kHz, stereo) and stamps_speech/train.parquet
(Ogg). By hand is what PyAV's documentation shows: decode, `to_ndarray`, random crop and flip of torchvision. "one
thread" is the same with threads switched off and one converter for a file. Each file is processed by all contenders in
turn, several times. Reported is the median CPU time over rounds, so other load on the machine has little effect.
"""

import argparse
import functools
import io
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import torch
import torchvision.transforms as T
from av.video.reformatter import VideoReformatter
from torch import Tensor

from data_loading import race
from nextembed.data.audio import SAMPLE_RATE, AudioReader
from nextembed.data.clips import ClipReader
from nextembed.data.transforms import RandomResizedCrop, normalize
from nextembed.data.video import even_indices

RESULT = Path(__file__).parent / "results" / "media_loading.json"
Frames = Callable[[bytes, int], list[np.ndarray]]


def files_of(table: Path, column: str, count: int) -> list[bytes]:
    """The first files in a column of a Parquet file."""
    values = pq.read_table(table, columns=[column])[column].slice(0, count).to_pylist()
    return [value["bytes"] if isinstance(value, dict) else value for value in values]


# -- videos


def enlarged(video: bytes, side: int, repeats: int) -> bytes:
    """An H.264 video of larger frames, shown `repeats` times."""
    frames = documented(video, 0)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for pixels in frames * repeats:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            out.mux(stream.encode(frame.reformat(width=side, height=side, format="yuv420p")))
        out.mux(stream.encode(None))
    return file.getvalue()


def documented(video: bytes, num_frames: int) -> list[np.ndarray]:
    """Frames of a video as PyAV's documentation shows; 0: all. Only those wanted are converted."""
    with av.open(io.BytesIO(video)) as container:
        frames = list(container.decode(video=0))
        wanted = even_indices(len(frames), num_frames) if num_frames else range(len(frames))
        return [frames[i].to_ndarray(format="rgb24") for i in wanted]


def one_thread(video: bytes, num_frames: int) -> list[np.ndarray]:
    """The same without threads, by one converter."""
    with av.open(io.BytesIO(video)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames, convert = list(container.decode(video=0)), VideoReformatter()
        wanted = even_indices(len(frames), num_frames)
        return [convert.reformat(frames[i], format="rgb24", threads=1).to_ndarray() for i in wanted]


def clips(name: str, files: list[bytes], size: int, num_frames: int, rounds: int) -> dict[str, Any]:
    """Crops of `num_frames` frames of each video, float32 [3 F, size, size], by each contender."""
    by_hand = T.Compose([T.RandomResizedCrop(size, antialias=True), T.RandomHorizontalFlip()])
    reader, crop = ClipReader(3 * num_frames), RandomResizedCrop(size)

    def hand(frames: Frames, data: bytes, seed: int) -> Tensor:
        pixels = torch.from_numpy(np.stack(frames(data, num_frames))).permute(0, 3, 1, 2)
        return (by_hand(pixels).flatten(0, 1).float() / 255 - 0.5) / 0.5

    speed = race(
        {
            "by_hand": functools.partial(hand, documented),
            "one_thread": functools.partial(hand, one_thread),
            "nextembed": lambda data, seed: normalize(reader.read_crop(data, crop, seed), 0.5, 0.5),
            "nextembed_decoding": lambda data, seed: reader.read(data),
        },
        files,
        rounds,
    )
    total = len(documented(files[0], 0))
    row = {"videos": name, "frames_in_a_file": total, "frames_used": num_frames, "size": size}
    row |= {"kilobytes": sum(map(len, files)) / len(files) / 1000}
    row |= {"clips_per_second": speed, "frames_per_second": {who: total * value for who, value in speed.items()}}
    return row | ratios(speed)


def ratios(speed: dict[str, float]) -> dict[str, float]:
    return {
        "ratio": speed["nextembed"] / speed["by_hand"],
        "ratio_to_one_thread": speed["nextembed"] / speed["one_thread"],
    }


# -- sounds


def at_44100(sound: bytes) -> bytes:
    """A sound as FLAC of 44.1 kHz with two channels."""
    file, resampler = io.BytesIO(), av.AudioResampler(format="s16", layout="stereo", rate=44_100, frame_size=4096)
    with av.open(io.BytesIO(sound)) as given, av.open(file, "w", format="flac") as out:
        stream = out.add_stream("flac", rate=44_100, layout="stereo")
        for frame in (*given.decode(audio=0), None):
            for part in resampler.resample(frame):
                out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue()


def waveform(threads: int, sound: bytes, seed: int = 0) -> Tensor:
    """A sound as PyAV's documentation shows, float32 [N] at 16 kHz. threads: of the decoder; 0: chosen by FFmpeg."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    parts = []
    with av.open(io.BytesIO(sound)) as container:
        container.streams.audio[0].codec_context.thread_count = threads
        for frame in (*container.decode(audio=0), None):
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame) if part is not None]
    return torch.from_numpy(np.concatenate(parts))


def sounds(name: str, files: list[bytes], rounds: int) -> dict[str, Any]:
    reader = AudioReader()
    speed = race(
        {
            "by_hand": functools.partial(waveform, 0),
            "one_thread": functools.partial(waveform, 1),
            "nextembed": lambda data, seed: reader.read(data),
        },
        files,
        rounds,
    )
    seconds = sum(len(reader.read(data)) for data in files) / len(files) / SAMPLE_RATE
    row = {"sounds": name, "seconds_of_a_file": seconds, "kilobytes": sum(map(len, files)) / len(files) / 1000}
    row |= {"files_per_second": speed, "seconds_of_sound_per_second": {who: v * seconds for who, v in speed.items()}}
    return row | ratios(speed)


# -- all


def measured(source: Path, count: int, rounds: int) -> dict[str, Any]:
    videos = files_of(source / "video" / "train.parquet", "video", count)
    large = [enlarged(video, 320, 4) for video in videos[: count // 5]]
    flac = files_of(source / "speech" / "train.parquet", "audio", count)
    ogg = files_of(source / "stamps_speech" / "train.parquet", "speech", count)
    found: dict[str, Any] = {"videos": [], "sounds": []}
    for kind, row in (
        ("videos", lambda: clips("64 px, 16 frames", videos, 64, 8, rounds)),
        ("videos", lambda: clips("320 px, 64 frames", large, 64, 8, rounds)),
        ("sounds", lambda: sounds("FLAC, 16 kHz", flac, rounds)),
        ("sounds", lambda: sounds("FLAC, 44.1 kHz, stereo", [at_44100(one) for one in flac], rounds)),
        ("sounds", lambda: sounds("Ogg, 16 kHz", ogg, rounds)),
    ):
        found[kind].append(row())
        print(line(kind, found[kind][-1]), flush=True)
    return found


def line(kind: str, row: dict[str, Any]) -> str:
    if kind == "videos":
        values, unit = row["clips_per_second"], "clips/s"
    else:
        values, unit = row["seconds_of_sound_per_second"], "s of sound/s"
    speeds = ", ".join(f"{who} {value:.0f}" for who, value in values.items())
    return f"{row[kind]:>22}: {speeds} {unit}; {row['ratio']:.2f} x, {row['ratio_to_one_thread']:.2f} x one thread"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=os.environ.get("NEXTEMBED_DATA"), help="folder with the Parquet files")
    parser.add_argument("--count", type=int, default=60, help="number of files of each kind (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is read (default: %(default)s)")
    args = parser.parse_args()
    if args.source is None or not Path(args.source).is_dir():
        parser.error("--source, or NEXTEMBED_DATA, has to be a folder with video/, speech/ and stamps_speech/")
    torch.set_num_threads(1)
    options = [option for option in sys.argv[1:] if args.source not in option and option != "--source"]
    result = {
        "command": shlex.join(["NEXTEMBED_DATA=DATA", "python", "benchmarks/media_loading.py", *options]),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "versions": {"torch": torch.__version__, "av": av.__version__},
        "load_average": os.getloadavg()[0],
    }
    result |= measured(Path(args.source), args.count, args.rounds)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
