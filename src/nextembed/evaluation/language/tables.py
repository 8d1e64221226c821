"""Examples from a plain table: Parquet, CSV or JSON lines with columns of images, questions and answers."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ...core.types import Segment
from ...data.chosen import Wanted, Where
from ...data.lines import DELIMITED, holds_list, read_delimited, read_json_lines, read_json_list
from ...data.transforms import Unreadable
from ...data.video import VideoReader, frame_indices
from ...errors import ConfigError, DataError, unknown
from .examples import Example, ImageFolder, texts

# By meaning, the names of columns, of which the first match is used.
NAMES = {
    "image": ("image", "images", "picture", "file_name", "image_path", "img", "jpg", "png"),
    "video": ("video", "frames", "video_path"),
    "question": ("question", "prompt"),
    "before": ("before", "history", "context"),
    "references": ("references", "answers", "captions", "answer", "caption", "text", "name", "label"),
    "candidates": ("candidates", "options", "choices", "answer_options"),
    "target": ("target", "gt_index", "answer_index"),
    "relevance": ("relevance", "gt_relevance"),
    "key": ("key", "id", "question_id", "__key__"),
    "kind": ("kind", "answer_type", "question_type"),
    "split": ("split",),
}
Row = dict[str, Any]  # of a table, whatever its columns hold
Frame = bytes | Path | Image.Image | Tensor
NEEDED = ("image", "video", "question", "references", "candidates")


def read_table(
    file: Path,
    images: ImageFolder | None = None,
    columns: Mapping[str, str] | None = None,
    where: Where | None = None,
) -> list[Example]:
    """The rows of a table as examples.

    Images are bytes in the table ({"bytes", "path"} or plain), or names of files; an example may have a list of them.
    Videos are lists of frames, animated images or, with the extra `video`, files of any kind; eight frames are read.

    Args:
        file: Parquet, CSV or JSON lines.
        images: what names are relative to; None is the table's folder.
        columns: which column means what ({"references": "name"}), where the usual names do not say it.
        where: keeps rows whose column has this value, or one of these.

    Raises:
        ConfigError: for a column that is not there.
        DataError: for a row that has not what it should.
    """
    table = _rows(file)
    there = list(table[0]) if table else []
    means = find_columns(there, columns or {}, file)
    for name in where or {}:
        if name not in there:
            raise ConfigError(f"{file}: " + unknown("column", name, there))
    wanted = {name: Wanted(value if isinstance(value, list) else [value]) for name, value in (where or {}).items()}
    images = images or ImageFolder(file.parent)
    found = []
    for number, row in enumerate(table):
        if all(row.get(name) in values for name, values in wanted.items()):
            try:
                found.append(_example(row, number, means, images, file))
            except (ValueError, TypeError, AttributeError, OverflowError) as err:
                raise DataError(f"{file}: row {number}: {str(err).splitlines()[0]}") from None
    return found


def find_columns(there: list[str], given: Mapping[str, str], file: Path) -> dict[str, str]:
    """Column by meaning. Raises ConfigError for a missing column, or if there is nothing to evaluate."""
    for meaning, column in given.items():
        if meaning not in NAMES:
            raise ConfigError(unknown("columns:", meaning, NAMES))
        if column not in there:
            raise ConfigError(f"{file}: " + unknown("column", column, there))
    found = {m: next((n for n in names if n in there and n not in given.values()), "") for m, names in NAMES.items()}
    means = {meaning: column for meaning, column in {**found, **given}.items() if column}
    if not any(meaning in means for meaning in NEEDED):
        raise ConfigError(f"{file} has none of the columns {', '.join(NEEDED)}; it has {', '.join(there) or 'no rows'}")
    return means


def _rows(file: Path) -> list[Row]:
    if not file.is_file():
        raise ConfigError(f"no such file: {file}")
    kind = file.suffix.lower()
    try:
        if kind == ".parquet":
            return pyarrow.parquet.read_table(file).to_pylist()
        if kind in DELIMITED:
            # An empty cell is a missing answer, not an empty one.
            return [{name: value or None for name, value in row.items()} for _, row in read_delimited(file)]
        if kind in (".jsonl", ".ndjson", ".json"):
            return list(_json_rows(file))
    except (pa.ArrowInvalid, OSError) as err:
        raise DataError(f"{file} cannot be read as a table: {str(err).splitlines()[0]}") from None
    raise ConfigError(f"{file}: a table is .parquet, .csv, .tsv or .jsonl")


def _json_rows(file: Path) -> Iterator[Row]:
    """Lines of objects, or one list of them."""
    in_list = holds_list(file)
    for number, row in enumerate(read_json_list(file), 1) if in_list else read_json_lines(file):
        if not isinstance(row, dict):
            raise DataError(f"{file}: {'row' if in_list else 'line'} {number} is not an object")
        yield row


def _example(row: Row, number: int, means: Mapping[str, str], images: ImageFolder, file: Path) -> Example:
    def get(meaning: str) -> Any:
        return row.get(means[meaning]) if meaning in means else None

    what = f"{file}: row {number}"
    pictures = _pictures(get("image"), images, what) if "image" in means else []
    if "video" in means and get("video") is not None:
        pictures.append({"kind": "video", "value": _frames(get("video"), images, what)})
    references = texts(get("references"), f"{what}: {means.get('references')}")
    candidates = texts(get("candidates"), f"{what}: {means.get('candidates')}")
    target = get("target")
    if candidates and target is None and references:
        if references[0] not in candidates:
            raise DataError(f"{what}: the answer '{references[0]}' is not one of the candidates")
        target = candidates.index(references[0])
    if target is not None and not 0 <= int(target) < len(candidates):
        raise DataError(f"{what}: target {target} is not an index of the {len(candidates)} candidates")
    if target is not None and not references:
        references = [candidates[int(target)]]
    relevance = get("relevance")
    if relevance is not None and len(relevance) != len(candidates):
        raise DataError(f"{what}: {len(relevance)} values of relevance for {len(candidates)} candidates")
    return Example(
        key=str(number if get("key") is None else get("key")),
        pictures=pictures,
        question=str(get("question") or ""),
        before=str(get("before") or ""),
        references=references,
        candidates=candidates,
        target=None if target is None else int(target),
        relevance=None if relevance is None else [float(v) for v in relevance],
        kind=str(get("kind") or ""),
        split=str(get("split") or ""),
    )


def _pictures(value: object, images: ImageFolder, what: str) -> list[Segment]:
    if value is None:
        raise DataError(f"{what}: no image")
    values = value if isinstance(value, list) else [value]
    return [{"kind": "image", "value": _source(one, images, what)} for one in values]


def _source(value: object, images: ImageFolder, what: str) -> bytes | Path:
    """Bytes of an encoded image, or the path of its file inside the folder."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return images.path(value)
    raise DataError(f"{what}: an image is a file name or its bytes, not {type(value).__name__}")


def _frames(value: object, images: ImageFolder, what: str) -> Sequence[Frame]:
    """Frames as images: of a list of them, or of an animated file."""
    if isinstance(value, list):
        if not value:
            raise DataError(f"{what}: a video without frames")
        return [_source(one, images, what) for one in value]
    return read_video(_source(value, images, what), what)


def read_video(source: bytes | Path, what: str, num_frames: int = 8) -> Sequence[Frame]:
    """`num_frames` frames of an animated image (GIF, WebP, APNG) or, with the extra `video`, of any video file.

    Raises DataError for other values, MissingExtra for a video without PyAV.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            found = []
            for number in frame_indices(getattr(image, "n_frames", 1), num_frames):
                image.seek(number)
                found.append(image.convert("RGBA"))
            return found
    except UnidentifiedImageError:
        pass
    except (OSError, ValueError, Image.DecompressionBombError) as err:
        raise DataError(f"{what}: the video cannot be read: {err}") from None
    try:
        return list(VideoReader(500_000_000, 64_000_000, 3600.0).read(source, num_frames))
    except Unreadable as err:
        raise DataError(f"{what}: the video cannot be read: {err}") from None
