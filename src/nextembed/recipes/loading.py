"""Recipes by name, by file and by function, and the stages that a run starts from."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.code import load_from_file, trusting
from ..core.config import from_yaml
from ..core.files import read_text
from ..errors import ConfigError, unknown
from ..runs import RunConfig
from .listing import listed
from .shrunk import tiny

Recipe = Callable[..., RunConfig]
NOTHING: Mapping[str, Any] = {}


def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    return {
        name: vars(importlib.import_module(f".{place.module}", __package__))[name] for name, place in listed().items()
    }


def named(name: str) -> Recipe | None:
    """The recipe of this name, or the shrunk one of `NAME_tiny`; None if there is none."""
    if (full := name.removesuffix("_tiny")) not in listed():
        return None
    base: Recipe = vars(importlib.import_module(f".{listed()[full].module}", __package__))[full]
    return base if name in listed() else lambda: tiny(base())


def load(spec: str, **given: Any) -> RunConfig:
    """The config of a recipe's name or NAME_tiny, of a config.yaml (or its run folder), or of `my_file.py:my_recipe`,
    which is run.

    given: for what a recipe asks (`data`, `minutes`), where it does.

    Raises ConfigError for a name or path that is not there, with the nearest spelling, and for one that does
    not give a RunConfig.
    """
    with trusting(True):
        return _load(spec, given)


def _load(spec: str, given: Mapping[str, Any] = NOTHING) -> RunConfig:
    path = Path(spec).expanduser()
    if ".py:" in spec:
        return _call(spec, load_from_file(spec, "the setting after"))
    if (path / "config.yaml").is_file():
        path = path / "config.yaml"
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"no such file: {spec}")
        return from_yaml(RunConfig, read_text(path), str(path))
    if path.suffix == ".py":
        raise ConfigError(f"name the function in the file as well: {spec}:my_recipe")
    if path.is_dir() or len(path.parts) > 1:
        raise ConfigError(f"no config.yaml in {spec}" if path.is_dir() else f"no such run or file: {spec}")
    if (recipe := named(spec)) is None:
        raise ConfigError(unknown("recipe", spec, listed()))
    return recipe(**asked(recipe, given))


def asked(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that a recipe has parameters for."""
    return {name: given[name] for name in inspect.signature(recipe).parameters if name in given}


def missing_stages(config: RunConfig) -> list[RunConfig]:
    """Configs of the stages that a run builds on and that have not been trained yet, in the order to train them.

    A stage counts as trained where OUTPUT_DIR/NAME/model is there.
    """
    found: list[RunConfig] = []
    for name in config.after:
        stage = _load(name)  # what a file says comes first is run only if the user named it, too
        if not (stage.dir / "model").is_dir():
            found += [*missing_stages(stage), stage]
    names = [stage.name for stage in found]
    return [stage for i, stage in enumerate(found) if stage.name not in names[:i]]


def _call(spec: str, recipe: object) -> RunConfig:
    if not callable(recipe):
        raise ConfigError(f"{spec} is not a function")
    needed = [p.name for p in inspect.signature(recipe).parameters.values() if p.default is p.empty]
    if needed:
        raise ConfigError(f"{spec} needs a default for {', '.join(needed)}; change settings with field.name=value")
    config = recipe()
    if not isinstance(config, RunConfig):
        raise ConfigError(f"{spec} gave a {type(config).__name__}, not a nextembed.RunConfig")
    return config
