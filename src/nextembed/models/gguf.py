"""Language models in GGUF files, which hold weights, configuration and tokenizer in one, and no code."""

import copy
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import is_gguf_available

from ..core.pretrained import load_pretrained
from ..core.sizes import MAX_TENSORS, building, check_sizes
from ..errors import ConfigError

HEAD = struct.Struct("<4sIQQ")  # "GGUF", version, tensors, values of the header
VERSIONS = (2, 3)


def gguf_file(name: str | None) -> Path | None:
    """The GGUF file of a name: the file, or the only one in a folder without a config.json; else None. Raises
    ConfigError if the file is not GGUF, and for a folder with several.
    """
    if name is None:
        return None
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise ConfigError(f"model.language: {path} has {len(found)} GGUF files; name one of them, {found[0]}")
    return found[0] if found else None


def gguf_model(file: Path) -> PreTrainedModel:
    """The causal language model, its weights as float32: an ordinary model, which can be saved."""
    what = _checked(file)
    config = copy.deepcopy(_config(file, file.stat().st_mtime_ns))
    check_sizes(config.to_dict(), what)
    with building(what):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    loaded = _load(AutoModelForCausalLM, file, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())  # without the quantization marker, which prevents saving
    return model


def gguf_tokenizer(file: Path) -> Any:
    """A copy of the tokenizer."""
    _checked(file)
    return copy.deepcopy(_tokenizer(file, file.stat().st_mtime_ns))


@lru_cache(maxsize=4)  # reading the vocabulary takes seconds, and a run asks for it several times
def _tokenizer(file: Path, _changed: int) -> Any:
    return _load(AutoTokenizer, file)


@lru_cache(maxsize=4)
def _config(file: Path, _changed: int) -> Any:
    return _load(AutoConfig, file)


def _load(kind: Any, file: Path, **options: object) -> Any:
    what = f"model.language: cannot load '{file}'"
    return load_pretrained(kind, file.parent, what, gguf_file=file.name, **options)


def _checked(file: Path) -> str:
    """The beginning of messages about it. Raises ConfigError if the GGUF file is not complete, or without the
    package."""
    what = f"model.language: cannot load '{file}'"
    with file.open("rb") as stream:
        head = stream.read(HEAD.size)
    if len(head) < HEAD.size or head[:4] != b"GGUF":
        raise ConfigError(f"{what}: it is not a GGUF file")
    _, version, tensors, values = HEAD.unpack(head)
    if version not in VERSIONS:
        raise ConfigError(f"{what}: GGUF version {version} is not read, only {' and '.join(map(str, VERSIONS))}")
    if not 0 < tensors <= MAX_TENSORS or values > MAX_TENSORS or 24 * tensors + 12 * values > file.stat().st_size:
        raise ConfigError(f"{what}: it is damaged: {tensors:,} tensors and {values:,} values in its header")
    if not is_gguf_available():
        raise ConfigError(f"{what}: this needs gguf: pip install --no-deps gguf")
    return what
