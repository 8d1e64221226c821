"""Command-line arguments that are checked before anything heavy is imported."""

import inspect
import types
import typing
from pathlib import Path

import pytest

import nextembed
from nextembed.cli.known import meant, settings
from nextembed.cli.words import check_recipe, check_settings
from nextembed.core.config import DATA, MODELS, Config
from nextembed.core.described import describe, first_sentence
from nextembed.core.objective import OBJECTIVES
from nextembed.errors import ConfigError


def groups(cls: type[Config], path: str) -> set[str]:
    found = set()
    for name, field in cls.model_fields.items():
        found.add(full := f"{path}{name}")
        union = typing.get_origin(field.annotation) in (typing.Union, types.UnionType)
        for own in typing.get_args(field.annotation) if union else (field.annotation,):
            if inspect.isclass(own) and issubclass(own, Config) and own.__module__.startswith("nextembed"):
                found |= groups(own, f"{full}.")
    return found


def test_settings_parsed_from_source_match_the_classes() -> None:
    real = groups(nextembed.RunConfig, "")
    for slot, registry in (("data", DATA), ("model", MODELS), ("objective", OBJECTIVES)):
        for kind, cls in registry.classes.items():
            if cls.__module__.startswith("nextembed"):
                real |= groups(cls, f"{slot}.")
                assert kind in settings()[f"{slot}.kind"].choices
    assert set(settings()) ^ real == {"objective.decoder.kind"}  # only for user-defined parts
    assert settings()["train.precision"].choices == ("float32", "bf16")
    assert settings()["train.batch_size"].text.startswith("images per optimizer step")


@pytest.mark.parametrize(
    ("word", "value", "words"),
    [
        ("--max-steps", "10", "; did you mean train.max_steps=10?"),
        ("max_steps", "10", "; did you mean train.max_steps=10?"),
        ("maxsteps", "10", "; did you mean train.max_steps=10?"),
        ("--lr", "3e-4", "; did you mean optim.learning_rate=3e-4?"),
        ("learning-rate", "1", "; did you mean optim.learning_rate=1?"),
        ("--epochs", "3", "; did you mean train.epochs=3?"),
        ("--batch-size", "8", "; did you mean train.batch_size=8 or probe.batch_size=8?"),
        ("patch_size", "8", "; did you mean model.patch_size=8?"),
        ("zzzz", "8", ""),
    ],
)
def test_suggested_settings(word: str, value: str, words: str) -> None:
    assert meant(word, value) == words


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("max_steps=10", "field 'max_steps' is not known; did you mean train.max_steps=10?"),
        ("lr=1", "field 'lr' is not known; did you mean optim.learning_rate=1?"),
        ("train.max_steps", "'train.max_steps' is not an override; write field.name=value; did you mean"),
        ("data.source=fotos", "data.source: no such file or folder: fotos. Did you mean 'photos'?"),
        ("model.pretrained=runs/mien", "model.pretrained: no such run, checkpoint or folder: runs/mien"),
        ("model.tokenizer=tokens", "model.tokenizer: no such run, checkpoint or folder: tokens"),
        ("train.max_stps=3", "train: field 'max_stps' is not known. Did you mean 'max_steps'?"),
        ("probe.layrs=[1]", "probe: field 'layrs' is not known. Did you mean 'layers'?"),
        ("zzzz=1", "field 'zzzz' is not known. Allowed: after, data, model"),
    ],
)
def test_invalid_settings(word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as err:
        check_settings([word])
    assert str(err.value).startswith(said)


@pytest.mark.parametrize(
    "word",
    ["data.source=emoji", "data.source=owner/name", "data.source=photos", "data={kind: text, source: glosses}",
     "model.pretrained=null", "model.pretrained=owner/name", "name=x",
     "objective.shfit=false", "train.lora.rnk=3", "data.source=my.py:Mine"],
)  # fmt: skip
def test_settings_that_are_left_to_the_classes(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nextembed.core.hub.unreachable", lambda: None)
    monkeypatch.setattr("nextembed.core.hub.is_missing", lambda name, kind: False)
    check_settings([word])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nepa_dmo", "recipe 'nepa_dmo' is not known. Did you mean 'nepa_demo'?"),
        ("nepa_dmo_tiny", "recipe 'nepa_dmo_tiny' is not known. Did you mean 'nepa_demo'?"),
        ("config.yml", "no such file: config.yml. Did you mean 'config.yaml'?"),
        ("runs/mien", "no such run or file: runs/mien"),
    ],
)
def test_recipes(spec: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    for fine in ("nepa_demo", "nepa_demo_tiny", "config.yaml", "mine.py:recipe"):
        check_recipe(fine)
    with pytest.raises(ConfigError) as err:
        check_recipe(spec)
    assert str(err.value).startswith(said)


DOC = """A class.

    Words before: not a field.
    one: the first. It goes on
        here; two, three: more of both; four | five: exactly one.

    Another part. six: last: of all.
    Source: a paper.
    """


def test_descriptions_are_parts_of_the_docstring() -> None:
    found = describe(DOC, ["one", "two", "three", "four", "five", "six", "seven"])
    assert found == {
        "one": "the first. It goes on here",
        "two": "more of both",
        "three": "more of both",
        "four": "exactly one.",
        "five": "exactly one.",
        "six": "last: of all.",
    }


GOOGLE = """A class, one: of prose.

    Attributes:
        one: the first. It goes on
            here; two: is no entry.
        three, four: more of both.
        five (int): with a type.

            A paragraph of five.

    Source:
        A paper, six: not a field.
    """


def test_descriptions_are_entries_of_a_google_section() -> None:
    found = describe(GOOGLE, ["one", "two", "three", "four", "five", "six"])
    assert found == {
        "one": "the first. It goes on here; two: is no entry.",
        "three": "more of both.",
        "four": "more of both.",
        "five": "with a type. A paragraph of five.",
    }
    assert describe(inspect.cleandoc(GOOGLE), list(found)) == found
    assert describe("A.\n\nArgs:\n    one: last line.", ["one"]) == {"one": "last line."}
    assert describe("A.\n\nAttributes:\n    one: without an end.\nMore.", ["one"]) == {"one": "without an end."}


def test_missing_descriptions_and_long_sentences() -> None:
    assert describe(None, ["one"]) == describe("A class.", []) == describe("A class.", ["one"]) == {}
    assert first_sentence("a share, 0.5 of it. More") == "a share, 0.5 of it"
    assert len(first_sentence("word " * 50)) <= 90
