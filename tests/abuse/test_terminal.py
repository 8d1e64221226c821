"""Text from files is shown literally in the terminal: no markup, colours or cursor movements."""

import ast
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from run_folders import make_run

from nextembed.cli.app import main
from nextembed.core.console import PlainConsole
from nextembed.core.scores import ClassArea, ClassScores, SegmentScores
from nextembed.core.terminal import plain
from nextembed.training.watch import ProgressBar

NAMES = [
    "[red]cat",
    "[/]",
    "[link=https://evil.example]x",
    ":smile:",
    "\x1b[2J\x1b[31mred",
    "a\rb",
    "\x9b2J",
    "\u202ecba",
]
OBEYED = ("\x1b", "\r", "\x9b", "\u202e")


def drawn(thing: Any) -> str:
    out = io.StringIO()
    PlainConsole(file=out, width=200).print(thing)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["classes", "areas", "line"])
def test_names_in_tables_are_literal(kind: str) -> None:
    num = len(NAMES)
    thing: Any = " ".join(NAMES)
    if kind == "classes":
        confusion = [[int(i == j) + 1 for j in range(num)] for i in range(num)]
        thing = ClassScores("te[/]st", num, 0.5, 1.0, 0.1, NAMES, confusion).render()
    elif kind == "areas":
        thing = SegmentScores("te[/]st", 1, 1, 0.5, 0.5, [ClassArea(n, 0.5, 0.1) for n in NAMES], 8, 4).render()
    text = drawn(thing)
    assert not any(mark in text for mark in OBEYED)
    for name in NAMES:
        assert plain(name) in text


def test_names_in_a_progress_bar_are_literal() -> None:
    out = io.StringIO()
    ProgressBar(PlainConsole(file=out, width=200)).say("warning step 1: " + " ".join(NAMES))
    assert out.getvalue() == f"warning step 1: {plain(' '.join(NAMES))}\n"


@pytest.mark.parametrize("name", NAMES)
def test_an_error_is_one_plain_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", f"no\n{name}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nextembed: no such run or checkpoint: no") and error.count("\n") == 1
    assert not any(mark in error for mark in OBEYED)


def test_a_file_may_have_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "[red]\x1b[2J", "classification")
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    assert "[red]\\u001b[2J/report.html" in out and "\x1b" not in out


def test_all_output_uses_the_safe_functions() -> None:
    """Modules print only with `core.terminal.print` and draw only with `PlainConsole`."""
    package = Path(sys.modules["nextembed"].__file__ or "").parent
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.name in ("console.py", "terminal.py"):
            continue
        calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        prints = any(isinstance(name, ast.Name) and name.id == "print" for name in calls)  # not text in examples
        assert not prints or "core.terminal import" in text, file
        assert "Console(" not in text.replace("PlainConsole(", ""), file
