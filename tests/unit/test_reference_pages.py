"""The generated reference pages list each public name, command and setting with type and description."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from pydantic import Field

import nextembed
from nextembed.core.config import Config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_reference", ROOT / "docs/gen_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(made: ModuleType) -> dict[str, str]:
    return dict(made.pages())


def test_every_public_name_is_on_a_page(made: ModuleType, pages: dict[str, str]) -> None:
    shown = [name for names in made.API.values() for name in names.split()]
    assert sorted(shown) == sorted({*dir(nextembed)} - {"__version__"})
    assert len(pages["api/runs.md"].split(":::")) == 9 and "::: nextembed.recipes.fitting.fit\n" in pages["api/runs.md"]


def test_every_command_and_recipe_is_on_a_page(pages: dict[str, str]) -> None:
    from nextembed.cli import app

    for command in app.registered_commands:
        assert f"\n## {command.name or command.callback.__name__}\n" in pages["cli.md"]  # type: ignore[union-attr]
    assert {f"recipes/{name}.md" for name in nextembed.recipes.recipes()} <= set(pages)


def test_rows_have_a_type_a_value_and_a_description(pages: dict[str, str]) -> None:
    rows = [line for name, text in pages.items() if "api/" not in name for line in text.splitlines()]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in rows if re.match(r"\| `[a-z_.]+` \|", line)]
    settings = [[part.strip() for part in row] for row in rows if len(row) == 4]
    assert len(settings) > 4000
    assert not [row for row in settings if not (row[1] and row[2] and len(row[3].split()) >= 3)]


class Shown(Config):
    """Something.

    Attributes:
        image_size: side of an image; a|b.
        mode: how to pool.
    """

    image_size: int | None = Field(None, ge=1, le=10**9)
    drop_rate: float = Field(0.1, ge=0, lt=1, description="share dropped")
    mode: Literal["mean", "last"] = "mean"


def test_a_row(made: ModuleType) -> None:
    text = made.settings_of(Shown)
    assert "| `image_size` | integer or null, ≥ 1, pixels | `null` | Side of an image; a\\|b. |" in text
    assert "| `drop_rate` | number, ≥ 0, &lt; 1, share of 1 | `0.1` | Share dropped |" in text
    assert "| `mode` | `mean` or `last` | `mean` | How to pool. |" in text
