"""An Omni model in use: files of any modality in, files of any modality out."""

import csv
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.files import from_json, replacing, to_json
from ..core.types import AttentionMode
from ..data.audio import SAMPLE_RATE, AudioReader
from ..data.transforms import ImageReader, Unreadable
from ..data.video import VideoReader
from ..errors import ConfigError, DataError, unknown
from ..evaluation.features.extract import Pooling, extract, feature_keys
from ..models.loading import open_pair
from ..models.omni import OmniForPreTraining, OmniProcessor
from ..objectives.readout import load_readouts

SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"),
    "video": (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".gif"),
    "audio": (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus"),
    "series": (".csv", ".npy", ".json"),
}
WRITES = {"image": ".png", "video": ".gif", "audio": ".wav", "text": ".txt"}  # others are written as .json or .npy
NUM_FRAMES = 8


def load_omni(path: str | Path, weights: str | None = None, device: str | None = None) -> OmniForPreTraining:
    """An Omni with its processor (`model.processor`); of a run that trained readouts, with these (`model.readouts`).

    Arguments and errors as of `models.loading.open_pair`.
    """
    model, processor = open_pair(path, OmniForPreTraining, OmniProcessor, weights, device)
    model.processor = processor
    run = Path(path).expanduser()
    if (run / "readout" / "config.json").is_file():
        trained = load_readouts(run)
        trained.check(model)
        readouts = {name: readout for name, readout in trained.readouts.items() if readout.decoder != "conv"}
        model.readouts |= {name: readout.to(model.device) for name, readout in readouts.items()}
    return model


def features(
    model: OmniForPreTraining,
    documents: Sequence[Any],
    layer: int | None = None,
    pooling: Pooling = "mean",
    attention: AttentionMode = "causal",
    batch_size: int = 64,
) -> Tensor:
    """Features float32 [N, D] of documents, each a list of pieces as `OmniProcessor` takes them, or one piece.

    layer: 0 is the latents, -1 the output; None takes the middle one. pooling: "mean" is over all latents but begin
    latents, "last" is the last one, "first" the first begin latent, which sees the rest only under full attention.
    Raises ConfigError for a layer that the model has not, and for pieces that it cannot read.
    """
    num_layers = model.config.num_hidden_layers
    layer = num_layers // 2 if layer is None else layer
    try:
        keys = feature_keys(num_layers, [layer], [pooling], [attention])
        encoded = [
            model.processor.encode_document(model.processor.document(one if isinstance(one, list | tuple) else [one]),
                                            end=False)
            for one in documents
        ]  # fmt: skip
    except ValueError as err:
        raise ConfigError(str(err).splitlines()[0]) from None
    if not keys:
        raise ConfigError(
            "pooling 'first' reads a begin latent, which has seen nothing: take attention='full', layer > 0"
        )
    if not encoded:
        return torch.zeros(0, model.config.hidden_size)
    samples: Any = [{"encoded": one} for one in encoded]
    return extract(model, samples, keys, batch_size).values[keys[0]]


def kind_of(file: str | Path) -> str | None:
    """The modality that a file's name speaks of; None for none."""
    suffix = Path(file).suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def read_piece(kind: str, value: str | Path, name: str | None = None) -> dict[str, Any]:
    """A piece of a document from a file (text: from the words themselves), {NAME: value}. kind: how it is read. name:
    of the modality in the model, if it is another. Raises DataError for a file that cannot be read."""
    if kind == "text":
        return {name or "text": str(value)}
    file = Path(value).expanduser()
    if not file.is_file():
        raise DataError(f"no such file: {value} (text does not end in {file.suffix})" if kind_of(file) else
                        f"no such file: {value}")  # fmt: skip
    try:
        return {name or kind: READERS.get(kind, read_series)(file)}
    except (Unreadable, ValueError, OSError, EOFError) as err:
        raise DataError(f"{value}: {(str(err).splitlines() or [type(err).__name__])[0]}") from None


def read_series(file: Path) -> Any:
    """float32 [C, T] of .csv (a column a channel, with or without a header) or .npy; of .json whatever it holds."""
    if file.suffix.lower() == ".json":
        return from_json(file.read_bytes())
    if file.suffix.lower() == ".npy":
        return torch.from_numpy(np.atleast_2d(np.load(file, allow_pickle=False)).astype(np.float32))
    rows = [row for row in csv.reader(file.read_text().splitlines()) if row]
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
    """Writes a generated signal, whole or not at all. Raises ConfigError for a name that does not fit its kind."""
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
        with file.open("wb") as out_file:  # of a name, numpy would make another one
            np.save(out_file, np.asarray(value), allow_pickle=False)
    else:
        file.write_text(to_json(value.tolist() if hasattr(value, "tolist") else value) + "\n")


def check_file(kind: str, file: Path | None) -> None:
    """Raises ConfigError for a file that signals of a kind are not written to; for pictures and sounds None is none."""
    wanted = WRITES.get(kind)
    if file is None:
        if wanted is not None and kind != "text":
            raise ConfigError(f"{kind} is to come; name a file for it: -o FILE{wanted}")
    elif wanted is not None and file.suffix.lower() != wanted:
        raise ConfigError(f"-o {file}: {kind} is written to a file named *{wanted}")
    elif wanted is None and file.suffix.lower() not in (".json", ".npy"):
        raise ConfigError(f"-o {file}: '{kind}' is written as .json or .npy")


def picture(value: Any) -> Image.Image:
    """uint8 [C, H, W] as a PIL image."""
    channels = value.permute(1, 2, 0).numpy()
    return Image.fromarray(channels[..., 0] if channels.shape[2] == 1 else channels)


def check_target(model: Any, target: str | None) -> None:
    """Raises ConfigError for a modality that the model has not."""
    if target is not None and target not in model.config.names:
        raise ConfigError(unknown("--target", target, model.config.names))
