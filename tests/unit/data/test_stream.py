"""Streams without worker processes; for those see tests/integration/test_data_workers.py."""

import itertools
import json
import multiprocessing
import os
import pickle
import re
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextembed.core.types import Loading
from nextembed.data import stream
from nextembed.data.collate import Collate
from nextembed.data.skipped import SkipLog
from nextembed.data.stream import (
    ImageView,
    MapStream,
    SequentialStream,
    TrainLoader,
    advance,
    build_cache,
    decoded_bytes,
)
from nextembed.data.transforms import ImageReader, RandomResizedCrop
from nextembed.errors import ConfigError, DataError

READER, CROP, COLLATE = ImageReader(1), RandomResizedCrop(4, (0.9, 1.0)), Collate(0.5, 0.5, 5)
VIEW = ImageView(READER, (CROP,))


def make_rows(count, bad=()):
    """Grey squares whose label is the row number, so batches can be traced back."""
    grey = np.linspace(0, 255, count).astype(np.uint8)
    return [
        {"image": b"bad" if i in bad else np.full((6, 6), grey[i]), "label": i, "key": f"row{i}"} for i in range(count)
    ]


def map_stream(rows, place, rate=1.0, cached=False, path=None):
    log = SkipLog(path, rate, len(rows))
    return MapStream(rows, VIEW, COLLATE, log, place, build_cache(rows, VIEW, log) if cached else None)


def take(stream, count):
    iterator = iter(stream)
    return [next(iterator) for _ in range(count)]


def labels(batches):
    return [label for batch in batches for label in batch["labels"].tolist()]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_each_epoch_has_each_row_once_in_a_new_order():
    seen = labels(take(map_stream(make_rows(10), Loading(4)), 5))
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:] and seen[:10] != list(range(10))
    assert labels(take(map_stream(make_rows(10), Loading(4, seed=1)), 5)) != seen


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("bad", [(), (0, 3, 4, 9)])
def test_same_samples_for_accumulation_and_ranks(cached, bad):
    """Batches of 16, 4 micro-batches of 4 and 2 ranks of 8 have bit-identical samples."""
    rows = make_rows(10, bad)
    whole = take(map_stream(rows, Loading(16), cached=cached), 2)
    parts = take(map_stream(rows, Loading(4), cached=cached), 8)
    ranks = [take(map_stream(rows, Loading(8, 0, rank, 2), cached=cached), 2) for rank in (0, 1)]
    for step in (0, 1):
        for name in ("pixel_values", "labels"):
            expected = whole[step][name]
            assert torch.equal(expected, torch.cat([batch[name] for batch in parts[4 * step : 4 * step + 4]]))
            assert torch.equal(expected, torch.cat([ranks[0][step][name], ranks[1][step][name]]))


def test_the_cache_changes_only_rounding():
    rows = make_rows(12, bad=(2, 3))
    for a, b in zip(take(map_stream(rows, Loading(5)), 6), take(map_stream(rows, Loading(5), cached=True), 6)):
        assert torch.equal(a["labels"], b["labels"]) and torch.equal(a["position"], b["position"])
        assert (a["pixel_values"] - b["pixel_values"]).abs().max() <= 2 / 255 + 1e-6


def test_unreadable_rows_are_replaced(tmp_path):
    path = tmp_path / "skipped.jsonl"
    seen = labels(take(map_stream(make_rows(6, bad=(2, 3, 5)), Loading(6), path=path), 4))
    assert set(seen) == {0, 1, 4} and len(seen) == 24
    assert all({0, 1, 4} <= set(seen[at : at + 6]) for at in range(0, 24, 6))  # every readable row in every epoch
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == ["row2", "row3", "row5"]
    assert all("known format" in line["reason"] for line in lines)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 13),
    size=st.integers(1, 6),
    ranks=st.integers(1, 3),
    stop=st.integers(1, 12),
    bad=st.sets(st.integers(0, 12), max_size=4),
    cached=st.booleans(),
)
def test_map_resume_is_exact(count, size, ranks, stop, bad, cached):
    bad = bad - {0}
    rows, rank = make_rows(count, bad), ranks - 1
    full = take(map_stream(rows, Loading(size, 3, rank, ranks), cached=cached), stop + 4)
    state = None
    for batch in full[:stop]:
        state = advance(state, batch["position"])
    state = json.loads(json.dumps(state))
    resumed = take(map_stream(rows, Loading(size, 3, rank, ranks, state), cached=cached), 4)
    assert all(same(a, b) for a, b in zip(full[stop:], resumed))


