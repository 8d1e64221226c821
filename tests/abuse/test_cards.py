"""Names in a model card are shown literally: they create no markup, HTML, table cells or YAML lines."""

import json
import re
from html import unescape
from pathlib import Path

import pytest
import torch
import yaml
from run_folders import make_run

from nextembed.cli.share import name_recipe
from nextembed.core.scores import ClassScores
from nextembed.errors import ConfigError
from nextembed.export.card import code, model_card, text
from nextembed.export.facts import gather
from nextembed.models.nepa.configuration_nepa import ViTNepaConfig
from nextembed.models.nepa.modeling_nepa import ViTNepaForImageClassification

NAMES = ["a|b", "<img src=x onerror=alert(1)>", "---\ninjected: true", "`code` ```\nfence",
         "[link](https://evil.example)", "**bold** _it_ ~~no~~", "\x1b[2Jred", "back\\slash|", "snake_case_name",
         "日本語 é", "www.evil.example"]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A fine-tuned run with these class names."""
    folder = make_run(tmp_path / "run", "classification")
    names = dict(enumerate(NAMES))
    torch.manual_seed(0)
    config = ViTNepaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                           image_size=16, patch_size=8, id2label=names, label2id={n: i for i, n in names.items()},
                           num_labels=len(names))  # fmt: skip
    ViTNepaForImageClassification(config).save_pretrained(folder / "model")
    confusion = [[int(i == j) for j in names] for i in names]
    ClassScores("test|\n---", 9, 0.5, 1.0, 0.1, NAMES, confusion).save(folder / "scores.json")
    return folder


def rendered(markdown: str) -> str:
    """The HTML of a card's text."""
    markdown_it = pytest.importorskip("markdown_it")
    return markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(markdown)


def test_names_in_a_card_are_only_text(run: Path) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["data"] |= {"source": "some`|\n---\ninjected: true\n<b>", "split": "train|<i>"}
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    card = model_card(gather(run), "me/it", license="mit\n---\ninjected: true")
    _, matter, body = re.split("^---\n", card, maxsplit=2, flags=re.MULTILINE)
    front = yaml.safe_load(matter)
    assert "injected" not in front and front["license"].startswith("mit")
    assert "<img" not in body and "<b>" not in body and "<i>" not in body and "\x1b" not in card
    assert "\ninjected" not in card
    columns = [line.count("|") for line in body.splitlines() if line.startswith("|")]
    assert set(columns) == {3, 4}  # tables of two and three columns, without extra cells
    html = rendered(body)
    for name in NAMES[:1] + NAMES[6:]:
        assert name.replace("\x1b", "\\u001b") in html
    assert "onerror=alert(1)&gt;" in html
    assert all(link.startswith("https://arxiv.org/") for link in re.findall('href="([^"]*)', html))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_rendered_literally(name: str) -> None:
    shown = " ".join(name.replace("\x1b", "\\u001b").split())
    for found in (text(name), code(name)):
        html = rendered(f"| a | b |\n| --- | --- |\n| x | {found} |\n")
        (row,) = [line for line in html.splitlines() if "<td>" in line and ">x<" not in line]
        row = row.removeprefix("<td>").removesuffix("</td>").replace("<code>", "").replace("</code>", "")
        assert unescape(row) == shown


def test_a_wrong_value_is_a_one_line_error(run: Path) -> None:
    file = run / "model" / "config.json"
    values = json.loads(file.read_text())
    for change in ({"architectures": "x"}, {"id2label": 5}, {"id2label": {"a": "b"}}, {"model_type": ["x"]}):
        file.write_text(json.dumps(values | change))
        with pytest.raises(ConfigError, match=r"model"):
            gather(run)
    file.write_text(json.dumps(values))
    (run / "environment.json").write_text('{"command": 5}')
    with pytest.raises(ConfigError, match=r"environment\.json: command should be a valid list, got 5"):
        name_recipe(gather(run))
