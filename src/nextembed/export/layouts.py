"""Checkpoints in other layouts: reads all of NEPA's and Emu's, writes the official ones, ours, and
stable-pretraining's."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
from pydantic import Field
from safetensors.torch import save_file
from transformers import AutoImageProcessor, BaseImageProcessor, ViTImageProcessor

from ..core.files import check_target, new_folder, write_json
from ..core.objective import FOLDER
from ..core.pretrained import load_pretrained, load_whole
from ..core.quiet import no_progress_bar
from ..core.run_folder import find_saved
from ..core.saved import load
from ..core.sizes import MAX_SIDE
from ..errors import ConfigError
from ..models.conversion import (
    SPT_CLASS,
    SPT_VERSION,
    State,
    from_stable_pretraining,
    official_config,
    plain_state,
    to_stable_pretraining,
)
from ..models.nepa import ViTNepaConfig, ViTNepaForImageClassification, ViTNepaForPreTraining, ViTNepaPreTrainedModel
from ..models.nepa_spt import SptNepaConfig, SptNepaForPreTraining
from ..objectives.saved import objective_beside
from .emu import Converted, convert_emu, is_emu
from .lazy_state import LazyState, load_torch, tensors
from .loading import is_classifier, read_model_config

Layout = Literal["official", "nextembed", "stable-pretraining"]

EMA_KEYS = ("model_ema", "ema", "ema_state_dict", "state_dict_ema", "ema_model")
ARGUMENTS = "arguments.json"  # next to stable-pretraining weights that we wrote
NEPA_ONLY = ("weights", "image_size", "qk_norm", "is_causal")
EMU_ONLY = ("tokenizer", "adapter", "lora_alpha", "dtype", "max_shard_size", "vision_heads", "relative_max_distance")


class Source(NamedTuple):
    """A loaded checkpoint. layout: its layout; processor: its image processor, if any; objective: folder of the one
    that was saved with it, which other layouts cannot contain."""

    model: ViTNepaPreTrainedModel
    layout: str
    processor: BaseImageProcessor | None
    objective: Path | None = None


def convert(source: str | Path, target: str | Path, to: Layout = "nextembed", **options: Any) -> Source | Converted:
    """Writes a checkpoint of NEPA or Emu in another layout.

    Args:
        source: a run, a checkpoint, a model folder, or a file of weights (.safetensors, .bin, .pt, .pth, .ckpt; read
            without executing code); of Emu also a released folder.
        target: a new folder.
        to: the layout.
        options: num_attention_heads, where weights do not tell it (of Emu: of the language model). Of NEPA: weights,
            "raw" or "ema" where there are both; image_size, qk_norm, is_causal of bare weights. Of Emu: tokenizer,
            adapter, lora_alpha, dtype, max_shard_size, vision_heads, relative_max_distance, see `convert_emu`.

    Returns:
        What was read: `Source` of NEPA, with the model itself, `Converted` of Emu, never in memory as a whole.

    Raises:
        ConfigError: for weights of another model, a model the other layout cannot hold, or an option of the other
            model; then nothing is written.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(options.keys() - {"num_attention_heads", *NEPA_ONLY, *EMU_ONLY}):
        raise TypeError(f"convert() got an unexpected keyword argument '{unknown[0]}'")
    emu = is_emu(source)
    if wrong := [name for name in (NEPA_ONLY if emu else EMU_ONLY) if name in options]:
        kind, other = ("NEPA", "Emu") if emu else ("Emu", "NEPA")
        raise ConfigError(f"{wrong[0]} is an option for {kind} checkpoints, but {source} looks like {other}")
    if emu:
        heads = options.pop("num_attention_heads", None)
        return convert_emu(source, target, to, heads=heads, **options)  # type: ignore[arg-type]
    return convert_nepa(source, target, to, **options)


def convert_nepa(
    source: str | Path,
    target: str | Path,
    to: Layout = "nextembed",
    weights: str | None = None,
    **known: object,
) -> Source:
    """Writes a checkpoint of NEPA in another layout. Arguments and errors as in `convert`."""
    target = Path(target)
    check_target(target)
    found = read_any(source, weights, **known)
    if to == "official" and found.model.config.model_type != ViTNepaConfig.model_type:
        raise ConfigError(
            "the official layout cannot represent stable-pretraining's NEPA, which has no begin token in "
            "attention and other rotary positions; convert --to nextembed, which reproduces it exactly"
        )
    with new_folder(target) as folder, no_progress_bar():
        if to == "stable-pretraining":
            arguments, state = to_stable_pretraining(found.model.config, found.model.state_dict())
            save_file(state, folder / "model.safetensors")
            write_json(folder / ARGUMENTS, {"class": SPT_CLASS, "version": SPT_VERSION, "arguments": arguments})
        else:
            found.model.save_pretrained(folder)
            if found.processor is not None:
                found.processor.save_pretrained(folder)
            if to == "nextembed" and found.objective is not None:
                shutil.copytree(found.objective, folder / FOLDER)
    return found


