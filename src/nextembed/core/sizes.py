"""Limits of sizes, and whether something fits into memory, checked before anything is allocated."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..errors import ConfigError, NextEmbedError, shortened
from .files import first_line
from .quiet import no_progress_bar

MAX_LAYERS = 1000
MAX_WIDTH = 2**17  # of latents
MAX_SIDE = 2**14  # of an image, pixels
MAX_FRAMES = 2**10  # of a clip
COLOURS = 3  # channels of a frame of a clip
TUBELET = 2  # frames that one latent of a clip holds
MAX_LENGTH = 2**20  # positions of a row
MAX_NUMBER = 2**31 - 1  # of samples, and of anything without a limit of its own
MAX_TENSORS = 100_000  # of a model

LIMITS = (  # limits of values in config.json, by the names that Hugging Face's models use; the first match counts
    (r"(num_|n_)?(\w+_)?(layers?|blocks|depths?)", MAX_LAYERS),
    (r"(\w+_)?(image|patch)_size", MAX_SIDE),
    (r"num_frames", MAX_FRAMES),
    (r"(hidden|embed\w*|model)_(size|dim)|[dn]_(model|embd?|kv|ff)|num_\w*heads|n_head|num_components", 4 * MAX_WIDTH),
    (r"(intermediate|head)_(size|dim)|\w+_num_buckets", 16 * MAX_WIDTH),
    (r"vocab(_size|ulary)|num_(labels|channels|image_latents)|channels", MAX_NUMBER),
)
POSITIVE = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size",
            "num_channels", "vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_image_latents",
            "relative_attention_num_buckets"}  # fmt: skip


def check_sizes(values: Mapping[str, object], where: str) -> None:
    """Raises ConfigError for sizes in a model's configuration that no model has. where: source of the configuration."""
    for name, value in values.items():
        limit = next((most for pattern, most in LIMITS if re.fullmatch(pattern, str(name))), None)
        for own in value if isinstance(value, list | tuple) else [value]:
            if isinstance(own, Mapping):
                check_sizes(own, where)
            elif name in POSITIVE and own is not None and not (isinstance(own, int) and own > 0):
                raise ConfigError(f"{where}: {name} should be a whole number above 0, got {shortened(repr(own))}")
            elif limit is not None and isinstance(own, int) and own > limit:
                raise ConfigError(f"{where}: {name} {shown(own)} is larger than {limit:,}, the maximum")


def check_folder(folder: str | Path) -> None:
    """`check_sizes` of a model folder's config.json, and of the parts' that it names; a hub id passes."""
    file = Path(folder).expanduser() / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return  # the loader reports what is wrong
    if isinstance(values, dict):
        check_sizes(values, str(file))


def usable_device(name: str | None = None) -> torch.device:
    """The device of this name; without a name the accelerator if there is one, else the CPU. Raises ConfigError if it
    does not exist here."""
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        return device
    except (RuntimeError, AssertionError, NotImplementedError, UnicodeError):
        raise ConfigError(f"there is no device {shortened(name)!a} here; use cpu, cuda or cuda:N") from None


def memory(device: str | torch.device = "cpu") -> int:
    """Bytes of a device's memory; of the CPU, what this process may use (in a container, its limit)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 2**63
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            found = min(found, int(Path(file).read_text()))
    return found


def check_fits(what: str, needed: int, device: str | torch.device = "cpu") -> None:
    """Raises ConfigError if a device has less memory than this. what: subject and verb of the message."""
    if needed > (there := memory(device)):
        owner = "this machine" if torch.device(device).type == "cpu" else f"the {torch.device(device).type} device"
        raise ConfigError(f"{what} {in_bytes(needed)}; {owner} has {in_bytes(there)}")


@contextmanager
def building(what: str) -> Iterator[None]:
    """Context around making a model from settings: raises ConfigError at the first parameter that does not fit into
    memory, before it is filled, and converts errors of libraries about impossible settings."""
    try:
        with _within_memory(what):
            yield
    except NextEmbedError:
        raise
    except Exception as err:
        reason = shortened(" ".join(str(err).split()))
        raise ConfigError(f"{what} cannot be built: {type(err).__name__}: {reason}") from err


@contextmanager
def _within_memory(what: str, most: int | None = None) -> Iterator[None]:
    """most: limit of the number of parameters, if known. On torch's meta device, which needs no memory, only the number
    of tensors is limited."""
    room = memory() if torch.get_default_device().type != "meta" else math.inf
    total = {"numbers": 0, "bytes": 0, "tensors": 0}

    def count(module: nn.Module, name: str, param: Any) -> None:
        if param is None or module._parameters.get(name) is not None:  # in the place of one that is counted
            return
        total["numbers"] += param.numel()
        total["bytes"] += param.numel() * param.element_size()
        total["tensors"] += 1
        if total["tensors"] > MAX_TENSORS:
            raise ConfigError(f"{what} has more than {MAX_TENSORS:,} parameter tensors: too many layers")
        if most is not None and total["numbers"] > most:
            raise ConfigError(f"{what}: config.json describes more parameters than its weights contain")
        if total["bytes"] > room:
            raise ConfigError(f"{what} needs {in_bytes(total['bytes'])} or more; this machine has {in_bytes(room)}")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except NextEmbedError:
        raise
    except (MemoryError, OverflowError, RuntimeError, TypeError) as err:
        if not too_large(err):
            raise
        raise ConfigError(f"{what} is too large for this machine's {in_bytes(memory())}: {first_line(err)}") from None
    finally:
        hook.remove()


@contextmanager
def loading(folder: str | Path) -> Iterator[None]:
    """Context around `from_pretrained`: config.json is checked first, and the model must not be much larger than its
    weights (at least 4 bits per number; heads may be new)."""
    check_folder(folder)
    path = Path(folder).expanduser()
    files = [file for kind in ("*.safetensors", "*.bin") for file in path.glob(kind)] if path.is_dir() else []
    most = 4 * sum(file.stat().st_size for file in files) + 2**26 if files else None
    with no_progress_bar(), _within_memory(f"the model in {folder}", most):
        yield


def too_large(err: BaseException) -> bool:
    """Whether an error of torch reports a lack of memory or a number above 64 bits; there is no class for these."""
    words = ("DefaultCPUAllocator", "Storage size calculation overflowed", "Overflow when unpacking", "out of memory",
             "numel: integer multiplication overflow", "too large to convert")  # fmt: skip
    return isinstance(err, MemoryError | OverflowError) or any(word in str(err) for word in words)


def in_bytes(number: float) -> str:
    """Bytes as text, like 3.2 GiB."""
    for unit, name in ((2**60, "EiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            return f"{number / unit:,.1f} {name}" if number < 1e6 * unit else f"more than 10^6 {name}"
    return f"{number:.0f} B"


def shown(number: int) -> str:
    """A whole number as text."""
    return f"{number:,}" if abs(number) < 10**15 else f"of {number.bit_length()} bits"
