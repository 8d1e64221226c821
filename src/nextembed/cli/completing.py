"""Completion in the shell: recipes, settings, runs, models and checkpoints. Nothing heavy is loaded."""

from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from ..core.described import first_sentence
from ..recipes import listed
from .known import settings
from .words import PATHS

Offers = list[tuple[str, str]]  # a word, and its description
IN_RUNS = ("model", "ema", "best", "checkpoints/step-*")  # folders that may hold a model


def offer_settings(incomplete: str) -> Offers:
    """Settings with this beginning, or possible values of one."""
    name, equals, value = incomplete.partition("=")
    if equals and name in PATHS:
        found = [(f"{name}={place}", text) for place, text in offer_models(value)]
    elif equals and name in settings():
        found = [(f"{name}={word}", "") for word in settings()[name].choices]
    else:
        found = [(f"{name}=", first_sentence(own.text, 60)) for name, own in settings().items()]
    return beginning(found, incomplete)


def offer_data_settings(incomplete: str) -> Offers:
    """Settings of the data only."""
    return [(word, text) for word, text in offer_settings(incomplete) if word.startswith("data.")]


def offer_recipes(incomplete: str) -> Offers:
    """Recipes and settings."""
    return beginning([(name, place.line) for name, place in listed().items()], incomplete) + offer_settings(incomplete)


def offer_runs(incomplete: str) -> Offers:
    """Run folders below the typed one, or below runs/."""
    folder = Path(incomplete).parent if "/" in incomplete else Path("runs")
    return beginning([(path, "") for path in places(folder.glob("*/config.yaml"))], incomplete)


def offer_models(incomplete: str) -> Offers:
    """Run folders; after a run, its models and checkpoints."""
    run = next(
        (path for path in (Path(incomplete), *Path(incomplete).parents) if (path / "config.yaml").is_file()), None
    )
    if run is None or "/" not in incomplete.removeprefix(run.as_posix()):
        return offer_runs(incomplete)
    found = [path for pattern in IN_RUNS for path in places(run.glob(f"{pattern}/config.json"))]
    return beginning([(path, "") for path in found], incomplete)


def places(files: Iterable[Path]) -> list[str]:
    """The folders that these files lie in."""
    return sorted(file.parent.as_posix() for file in files)


def beginning(offers: Offers, incomplete: str) -> Offers:
    """Words with the typed beginning."""
    return [(word, text) for word, text in offers if word.startswith(incomplete)]


def of_words(offer: Callable[[str], Offers]) -> Callable[[typer.Context, str], Offers]:
    """The same for words with a "=", which bash treats as a separate word."""

    def complete(context: typer.Context, incomplete: str) -> Offers:
        before = [word for value in context.params.values() if isinstance(value, list) for word in value]
        if before and not incomplete and before[-1] in settings():
            before.append("=")  # which click leaves out
        if before[-1:] != ["="] or len(before) < 2:
            return offer(incomplete)
        begun = f"{before[-2]}="
        return [(word.removeprefix(begun), text) for word, text in offer(begun + incomplete)]

    return complete
