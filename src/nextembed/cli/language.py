"""`evaluate --task`: scores of an Emu model's text and pictures."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files import checked_file
from ..core.terminal import print
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..evaluation.language.protocols import LanguageEval


def evaluate_language(
    target: str,
    task: str,
    data: str | None,
    given: dict[str, str | int],
    overrides: list[str],
    output: Path | None,
    paintings: Path | None,
) -> None:
    """Scores, prints and saves. given: settings by name; overrides: more of them, as on the command line.

    Raises ConfigError for an output that cannot be written, before anything is scored.
    """
    from rich.progress import Progress

    from ..core.console import PlainConsole
    from ..evaluation.language.tasks import score_language

    settings = language_settings(task, data, given, overrides)
    if paintings is not None and task != "text_to_image":
        raise ConfigError("--paintings keeps the images of --task text_to_image")
    if output is not None:
        checked_file(output)
    console = PlainConsole()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task(task, total=None)
        scores = score_language(
            target, settings, lambda done, total: bar.update(line, completed=done, total=total), paintings
        )
    if scores.metrics:
        console.print(scores.render())
    print("\n".join(scores.sentences()))
    if output is not None:
        print(f"Saved:  {os.path.relpath(scores.save(output))}")


def language_settings(task: str, data: str | None, given: dict[str, str | int], overrides: list[str]) -> "LanguageEval":
    """Checked settings of an evaluation. Raises ConfigError for an unknown setting, or without data."""
    from ..core.config import apply_overrides, validated
    from ..evaluation.language.protocols import LanguageEval

    if data is None:
        raise ConfigError(f"--task {task} needs a file of items: --data FILE")
    for word in overrides:
        if word.startswith("prompt="):  # plain text: otherwise {image} would be read as YAML
            given["prompt"] = word.removeprefix("prompt=")
    rest = [word for word in overrides if not word.startswith("prompt=")]
    return apply_overrides(validated(LanguageEval, {"task": task, "data": data, **given}), rest)
