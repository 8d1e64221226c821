"""Errors a user can act on. The command line prints them as one line, without a traceback."""

import difflib
from collections.abc import Iterable


class NextEmbedError(Exception):
    """Base of every error that is raised on purpose; `exit_code` is that of the command line."""

    exit_code = 1


class ConfigError(NextEmbedError):
    """A wrong setting, path, column or size: found before anything is trained (exit code 2)."""

    exit_code = 2


class CodeRefused(ConfigError):
    """Code that is named only by a file, not by the user, would have to be run."""


class MissingSplit(ConfigError):
    """The data has no such split, or the split is empty; optional steps are then skipped."""


class DataError(NextEmbedError):
    """The data ran out of what training needs: too many unreadable samples, or none at all."""


class DamagedFile(DataError, ConfigError):
    """A file that the settings name cannot be read: it is damaged or of another kind."""


class TrainingError(NextEmbedError):
    """Training cannot continue: the loss is not a number, or a checkpoint does not fit the run."""


class NotGenerative(NextEmbedError):
    """The objective cannot generate signals."""


class MissingExtra(ConfigError):
    """An optional dependency is not installed; the message holds the command that installs it."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"this needs {package}: pip install 'nextembed[{extra}]'")


def shortened(text: str, length: int = 200) -> str:
    """Text for a message: its beginning, where it is long."""
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"


def unknown(what: str, name: object, allowed: Iterable[object]) -> str:
    """One line that names the wrong word, its nearest spelling and what is allowed."""
    names = sorted(str(a) for a in allowed)
    name = shortened(str(name))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{what} '{name}' is not known.{hint} Allowed: {', '.join(names)}."
