"""Unreadable rows are counted and replaced by position, wherever they are and however often they occur."""

import collections
import itertools
import json

import pytest
import torch

from nextembed.core.types import Loading
from nextembed.data.collate import Collate
from nextembed.data.images import Choice, EvalSamples, ImagePart
from nextembed.data.skipped import SkipLog
from nextembed.data.stream import ImageView, MapStream, SequentialStream, advance, build_cache, tries
from nextembed.data.transforms import ImageReader, RandomResizedCrop, Unreadable
from nextembed.errors import DataError

CROP, COLLATE = RandomResizedCrop(2), Collate(0.5, 0.5, 2)


class Rows:
    """Rows whose label is their number."""

    def __init__(self, total, bad):
        self.total, self.bad = total, set(bad)

    def __len__(self):
        return self.total

    def __getitem__(self, index):
        return {"image": b"" if index in self.bad else b"fine", "label": index, "key": f"{index}.png"}


class Reader(ImageReader):
    """Counts reads without decoding."""

    reads = 0

    def read_crop(self, image, crop, seed):
        Reader.reads += 1
        if not image:
            raise Unreadable("empty file")
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

    def read(self, image):
        return self.read_crop(image, CROP, 0)


VIEW = ImageView(Reader(), (CROP,))


def stream_of(total, bad, seed=0, rate=0.01, cached=False, path=None):
    rows, log = Rows(total, bad), SkipLog(path, rate, total)
    cache = build_cache(rows, VIEW, log) if cached else None
    return MapStream(rows, VIEW, COLLATE, log, Loading(500, seed), cache)


def labels_of(stream, count):
    return [label for one in itertools.islice(iter(stream), count // 500) for label in one["labels"].tolist()]


def lying(how, total, rate):
    """The positions of broken rows, in one block or evenly spaced."""
    count = round(total * rate)
    return range(total // 3, total // 3 + count) if how == "block" else range(0, total, total // count)


@pytest.mark.parametrize("how", ["block", "spread"])
def test_broken_rows_are_replaced_evenly_with_one_extra_read_each(how):
    bad = lying(how, 100_000, 0.001)
    stream = stream_of(100_000, bad)
    Reader.reads = 0
    found = collections.Counter(labels_of(stream, 100_000))
    assert sum(found.values()) == 100_000 and not set(bad) & set(found)
    assert Reader.reads <= 100_000 + 110 and max(found.values()) <= 3


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("how", ["block", "spread"])
def test_the_limit_applies_wherever_broken_rows_are(how, cached):
    for seed in range(12):
        labels_of(stream_of(5000, lying(how, 5000, 0.001), seed, cached=cached), 1000 if cached else 5000)
        with pytest.raises(DataError, match=r"more than data.max_skipped_rate=0.01: [0-9]+.png: empty file"):
            labels_of(stream_of(5000, lying(how, 5000, 0.02), seed, cached=cached), 5000)


def test_the_replacement_of_a_row_depends_only_on_its_position():
    def whole(size, ranks=1):
        streams = []
        for rank in range(ranks):
            place = Loading(size, 3, rank, ranks)
            log = SkipLog(None, 1.0, 60)
            streams.append(iter(MapStream(Rows(60, range(10, 40)), VIEW, COLLATE, log, place)))
        found = []
        while len(found) < 120:
            for one in streams:
                found += next(one)["labels"].tolist()
        return found[:120]

    assert whole(60) == whole(7) == whole(5, ranks=3)


@pytest.mark.parametrize("total", [1, 2, 3, 12, 97, 1000])
def test_every_row_is_tried_once(total):
    for seed in (0, 1, 5, 2**63 + 11):
        assert sorted(tries(total // 2, total, seed)) == list(range(total))
        assert next(tries(total // 2, total, seed)) == total // 2


class Shuffled:
    """A stream of rows whose broken rows are all identical."""

    def __init__(self, total, num_bad, places=True):
        self.rows = [{"image": b"" if i < num_bad else b"fine", "label": i, "key": "the same"} for i in range(total)]
        if places:
            self.rows = [{**row, "place": f"0/{i}"} for i, row in enumerate(self.rows)]

    def read(self, seed, epoch, reader, num_readers):
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(epoch)).tolist()
        yield from (self.rows[i] for i in order[reader::num_readers])


def sequential(rows, path, rate, start=None):
    return SequentialStream(rows, VIEW, COLLATE, SkipLog(path, rate), Loading(50, start=start), 1)


def test_identical_rows_of_a_stream_are_counted_separately(tmp_path):
    with pytest.raises(DataError, match=r"11 of the first 1000 images"):
        next(itertools.islice(iter(sequential(Shuffled(4000, 1000), tmp_path / "a", 0.01)), 79, None))


def test_a_broken_row_of_a_stream_counts_once_across_epochs_and_resumes(tmp_path):
    path, rows, state = tmp_path / "skipped.jsonl", Shuffled(3000, 15), None
    for _ in range(4):  # 0.5 % of the rows; each part of the run ends within an epoch
        for one in itertools.islice(iter(sequential(rows, path, 0.01, state)), 70):
            state = advance(state, one["position"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 15 and len({line["place"] for line in lines}) == 15


def test_unreadable_images_are_not_scored():
    samples = EvalSamples(ImagePart(max_skipped_rate=0.5), Rows(10, [2, 3]), VIEW, [], Choice("test", 2))
    labels = [samples[i]["label"] for i in range(10)]
    assert labels == [0, 1, -100, -100, 4, 5, 6, 7, 8, 9] and list(samples.log.reasons) == ["2.png", "3.png"]
    assert "2.png" not in {samples[i]["key"] for i in range(10)}
