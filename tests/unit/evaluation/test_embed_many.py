"""A folder of feature files: the same after any interruption and with either engine, searched like a single file."""

import json
import os
from pathlib import Path

import pytest
import torch

from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError, DataError
from nextembed.evaluation.features.embed import embed
from nextembed.evaluation.features.embed_many import embed_many
from nextembed.evaluation.features.index import open_features
from nextembed.evaluation.features.search import score, search

PLACE = {"layer": 2, "pooling": "mean", "attention": "full", "weights": "raw", "batch_size": 4}


@pytest.fixture
def source(tmp_path, pictures) -> Path:
    for name, bad in (("cats", (1, 2)), ("dogs", (0, 7))):
        pictures(tmp_path / "photos" / name, 11, bad)
    return tmp_path / "photos"


class Stop(Exception):
    pass


def stop_after(calls: int):
    count = [0]

    def report(done: int, total: int | None) -> None:
        count[0] += 1
        if count[0] > calls:
            raise Stop

    return report


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_same_after_any_interruption(saved, source, tmp_path, streaming) -> None:
    data = ImageData(source=str(source), streaming=streaming)
    whole = embed_many(saved / "run", data, tmp_path / "whole", shard_rows=6, **PLACE)
    assert (whole.num_files, whole.num_rows, whole.num_resumed) == (4, 18, 0)
    for calls in (1, 3, 4, 2):
        with pytest.raises(Stop):
            embed_many(saved / "run", data, tmp_path / "parts", shard_rows=6, report=stop_after(calls), **PLACE)
        with pytest.raises(ConfigError, match="not finished: run the same `nextembed embed` again"):
            open_features(tmp_path / "parts")
        broken = tmp_path / "parts" / "features-000001.parquet"
        if calls == 4 and broken.exists():
            broken.write_bytes(broken.read_bytes()[:100])  # as after a power failure
    done = embed_many(saved / "run", data, tmp_path / "parts", shard_rows=6, **PLACE)
    assert done.num_resumed >= 1 and contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert [(one["row"], one["key"]) for one in done.skipped] == [
        (1, "cats/001.png"), (2, "cats/002.png"), (11, "dogs/000.png"), (18, "dogs/007.png"),
    ]  # fmt: skip
    lines = (tmp_path / "parts" / "features.skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == done.skipped


def test_it_is_searched_and_scored_like_one_file(saved, source, tmp_path) -> None:
    embed_many(saved / "run", str(source), tmp_path / "many", shard_rows=5, **PLACE)
    one = embed(saved / "run", str(source), tmp_path / "one.parquet", **PLACE)
    many = open_features(tmp_path / "many")
    assert many.num_rows == one.num_rows == 18
    for key in ("cats/000.png", "dogs/010.png"):
        found, expected = (search(path, key, top=5) for path in (tmp_path / "many", one.file))
        assert [(hit.key, hit.label_name) for hit in found] == [(hit.key, hit.label_name) for hit in expected]
        torch.testing.assert_close([hit.cosine for hit in found], [hit.cosine for hit in expected])
    ours, theirs = score(many), score(open_features(one.file))
    assert ours.num_queries == theirs.num_queries and ours.recall_at_1 == pytest.approx(theirs.recall_at_1, abs=0.12)


def test_other_settings_and_folders_are_refused(saved, source, tmp_path) -> None:
    with pytest.raises(Stop):
        embed_many(saved / "run", str(source), tmp_path / "f", shard_rows=6, report=stop_after(2), **PLACE)
    with pytest.raises(ConfigError, match="of other settings \\(shard_rows 6, now 7\\)"):
        embed_many(saved / "run", str(source), tmp_path / "f", shard_rows=7, **PLACE)
    done = embed_many(saved / "run", str(source), tmp_path / "f", shard_rows=12, overwrite=True, **PLACE)
    assert done.num_files == 2 and len(list((tmp_path / "f").glob("*.parquet"))) == 2
    with pytest.raises(ConfigError, match="already contains features; --overwrite"):
        embed_many(saved / "run", str(source), tmp_path / "f", shard_rows=12, **PLACE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"contains letter.txt, which nextembed embed did not write"):
        embed_many(saved / "run", str(source), tmp_path / "mine", shard_rows=12, overwrite=True, **PLACE)
    with pytest.raises(ConfigError, match="--shard-rows 100000"):
        embed_many(saved / "run", str(source), tmp_path / "g", **PLACE)
    (tmp_path / "f" / "features-000001.parquet").unlink()
    with pytest.raises(ConfigError, match=r"features-000001.parquet is missing; features.json names it"):
        open_features(tmp_path / "f")
    for path in source.rglob("*.png"):
        path.write_bytes(b"no")
    with pytest.raises(DataError, match="none of the 22 images is readable"):
        embed_many(saved / "run", str(source), tmp_path / "bad", shard_rows=6, **PLACE)


@pytest.mark.slow
def test_ray_writes_the_same_files(saved, source, tmp_path, monkeypatch) -> None:
    pytest.importorskip("ray.data")
    above = [str(Path(__file__).parents[3] / "src"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(above))
    monkeypatch.chdir(source.parent)  # relative paths also work in other processes
    here = embed_many(saved / "run", "photos", "here", shard_rows=6, **PLACE)
    with pytest.raises(Stop):
        embed_many(saved / "run", "photos", "there", shard_rows=6, report=stop_after(2), **PLACE)
    seen: list[int] = []
    done = embed_many(
        saved / "run", "photos", Path("there"), shard_rows=6, engine="ray", ray_workers=1,
        report=lambda rows, total: seen.append(rows), **PLACE,
    )  # fmt: skip
    assert done.num_resumed == 1 and seen[-1] == 22 and done.skipped == here.skipped
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
