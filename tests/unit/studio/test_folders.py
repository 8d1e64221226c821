"""Runs, models and files below the given folders are found, and nothing else."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nextembed.errors import ConfigError
from nextembed.studio.folders import Folders


def run(place: Path, model: bool = True) -> Path:
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("name: x\n")
    (place / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    if model:
        (place / "model").mkdir()
        (place / "model" / "config.json").write_text("{}")
    return place


def features(file: Path) -> Path:
    column = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0], pa.float32()), 2)
    pq.write_table(pa.table({"embedding": column}), file)
    return file


def test_each_kind_is_found_once(tmp_path: Path) -> None:
    run(tmp_path / "runs" / "a")
    run(tmp_path / "runs" / "deep" / "b", model=False)
    (tmp_path / "lone").mkdir()
    (tmp_path / "lone" / "config.json").write_text("{}")
    features(tmp_path / "features.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "compare-x").mkdir()
    (tmp_path / "compare-x" / "comparison.json").write_text("{}")
    found = Folders([tmp_path]).look()
    assert list(found.run) == ["runs/a", "runs/deep/b"]
    assert list(found.model) == ["lone", "runs/a"]
    assert list(found.features) == ["features.parquet"] and list(found.comparison) == ["compare-x"]
    assert found.left_out == []


def test_two_runs_with_the_same_name_get_different_names(tmp_path: Path) -> None:
    one, other = run(tmp_path / "a" / "mine"), run(tmp_path / "b" / "mine")
    found = Folders([tmp_path / "a", tmp_path / "b"]).look().run
    assert found == {"mine": one, "b/mine": other}
    assert Folders([one]).look().run == {"mine": one}


@pytest.mark.parametrize("word", ["../b/mine", "/etc", "a/../../b/mine", "", "mine\0", "~"])
def test_only_listed_names_can_be_opened(tmp_path: Path, word: str) -> None:
    run(tmp_path / "a" / "mine")
    run(tmp_path / "b" / "mine")
    with pytest.raises(ConfigError, match="is not known"):
        Folders([tmp_path / "a"]).get("run", word)


@pytest.mark.parametrize("path", ["/etc/passwd", "a/../../secret", "a/link", "\0"])
def test_paths_outside_are_rejected(tmp_path: Path, path: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "secret")
    folders = Folders([tmp_path / "a"])
    with pytest.raises(ConfigError, match=r"outside|not a path"):
        folders.inside(tmp_path / path)
    (tmp_path / "a" / "own").write_text("x")
    assert folders.inside(tmp_path / "a" / "own").read_text() == "x"


def test_a_run_with_a_link_to_the_outside_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    own = run(tmp_path / "runs" / "mine")
    (own / "report.html").symlink_to(tmp_path / "secret")
    (tmp_path / "runs" / "far").symlink_to(run(tmp_path / "elsewhere" / "far"))
    found = Folders([tmp_path / "runs"]).look()
    assert found.run == {} and found.left_out == ["mine: report.html is a link to another place"]


def test_links_inside_are_fine(tmp_path: Path) -> None:
    own = run(tmp_path / "mine")
    (own / "last.jsonl").symlink_to(own / "metrics.jsonl")
    assert list(Folders([tmp_path]).look().run) == ["mine"]


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    run(tmp_path / "runs")
    with pytest.raises(ConfigError, match="Did you mean"):
        Folders([tmp_path / "rnus"])
