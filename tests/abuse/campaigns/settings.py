"""Numeric settings with odd values: a one-line error, or a training step with a finite loss."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from nextembed import recipes
from nextembed.core.config import Config

from . import tiny
from .box import Box, Case, fault

MINUTES, SECONDS = 3, 60  # a model of 1,000 layers takes half of that
ODD = """.nan .inf -.inf 1e308 1e23 1000000000000000000000000000000 9223372036854775808 1000000000 -1 0 1e-300 0.5 3
1000 2147483647 4294967296 '' x [] {} [0] [-1] [1,1] [.nan] [.inf] null true"""
VALUES = [*ODD.split(), "{a: .nan}", "9" * 5000]
RECIPES = ["finetune_tiny", "latent_decoder_tiny", "omni_emoji_tiny", "emu_emoji_tiny", "emoji_scenes_tiny"]
QUIET = ["train.max_steps=1", "output_dir=.", "name=run"]


def prepare(folder: Path) -> None:
    tiny.images(folder / "images")


def numeric(config: Config, path: str = "") -> Iterator[str]:
    """Names of fields that take one or more numbers."""
    for name, field in type(config).model_fields.items():
        own: Any = getattr(config, name)
        if isinstance(own, Config):
            yield from numeric(own, f"{path}{name}.")
        elif re.search(r"int|float", repr(field.annotation)) or isinstance(own, int | float):
            yield path + name


def cases(fixtures: Path, rng: Random) -> Iterator[Case]:
    for recipe in ("nepa_demo_tiny", *RECIPES):
        for path in numeric(recipes.load(recipe)):
            for value in VALUES:
                if path in ("train.max_steps", "train.epochs") and value.isdigit():
                    continue  # a long run is not a fault
                if recipe == "nepa_demo_tiny" or rng.random() < 0.1:
                    words = f"{path}={value}"
                    yield f"{recipe} {words[:60]}", lambda box, made=(recipe, words): one(box, *made)


def one(box: Box, recipe: str, change: str) -> str | None:
    if recipe != "nepa_demo_tiny":
        return box.one_line("recipes", recipe, change, codes=(0, 2)) or box.one_line("plan", recipe, change)
    tiny.without_report()
    line = tiny.words(box.fixtures / "images", 1, *QUIET)
    code, said = box.command(*[word for word in line if word.partition("=")[0] != change.partition("=")[0]], change)
    if why := fault(code, said):
        return why
    file = Path("run/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()] if code == 0 and file.exists() else []
    wrong = [name for line in lines for name, number in line.items() if not finite(number)]
    if code == 0 and not any("loss" in line for line in lines) and not change.startswith("train.log_steps"):
        return "ends well without a loss"
    return f"{wrong[0]} is not finite" if wrong else None


def finite(number: Any) -> bool:
    return number is not None and (not isinstance(number, float) or math.isfinite(number))
