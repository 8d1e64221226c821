"""`evaluate --task samples`: scores of images that a run generates."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.belonging import own_file
from ..core.files import checked_file, replacing
from ..core.terminal import print
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..inference.measuring import SampleEval

SCORES = "samples.json"


def evaluate_samples(target: str, overrides: list[str], output: Path | None) -> None:
    """Generates, measures, prints and saves; a picture is saved next to the scores. Raises ConfigError for wrong
    settings or an output that cannot be written, before anything is generated.
    """
    from ..core.console import PlainConsole
    from ..core.run_folder import find_saved
    from ..inference.measuring import measure_samples
    from .features import progress

    settings = sample_settings(overrides)
    run = find_saved(target).run
    file = output if output is not None else None if run is None else own_file(run, SCORES)
    if file is None:
        raise ConfigError(f"{target} is not part of a run: it has no data to compare with")
    picture = file.with_suffix(".png")
    if picture == file:
        raise ConfigError(
            f"--output: {file} is the name of the image; name a file for the scores, such as samples.json"
        )
    if output is None:
        own_file(run or file.parent, picture.name)
    elif picture.exists() and not file.exists():  # this file cannot have a picture
        raise ConfigError(f"--output: the image would overwrite {picture}; choose another name")
    for one in (file, picture):
        checked_file(one)
    found = measure_samples(target, settings, progress)
    PlainConsole().print(found.scores.render())
    print("\n".join(found.scores.sentences()))
    with replacing(picture) as scratch:
        found.sheet.save(scratch)
    print(f"Saved:  {os.path.relpath(found.scores.save(file))}, {os.path.relpath(picture)}")


def sample_settings(overrides: list[str]) -> "SampleEval":
    """Checked settings of a measurement. Raises ConfigError for an unknown setting, or without a classifier."""
    from ..core.config import apply_overrides
    from ..inference.measuring import SampleEval

    named = [word for word in overrides if word.startswith("features=")]
    if not named:
        raise ConfigError(
            "--task samples needs a model for its features, e.g. a classifier fine-tuned on the same images: "
            "features=runs/classifier"
        )
    rest = [word for word in overrides if word not in named]
    return apply_overrides(SampleEval(features=named[-1].partition("=")[2]), rest)
