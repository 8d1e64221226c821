"""`visualize`: one picture of what happens inside a model on one image."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..core.files import replacing
from ..core.objective import ReadFeatures
from ..core.run_folder import find_saved, read_config, read_processor, run_folder
from ..core.types import AttentionMode, Backbone, PatchConfig, reads_clips
from ..data.sources import ImageData
from ..data.transforms import ImageReader, Unreadable, normalize, resize
from ..errors import ConfigError, DataError, MissingSplit
from ..models.loading import load_model
from ..objectives.latent_decoder import FOLDER, LoadedDecoder, load_decoder
from ..objectives.saved import objective_of
from .figures import Drawing, draw, is_made_here
from .inside import Inside, Look, check_layers, look_inside
from .readouts import Length
from .settings import Data, settings_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Model = str | Path | PreTrainedModel  # a run, a checkpoint, a model's folder, or the model
Picture = str | Path | Image.Image | np.ndarray
ARCHIVES = (".parquet", ".tar", ".tgz", ".arrow", ".jsonl", ".csv")  # of many images: a data source, not an image


@dataclass
class Visualization:
    """The result of `visualize`. A notebook shows the picture.

    Attributes:
        inside: the tensors.
        patch: the query patch.
        drawing: the panels.
        figure: matplotlib's.
        paths: files written.
    """

    inside: Inside
    patch: int
    drawing: Drawing
    paths: list[Path]

    @property
    def figure(self) -> "Figure":
        return self.drawing.figure

    def save(self, output: str | Path) -> list[Path]:
        """Writes one PNG, or a folder with `all.png` and each panel, atomically.

        Args:
            output: a file that ends in .png, or a folder.

        Returns:
            The files.

        Raises:
            ConfigError: the path is neither, or the folder holds files that are not ours.
        """
        path = check_output(output)
        files = {path: self.drawing.png()}
        if path.suffix.lower() != ".png":
            files = {path / "all.png": self.drawing.png()}
            files |= {path / f"{name}.png": content for name, content in self.drawing.panels().items()}
            for file in files:
                if file.exists() and not (file.is_file() and is_made_here(file)):
                    raise ConfigError(
                        f"output {path}: {file.name} in it was not written by this command; choose another folder"
                    )
        for file, content in files.items():
            with replacing(file) as scratch:
                scratch.write_bytes(content)
        self.paths = list(files)
        return self.paths

    def _repr_png_(self) -> bytes:
        return self.drawing.png()


def _grid(net: PreTrainedModel, pixels: Tensor) -> tuple[int, int]:
    """Rows and columns of patches."""
    height, width = net.config.patch_shape
    return pixels.shape[-2] // height, pixels.shape[-1] // width


def _layers(layers: Sequence[int] | None, num_layers: int) -> tuple[list[int], list[int]]:
    """Layers of the PCA, and those whose attention is shown (not the latents)."""
    if layers is None:
        wanted = check_layers([0, num_layers // 2, num_layers], num_layers, 0)
        return wanted, list(dict.fromkeys([1, (num_layers + 1) // 2, num_layers]))
    wanted = check_layers(layers, num_layers, 0)
    return wanted, list(dict.fromkeys(layer for layer in wanted if layer > 0))


def visualize(
    model: Model,
    image: Picture,
    output: str | Path | None = None,
    *,
    index: int = 0,
    patch: int | tuple[int, int] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    attention: AttentionMode | None = None,
    weights: Literal["raw", "ema"] = "raw",
    decoders: Sequence[str | Path] = (),
    size: int | tuple[int, int] | None = None,
    num_known: int | None = None,
    length: Length = "mean",
    foreground: bool = False,
) -> Visualization:
    """Looks inside a model on one image: attention, prediction, surprise, PCA, pixels from latents, rollout.

    Args:
        model: a run, a checkpoint, a saved model's folder, or a model object.
        image: a file, a PIL image, a uint8 array [H, W] or [H, W, C], or a data source.
        output: a .png file, or a folder for the panels too.
        index: which validation image of a data source.
        patch: the query patch, its number or (row, column); None takes one before a patch of much contrast.
        layers: of attention and PCA; 0 is the latents, negative ones count from the end.
        heads: of attention, from 1.
        attention: None is as the model was trained.
        weights: "raw" or "ema", of a run.
        decoders: runs of the recipe `latent_decoder`.
        size: pixels, or (height, width), that patches divide; None is the model's.
        num_known: patches that the rollout starts from; None: the top half.
        length: of predictions before least squares: "mean" of the image's latents, or "true", that of each.
        foreground: PCA of the foreground only.

    Returns:
        The figure, with the tensors behind it.

    Raises:
        ConfigError | DataError: before anything is written.
    """
    if output is not None:
        check_output(output)
    opened = opened_model(model, weights)
    net, values, name, mean_std = opened.net, opened.values, opened.name, opened.mean_std
    pixels, shown = _pixels(image, index, net, mean_std, _size(size, net))
    mode: AttentionMode = attention or ("causal" if _causal(values, net) else "full")
    num_layers, num_heads = net.config.num_hidden_layers, net.config.num_attention_heads
    (wanted, looked), chosen = _layers(layers, num_layers), _heads(heads, num_heads)
    query = None if patch is None else query_patch(patch, _grid(net, pixels))
    with eager(net):
        look = Look(mode, wanted, looked, num_known, _decoders(model, decoders), length, opened.read)
        inside = look_inside(net, pixels, *mean_std, look)
    inside.notes[:0] = objective_notes(values, mode)
    query = default_patch(inside) if query is None else query
    subtitle = f"{name}, {weights} weights: {num_layers} layers x {net.config.hidden_size}, {mode} attention. {shown}"
    found = Visualization(inside, query, draw(inside, query, chosen, f"Inside {name}", subtitle, foreground), [])
    if output is not None:
        found.save(output)
    return found


def check_output(output: str | Path) -> Path:
    """A .png file or a folder. Raises ConfigError for a file of another kind."""
    path = Path(output).expanduser()
    if path.suffix and path.suffix.lower() != ".png" and not path.is_dir():
        raise ConfigError(f"output {path}: pictures are written to a .png file or a folder, not {path.suffix}")
    if path.is_dir() == (path.suffix.lower() == ".png") and path.exists():
        raise ConfigError(f"output {path}: a {'folder' if path.is_dir() else 'file'} of that name already exists")
    return path


class Opened(NamedTuple):
    """A model, its run's settings (empty if it has none), a name for it, mean and std of its pixels, and what reads its
    features where it is the objective."""

    net: PreTrainedModel
    values: dict[str, Any]
    name: str
    mean_std: tuple[float, float] = (0.5, 0.5)
    read: ReadFeatures | None = None


def opened_model(model: Model, weights: str) -> Opened:
    """A model of patches with eager attention, and what belongs to it. Raises ConfigError for any other."""
    if not isinstance(model, (str, Path)):
        _check_model(model, "the model")
        return Opened(model, {}, type(model).__name__)
    saved = find_saved(model)
    folder = saved.folder(weights)
    net = load_model(folder, device="cpu", attn_implementation="eager")  # only eager attention returns weights
    _check_model(net, saved.path)
    values = read_config(saved.run) if saved.run else {}
    settings = settings_of(values, saved.run or Path(saved.path))
    name = settings.name or Path(model).expanduser().resolve().name
    objective = objective_of(folder, net)
    read = None if objective is None else objective.read
    return Opened(net, values, name, normalisation(settings.data, folder), read)


@contextlib.contextmanager
def eager(net: PreTrainedModel) -> Iterator[None]:
    """Context with the model in eval mode and eager attention; afterwards it is restored."""
    training, before = net.training, net.config._attn_implementation
    net.eval().set_attn_implementation("eager")
    try:
        yield
    finally:
        net.train(training).set_attn_implementation(before)


def _check_model(net: PreTrainedModel, name: str) -> None:
    if not isinstance(net, Backbone) or not isinstance(net.config, PatchConfig):
        raise ConfigError(
            f"{name} contains a {type(net).__name__}, not a model of next-embedding prediction on patches "
            "such as NEPA; `nextembed report` shows runs of every kind"
        )
    if reads_clips(net.config):
        raise ConfigError(f"{name} reads clips, but pictures need an image model")


def _decoders(model: Model, decoders: Sequence[str | Path]) -> list[LoadedDecoder]:
    """Those that are named, and the model's own run's."""
    folders = [Path(path).expanduser() for path in decoders]
    run = run_folder(model) if isinstance(model, (str, Path)) else None
    if run and (run / FOLDER).is_dir() and run.resolve() not in [f.resolve() for f in folders]:
        folders.append(run)
    return [load_decoder(folder) for folder in folders]


def _causal(values: dict[str, Any], net: PreTrainedModel) -> bool:
    objective = values.get("objective") or {}
    return bool(objective.get("causal", net.config.is_causal))


def _size(size: int | tuple[int, int] | None, net: PreTrainedModel) -> tuple[int, int]:
    """(height, width) in pixels. Raises ConfigError unless patches divide it into at least two."""
    height, width = (size, size) if isinstance(size, int) else size or net.config.image_shape
    patch_height, patch_width = net.config.patch_shape
    if height < 1 or width < 1 or height % patch_height or width % patch_width:
        raise ConfigError(
            f"size {height}x{width} is not a multiple of the model's patches of {patch_height}x{patch_width} pixels"
        )
    if height * width == patch_height * patch_width:
        raise ConfigError(f"size {height}x{width} is a single patch: there is no next one to predict")
    return height, width


def _pixels(
    image: Picture, index: int, net: PreTrainedModel, mean_std: tuple[float, float], size: tuple[int, int]
) -> tuple[Tensor, str]:
    """The image as the model sees it, [1, C, height, width], and what it is, in words."""
    name = "your picture"
    if isinstance(image, (str, Path)):
        path = Path(image).expanduser()
        if _is_image_file(path):
            image, name = path, path.name
        else:
            row, name = _row(ImageData(source=str(image)), index)
            image = row["image"]
    try:
        whole = ImageReader(net.config.num_channels).read(image)
    except Unreadable as err:
        raise DataError(f"cannot read the image {name}: {err}") from None
    if size[0] == size[1]:
        whole = resize(whole, size[0])
    else:
        whole = F.interpolate(whole[None], size, mode="bilinear", antialias=True)[0]
    return normalize(whole, *mean_std)[None], f"Image: {name}, at {size[1]} x {size[0]} pixels."


def _is_image_file(path: Path) -> bool:
    return path.is_file() and not path.name.lower().endswith(ARCHIVES)


def _row(data: ImageData, index: int) -> tuple[dict[str, Any], str]:
    """Row `index` of a source's validation split, or of its training split where there is no other."""
    try:
        rows: Any = data.rows("validation")
    except MissingSplit:
        rows = data.rows("train")
    except ConfigError as err:
        raise ConfigError(f"no image file and no data source: {data.source} ({err})") from None
    if not 0 <= index < len(rows):
        raise ConfigError(f"index {index} is not in 0..{len(rows) - 1}, the images of {data.source}")
    return rows[index], f"{data.source} {index}"