class Sequence:
    """Shards of unequal length; each reader gets whole shards if there are enough, otherwise every n-th row."""

    def __init__(self, shards):
        self.shards, self.reads = shards, 0

    def read(self, seed, epoch, reader, num_readers):
        own = self.shards[reader::num_readers] if len(self.shards) >= num_readers else self.shards
        rows = [row for shard in own for row in shard]
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        if len(self.shards) < num_readers:
            order = order[reader::num_readers]
        for i in order:
            self.reads += 1
            yield rows[i]


def sequential(rows, place, num_workers=1, rate=1.0, path=None):
    return SequentialStream(rows, VIEW, COLLATE, SkipLog(path, rate), place, num_workers)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    size=st.integers(1, 5),
    stop=st.integers(1, 12),
    bad=st.sets(st.integers(0, 27), max_size=6),
)
def test_sequential_resume_is_exact(lengths, size, stop, bad):
    rows = make_rows(sum(lengths), bad - {0})
    starts = np.cumsum([0, *lengths])
    shards = [rows[a:b] for a, b in itertools.pairwise(starts)]
    full = take(sequential(Sequence(shards), Loading(size)), stop + 4)
    state = None
    for batch in full[:stop]:
        state = advance(state, batch["position"])
    resumed = take(sequential(Sequence(shards), Loading(size, start=json.loads(json.dumps(state)))), 4)
    assert all(same(a, b) for a, b in zip(full[stop:], resumed))


def test_sequential_epochs_are_complete_and_batches_full():
    rows = make_rows(7, bad=(3,))
    batches = take(sequential(Sequence([rows]), Loading(4)), 6)
    seen = labels(batches)
    assert all(len(batch["labels"]) == 4 for batch in batches)
    for epoch in range(4):
        assert sorted(seen[6 * epoch : 6 * epoch + 6]) == [0, 1, 2, 4, 5, 6]


def test_sequential_state_must_match():
    rows = Sequence([make_rows(9)])
    state = advance(None, take(sequential(rows, Loading(2)), 1)[0]["position"])
    with pytest.raises(ConfigError, match=r"data.num_workers: .* same value as before, 1, not 2"):
        sequential(rows, Loading(2, start=state), num_workers=2)
    with pytest.raises(ConfigError, match=r"number of ranks .* 1, not 2"):
        sequential(rows, Loading(2, world_size=2, start=state))
    with pytest.raises(ConfigError, match=r"data.streaming: .* was streaming"):
        map_stream(make_rows(4), Loading(2, start=state))
    with pytest.raises(ConfigError, match=r"data.streaming: .* was not streaming"):
        sequential(rows, Loading(2, start={"next": 4}))


def test_too_many_unreadable_images_stop_a_stream():
    with pytest.raises(DataError, match=r"4 of 300 images are unreadable \(1.3%\).*max_skipped_rate=0.01.*row"):
        take(map_stream(make_rows(300, bad=(5, 77, 130, 131, 280)), Loading(50), rate=0.01), 6)
    take(map_stream(make_rows(300, bad=(5, 77, 130)), Loading(50), rate=0.01), 12)  # exactly 1 % is allowed
    with pytest.raises(DataError, match="unreadable"):
        map_stream(make_rows(300, bad=range(4)), Loading(50), rate=0.01, cached=True)
    many = make_rows(2000, bad=range(0, 2000, 50))  # 2 %
    with pytest.raises(DataError, match=r"11 of the first 1000 images"):
        take(sequential(Sequence([many]), Loading(50), rate=0.01), 100)
    few = make_rows(100, bad=(1, 2))
    with pytest.raises(DataError, match=r"2 of 100"):  # known only after one epoch
        take(sequential(Sequence([few]), Loading(50), rate=0.01), 5)


