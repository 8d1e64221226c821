"""What the shell offers when Tab is pressed: recipes, settings, runs. Nothing heavy is loaded."""

from pathlib import Path

from ..core.described import first_sentence
from ..recipes import listed
from .known import settings

Offers = list[tuple[str, str]]  # a word, and what it is


def offer_settings(incomplete: str) -> Offers:
    """Settings that begin so, or the words that one may be."""
    name, equals, _ = incomplete.partition("=")
    if equals and name in settings():
        found = [(f"{name}={word}", "") for word in settings()[name].choices]
    else:
        found = [(f"{name}=", first_sentence(own.text, 60)) for name, own in settings().items()]
    return [(word, text) for word, text in found if word.startswith(incomplete)]


def offer_recipes(incomplete: str) -> Offers:
    """Recipes and settings."""
    recipes = [(name, place.line) for name, place in listed().items() if name.startswith(incomplete)]
    return recipes + offer_settings(incomplete)


def offer_runs(incomplete: str) -> Offers:
    """Run folders below the one that is being typed, or below runs/."""
    folder = Path(incomplete).parent if "/" in incomplete else Path("runs")
    found = sorted(file.parent.as_posix() for file in folder.glob("*/config.yaml"))
    return [(name, "") for name in found if name.startswith(incomplete)]
