"""Prompts of an Emu model from files and text: text, images and videos in reading order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.files import first_line
from ..data.lines import read_json_lines
from ..data.transforms import Unreadable
from ..data.video import VideoReader
from ..errors import ConfigError, DataError
from ..models.emu.processing_emu import Piece, to_rgb
from .signals import NUM_FRAMES, SUFFIXES

IMAGES = (*SUFFIXES["image"], ".gif")
VIDEOS = tuple(suffix for suffix in SUFFIXES["video"] if suffix != ".gif")


@dataclass
class Prompt:
    """What a model continues, or is asked about. pieces: as `EmuProcessor` takes them. question: about them, or None.
    row: its row in a file of prompts.
    """

    pieces: list[Piece]
    question: str | None = None
    row: dict[str, Any] | None = None


def read_piece(word: str, num_frames: int = NUM_FRAMES) -> Piece:
    """A word of a command line: the picture or video that it names, or text.

    Args:
        word: text, or the name of a file; of an image also an address.
        num_frames: that are read of a video.

    Raises:
        ConfigError: for a file that is not there.
        DataError: for one that cannot be read.
    """
    suffix = Path(word).suffix.lower()
    if suffix not in (*IMAGES, *VIDEOS):
        return {"text": word}
    if word.startswith(("http://", "https://")) and suffix in IMAGES:
        return read_image(word)
    if not Path(word).expanduser().is_file():
        raise ConfigError(f"no such file: {word} (text must not end in {suffix})")
    return read_image(word) if suffix in IMAGES else read_video(word, num_frames)


def read_image(path: str | Path) -> Image.Image:
    """An RGB picture from a file or URL. Raises DataError, one line."""
    try:
        name = str(path) if str(path).startswith("http") else str(Path(path).expanduser())
        return to_rgb(name)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise DataError(f"cannot read the image {path}: {first_line(err)}") from None


def read_video(path: str | Path, num_frames: int = NUM_FRAMES) -> Piece:
    """Frames of a video as a piece of a prompt.

    Args:
        path: of the file.
        num_frames: spread over the video as Emu's release does.

    Returns:
        {"video": uint8 [F, 3, H, W]}.

    Raises:
        DataError: one line, for a file that cannot be read.
        MissingExtra: without PyAV.
    """
    try:
        reader = VideoReader(max_bytes=2_000_000_000, max_pixels=64_000_000, max_seconds=86_400.0)
        return {"video": reader.read(str(Path(path).expanduser()), num_frames)}
    except (Unreadable, OSError) as err:
        raise DataError(f"cannot read the video {path}: {first_line(err)}") from None


def read_prompts(file: str | Path, num_frames: int = NUM_FRAMES) -> list[Prompt]:
    """The prompts of a .jsonl file.

    Args:
        file: each line has `pieces` (a list: text and files as on the command line, {"text"}, {"image"}, {"video"}) or
            `text`, `image`, `video`, perhaps a `question`, and what else it likes. Files are named from its folder.
        num_frames: that are read of a video.

    Raises:
        ConfigError: for a file that is not there; it names the line.
        DataError: for a line that holds no prompt, or a file that cannot be read; it names the line.
    """
    path, found = Path(file), []
    if not path.is_file():
        raise ConfigError(f"no such file: {file}")
    for number, row in read_json_lines(path):
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: should be an object with pieces, text, image or video")
        pieces = row.get("pieces", [{k: row[k]} for k in ("image", "video", "text") if row.get(k) is not None])
        if not isinstance(pieces, list) or not (pieces or row.get("question")):
            raise DataError(f"{file}, line {number}: no pieces, text, image, video or question")
        if not isinstance(row.get("question", ""), str | None):
            raise DataError(f"{file}, line {number}: the question is not text")
        try:
            read = [_piece_of(piece, path.parent, num_frames) for piece in pieces]
        except (ConfigError, DataError) as err:
            raise type(err)(f"{file}, line {number}: {err}") from None
        found.append(Prompt(read, row.get("question"), row))
    if not found:
        raise DataError(f"{file} contains no prompts")
    return found


def _piece_of(piece: object, folder: Path, num_frames: int) -> Piece:
    if isinstance(piece, str) and Path(piece).suffix.lower() in (*IMAGES, *VIDEOS):
        return read_piece(_named(piece, folder), num_frames)
    if isinstance(piece, str):
        return {"text": piece}
    if isinstance(piece, dict) and len(piece) == 1:
        ((kind, value),) = piece.items()
        if kind == "text" and isinstance(value, str):
            return {"text": value}
        if kind in ("image", "video") and isinstance(value, str):
            name = _named(value, folder)
            return read_image(name) if kind == "image" else read_video(name, num_frames)
    raise DataError("a piece is text, a file, or {'text': ...}, {'image': FILE}, {'video': FILE}")


def _named(file: str, folder: Path) -> str:
    """The path of a file that a row names. Raises DataError for a web address."""
    if "://" in file:
        raise DataError(f"'{file[:80]}' is a URL; files of rows are not downloaded")
    return str(folder / file)
