"""Words of the command line, checked before anything heavy is loaded: recipes, settings, paths.

Settings are read from the text of the classes that hold them, so that a mistyped one and the shell's completion answer
at once. What is more than a name is checked by the classes themselves.
"""

from collections.abc import Iterable
from pathlib import Path

from ..core.places import check_here, check_source, near_path
from ..errors import ConfigError, unknown
from .known import meant, settings

PATHS = ("model.pretrained", "model.vision", "model.language", "model.tokenizer", "model.nepa")
HERE = "no such run, checkpoint or folder"


def check_recipe(spec: str) -> None:
    """Raises ConfigError for what is no recipe, file or run folder, before anything is loaded."""
    from ..recipes import listed

    path = Path(spec).expanduser()
    if ".py" in spec or path.exists() or spec.removesuffix("_tiny") in listed():
        return
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        what = "file" if path.suffix in (".yaml", ".yml") else "run or file"
        raise ConfigError(f"no such {what}: {spec}{near_path(path)}")
    raise ConfigError(unknown("recipe", spec, listed()))


def check_settings(words: Iterable[str]) -> None:
    """Raises ConfigError for a word that is no setting, with the one that was meant, and for a path that is not
    here."""
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
        if name == "data.source" and value:
            check_source(value)
        elif name in PATHS and value not in ("", "null", "~", "bundled"):
            check_here(value, f"{name}: {HERE}")


def unknown_group(name: str) -> str:
    """The rest of the line for a name that is like none."""
    groups = sorted({full.partition(".")[0] for full in settings()})
    return f". Allowed: {', '.join(groups)}, and what is in them (nextembed recipes NAME)"
