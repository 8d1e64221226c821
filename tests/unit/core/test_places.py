"""A name is a local path or a hub id; names that look like paths are never looked up on the hub."""

from pathlib import Path

import pytest

from nextembed.core.places import check_here, is_hub_id
from nextembed.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("photos/cats", "runs/mine/model", "shards"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dogs.png").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["ILSVRC/imagenet-1k", "zalando-datasets/fashion_mnist", "run-llama/llama.cpp", "a/b"])
def test_ids(name: str) -> None:
    assert is_hub_id(name)
    check_here(name, "no such run")
    with pytest.raises(ConfigError):
        check_here(name, "no such folder", hub=False)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("fotos", "photos"),
        ("runs/mien", "runs/mine"),
        ("runs/min/model", "runs/mine/model"),
        ("rnus/mine", "runs/mine"),
        ("run/mine", "runs/mine"),
        ("dog.png", "dogs.png"),
        ("photos/cat", "photos/cats"),
        ("Photos/Cats", "photos/cats"),
        ("./fotos", "photos"),
        ("shard/x.tar", None),
        ("models/x", None),
        ("~/nowhere-at-all/x", None),
        ("owner/dog.png", None),
        ("", None),
    ],
)
def test_paths(name: str, near: str | None) -> None:
    if name == "":
        assert not is_hub_id(name)
        return
    with pytest.raises(ConfigError) as err:
        check_here(name, "no such run")
    assert str(err.value) == f"no such run: {name}" + (f". Did you mean '{near}'?" if near else "")


def test_runs_is_a_folder_even_if_it_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert not is_hub_id("runs/mien")
