"""Files of any modality: their kind by name, reading and writing of signals."""

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.files import first_line, from_json, replacing, to_json
from ..data.audio import SAMPLE_RATE, AudioReader
from ..data.lines import read_fields
from ..data.transforms import ImageReader, Unreadable
from ..data.video import VideoReader
from ..errors import ConfigError, DataError
from ..models.omni.processing_omni import Piece

SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"),
    "video": (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".gif"),
    "audio": (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus"),
    "series": (".csv", ".tsv", ".npy", ".json"),
}
WRITES = {"image": ".png", "video": ".gif", "audio": ".wav", "text": ".txt"}  # others are written as .json or .npy
NUM_FRAMES = 8


def kind_of(file: str | Path) -> str | None:
    """The modality of a file by its name; None if unknown."""
    suffix = Path(file).suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def read_signal(kind: str, value: str | Path, name: str | None = None) -> Piece:
    """A piece of a document from a file.

    Args:
        kind: how it is read; "text" is the words themselves, an unknown kind is read as a series.
        value: the file, or the words.
        name: of the modality in the model, if it is another than `kind`.

    Returns:
        {NAME: value}, as `OmniProcessor` takes it.

    Raises:
        DataError: for a file that cannot be read.
    """
    if kind == "text":
        return {name or "text": str(value)}
    file = Path(value).expanduser()
    if not file.is_file():
        hint = f" (text does not end in {file.suffix})" if kind_of(file) else ""
        raise DataError(f"no such file: {value}{hint}")
    try:
        return {name or kind: READERS.get(kind, read_series)(file)}
    except (Unreadable, ValueError, OSError, EOFError) as err:
        raise DataError(f"{value}: {first_line(err)}") from None


def read_series(file: Path) -> Any:
    """float32 [C, T] of .csv or .tsv (a channel a column, with or without a header) or .npy; of .json what it holds."""
    if file.suffix.lower() == ".json":
        return from_json(file.read_bytes())
    if file.suffix.lower() == ".npy":
        return torch.from_numpy(np.atleast_2d(np.load(file, allow_pickle=False)).astype(np.float32))
    rows = [fields for _, fields in read_fields(file)]
    try:
        values = np.array(rows, dtype=np.float32)
    except ValueError:
        values = np.array(rows[1:], dtype=np.float32)  # the first line names the columns
    return torch.from_numpy(values.T.copy())


READERS: dict[str, Callable[[Path], Any]] = {
    "image": lambda file: ImageReader().read(file),
    "video": lambda file: VideoReader(100_000_000, 64_000_000, 600.0).read(file, NUM_FRAMES),
    "audio": lambda file: AudioReader().read(file),
}


def write_signal(kind: str, value: Any, file: Path) -> None:
    """Writes a generated signal atomically.

    Args:
        kind: of the signal; other kinds than text, image, video and audio are written as .json or .npy.
        value: str; uint8 [C, H, W] or [F, C, H, W]; float32 [N] in [-1, 1]; any tensor, or plain values.
        file: to write.

    Raises:
        ConfigError: for a name that does not fit the kind.
    """
    check_file(kind, file)
    with replacing(file) as scratch:
        _write(kind, value, scratch)


def _write(kind: str, value: Any, file: Path) -> None:
    if kind == "text":
        file.write_text(value + "\n", encoding="utf-8", errors="replace")
    elif kind == "image":
        picture(value).save(file)
    elif kind == "video":
        frames = [picture(frame) for frame in value]
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=125, loop=0)
    elif kind == "audio":
        with wave.open(str(file), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(SAMPLE_RATE)
            out.writeframes((value.clamp(-1, 1) * 32767).short().numpy().tobytes())
    elif file.suffix.lower() == ".npy":
        with file.open("wb") as out_file:  # numpy would change a name
            np.save(out_file, np.asarray(value), allow_pickle=False)
    else:
        file.write_text(to_json(plain(value)) + "\n")


def plain(value: Any) -> Any:
    """A signal as JSON holds it."""
    return value.tolist() if isinstance(value, Tensor | np.ndarray) else value


def check_file(kind: str, file: Path | None) -> None:
    """Raises ConfigError for a file that cannot hold a signal of this kind; pictures and sounds need a file."""
    wanted = WRITES.get(kind)
    if file is None:
        if wanted is not None and kind != "text":
            raise ConfigError(f"the model generates {kind}: name a file for it with -o FILE{wanted}")
    elif wanted is not None and file.suffix.lower() != wanted:
        raise ConfigError(f"-o {file}: {kind} is written to a file named *{wanted}")
    elif wanted is None and file.suffix.lower() not in (".json", ".npy"):
        raise ConfigError(f"-o {file}: '{kind}' is written as .json or .npy")


def picture(value: Tensor) -> Image.Image:
    """uint8 [C, H, W] as a PIL image."""
    channels = value.permute(1, 2, 0).numpy()
    return Image.fromarray(channels[..., 0] if channels.shape[2] == 1 else channels)