def test_no_readable_image_is_an_error_instead_of_a_loop():
    rows = make_rows(5, bad=range(5))
    with pytest.raises(DataError, match="none of the 5 images"):
        take(map_stream(rows, Loading(2)), 1)
    with pytest.raises(DataError, match="none of the 5 images"):
        map_stream(rows, Loading(2), cached=True)
    with pytest.raises(DataError, match="none of the 5 images"):
        take(sequential(Sequence([rows]), Loading(2)), 1)
    with pytest.raises(DataError, match="no row for reader"):
        take(sequential(Sequence([[]]), Loading(2)), 1)


def test_skip_log_counts_a_key_once_across_processes(tmp_path):
    path = tmp_path / "skipped.jsonl"
    logs = [SkipLog(path, 0.01, 200) for _ in range(2)]
    for log in logs:
        for _ in range(3):
            log.add("a.png", "truncated", 10)
    assert len(path.read_text().splitlines()) == 1
    logs[0].add("b.png", "empty file", 10)
    with pytest.raises(DataError, match=r"3 of 200 images .*skipped.jsonl"):
        logs[1].add("c.png", "é", 10)
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a.png", "b.png", "c.png"]


def test_skip_log_share_is_relative_to_the_images_seen():
    log = SkipLog(None, 0.01, 1_000_000)
    for i in range(10):
        log.add(str(i), "bad", i)
    with pytest.raises(DataError, match="11 of the first 1000"):
        log.add("10", "bad", 900)
    log.check(5000)


def test_skip_log_survives_a_partial_line(tmp_path):
    path = tmp_path / "skipped.jsonl"
    path.write_text('{"key": "a", "reason": "x"}\nnot json\n{"key": "b", "rea')
    log = SkipLog(path, 1.0, 10)
    log.add("c", "y", 1)
    assert set(log.reasons) == {"a", "c"}
    again = SkipLog(path, 1.0, 10)
    again.add("d", "z", 1)
    assert set(again.reasons) == {"a", "c", "d"}


def test_size_is_estimated_from_headers():
    rows = [{"image": np.zeros((10, 20), dtype=np.uint8)}] * 50
    assert decoded_bytes(rows, READER) == 10_000 and decoded_bytes(rows, ImageReader(3)) == 30_000
    assert decoded_bytes([{"image": b""}], READER) == 0


def test_streams_can_be_pickled():
    stream = map_stream(make_rows(8), Loading(3), cached=True)
    assert same(take(pickle.loads(pickle.dumps(stream)), 1)[0], take(stream, 1)[0])


class Ended(TrainLoader):
    """A loader whose only worker has died; the cause is known only from torch's error while waiting for it."""

    def __init__(self):
        self.workers = [SimpleNamespace(sentinel=0, exitcode=None)]


@pytest.mark.parametrize(
    "said, expected",
    [("DataLoader worker (pid 7) is killed by signal: Killed. ", "a data worker was killed (signal 9)"),
     ("DataLoader worker (pid 7) exited unexpectedly with exit code 3. ", "a data worker died (exit code 3)")],
)  # fmt: skip
def test_a_worker_that_dies_while_waited_for_is_a_one_line_error(monkeypatch, said, expected):
    def wait(sentinels, timeout):
        raise RuntimeError(said)

    monkeypatch.setattr(stream, "wait", wait)
    with pytest.raises(DataError, match=re.escape(expected)), stream.checked_workers(Ended()):
        raise EOFError


def _dies_slowly():
    """A process as it ends on a busy machine: its files are closed, and its parent is told of its end later."""
    os.closerange(3, 4096)
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_whose_connections_close_long_before_it_ends_is_a_one_line_error():
    loader = Ended()
    loader.workers = [multiprocessing.get_context("fork").Process(target=_dies_slowly)]
    loader.workers[0].start()
    message = re.escape("a data worker was killed (signal 9)")
    with pytest.raises(DataError, match=message), stream.checked_workers(loader):
        raise ConnectionResetError


def test_a_worker_prints_no_lost_connections(capsys):
    stream._without_lost_connections(EOFError, EOFError(), None)
    stream._without_lost_connections(BrokenPipeError, BrokenPipeError(), None)
    assert capsys.readouterr().err == ""
    stream._without_lost_connections(ValueError, ValueError("wrong"), None)
    assert "ValueError: wrong" in capsys.readouterr().err
