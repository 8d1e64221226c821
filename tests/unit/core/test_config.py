"""Invalid settings, and the round trips through YAML that resuming a run needs."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BeforeValidator, Field, model_validator

from nextembed import RunConfig, recipes
from nextembed.core.code import load_from_file, one_command, trusting
from nextembed.core.config import (
    Config,
    Part,
    Registry,
    apply_overrides,
    from_yaml,
    to_yaml,
)
from nextembed.errors import ConfigError

SOURCES = Registry("data", Part)
TASKS = Registry("objective", Part)


class Optim(Config):
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)


class Train(Config):
    max_steps: int = 10
    distance: Literal["cosine", "mse"] = "cosine"
    steps_ahead: int | list[int] = 1
    compile: bool = False
    folder: Path | None = None
    optim: Optim = Optim()


@SOURCES.register("images")
class Images(Part):
    source: str = "emoji"
    where: dict[str, str] = Field(default_factory=dict)


@TASKS.register("next")
class Next(Part):
    shift: bool = True


@TASKS.register("masked")
class Masked(Part):
    rate: float = 0.75
    hidden_size: int = 8
    num_heads: int = 2
    width: int | None = None

    @model_validator(mode="after")
    def heads_divide(self) -> "Masked":
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}")
        return self


class Run(Config):
    name: str
    data: Annotated[Part, BeforeValidator(SOURCES.parse)] = Images()
    objective: Annotated[Part, BeforeValidator(TASKS.parse)] = Next()
    train: Train = Train()
    extra: Optim | None = None
    phases: list[Optim] = Field(default_factory=list)


def change(*overrides: str, **values: Any) -> Run:
    return apply_overrides(Run(name="run", **values), overrides)


def message(*overrides: str, **values: Any) -> str:
    with pytest.raises(ConfigError) as err:
        change(*overrides, **values)
    assert "\n" not in str(err.value)
    return str(err.value)


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("train.max_steps=1e3", "train.max_steps", 1000),
        ("train.optim.learning_rate=3e-4", "train.optim.learning_rate", 3e-4),
        ("train.optim.betas=[0.8, 0.9]", "train.optim.betas", (0.8, 0.9)),
        ("train.steps_ahead=[1, 4]", "train.steps_ahead", [1, 4]),
        ("train.compile=yes", "train.compile", True),
        ("train.folder=a/b", "train.folder", Path("a/b")),
        ("train.folder=null", "train.folder", None),
        ("extra.learning_rate=1", "extra.learning_rate", 1.0),
        ("data.source=2024-01-01", "data.source", "2024-01-01"),
        ("data.source=no", "data.source", "no"),
        ("data.source=007", "data.source", "007"),
        ("data.source='1e3'", "data.source", "1e3"),
        ("data.source=a=b", "data.source", "a=b"),
        ("data.source=", "data.source", ""),
        ("data.source=my photos #2", "data.source", "my photos #2"),
        ("data.source=new\nline", "data.source", "new\nline"),
        ("data.source=it's  a", "data.source", "it's  a"),
        ("data.source='a #b' # c", "data.source", "a #b"),
        ("name=7", "name", "7"),
        ("data.where.group=flags", "data.where", {"group": "flags"}),
        ("data.where={a: b, c: d}", "data.where", {"a": "b", "c": "d"}),
    ],
)
def test_override_sets_one_value_and_survives_yaml(override: str, path: str, expected: Any) -> None:
    config = change(override)
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    assert value == expected
    assert from_yaml(Run, to_yaml(config)) == config


def test_override_changes_neither_the_original_nor_other_fields() -> None:
    config = Run(name="run", train=Train(max_steps=3, distance="mse"))
    changed = apply_overrides(config, ["train.max_steps=4"])
    assert (config.train.max_steps, changed.train.max_steps, changed.train.distance) == (3, 4, "mse")


def test_switching_kind_takes_the_new_defaults() -> None:
    for override in ("objective.kind=masked", "objective=masked", "objective={kind: masked}"):
        assert change(override).objective == Masked()
    assert change("objective.kind=masked", "objective.rate=0.5").objective == Masked(rate=0.5)
    assert change("objective.kind=next", objective=Next(shift=False)).objective == Next(shift=False)


def test_overrides_are_checked_together() -> None:
    config = change("objective.kind=masked", "objective.hidden_size=9", "objective.num_heads=3")
    assert (config.objective.hidden_size, config.objective.num_heads) == (9, 3)


def test_derived_values_follow_an_override() -> None:
    """An override does not fix other fields that were never set."""
    config = change("objective.hidden_size=16", objective=Masked(rate=0.1))
    assert config.objective.model_fields_set == {"kind", "rate", "hidden_size"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.max_steps=3", "field 'trian' is not known. Did you mean 'train'? Allowed: data, extra,"),
        (
            "train.max_stps=3",
            "train: field 'max_stps' is not known. Did you mean 'max_steps'? Allowed: compile,",
        ),
        (
            "train.optim.lr=3",
            "train.optim: field 'lr' is not known. Allowed: betas, learning_rate.",
        ),
        (
            "data.sorce=x",
            "data: field 'sorce' is not known. Did you mean 'source'? Allowed: kind, source, where.",
        ),
        ("extra.beta=1", "extra: field 'beta' is not known. Did you mean 'betas'?"),
        ("phases=[{beta: 1}]", "phases.0: field 'beta' is not known. Did you mean 'betas'?"),
        (
            "objective.kind=maskd",
            "objective.kind 'maskd' is not known. Did you mean 'masked'? Allowed: masked, next.",
        ),
        ("objective=3", "objective: needs 'kind', one of: masked, next"),
        ("objective={rate: 1}", "objective: needs 'kind', one of: masked, next"),
        (
            "objective={kind: masked, num_heads: 3}",
            "objective: num_heads 3 does not divide hidden_size 8",
        ),
        ("objective={kind: masked, rate: x}", "objective.rate: should be a valid number, got 'x'"),
        (
            "train.distance=cosin",
            "train.distance: value 'cosin' is not known. Did you mean 'cosine'? Allowed: cosine, mse.",
        ),
        ("train.distance=3", "train.distance: should be 'cosine' or 'mse', got 3"),
        ("train.max_steps=many", "train.max_steps: should be a valid integer, got 'many'"),
        ("train.max_steps=1.5", "train.max_steps: should be a valid integer, got 1.5"),
        ("train.max_steps=null", "train.max_steps: should be a valid integer, got None"),
        ("train.steps_ahead=x", "train.steps_ahead: should be a valid integer or a valid list, got 'x'"),
        ("train.optim.learning_rate=0", "train.optim.learning_rate: should be greater than 0, got 0"),
        ("train.optim.betas=[1]", "train.optim.betas.1: is required"),
        ("data.where.group=null", "data.where.group: should be a valid string, got None"),
        ("train=3", "train: should be a group of settings, {field: value, ...}, got 3"),
        ("name.x=3", "name.x: 'name' is a single value, not a group of settings"),
        ("train", "'train' is not an override; write field.name=value"),
        ("=3", "'=3' is not an override; write field.name=value"),
        ("objective={kind:next}", "objective: write a space after the colon: {kind: next}"),
        ("name=[1", "value of name is not YAML: expected"),
        ("objective={kind: no_such_file.py:Mine}", "no such file: no_such_file.py"),
    ],
)
def test_errors_name_the_field_the_nearest_spelling_and_what_is_allowed(override: str, words: str) -> None:
    assert message(override).startswith(words)


def test_the_number_of_other_wrong_fields_is_reported() -> None:
    assert message("train.max_steps=x", "name=null").endswith("(1 more wrong)")


def test_python_users_get_the_same_error() -> None:
    with pytest.raises(ConfigError, match=r"field 'max_stps' is not known. Did you mean 'max_steps'"):
        Train(max_stps=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"train.max_steps: should be a valid integer, got 'x'"):
        Run(name="run", train={"max_steps": "x"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name: is required"):
        Run()  # type: ignore[call-arg]
    config = Run(name="run")
    with pytest.raises(ConfigError, match=r"field 'nme' is not known. Did you mean 'name'"):
        config.nme = "x"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="max_steps: should be a valid integer"):
        config.train.max_steps = "x"  # type: ignore[assignment]


def test_yaml_that_does_not_fit_names_its_file() -> None:
    with pytest.raises(ConfigError, match=r"run/config.yaml: train: field 'x' is not known"):
        from_yaml(Run, "name: a\ntrain: {x: 1}", "run/config.yaml")
    with pytest.raises(ConfigError, match="is not a mapping of settings"):
        from_yaml(Run, "- 1", "run/config.yaml")
    with pytest.raises(ConfigError, match=r"config.yaml is not YAML: "):
        from_yaml(Run, "a: [", "run/config.yaml")


# YAML normalises Unicode line breaks to \n.
TEXT = st.text(st.characters(exclude_characters="\0\x85\u2028\u2029", codec="utf-8"), max_size=12)


@given(TEXT, st.dictionaries(TEXT, TEXT, max_size=3))
def test_any_text_survives_yaml(text: str, where: dict[str, str]) -> None:
    config = Run(name=text, data=Images(source=text, where=where))
    assert from_yaml(Run, to_yaml(config)) == config


SCALAR_LIKE = r"[-+]?[0-9._]{0,4}([eE]-?[0-9]{0,2})?|yes|no|on|off|~|null|true|[0-9]{4}-0[0-9]-[0-9]{2}|1:30"


@given(st.from_regex(SCALAR_LIKE, fullmatch=True))
def test_text_like_scalars_survive_yaml_for_us_and_for_other_readers(text: str) -> None:
    config = Run(name=text)
    assert from_yaml(Run, to_yaml(config)).name == text
    assert yaml.safe_load(to_yaml(config))["name"] == text


@given(st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False))
def test_any_number_survives_yaml(rate: float) -> None:
    config = Run(name="x", train=Train(optim=Optim(learning_rate=rate)))
    assert from_yaml(Run, to_yaml(config)) == config


USER_FILE = """
from helper_beside import SIZE
from nextembed.core.config import Part