@dataclass
class Arguments:
    """Arguments of a stable-pretraining model that do not follow from its weights."""

    img_size: Annotated[int, Field(gt=0, le=MAX_SIDE)]


@dataclass
class ArgumentsFile:
    arguments: Arguments


def read_any(source: str | Path, weights: str | None = None, **known: Any) -> Source:
    """A checkpoint of any layout as a model with all its weights. Arguments and errors as in `convert`."""
    path = Path(source).expanduser()
    known = {name: value for name, value in known.items() if value is not None}
    if path.is_file():
        return _from_state(read_state(path, weights), path, known)
    if (path / ARGUMENTS).is_file() and (path / "model.safetensors").is_file():
        size = load(ArgumentsFile, path / ARGUMENTS).arguments.img_size
        return _from_state(read_state(path / "model.safetensors"), path, {"image_size": size} | known)
    if known:
        raise ConfigError(
            f"{path} has a model config, so {', '.join(sorted(known))} cannot be set; these options are for "
            "weights without a config"
        )
    folder = find_saved(source).local_folder(weights)
    kind = _class_of(folder)
    model = cast(ViTNepaPreTrainedModel, load_whole(kind, folder, strict=True, dtype=torch.float32))
    processor = None
    if (folder / "preprocessor_config.json").is_file():
        processor = load_pretrained(AutoImageProcessor, folder, f"cannot read {folder / 'preprocessor_config.json'}")
    layout = "stable-pretraining" if kind is SptNepaForPreTraining else "official"
    return Source(model, layout, processor, objective_beside(folder))


def read_state(file: Path, weights: str | None = None) -> State:
    """The tensors of a file of weights by name; of a training checkpoint, those of the model or of its average.

    Raises ConfigError if the file contains no weights, pickled code, or no EMA weights although requested.
    """
    wants_ema = weights == "ema"
    if file.suffix == ".safetensors":
        state = LazyState([file])
        found = {name: state.read(name) for name in state.infos}
    else:
        values = load_torch(file)
        averaged = next((own for key in EMA_KEYS if isinstance(own := values.get(key), dict)), None)
        if wants_ema and averaged is not None:
            return tensors(averaged)
        found = tensors(values)
    picked = {name: t for name, t in found.items() if _is_average(name) == wants_ema}
    if wants_ema and not picked:
        raise ConfigError(f"{file} has no EMA weights")
    return picked or found  # only averages in the file


def _is_average(name: str) -> bool:
    return any(part.startswith("ema") or part.endswith("_ema") for part in name.split("."))


def _from_state(state: State, path: Path, known: dict[str, object]) -> Source:
    try:
        layout, plain = plain_state(state)
        if layout == "stable-pretraining":
            config, plain = from_stable_pretraining(plain, **known)
            model: ViTNepaPreTrainedModel = SptNepaForPreTraining(config)
        else:
            kind = ViTNepaForImageClassification if "classifier.weight" in plain else ViTNepaForPreTraining
            model = kind(official_config(plain, **known))
    except KeyError as err:
        raise ConfigError(f"{path}: a weight is missing: {err.args[0]}") from None
    except ConfigError as err:
        raise ConfigError(f"{path}: {err}") from None
    expected = {name: t.shape for name, t in model.state_dict().items()}
    wrong = sorted(expected.keys() ^ plain.keys()) or [n for n, t in plain.items() if t.shape != expected[n]]
    if wrong:
        raise ConfigError(
            f"{path}: {wrong[0]} does not fit the model inferred from the other weights ({len(wrong)} in all)"
        )
    model.load_state_dict(plain)
    size = dict(zip(("height", "width"), model.config.image_shape, strict=True))
    half = [0.5] * model.config.num_channels
    # The normalisation of stable-pretraining's users is not known.
    known_processor = layout == "official"
    processor = ViTImageProcessor(size=size, resample=2, image_mean=half, image_std=half) if known_processor else None
    return Source(model.eval(), layout, processor)


def _class_of(folder: Path) -> type[ViTNepaPreTrainedModel]:
    config = read_model_config(folder)
    if isinstance(config, SptNepaConfig):
        return SptNepaForPreTraining
    return ViTNepaForImageClassification if is_classifier(config) else ViTNepaForPreTraining
