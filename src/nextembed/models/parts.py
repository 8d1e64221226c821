"""Parts of a model that are loaded by name: one clear line for what does not load."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..core.quiet import no_progress_bar
from ..errors import ConfigError

LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def load_part(kind: Any, name: str, field: str, **options: Any) -> Any:
    """`kind.from_pretrained` of an HF folder or hub id. field: of the settings, for messages; options are passed
    on. Raises ConfigError for a run folder, and for what does not load."""
    path = Path(name).expanduser()
    if (path / "model" / "config.json").is_file():
        raise ConfigError(f"model.{field}: {name} is a run folder; name a model in it: {path / 'model'}")
    try:
        with no_progress_bar():
            return kind.from_pretrained(str(path), **options)
    except LOADING_ERRORS as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise ConfigError(f"model.{field}: cannot load '{name}': {reason}") from None
