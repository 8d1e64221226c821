"""Checks words of the command line before anything heavy is loaded: recipes, settings, paths. Settings are read from
the source text of their classes, so that errors and completion are immediate. Values are checked later by the classes.
"""

from collections.abc import Iterable
from pathlib import Path

from ..core.hub import check_reachable
from ..core.places import NO_RUN, NO_SOURCE, check_here, check_source, is_hub_id, near_path
from ..errors import ConfigError, unknown
from .known import meant, settings

PATHS = ("model.pretrained", "model.vision", "model.language", "model.tokenizer", "model.nepa")
HERE = "no such run, checkpoint or folder"
FIXED = ("train", "optim", "probe")  # groups that do not depend on the kinds of a run


def check_recipe(spec: str) -> None:
    """Raises ConfigError unless it is a recipe, file or run folder, before anything is loaded."""
    from ..recipes import listed

    path = Path(spec).expanduser()
    if ".py" in spec or path.exists() or spec.removesuffix("_tiny") in listed():
        return
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        what = "file" if path.suffix in (".yaml", ".yml") else "run or file"
        raise ConfigError(f"no such {what}: {spec}{near_path(path)}")
    raise ConfigError(unknown("recipe", spec, listed()))


def check_model(name: str, what: str = NO_RUN) -> None:
    """Raises ConfigError for a model that is neither here nor on a hub that can be reached."""
    check_here(name, what)
    if not Path(name).expanduser().exists():
        check_reachable(name, what)


def check_data(source: str) -> None:
    """Raises ConfigError for a data source that is neither here nor on a hub that can be reached."""
    check_source(source)
    if not Path(source).expanduser().exists() and is_hub_id(source):
        check_reachable(source, NO_SOURCE, "dataset")


def check_settings(words: Iterable[str]) -> None:
    """Raises ConfigError for a word that is not a setting, with the nearest one, and for a missing path."""
    left = iter(words)
    for word in left:
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            value = value if equals else next(left, "VALUE")
            raise ConfigError(f"no such option: {name}{meant(name, value)}")
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"'{word}' is not an override; write field.name=value{meant(name, value)}")
        if "." not in name and name not in settings():
            raise ConfigError(f"field '{name}' is not known{meant(name, value) or unknown_group(name)}")
        group, _, field = name.partition(".")
        if group in FIXED and field and ".".join(name.split(".")[:2]) not in settings():
            fields = [full.split(".")[1] for full in settings() if full.startswith(f"{group}.")]
            raise ConfigError(unknown(f"{group}: field", field, set(fields)))
        if name == "data.source" and value:
            check_data(value)
        elif name in PATHS and value not in ("", "null", "~", "bundled"):
            check_model(value, f"{name}: {HERE}")


def unknown_group(name: str) -> str:
    """The rest of the message for a name without a similar one."""
    groups = sorted({full.partition(".")[0] for full in settings()})
    return f". Allowed: {', '.join(groups)}, and what is in them (nextembed recipes NAME)"
