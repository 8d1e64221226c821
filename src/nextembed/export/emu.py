"""Converts Emu checkpoints between the released layouts and ours, one tensor at a time. Before anything is written,
tensors are compared with the model's parameters: missing and unexpected ones and wrong shapes are named.
"""

import mmap
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, GenerationConfig, PreTrainedTokenizerBase

from ..core.files import check_target, from_json, new_folder, write_json
from ..core.run_folder import find_saved, read_model_file
from ..errors import ConfigError
from ..models.emu import EmuConfig, EmuForConditionalGeneration, EmuProcessor
from ..models.emu.official import LORA_ALPHA, Mapped, derive_config, is_official, map_official, plain_name, to_official
from ..models.emu.official import unread_tensors as released_unread
from ..models.emu.tokens import llama_tokenizer
from .lazy_state import LazyState, weight_files
from .shards import Planned, parse_size, write_file, write_sharded

ENCODER = "multimodal_encoder"
PAINTER = ("unet", "vae", "scheduler", "feature_extractor", "safety_checker")
DTYPES = {"bf16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
WEIGHT_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".safetensors")


class Converted(NamedTuple):
    """The result. source: "released", "released, instructed" or "nextembed"; files: of weights; rank: of the LoRA in it
    (0: none); lora: "merged", "kept" or ""; copied: the painter's folders; has_tokenizer."""

    config: EmuConfig
    source: str
    files: list[Path]
    rank: int
    lora: str
    copied: list[str]
    has_tokenizer: bool


def is_emu(source: str | Path) -> bool:
    """Whether a folder or file holds an Emu checkpoint, released or ours. Raises ConfigError for a torch or safetensors
    file that cannot be read."""
    path = Path(source).expanduser()
    if path.is_file():
        return path.suffix in WEIGHT_ENDINGS and is_official(LazyState([path]).infos)
    if _encoder_folder(path) is not None:
        return True
    return _our_folder(path) is not None


def convert_emu(
    source: str | Path,
    target: str | Path,
    to: Literal["nextembed", "official"] = "nextembed",
    tokenizer: str | Path | None = None,
    adapter: Literal["merge", "keep"] = "merge",
    lora_alpha: float | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    **known: object,
) -> Converted:
    """Writes an Emu checkpoint in the other layout; peak memory is that of its largest tensor, whatever its size.

    Args:
        source: a released folder (`multimodal_encoder/` and its neighbours), a released file, or a run, a checkpoint or
            a model folder of ours.
        target: a new folder.
        to: the layout.
        tokenizer: `tokenizer.model`, or a folder of one, of the language model; None takes the one in the source's
            folder, if any.
        adapter: LoRA goes into the weights, or beside them as a peft adapter in `adapter/`.
        lora_alpha: None is the release's, 16.
        dtype: "bf16", "float16", "float32"; None leaves each tensor as it is.
        max_shard_size: of a file of weights, e.g. "5GB".
        known: what shapes do not tell: heads, vision_heads, relative_max_distance.

    Raises:
        ConfigError: for weights that are no whole Emu (the parameter is named), or a target that exists; then nothing
            is written.
    """
    target, path = Path(target), Path(source).expanduser()
    check_target(target)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"a dtype is one of {', '.join(DTYPES)}, not '{dtype}'")
    max_bytes = parse_size(max_shard_size)
    if to == "official":
        if dtype or tokenizer or lora_alpha or adapter == "keep" or any(v is not None for v in known.values()):
            raise ConfigError("--to official writes the weights unchanged; options for reading do not apply")
        return _to_official(path, target)
    if to != "nextembed":
        raise ConfigError(f"the {to} layout does not support Emu; convert --to nextembed or official")
    return _to_ours(path, target, tokenizer, adapter, lora_alpha, DTYPES.get(dtype or ""), max_bytes, known)


# -- the released layouts to ours


