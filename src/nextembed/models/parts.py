"""Parts of a model that are loaded by name: one clear line for what does not load."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..core.pretrained import load_pretrained
from ..core.sizes import first_line, loading
from ..errors import ConfigError, shortened


class CheckedModel(PreTrainedModel):
    """Base of our models: `from_pretrained` refuses, with a ConfigError, a config.json whose sizes no memory has."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        with loading(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


def load_part(kind: Any, name: str, field: str, **options: Any) -> Any:
    """`kind.from_pretrained` of an HF folder or hub id. field: of the settings, for messages; options are passed
    on. Raises ConfigError for a run folder, and for what does not load."""
    what = f"model.{field}: cannot load '{shortened(name)}'"
    try:
        path = Path(name).expanduser()
        is_run = (path / "model" / "config.json").is_file()
    except (OSError, ValueError, RuntimeError) as err:  # a name that no folder can have
        raise ConfigError(f"{what}: {shortened(first_line(err))}") from None
    if is_run:
        raise ConfigError(f"model.{field}: {name} is a run folder; name a model in it: {path / 'model'}")
    return load_pretrained(kind, path, what, **options)
