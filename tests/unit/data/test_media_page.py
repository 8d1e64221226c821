"""The documentation of documents of any modality: its Python code runs, and its settings are valid."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import nextembed.toys.kinds  # noqa: F401
from nextembed.core.config import DATA

PAGE = (Path(__file__).parents[3] / "docs" / "data_media.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_its_python_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for text in blocks("python"):
        exec(compile(text, "data_media.md", "exec"), names)
    said = capsys.readouterr().out
    assert "['speed says', 'says speed']\n['text', 'series']\n" in said and " yes. " in said and " no.\n" in said
    assert [segment["kind"] for segment in names["real"]["segments"]] == ["image", "series", "text", "text"]


@pytest.mark.parametrize("line", [line for text in blocks("text") for line in text.splitlines()])
def test_its_overrides_are_valid(line):
    settings = {}
    for word in shlex.split(line):
        name, _, value = word.removeprefix("data.").partition("=")
        settings[name] = yaml.safe_load(value)
    assert DATA.parse(settings).kind == settings["kind"]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_its_settings_files_are_valid(text):
    settings = yaml.safe_load(text)["data"]
    part = DATA.parse(settings)
    assert list(part.pieces) == list(settings["pieces"]) and len(part.layouts) == len(settings["layouts"])