def _to_ours(
    path: Path,
    target: Path,
    tokenizer_path: str | Path | None,
    adapter: str,
    alpha: float | None,
    dtype: torch.dtype | None,
    max_bytes: int,
    known: dict[str, Any],
) -> Converted:
    files, folder = _released_files(path)
    state = LazyState(files)
    try:
        mapped = map_official(state.shapes, merge=adapter == "merge", alpha=alpha)
        if alpha is not None and not mapped.rank:
            raise ConfigError("there is no LoRA in these weights for --lora-alpha to scale")
        instruct = (
            mapped.rank > 0 or any(".base_model.model." in n for n in state.infos) or _vocabulary(mapped) == 32006
        )
        config = derive_config(mapped.parts, instruct, **_rotary(state), **known)
        config.architectures = [EmuForConditionalGeneration.__name__]
        check_parameters(config, {name: part.shape for name, part in mapped.parts.items()})
    except ConfigError as err:
        raise ConfigError(f"{path}: {err}") from None
    tokens = _tokenizer(tokenizer_path, folder, config, instruct)
    plan = {
        name: Planned(part.shape, dtype or state.infos[part.sources[0]].dtype) for name, part in mapped.parts.items()
    }
    painter = [name for name in PAINTER if (folder / name).is_dir()]
    size = sum(planned.num_bytes for planned in plan.values()) + sum(_size(folder / name) for name in painter)
    _check_space(target, size)
    config.dtype = dtype or max(plan.values(), key=lambda planned: planned.num_bytes).dtype

    def make(name: str) -> Tensor:
        part = mapped.parts[name]
        return part.make(*(state.read(source) for source in part.sources))

    with new_folder(target) as scratch:
        config.save_pretrained(scratch)
        generation_defaults(config).save_pretrained(scratch)
        image_processor = CLIPImageProcessorPil(
            size={"height": config.image_size, "width": config.image_size}, resample=3, do_center_crop=False
        )
        if tokens is None:
            image_processor.save_pretrained(scratch)
        else:
            EmuProcessor(image_processor, tokens, config.num_image_latents).save_pretrained(scratch)
        written = write_sharded(scratch, plan, make, max_bytes)
        if mapped.lora:
            _write_adapter(scratch / "adapter", mapped, state, alpha, dtype)
        for name in painter:
            shutil.copytree(folder / name, scratch / "visual_decoder" / name)
    state.close()
    kind = "released, instructed" if instruct else "released"
    lora = ("kept" if mapped.lora else "merged") if mapped.rank else ""
    places = [target / file.name for file in written]
    return Converted(config, kind, places, mapped.rank, lora, painter, tokens is not None)


def generation_defaults(config: EmuConfig) -> GenerationConfig:
    """The release's defaults for generating text: 5 beams, at most 50 new tokens, lengths not weighed.

    Its minimum length of 1 counts the begin token, so it is 0 here.
    """
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        num_beams=5,
        max_new_tokens=50,
        length_penalty=0.0,
        repetition_penalty=1.0,
        do_sample=False,
    )


