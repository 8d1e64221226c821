"""YAML and JSON with excessive nesting, aliases or numbers: an immediate one-line error everywhere."""

import time

import pytest

from nextembed.cli import main
from nextembed.core.config import apply_overrides, to_yaml
from nextembed.core.files import from_json
from nextembed.core.yaml_text import read_yaml
from nextembed.data.segmentation import read_names
from nextembed.errors import ConfigError
from nextembed.recipes import load

DEEP = "[" * 20_000
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
KEY_BOMB = "a0: &a0 {" + ", ".join(f"k{i}: 1" for i in range(9)) + "}\n" + "".join(
    f"a{i}: &a{i} {{!!merge <<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 10)
)  # fmt: skip
BAD_YAML = {
    "deep": DEEP,
    "deeper than can be written": "[" * 150 + "]" * 150,
    "deep mappings": "{a: " * 20_000,
    "aliases": BOMB,
    "merge keys": KEY_BOMB,
    "a circle": "&a [*a]",
    "a circle in a mapping": "x: &a {y: {z: *a}}",
    "no number": "!!int x",
    "no date": "!!timestamp x",
    "no truth": "!!bool perhaps",
    "a name twice": "{a: 1, b: 2, a: 3}",
    "a huge number": "9" * 10_000,
    "a list as a key": "{[1]: 2}",
    "a control character": "a: \x00",
    "half a pair": "a: '\ud83d'",
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_bad_yaml_is_an_immediate_one_line_error(name):
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"^the text ") as caught:
        read_yaml(BAD_YAML[name], "the text")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert time.process_time() - start < 5


def test_a_reasonable_number_of_aliases_is_allowed():
    assert read_yaml("a: &a [1, 2]\nb: *a\nc: [*a, *a]", "the text") == {"a": [1, 2], "b": [1, 2], "c": [[1, 2]] * 2}


@pytest.mark.parametrize("name", BAD_YAML)
def test_overrides_and_config_files_give_a_one_line_error(name, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"^value of data\.where "):
        apply_overrides(load("nepa_demo"), [f"data.where={BAD_YAML[name]}"])
    file = tmp_path / "config.yaml"
    text = to_yaml(load("nepa_demo")) + f"\nmore: {BAD_YAML[name]}\n"
    file.write_bytes(text.encode(errors="surrogatepass"))
    assert main(["train", str(file), f"output_dir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "config.yaml" in err and "unexpected" not in err


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "9" * 10_000, b"\xff\xfe", "", "{"])
def test_json_that_cannot_be_read_is_a_value_error(text):
    with pytest.raises(ValueError, match=r".+"):
        from_json(text)


@pytest.mark.parametrize("text", [DEEP, "9" * 10_000, "{"])
def test_class_names_that_cannot_be_read(text, tmp_path):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ConfigError, match=r"names\.json"):
        read_names(str(tmp_path / "names.json"))
