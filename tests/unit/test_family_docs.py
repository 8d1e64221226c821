"""Each objective has a page, listed in the menu, with the same sections; its defaults match the code."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import nextembed  # noqa: F401  # registers the objectives
from nextembed import recipes
from nextembed.core.objective import OBJECTIVES
from nextembed.report.prediction import KINDS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("families/*.md"))}
KIND = {"nepa": "next_embedding", "tokenizers": "tokenizer"}  # pages whose name differs from the kind
SHARED = {"igpt_bert": "igpt"}  # kinds that share another kind's page
OTHER = ("", "latent_decoder")  # not objectives that train a backbone
PARTS = ["Source, and how ours differs", "Train it", "Settings that matter", "Is it learning?", "Reference"]


def stated(page: str) -> Iterator[tuple[str, object]]:
    """(setting below `objective`, default) for each row of a page; defaults given in prose are left out."""
    table = PAGES[page].partition("## Settings that matter")[2].partition("\n## ")[0]
    for line in table.splitlines():
        if not line.startswith("| `objective."):
            continue
        names, default = (part.strip() for part in line.split("|")[1:3])
        found = re.findall(r"`(?:objective)?\.?([a-z_.]+)`", names.replace("`objective.", "`."))
        first = found[0].rpartition(".")[0]
        paths = [name if name.startswith(first) or not first else f"{first}.{name}" for name in found]
        text = re.sub(r" ?\([^)]*\)", "", default).replace("`", "")
        try:
            values = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError:
            continue
        if len(values) == 1:
            values *= len(paths)
        if len(values) == len(paths) and not any(isinstance(one, str) and " " in one for one in values):
            yield from zip(paths, values, strict=True)


def of(settings: object, path: str) -> object:
    for name in path.split("."):
        settings = vars(settings)[name]
    return list(settings) if isinstance(settings, tuple) else settings


@pytest.mark.parametrize("page", [name for name in PAGES if name != "index"])
def test_defaults_match_the_code(page: str) -> None:
    settings = OBJECTIVES.classes[KIND.get(page, page)]()
    shared = [OBJECTIVES.classes[kind]() for kind, other in SHARED.items() if other == page]
    rows = list(stated(page))
    assert len(rows) >= 2 or page in ("cpc", "simsiam"), rows
    for path, value in rows:
        known = [one for one in (settings, *shared) if path.split(".")[0] in type(one).model_fields]
        assert known and value in [of(one, path) for one in known], f"{page}: objective.{path} is not {value}"


def test_every_objective_has_a_page() -> None:
    shown = {SHARED.get(kind, kind) for kind in KINDS if kind not in OTHER}
    assert {KIND.get(name, name) for name in PAGES if name != "index"} >= shown
    menu = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert [name for name in PAGES if f"families/{name}.md" not in menu] == []
    assert [name for name in PAGES if name != "index" and f"]({name}.md" not in PAGES["index"]] == []


@pytest.mark.parametrize("page", [name for name in PAGES if name != "index"])
def test_pages_have_the_same_parts(page: str) -> None:
    found = re.findall(r"^## (.+)$", PAGES[page], re.MULTILINE)
    assert [part for part in found if part in PARTS] == PARTS
    named = set(re.findall(r"reference/recipes/([a-z_]+)\.md", PAGES[page]))
    assert named and named <= set(recipes.recipes())
    for command in ("train", "report"):
        assert re.search(rf"^nextembed {command} ", PAGES[page], re.MULTILINE), command
