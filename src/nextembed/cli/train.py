"""`train` and `recipes`."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.places import check_here
from ..core.terminal import print
from ..errors import ConfigError
from .app import app
from .arguments import Settings
from .completing import of_words, offer_models, offer_recipes
from .stages import say_stages, train_stages
from .words import check_recipe, check_settings

if TYPE_CHECKING:
    from ..runs import Run


@app.command()
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE | KEY=VALUE",
            help="A recipe (see `nextembed recipes`), config.yaml or my_file.py:my_recipe; then settings.",
            autocompletion=of_words(offer_recipes),
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            autocompletion=offer_models,
            metavar="RUN",
            help="Resume a run folder, or from one of its checkpoints, in place of RECIPE.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, max=1e6, help="Time budget of the recipe nepa_images, which chooses its sizes by it."),
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, without training.")] = False,
) -> None:
    """Train by a recipe, probe, and write a report.

    It first shows the run folder, the data found, the size of the model and the estimated time;
    --dry-run stops there.

    \b
    Examples:
      nextembed train nepa_demo
      nextembed train nepa_images data.source=photos name=mine --minutes 30
      nextembed train --resume runs/mine train.max_steps=4000
    """
    recipe, overrides = (words[0], words[1:]) if words and "=" not in words[0] else (None, words or [])
    check_words(recipe, resume, dry, overrides)
    starting()
    from .. import recipes
    from ..core import distributed
    from ..core.config import apply_overrides
    from ..run import dry_run, fit
    from ..training.checkpoint import resume_place

    given = asked_of(recipe, overrides, minutes)
    config = apply_overrides(recipes.load(recipe or str(resume_place(resume or "")[0]), **given), overrides)
    stages = recipes.missing_stages(config) if resume is None else []
    if stages:
        say_stages([*stages, config], overrides)
    if dry:
        dry_run((stages or [config])[0])
        return
    train_stages(stages)
    run = fit(config, resume=str(resume) if resume else None)
    if distributed.is_main():
        print(summary(run))


def check_words(recipe: str | None, resume: Path | None, dry: bool, overrides: list[str]) -> None:
    """Checks that need no torch. Raises ConfigError."""
    if (recipe is None) == (resume is None):
        raise ConfigError(
            "give a recipe, a config.yaml or my_file.py:my_recipe; `nextembed recipes` lists the recipes"
            if resume is None
            else f"--resume takes its settings from {resume}; only KEY=VALUE can be added"
        )
    if recipe is not None:
        check_recipe(recipe)
    elif (
        resume is not None and resume.parent.name != "checkpoints"
    ):  # missing ones are reported later, with the existing ones
        check_here(str(resume), "no such run or file", hub=False)
    check_settings(overrides)
    if dry and resume is not None:
        raise ConfigError("--dry-run is for a new run, not for --resume")


def asked_of(recipe: str | None, overrides: list[str], minutes: float | None) -> dict[str, Any]:
    """Arguments from which a recipe chooses its settings. Raises ConfigError for a recipe without `--minutes`."""
    if recipe != "nepa_images":
        if minutes is not None:
            raise ConfigError(
                "only the recipe nepa_images takes --minutes; for others set train.max_steps or train.epochs"
            )
        return {}
    source = next((word.partition("=")[2] for word in overrides if word.startswith("data.source=")), None)
    return {name: value for name, value in (("data", source), ("minutes", minutes)) if value is not None}


def starting() -> None:
    """Shows on a terminal that torch is being loaded, which takes seconds, the first time up to a minute."""
    if sys.stderr.isatty():
        print("loading torch and transformers ...", file=sys.stderr, flush=True)


def summary(run: "Run") -> str:
    """The result of the run in sentences, and next steps."""
    from ..core.run_folder import data_in_words

    folder = os.path.relpath(run.dir)
    typed = shlex.quote(folder)
    found = run.verdict()
    lines = ["", *run.task.summary(run), f"Verdict: {found.word}. {found.sentence}", ""]
    left_out = run.skipped()
    if used := data_in_words(run.history(), left_out):
        lines.append(f"Data:      {used}" + (f" ({folder}/skipped.jsonl)" if left_out else ""))
    if (run.dir / "report.html").is_file():
        lines.append(f"Report:    {folder}/report.html    (nextembed report {typed} --open)")
    if use := run.task.usage(run, folder):
        lines.append(f"Use it:    {use}")
    length = run.config.train
    longer = f"max_steps={2 * length.max_steps}" if length.max_steps else f"epochs={2 * (length.epochs or 0):g}"
    lines.append(f"Longer:    nextembed train --resume {typed} train.{longer}")
    return "\n".join(lines)


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="The recipe whose settings are printed.", autocompletion=of_words(offer_recipes)
        ),
    ] = None,
    overrides: Settings = None,
) -> None:
    """List the recipes, or print all settings of one.

    The settings are YAML with a comment on each; saved to a file, they can be trained from.

    \b
    Examples:
      nextembed recipes
      nextembed recipes nepa_demo train.max_steps=2000 > mine.yaml
    """
    from .. import recipes

    if name is None:
        listed = recipes.listed()
        for recipe, place in listed.items():
            print(f"{recipe:{max(map(len, listed))}}  {place.line}")
        print(
            "\nNAME_tiny is a small version of it that trains a few steps on any machine. Settings: "
            "nextembed recipes NAME"
        )
        return
    check_recipe(name)
    check_settings(overrides or [])
    from ..core.config import apply_overrides, to_yaml

    print(to_yaml(apply_overrides(recipes.load(name), overrides or [])), end="")