def check_parameters(config: EmuConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ConfigError naming what is missing, surplus or of another shape than the model of a configuration has."""
    try:
        with torch.device("meta"):
            model = EmuForConditionalGeneration(config)
    except ValueError as err:
        raise ConfigError(str(err)) from None
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for words, names in (("missing", wanted.keys() - shapes.keys()), ("surplus", shapes.keys() - wanted.keys())):
        if names:
            raise ConfigError(f"{words} parameters: {_some(names)}")
    if wrong := [name for name in wanted if wanted[name] != tuple(shapes[name])]:
        first = wrong[0]
        raise ConfigError(
            f"'{first}' has shape {list(shapes[first])}; the other weights require {list(wanted[first])} "
            f"({len(wrong)} in all)"
        )


def _released_files(path: Path) -> tuple[list[Path], Path]:
    """Files of weights, and the folder whose neighbours belong to them."""
    if path.is_file():
        return [path], path.parent if path.parent.name != ENCODER else path.parent.parent
    folder = _encoder_folder(path)
    if folder is None:
        if _our_folder(path) is not None:
            raise ConfigError(f"{path} is in nextembed's layout already")
        raise ConfigError(f"there is no {ENCODER}/pytorch_model.bin in {path}")
    files = weight_files(folder)
    return files, folder.parent if folder.name == ENCODER else folder


def _encoder_folder(path: Path) -> Path | None:
    """The folder of the released weights: `multimodal_encoder/`, that of a clone's `pretrain/`, or the folder
    itself."""
    for folder in (path / ENCODER, path / "pretrain" / ENCODER):
        if folder.is_dir():
            if not weight_files(folder):
                raise ConfigError(f"there is no pytorch_model.bin in {folder}")
            return folder
    if path.is_dir() and not (path / "config.json").is_file() and (files := weight_files(path)):
        return path if is_official(LazyState(files).infos) else None
    return None


def _vocabulary(mapped: Mapped) -> int:
    table = mapped.parts.get("model.language_model.model.embed_tokens.weight")
    return table.shape[0] if table else 0


def _rotary(state: LazyState) -> dict[str, Any]:
    """Heads and base that follow from the file's rotary tables, which nothing else reads."""
    for name in state.infos:
        if plain_name(name).endswith("layers.0.self_attn.rotary_emb.inv_freq"):
            table = state.read(name).float()
            if table.ndim == 1 and len(table) > 1 and table[1] > 0:
                base = float(table[1].double() ** -len(table))
                near = round(base, -1)
                return {"head_dim": 2 * len(table), "rope_theta": near if abs(base / near - 1) < 0.01 else base}
    return {}


def _tokenizer(
    path: str | Path | None, folder: Path, config: EmuConfig, instruct: bool
) -> PreTrainedTokenizerBase | None:
    """The extended tokenizer; None if there is none. Raises ConfigError if its ids do not fit the weights."""
    if path is None:
        names = ("tokenizer.model", "tokenizer.json")
        if not any((folder / name).is_file() for name in names):
            return None
        path = folder
    tokens = llama_tokenizer(Path(path).expanduser(), instruct)
    found = len(tokens)
    if found != config.text_config.vocab_size:
        raise ConfigError(
            f"the tokenizer in {path} has {found:,} tokens with Emu's, the weights {config.text_config.vocab_size:,}"
        )
    return tokens


def _write_adapter(
    folder: Path, mapped: Mapped, state: LazyState, alpha: float | None, dtype: torch.dtype | None
) -> None:
    """LoRA as peft saves it: `PeftModel.from_pretrained(model, folder)` puts it on the model."""
    folder.mkdir()
    names = {}
    for (layer, side), name in mapped.lora.items():
        names[f"base_model.model.{layer.removesuffix('.weight')}.lora_{side}.weight"] = name
    plan = {ours: Planned(state.infos[n].shape, dtype or state.infos[n].dtype) for ours, n in names.items()}
    write_file(folder / "adapter_model.safetensors", plan, names, lambda ours: state.read(names[ours]))
    layers = sorted({layer.split(".")[-2] for layer, _ in mapped.lora})
    settings = {
        "peft_type": "LORA",
        "r": mapped.rank,
        "lora_alpha": LORA_ALPHA if alpha is None else alpha,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": rf"model\.language_model\..*\.({'|'.join(layers)})",
        "inference_mode": True,
        "task_type": None,
        "base_model_name_or_path": None,
    }
    write_json(folder / "adapter_config.json", settings)


# -- ours to the released layout


def _our_folder(path: Path) -> Path | None:
    """The Emu folder of a path (a model, a checkpoint or a run); None if there is none."""
    try:
        folder = find_saved(path).local_folder()
        return folder if read_model_file(folder).model_type == EmuConfig.model_type else None
    except ConfigError:  # missing or incomplete
        return None


def _to_official(path: Path, target: Path) -> Converted:
    """One `multimodal_encoder/pytorch_model.bin`, and the painter beside it. torch writes one tensor at a time, and
    each is a mapped piece of our files."""
    folder = _our_folder(path)
    if folder is None:
        raise ConfigError(f"{path} is not a nextembed Emu folder (config.json, model_type emu)")
    config = EmuConfig.from_pretrained(folder)
    if config.vision_config.model_type != "blip_2_vision_model" or config.text_config.model_type != "llama":
        parts = f"{config.vision_config.model_type} and {config.text_config.model_type}"
        raise ConfigError(f"the released layout supports only an EVA-CLIP tower and LLaMA, not {parts}")
    if config.connector != "causal_former":
        raise ConfigError(f"the released layout supports only a causal former, not '{config.connector}'")
    files = weight_files(folder)
    if any(file.suffix != ".safetensors" for file in files):
        raise ConfigError(f"{folder} should contain safetensors, not {files[0].name}")
    state = LazyState(files)
    try:
        check_parameters(config, state.shapes)
    except ConfigError as err:
        raise ConfigError(f"{folder}: {err}") from None
    painter = [name for name in PAINTER if (folder / "visual_decoder" / name).is_dir()]
    size = sum(info.num_bytes for info in state.infos.values())
    _check_space(target, size + sum(_size(folder / "visual_decoder" / name) for name in painter))
    theirs = released_unread(config)
    for name, tensor in mapped_tensors(state).items():
        theirs |= to_official(name, tensor)
    theirs.setdefault("decoder.lm.lm_head.weight", theirs["decoder.lm.model.embed_tokens.weight"])  # tied here
    state.close()
    with new_folder(target) as scratch:
        (scratch / ENCODER).mkdir()
        torch.save(theirs, scratch / ENCODER / "pytorch_model.bin")
        for name in painter:
            shutil.copytree(folder / "visual_decoder" / name, scratch / name)
    return Converted(config, "nextembed", [target / ENCODER / "pytorch_model.bin"], 0, "", painter, False)


def mapped_tensors(state: LazyState) -> dict[str, Tensor]:
    """All tensors of safetensors files, each a storage of its own that is mapped from its file: read only."""
    found: dict[str, Tensor] = {}
    for file in sorted({info.file for info in state.infos.values()}):
        with file.open("rb") as handle:
            bytes_of_file = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        start = 8 + int.from_bytes(bytes_of_file[:8], "little")
        header = from_json(bytes_of_file[8:start])
        for name, about in header.items():
            if name != "__metadata__":
                info, begin = state.infos[name], about["data_offsets"][0]
                num = torch.Size(info.shape).numel()
                flat = torch.frombuffer(bytes_of_file, dtype=info.dtype, offset=start + begin, count=num)
                found[name] = flat.view(info.shape)
    return found


def _some(names: Iterable[str]) -> str:
    """The first few of many names."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _check_space(target: Path, needed: int) -> None:
    """Raises ConfigError before anything is written if the disk is too full."""
    parent = next(p for p in target.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise ConfigError(f"{target} needs {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free there")
