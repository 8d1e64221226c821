"""Parts of a model that are loaded by name: one clear line for what does not load."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..core.sizes import first_line, loading
from ..errors import ConfigError, shortened

LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


class CheckedModel(PreTrainedModel):
    """Base of our models: `from_pretrained` refuses, with a ConfigError, a config.json whose sizes no memory has."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        with loading(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


def load_part(kind: Any, name: str, field: str, **options: Any) -> Any:
    """`kind.from_pretrained` of an HF folder or hub id. field: of the settings, for messages; options are passed
    on. Raises ConfigError for a run folder, and for what does not load."""
    try:
        path = Path(name).expanduser()
        if (path / "model" / "config.json").is_file():
            raise ConfigError(f"model.{field}: {name} is a run folder; name a model in it: {path / 'model'}")
        with loading(path):
            return kind.from_pretrained(str(path), **options)
    except LOADING_ERRORS as err:
        raise ConfigError(f"model.{field}: cannot load '{shortened(name)}': {shortened(first_line(err))}") from None