class Mine(Part):
    size: int = SIZE

def make():
    return Mine(size=5)
"""


@pytest.fixture
def user_file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A user's file, named after the test so that each is a separate module."""
    (tmp_path / "helper_beside.py").write_text("SIZE = 3\n")
    file = tmp_path / f"own_{request.node.name}.py"
    file.write_text(USER_FILE)
    return file


@pytest.fixture(autouse=True)
def own_words() -> Iterator[None]:
    """Trusts files, because these tests load their own; tests/abuse/test_trust.py covers untrusted files."""
    with one_command(), trusting(True):
        yield


def test_own_part_is_found_again_from_another_folder(
    user_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = change(f"objective={{kind: {user_file.name}:Mine, size: 4}}")
    text = to_yaml(config)
    monkeypatch.chdir("/")
    again = from_yaml(Run, text)
    assert again == config and again.objective.size == 4
    assert again.objective.kind == f"{user_file}:Mine"


def test_own_part_made_in_python_gets_its_kind(user_file: Path) -> None:
    config = Run(name="run", objective=load_from_file(f"{user_file}:make")())
    assert config.objective.kind == f"{user_file}:Mine"
    assert from_yaml(Run, to_yaml(config)) == config
    assert change("objective.size=6", objective=config.objective).objective.size == 6


def test_own_part_reaches_another_process(user_file: Path, tmp_path: Path) -> None:
    """Spawned data workers unpickle user classes with the module path of the parent."""
    part = load_from_file(f"{user_file}:make")()
    (tmp_path / "part.pickle").write_bytes(pickle.dumps(part))
    code = f"import pickle, sys; sys.path[:] = {sys.path!r}; print(pickle.load(open('part.pickle', 'rb')).size)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "5"


def test_a_file_named_like_a_library_is_still_the_users(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("VALUE = 'mine'\n")
    (tmp_path / "my-file.py").write_text("VALUE = 'dashed'\n")
    assert load_from_file(f"{tmp_path}/yaml.py:VALUE") == "mine"
    assert load_from_file(f"{tmp_path}/my-file.py:VALUE") == "dashed"
    assert sys.modules["yaml"] is yaml


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("class Mine: pass", "Mne", "'Mne' is not known. Did you mean 'Mine'?"),
        ("x = 1\ny = 1 / 0", "x", ", line 2: ZeroDivisionError: division by zero"),
        ("def", "x", "SyntaxError"),
        ("import no_such_module", "x", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_mistakes_in_the_users_file(
    text: str, name: str, words: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / f"wrong_{abs(hash(words))}.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as err:
        load_from_file(f"{file}:{name}")
    assert words in str(err.value) and file.name in str(err.value)


def test_own_kind_must_be_a_part(tmp_path: Path) -> None:
    (tmp_path / "not_a_part.py").write_text("class Mine: pass\n")
    assert "is not a nextembed Part class" in message(f"objective={{kind: {tmp_path}/not_a_part.py:Mine}}")


@pytest.mark.parametrize(
    "word", ["1e5", "1.50", "007", "on", "1_000", "2024-01-01", "0x10", "true", "no", "1:30", "+5", "1e", "a #1"]
)
def test_text_settings_are_the_characters_typed(word):
    config = apply_overrides(
        recipes.nepa_demo(), [f"data.source={word}", f"data.split_column={word}", "train.max_steps=3"]
    )
    assert (config.data.source, config.data.split_column) == (word, word) and config.train.max_steps == 3


@pytest.mark.parametrize("word", ["1e5", "1.50", "007", "+7", "-0", "true", "False", "no", "2024-01-01", "1:30", ".5"])
def test_texts_in_lists_and_names_in_mappings_are_the_characters_typed(word):
    config = apply_overrides(recipes.nepa_demo(), [f"train.freeze=[{word}, a]", "train.compile=false"])
    assert config.train.freeze == [word, "a"] and config.train.compile is False
    assert from_yaml(
        RunConfig, f"{to_yaml(recipes.nepa_demo())}".replace("freeze: []", f"freeze: [{word}]")
    ).train.freeze == [word]
    part = apply_overrides(recipes.omni_emoji(), [f"data={{kind: records, source: x, pieces: {{{word}: text}}}}"]).data
    assert list(part.pieces) == [word]


def test_names_that_are_the_same_number_are_duplicates():
    with pytest.raises(ConfigError, match=r"'1\.0' appears twice"):
        change("data.where={1: a, 1.0: b}")


@pytest.mark.parametrize(
    ("word", "value"), [("optim.learning_rate=1e-3", 1e-3), ("train.max_steps=5", 5), ("data.label_column=null", None)]
)
def test_numbers_and_null_keep_their_type(word, value):
    config = apply_overrides(recipes.nepa_demo(), [word])
    part, _, name = word.partition("=")[0].partition(".")
    assert dict(dict(config)[part])[name] == value
