"""Sharded safetensors, written tensor by tensor.

safetensors' own `save_file` wants all tensors of a file at once and joins them in memory; here only one tensor is in
memory at a time, so that a shard of any size needs the memory of its largest tensor. The format: 8 bytes length of the
header (little endian), the header (JSON: name to dtype, shape and offsets), the tensors one after the other.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from ..core.files import write_json
from ..errors import ConfigError
from .lazy_state import ST_TYPES, count

TYPE_NAMES = {dtype: name for name, dtype in ST_TYPES.items()}
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
CHUNK = 16 * 2**20
PATTERN = "model{suffix}.safetensors"


class Planned(NamedTuple):
    """A tensor that will be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return count(self.shape) * self.dtype.itemsize


def parse_size(text: str) -> int:
    """Bytes of "5GB", "500MB", "2GiB" or a number. Raises ConfigError for anything else, or nothing."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    size = int(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
    if size < 1:
        raise ConfigError(f"a size is like 5GB, 500MB or 2GiB, not '{text}'")
    return size


def write_sharded(
    folder: Path, plan: Mapping[str, Planned], make: Callable[[str], Tensor], max_bytes: int
) -> list[Path]:
    """Writes `model.safetensors`, or `model-00001-of-00003.safetensors`, ... and their index; gives the files.

    Args:
        folder: that is there.
        plan: what is written, in order.
        make: gives a tensor by name, of the planned shape; it is converted to the planned dtype.
        max_bytes: of a file; a tensor that is larger alone has one of its own.

    Raises:
        ValueError: for a tensor of another shape.
        OSError: where it cannot be written.
    """
    shards = split_state_dict_into_shards_factory(
        dict(plan),
        get_storage_size=lambda planned: planned.num_bytes,
        filename_pattern=PATTERN,
        max_shard_size=max_bytes,
    )
    files = [write_file(folder / name, plan, names, make) for name, names in shards.filename_to_tensors.items()]
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": dict(sorted(shards.tensor_to_filename.items()))}
        write_json(folder / "model.safetensors.index.json", index)
    return files


def write_file(file: Path, plan: Mapping[str, Planned], names: Iterable[str], make: Callable[[str], Tensor]) -> Path:
    """One safetensors file; arguments as in `write_sharded`. Large types come first, so that all are aligned."""
    names = sorted(names, key=lambda name: -plan[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + plan[name].num_bytes
        header[name] = {
            "dtype": TYPE_NAMES[plan[name].dtype],
            "shape": list(plan[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = make(name)
            if tuple(tensor.shape) != plan[name].shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(plan[name].shape)}")
            write_numbers(out, tensor, plan[name].dtype)
            del tensor
    return file


def write_numbers(out: object, tensor: Tensor, dtype: torch.dtype) -> None:
    """A tensor's bytes in another dtype, a piece at a time: a mapped one is never in memory as a whole."""
    flat = tensor.detach().contiguous().view(-1)
    step = max(1, CHUNK // max(flat.element_size(), dtype.itemsize))
    for start in range(0, len(flat), step):
        piece = flat[start : start + step].to(dtype)
        if dtype is torch.float16 and tensor.dtype is not dtype and piece.isinf().any():
            raise ConfigError("float16 cannot hold all weights (its largest number is 65504); bf16 can")
        out.write(piece.view(torch.uint8).numpy())  # type: ignore[attr-defined]
