"""The tensors of the training state, sharded: every rank writes and reads its own part, in place, as safetensors.

STATE/shard-00001-model-00001-of-00002.safetensors, ...: parts of `model.NAME` (backbone and objective), `ema.NAME`,
`exp_avg.NAME`, `exp_avg_sq.NAME` (AdamW's), `momentum_buffer.NAME` (Muon's), `state1.NAME` and others (in 8 bits).
`torch.distributed.checkpoint` puts them together again, for any number of ranks. No rank ever holds a second model.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from ..core import distributed
from ..errors import ConfigError
from .eight_bit import MOMENTS, is_eight_bit, start_eight_bit

FILE_BYTES = 256 * 2**20  # of one file, which is in memory twice while it is written
ADAMW, MUON = ("exp_avg", "exp_avg_sq"), ("momentum_buffer",)
EVERY = (ADAMW, MUON, MOMENTS)


def tensors_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, averaged: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """The tensors by name; of those that share memory only one."""
    found = {f"model.{name}": value for name, value in model.state_dict().items()}
    found |= {f"ema.{name}": value for name, value in (averaged or {}).items()}
    for name, param in model.named_parameters():
        own = optimizer.state.get(param, {})
        found |= {f"{moment}.{name}": own[moment] for moment in sum(EVERY, ()) if moment in own}
    seen: set[tuple[int, torch.Size]] = set()
    once = {}
    for name, value in found.items():
        own = value.to_local() if isinstance(value, DTensor) else value
        place = (own.data_ptr(), own.shape)
        if own.numel() == 0 or place not in seen:
            once[name] = value
        seen.add(place)
    return once


def start_moments(model: nn.Module, optimizer: torch.optim.Optimizer, stored: Mapping[str, object], step: int) -> None:
    """The optimizer's state as after `step` steps, of the parameters that have one in `stored`; its moments are read
    later. Raises ConfigError if another optimizer stored them."""
    muon = {param for group in optimizer.param_groups if group["muon"] for param in group["params"]}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        moments = MUON if param in muon else MOMENTS if is_eight_bit(optimizer) else ADAMW
        for other in (kind[0] for kind in EVERY if kind is not moments):
            if f"{other}.{name}" in stored:
                raise ConfigError(f"optim.kind: the checkpoint was trained by another optimizer ({other} of {name})")
        if f"{moments[0]}.{name}" not in stored:
            continue
        if moments is MOMENTS:
            start_eight_bit(optimizer, param, step)
            continue
        optimizer.state[param] = {
            moment: torch.zeros_like(param, memory_format=torch.preserve_format) for moment in moments
        }
        if moments is ADAMW:
            optimizer.state[param]["step"] = torch.tensor(float(step), device=param.device)


def save_tensors(folder: Path, tensors: Mapping[str, Tensor], whole: bool = False) -> None:
    """Writes tensors (sharded or not) into an existing folder. Every rank must call it.

    whole: joins the parts to ordinary safetensors files with an index, as `from_pretrained` reads them.
    """
    index, size = {}, 0
    for name, value in tensors.items():
        size += value.numel() * value.element_size()
        index[name] = 1 + size // FILE_BYTES
    numbers = {number: i for i, number in enumerate(sorted(set(index.values())), 1)}  # without gaps
    index = {name: numbers[number] for name, number in index.items()}
    writer = HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=index, save_distributed=True, enable_consolidation=whole
    )
    with _quiet():
        dcp.save(
            {name: _flat(value.contiguous()) for name, value in tensors.items()},
            storage_writer=writer,
            process_group=distributed.cpu_group(),
            no_dist=not distributed.is_distributed(),
        )


def load_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Reads what `save_tensors` wrote into tensors, in place: each rank its own part. Every rank must call it."""
    with _quiet(), torch.no_grad():
        dcp.load(
            {name: _flat(value.detach()) for name, value in tensors.items()},
            storage_reader=HuggingFaceStorageReader(str(folder)),
            process_group=distributed.cpu_group(),
            no_dist=not distributed.is_distributed(),
        )


def stored_shapes(folder: Path) -> dict[str, torch.Size]:
    """The whole shape of each stored tensor; of a single number (1,)."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: value.size for name, value in found.items()}  # type: ignore[union-attr]


def _flat(value: Tensor) -> Tensor:
    """A single number as a vector of one, which the format can divide; it shares memory."""
    return value.view(1) if value.ndim == 0 else value


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch, and raises the original error of a rank."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as err:
            raise next(iter(err.failures.values()))[0] from None