def query_patch(patch: int | tuple[int, int], grid: tuple[int, int]) -> int:
    """The number of a patch given as number or (row, column). Raises ConfigError if the image has none such."""
    rows, columns = grid
    if isinstance(patch, int):
        if not 0 <= patch < rows * columns:
            raise ConfigError(
                f"patch {patch} is not in 0..{rows * columns - 1}: the image has {rows} x {columns} patches"
            )
        return patch
    if not (0 <= patch[0] < rows and 0 <= patch[1] < columns):
        raise ConfigError(
            f"patch {patch[0]},{patch[1]} is not in rows 0..{rows - 1}, columns 0..{columns - 1} (counted from 0)"
        )
    return patch[0] * columns + patch[1]


def default_patch(inside: Inside) -> int:
    """The patch before the one of most contrast in the middle half of the raster."""
    size = (inside.images.shape[-2] // inside.grid[0], inside.images.shape[-1] // inside.grid[1])
    contrast = F.unfold(inside.images[:1], size, stride=size).std(dim=1)[0]  # [P]
    start = max(1, inside.num_patches // 4)
    stop = max(start + 1, 3 * inside.num_patches // 4)
    return start + int(contrast[start:stop].argmax()) - 1


def _heads(heads: Sequence[int] | None, num_heads: int) -> list[int]:
    chosen = list(range(1, min(num_heads, 16) + 1)) if heads is None else list(dict.fromkeys(heads))
    if bad := [head for head in chosen if not 1 <= head <= num_heads]:
        raise ConfigError(f"head {bad[0]} is not in 1..{num_heads}")
    if not chosen:
        raise ConfigError("heads: name at least one, or leave it out for all")
    return chosen


def objective_notes(values: dict[str, Any], mode: AttentionMode) -> list[str]:
    """Notes about a model that was not trained like NEPA, or is used in another way than trained."""
    objective = values.get("objective") or {}
    kind = str(objective.get("kind") or "next_embedding")
    notes = []
    if kind not in ("next_embedding", "latent_decoder"):
        notes.append(
            f"Trained with objective {kind}: 'prediction' is the hidden state compared with the next input latent, "
            "which this model was not trained for."
        )
    elif kind == "next_embedding" and objective:
        differs = [
            f"{name} {objective[name]}"
            for name, usual in (("target", "latents"), ("distance", "cosine"), ("shift", True), ("steps_ahead", [1]))
            if objective.get(name, usual) != usual
        ]
        if differs:
            notes.append(
                f"Trained with {', '.join(differs)}: the pictures still show the cosine with the next input "
                "latent, which is not its loss."
            )
    if mode == "full":
        notes.append(
            "Full attention: every hidden state has seen the whole image, so predictions have seen the answer."
        )
    return notes


def normalisation(data: Data, folder: Path | str) -> tuple[float, float]:
    """Mean and std of the pixels: of the run's data, else of the saved image processor, else 0.5 and 0.5."""
    if data.mean is not None and data.std is not None:
        return float(data.mean), float(data.std)
    saved = read_processor(Path(folder))
    if not saved.image_mean or not saved.image_std:
        return 0.5, 0.5
    return fmean(saved.image_mean), fmean(saved.image_std)
