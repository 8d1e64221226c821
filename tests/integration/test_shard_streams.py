"""Shards streamed by two ranks with two workers, stopped and resumed: every row appears once per epoch."""

import itertools
import json
from collections import Counter
from pathlib import Path

import datasets
import pytest
from tiny import weights

import nextembed
from nextembed import recipes
from nextembed.core.config import apply_overrides
from nextembed.core.types import Loading
from nextembed.data.rows import rows_in_order
from nextembed.data.sharding import shard
from nextembed.data.sources import ImageData
from nextembed.data.stored import StreamedRows
from nextembed.data.stream import advance

SAMPLE = Path(nextembed.__file__).parent / "data/sample/emoji32.parquet"
RANKS, WORKERS, BATCH = 2, 2, 3


def numbered(folder: Path, num_rows: int) -> Path:
    """Images whose class is the row number."""
    table = datasets.Dataset.from_parquet(str(SAMPLE)).select(range(num_rows)).select_columns(["image"])
    file = folder / "rows.parquet"
    table.add_column("label", list(range(num_rows))).to_parquet(str(file))
    return file


def epoch_of(batch) -> list[int]:
    return batch["position"][:, 3].tolist()


@pytest.mark.parametrize(("form", "kib", "num_shards"), [("tar", 12, 9), ("parquet", 35, 4), ("tar", 42, 3)])
def test_each_row_is_read_once_per_epoch(tmp_path, monkeypatch, form, kib, num_shards) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    file, total = numbered(tmp_path, 54), 54
    done = shard(file, tmp_path / "shards", format=form, shard_size=kib / 1024, shuffle=1)
    assert len(done.shards.splits["train"].shards) == num_shards
    data = ImageData(source=str(tmp_path / "shards"), streaming=True, shuffle_buffer=5, num_workers=WORKERS)
    read: dict[int, Counter[int]] = {}
    for rank in range(RANKS):
        state, stops = None, iter((1, 4, 2, 7))
        while (
            state is None or min(place[0] for place in state["readers"].values()) < 2 or len(state["readers"]) < WORKERS
        ):
            loading = Loading(BATCH, seed=7, rank=rank, world_size=RANKS, start=state)
            loader = data.train_loader(loading, image_size=16, num_channels=3, num_latents=4)
            for batch in itertools.islice(loader, next(stops, 40)):  # rows that workers read ahead are lost
                state = json.loads(json.dumps(advance(state, batch["position"])))
                for epoch, label in zip(epoch_of(batch), batch["labels"].tolist()):
                    read.setdefault(epoch, Counter())[label] += 1
    assert read[0] == read[1] == Counter(range(total))


@pytest.mark.parametrize(
    ("readers", "words"),
    [
        (8, "2 shards for 8 readers (ranks x data.num_workers): each reads all of them and keeps every 8th row; "),
        (2, "2 shards for 2 readers"),
        (1, "2 shards for 1 reader"),
    ],
)
def test_too_few_shards_are_noted(tmp_path, readers, words) -> None:
    shard(numbered(tmp_path, 20), tmp_path / "shards", format="tar", shard_size=0.04)
    rows = ImageData(source=str(tmp_path / "shards"), streaming=True).rows("train")
    assert isinstance(rows, StreamedRows) and rows.divided(readers).startswith(words)


def test_readers_with_uneven_shards_are_noted(tmp_path, capsys) -> None:
    """The run prints a note, trains, and resumes bit-identically."""
    shard("emoji", tmp_path / "shards", format="tar", shard_size=0.5)
    config = apply_overrides(
        recipes.load("nepa_demo_tiny"),
        [f"data.source={tmp_path}/shards", "data.streaming=true", "data.num_workers=2", f"output_dir={tmp_path}",
         "data.split_column=null", "name=whole", "train.save_steps=2", "train.max_steps=4", "train.epochs=null",
         "optim.warmup_epochs=null", "optim.warmup_steps=1", "probe.enabled=false", "train.trackers=[]"],
    )  # fmt: skip
    whole = nextembed.fit(config)
    said = " ".join(capsys.readouterr().out.split())
    assert "7 shards for 2 readers: some read 3, others 4 per epoch, so rows of the former repeat sooner" in said
    parts = nextembed.fit(apply_overrides(config, ["name=parts", "train.max_steps=2"]))
    resumed = nextembed.fit(apply_overrides(config, ["name=parts"]), resume=parts.dir)
    for name, weight in weights(whole.dir, "model").items():
        assert weight.equal(weights(resumed.dir, "model")[name]), name
    assert len(list(rows_in_order(ImageData(source=str(tmp_path / "shards")).rows("train")))) == 1641
