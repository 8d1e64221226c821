"""Reading resumes at the same row, and few rows are read again."""

import json
from collections import Counter
from typing import NamedTuple

import datasets
import pytest
import torch
from encoding import encode
from hypothesis import given, settings
from hypothesis import strategies as st

import nextembed.toys.kinds  # noqa: F401
from nextembed.core.config import DATA
from nextembed.core.types import Loading
from nextembed.data.shuffle import Mark, mixed
from nextembed.data.sources import ImageData
from nextembed.data.stored import StreamedRows
from nextembed.data.stream import advance, valid_state
from nextembed.errors import DataError


class Row(NamedTuple):
    number: int
    shard: int
    before: int

    def load(self):
        return f"row {self.number}"


def stored(lengths, mark=Mark()):  # noqa: B008
    before = 0
    for shard, length in enumerate(lengths):
        if shard >= mark.shard:
            yield from (Row(before + i, shard, before) for i in range(length))
        before += length


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=9), size=st.integers(1, 12), seed=st.integers(0, 99))
def test_reading_resumes_from_every_position(lengths, size, seed):
    whole = list(mixed(stored(lengths), size, seed))
    assert sorted(row.number for _, row, _ in whole) == list(range(sum(lengths)))
    assert all(value == f"row {row.number}" for _, row, value in whole)
    for at, (mark, _, _) in enumerate(whole, 1):
        assert list(mixed(stored(lengths, mark), size, seed, mark)) == whole[at:]
        rows_of_shard = lengths[mark.shard]
        assert at - mark.before <= size + rows_of_shard  # the number of rows that are read again


def test_rows_are_shuffled_and_read_one_by_one():
    taken = []
    rows = mixed((taken.append(one) or one for one in stored([1000])), 50, 7)
    order = [next(rows)[1].number for _ in range(200)]
    assert len(taken) == 250 and order != sorted(order)
    assert [sorted(order[at : at + 50]) for at in (0, 50, 100)] == [list(range(at, at + 50)) for at in (0, 50, 100)]
    assert order[:50] != [number - 50 for number in order[50:100]]


def test_resuming_on_other_rows_is_an_error():
    mark = list(mixed(stored([20, 20]), 8, 0))[28][0]
    with pytest.raises(DataError, match="cannot resume at the same row"):
        list(mixed(stored([20, 6], mark), 8, 0, mark))
    with pytest.raises(DataError, match="shuffle_buffer"):
        list(mixed(stored([20, 20], mark), 30, 0, mark))


@pytest.fixture
def reads(monkeypatch):
    """The number of rows read from storage, by shard."""
    found = Counter()
    records = StreamedRows._records

    def counted(self, shard):
        for one in records(self, shard):
            found[shard] += 1
            yield one

    monkeypatch.setattr(StreamedRows, "_records", counted)
    return found


def take(batches, num):
    return [batch for _, batch in zip(range(num), batches)]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x[name], y[name]) for x, y in zip(a, b) for name in x)


def image_shards(folder, encode, make_picture, count, length):
    picture = encode(make_picture(4, 4))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for shard in range(count):
        columns = {"image": [{"bytes": picture, "path": None}] * length, "label": list(range(length))}
        (folder / f"train-{shard:02d}.parquet").parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns, features).to_parquet(str(folder / f"train-{shard:02d}.parquet"))
    return str(folder)


@pytest.mark.parametrize(("buffer", "most"), [(1, 1), (8, 1), (60, 3)])
def test_a_stream_of_images_rereads_only_its_shard(tmp_path, encode, make_picture, reads, buffer, most):
    source = image_shards(tmp_path / "d", encode, make_picture, 20, 30)
    data = ImageData(source=source, streaming=True, shuffle_buffer=buffer, num_workers=0)
    options = {"image_size": 4, "num_channels": 3, "num_latents": 2}
    whole = take(data.train_loader(Loading(10, seed=5), **options), 62)  # continues into the second epoch
    state = None
    for number, batch in enumerate(whole[:61], 1):
        state = advance(state, batch["position"])
        if number in (49, 61):
            assert valid_state(state)
            reads.clear()
            assert same(
                whole[number : number + 1], take(data.train_loader(Loading(10, seed=5, start=state), **options), 1)
            )
            assert len(reads) <= most and sum(reads.values()) <= 30 * most


@pytest.mark.parametrize("readers", [1, 3])
def test_a_stream_of_documents_rereads_only_its_shard(tmp_path, reads, readers):
    for shard in range(30):
        lines = "".join(json.dumps({"text": f"{shard}/{i} " + "x" * (i % 9)}) + "\n" for i in range(20))
        (tmp_path / f"train-{shard:02d}.jsonl").write_text(lines)
    settings = {"streaming": True, "shuffle_buffer": 1, "num_readers": readers, "pack_window": 4}
    data = DATA.parse({"kind": "text", "source": str(tmp_path), "num_workers": 0, **settings})
    options = {"encode": encode, "max_length": 40}
    whole = take(data.train_loader(Loading(4), **options), 62)
    state = None
    for batch in whole[:50]:
        state = advance(state, batch["position"])
    state = json.loads(json.dumps(state))
    assert valid_state(state)
    reads.clear()
    assert same(whole[50:51], take(data.train_loader(Loading(4, start=state), **options), 1))
    assert len(reads) <= 2 * readers  # one shard per reader, and a waiting document may come from the previous shard
    assert same(whole[50:], take(data.train_loader(Loading(4, start=state), **options), 12))
