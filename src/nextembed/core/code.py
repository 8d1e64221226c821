"""A user's own Python files, and which of them may be run: those that the user named in this command or program. A file
that only another file names (a config.yaml, the metadata of features, a model's config.json) may come from somebody
else and is not run.
"""

import hashlib
import importlib.util
import os
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ..errors import CodeRefused, ConfigError, NextEmbedError, unknown

_allowed: set[Path] = set()
_told: set[tuple[str, str]] = set()  # variables of the environment, and hosts that the user named together with them
_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


def allow_code(file: str | Path) -> None:
    """Lets this process run a Python file that a config.yaml, a features file or a model may name: you trust it.

    Args:
        file: your own file, or one that you have read. It may import modules next to it.

    Raises:
        ConfigError: There is no such Python file.
    """
    _allowed.add(python_file(file))


def allowed_files() -> list[Path]:
    return sorted(_allowed)


@contextmanager
def one_command() -> Iterator[None]:
    """Permissions granted inside the block end with it."""
    before, told = set(_allowed), set(_told)
    try:
        yield
    finally:
        for allowed, was in ((_allowed, before), (_told, told)):
            allowed.clear()
            allowed.update(was)  # type: ignore[arg-type]


@contextmanager
def trusting(yes: bool) -> Iterator[None]:
    """Whether values read inside the block were typed by the user (files that they name are run) or come from a
    file."""
    token = _trusted.set(yes)
    try:
        yield
    finally:
        _trusted.reset(token)


def tells(variable: str, host: str) -> bool:
    """Whether a variable of the environment may be sent to a host: the user named it in an address of that host, in
    this command or program, or NAME_HOST allows it. A request that only a file makes is not trusted."""
    if _trusted.get():
        _told.add((variable, host))
    named = os.environ.get(f"{variable}_HOST", "").lower().split(",")
    return (variable, host) in _told or (host != "" and host in named)


def told() -> dict[str, str]:
    """NAME_HOST for every variable that the user named, for the environment of child processes; several hosts are
    separated by commas."""
    return {
        f"{variable}_HOST": ",".join(host for name, host in sorted(_told) if name == variable)
        for variable in {name for name, _ in _told}
    }


def named_code(values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(dotted name, `file.py:name`) of every nested setting that names an existing Python file."""
    left: list[tuple[str, object]] = list(values.items())
    for where, value in left:
        if isinstance(value, Mapping):
            left += [(f"{where}.{name}", one) for name, one in value.items()]
        elif isinstance(value, list):
            left += [(where, one) for one in value]
        elif isinstance(value, str) and ".py:" in value:
            with suppress(ConfigError):
                python_file(value.rpartition(":")[0])
                yield where, value


def check_code(values: Mapping[str, object], source: str | Path) -> None:
    """Raises CodeRefused if settings that were read from the file `source` name code that was not allowed."""
    for where, spec in named_code(values):
        if imported(file := python_file(spec.rpartition(":")[0])) is None:
            _check(file, f"{source}: {where}", spec)


def load_from_file(spec: str, what: str = "a file") -> object:
    """The object `name` from `path/to/file.py:name`. Runs the file; modules next to it can be imported, too. what: the
    setting that names it, for messages. Raises CodeRefused unless the file is allowed, ConfigError if the file or the
    name does not exist, or if the file itself fails.
    """
    file, name = _split(spec)
    _check(file, what, spec)
    return _named(load_module(file), name, spec)


def load_class(kind: str, base: type, what: str) -> Any:
    """The class `name`, a subclass of `base`, from `path/to/file.py:name`; errors as of `load_from_file`.

    A file that this process has imported needs no permission: nothing is run, as a class is only looked up.
    """
    file, name = _split(kind)
    module = imported(file)
    if module is None:
        _check(file, what, kind)
        module = load_module(file)
    cls = _named(module, name, kind)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{what}: {kind} is not a nextembed {base.__name__} class")
    return cls


def python_file(file: str | Path) -> Path:
    """The resolved path of a Python file. Raises ConfigError if it does not exist."""
    try:
        found = Path(file).expanduser().resolve()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have
        raise ConfigError(f"no such file: {file}") from None
    if not os.path.isfile(found):
        raise ConfigError(f"no such file: {file}")
    if found.suffix != ".py":
        raise ConfigError(f"{file} is not a Python file")
    return found


def imported(file: Path) -> types.ModuleType | None:
    """The imported module of a file, which may be the main program; None if it was not imported."""
    for module in list(sys.modules.values()):
        own = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(own, str) and Path(own).name == file.name and Path(own).resolve() == file:
            return module
    return None


def load_module(file: Path) -> types.ModuleType:
    """Imports an allowed file, unless it is imported already. Raises ConfigError if it fails."""
    if (module := imported(file)) is not None:
        return module
    try:
        return _import(file)
    except NextEmbedError:
        raise
    except Exception as err:
        frames = traceback.extract_tb(err.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        at = f", line {lines[-1]}" if lines else ""
        raise ConfigError(f"{file}{at}: {type(err).__name__}: {err}") from err


def _split(spec: str) -> tuple[Path, str]:
    path, _, name = spec.rpartition(":")
    return python_file(path), name


def _check(file: Path, what: str, spec: str) -> None:
    """Raises CodeRefused for a file that only another file names."""
    if not (_trusted.get() or file in _allowed):
        raise CodeRefused(
            f"{what} refers to custom code, {spec}, which runs only if you allow it: --code {file}, if you "
            "trust it (in Python: nextembed.allow_code)"
        )


def _import(file: Path) -> types.ModuleType:
    """Registers the module under the file's own name if that is free, because data workers that are not forked import
    it again."""
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    if file.stem.isidentifier():
        found = importlib.util.find_spec(file.stem)
        if found is not None and found.origin == str(file):
            return importlib.import_module(file.stem)
    name = f"nextembed_user_{hashlib.sha1(str(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, so that dataclasses find it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _named(module: types.ModuleType, name: str, spec: str) -> object:
    if not hasattr(module, name):
        path = spec.rpartition(":")[0]
        raise ConfigError(unknown(f"{path}:", name, (n for n in vars(module) if not n.startswith("_"))))
    return getattr(module, name)
