"""--help of every command: full sentences, and examples that the command accepts."""

import re
import shlex
from typing import Any

import pytest
import typer

from nextembed.cli import app

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def parts(text: str) -> tuple[str, list[str]]:
    """The description of a command, and its examples."""
    prose, _, examples = text.partition("\b\nExamples:\n")
    return prose.strip(), [line.strip() for line in examples.splitlines() if line.strip()]


def words_of(example: str) -> list[str]:
    """The words after `nextembed`, without shell redirections and pipes."""
    return shlex.split(re.split(r" > ", example.rpartition("| ")[2])[0])[1:]


def asked(command: Any) -> list[Any]:
    return [one for one in command.get_params(command.context_class(command)) if one.name != "help"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_described_in_sentences(name: str) -> None:
    prose, _ = parts(COMMANDS[name].help)
    paragraphs = [" ".join(one.split()) for one in prose.split("\n\n")]
    assert all(re.match(r"[A-Z\-/]", one) and one.endswith(".") for one in paragraphs)
    assert "..." not in prose
    assert len(paragraphs[0]) <= 78, "too long for the list of commands"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_two_valid_examples(name: str) -> None:
    _, examples = parts(COMMANDS[name].help)
    assert len(examples) >= 2
    for example in examples:
        command, *words = words_of(example)
        assert command == name
        COMMANDS[name].make_context(name, words)  # raises for unknown options and surplus arguments


def test_the_top_level_help_has_examples() -> None:
    whole: Any = typer.main.get_command(app)
    _, examples = parts(whole.help)
    assert len(examples) >= 2
    assert all(words_of(example)[0] in COMMANDS for example in examples)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    for one in asked(COMMANDS[name]):
        text = re.sub(r"\s+\[(default|required).*\]$", "", one.help or "")
        assert re.match(r"[A-Z0-9]", text) and text.endswith("."), f"{one.name}: {text!r} is not a sentence"
        assert len(text.split()) >= 3 and not text.startswith("Of "), f"{one.name}: {text!r} is too short"
