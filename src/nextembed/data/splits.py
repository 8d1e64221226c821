"""A split that is not there: fine where nobody asked for it, an error where its name was given."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..core.config import Part
from ..errors import ConfigError, MissingSplit


@contextmanager
def asked_for(part: Part, role: str) -> Iterator[None]:
    """What is missing in the block is a plain ConfigError if the settings name it: a mistyped name is no lack of a
    split. The default names ("validation", "test") may be missing."""
    try:
        yield
    except MissingSplit as err:
        field = "split" if role == "train" else role
        if getattr(part, field) != type(part).model_fields[field].default:
            raise ConfigError(f"data.{field}: {str(err).removeprefix('data: ')}") from None
        raise
