"""Files of weights, read tensor by tensor: names and shapes at once, values when asked for.

A file is mapped into memory, so what is read costs pages that the system can take back, not memory of the process; and
the mapping is renewed after every `RENEW` bytes, so that even these pages stay few.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ..core.files import first_line, from_json
from ..errors import ConfigError

STATE_KEYS = ("state_dict", "model", "module", "model_state_dict")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
RENEW = 64 * 2**20
ST_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
            "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
            "BOOL": torch.bool}  # fmt: skip


Handle = safe_open | dict[str, Tensor]


class Info(NamedTuple):
    """Position, dtype and shape of a tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return count(self.shape) * self.dtype.itemsize


class LazyState:
    """Tensors by name of one file, or of several that make one checkpoint.

    `infos`: name to `Info`. Raises ConfigError for a file that is missing, has no weights or contains pickled code; and
    for a name in two files.
    """

    def __init__(self, files: Iterable[Path]):
        self.infos: dict[str, Info] = {}
        self.open: tuple[Path, Handle] | None = None
        self.read_bytes = 0
        for file in files:
            for name, info in _infos(file, self._handle(file)).items():
                if name in self.infos:
                    raise ConfigError(f"{file.name} and {self.infos[name].file.name} both contain '{name}'")
                self.infos[name] = info
            if not self.infos:
                raise ConfigError(f"cannot read {file} as weights: there are no tensors in it")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.infos.items()}

    def read(self, name: str) -> Tensor:
        """The tensor, mapped from its file; release it before reading the next, so that its pages are freed."""
        info = self.infos[name]
        if self.read_bytes > RENEW:
            self.close()
        handle = self._handle(info.file)
        self.read_bytes += info.num_bytes
        return handle[name] if isinstance(handle, dict) else handle.get_tensor(name)

    def close(self) -> None:
        """Closes the mapping; the next `read` opens it again."""
        self.open, self.read_bytes = None, 0

    def _handle(self, file: Path) -> Handle:
        if self.open is None or self.open[0] != file:
            self.close()
            self.open = file, open_file(file)
        return self.open[1]


def open_file(file: Path) -> Handle:
    """A safetensors handle, or the tensors by name of a torch file, mapped. Raises ConfigError if it is neither."""
    if file.suffix == ".safetensors":
        with _reading(file):
            return safe_open(file, "pt")
    return tensors(load_torch(file))


def load_torch(file: Path) -> Mapping[str, object]:
    """The named tensors of a torch file, mapped. Raises ConfigError for code, objects, and values without names."""
    with _reading(file):
        try:
            values = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as err:
            if "mmap can only be used" not in str(err):
                raise
            values = torch.load(
                file, map_location="cpu", weights_only=True
            )  # before torch 1.6: not a zip file, cannot be mapped
    if not isinstance(values, dict):
        raise ConfigError(f"cannot read {file} as weights: it contains a {type(values).__name__}")
    return values


def tensors(values: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of the state dict inside a training checkpoint, however deep."""
    inner: object = values
    while isinstance(inner, Mapping):
        values = inner
        inner = next((values[key] for key in STATE_KEYS if isinstance(values.get(key), Mapping)), None)
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"no such file: {file}") from None
    except Exception as err:  # damaged, without weights, or pickled objects
        code = "weights_only" in str(err)
        why = "it is a pickle of code or objects, not weights, and is not run" if code else first_line(err)
        raise ConfigError(f"cannot read {file} as weights: {why}") from err


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder: those that an index names, or the single one; [] where there are none.

    Raises ConfigError for an index that names a file that is not there.
    """
    for index in INDEXES:
        if (folder / index).is_file():
            try:
                names = sorted(set(from_json((folder / index).read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as err:
                raise ConfigError(f"cannot read {folder / index}: {type(err).__name__}") from None
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise ConfigError(f"{folder / index} names {missing[0]}, which is not there ({len(missing)} in all)")
            return [folder / name for name in names]
    return next(([folder / name] for name in SINGLES if (folder / name).is_file()), [])


def _infos(file: Path, handle: Handle) -> dict[str, Info]:
    if isinstance(handle, dict):
        return {name: Info(file, tuple(t.shape), t.dtype) for name, t in handle.items()}
    found = {}
    for name in handle.keys():  # noqa: SIM118  (a handle, no dict)
        part = handle.get_slice(name)
        if part.get_dtype() not in ST_TYPES:
            raise ConfigError(f"cannot read {file} as weights: '{name}' is of type {part.get_dtype()}")
        found[name] = Info(file, tuple(part.get_shape()), ST_TYPES[part.get_dtype()])
    return found


def count(shape: tuple[int, ...]) -> int:
    """Numbers in a tensor of this shape."""
    return torch.Size(shape).numel()
