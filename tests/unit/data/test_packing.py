"""Packed batches: whole documents, none lost or mixed up, identical for any number of workers and after resuming."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from encoding import END, IMAGE, STOP, encode, encoded, ids_of, unpacked, written
from hypothesis import given, settings
from hypothesis import strategies as st

import nextembed.toys.kinds  # noqa: F401
from nextembed.core.config import DATA
from nextembed.core.types import Loading
from nextembed.data.documents import Choose, DocumentPart, text
from nextembed.data.mixture import Mixture
from nextembed.data.packing import TOO_LONG, TRUNCATED, DocumentPlace, Fit, first_fit, pack
from nextembed.data.stream import advance
from nextembed.errors import ConfigError, DataError


class Made(DocumentPart):
    """Documents that encode their number: number % 3 images of colour `number`, then the number as text."""

    num: int = 40
    broken: list[int] = []

    def rows(self, split):
        return [{"key": f"{i}", "number": i} for i in range(self.num)]

    def document(self, row, seed):
        number = row["number"]
        image = None if number in self.broken else np.full((2, 2, 3), number, np.uint8)
        shown = [self.image(image) for _ in range(number % 3)] if number not in self.broken else [self.image(None)]
        return {"key": row["key"], "segments": [*shown, text(f"n{number}." + "x" * (number % 7))]}


class Sequence(Made):
    """The same documents, read sequentially."""

    def rows(self, split):
        rows = super().rows(split)

        class Read:
            def read(self, seed, epoch, reader, num_readers):
                return iter(np.random.default_rng(epoch).permutation(rows)[reader::num_readers].tolist())

        return Read()


def loader(part, **options):
    sizes = {name: options.pop(name, size) for name, size in (("encode", encode), ("max_length", 32))}
    return part.train_loader(Loading(**{"micro_batch_size": 2} | options), **sizes)


def take(batches, num):
    return [batch for _, batch in zip(range(num), batches)]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x[name], y[name]) for x, y in zip(a, b) for name in x)


def numbers(batches):
    return [
        int(written(one.positions["input_ids"]).split("n")[1].split(".")[0]) for b in batches for one in unpacked(b)
    ]


@pytest.mark.parametrize("kind", [Made, Sequence])
@pytest.mark.parametrize("ranks", [1, 2])
def test_each_document_appears_once_per_epoch_with_its_images(kind, ranks):
    part = kind(num_workers=0)
    seen = Counter()
    for rank in range(ranks):
        for batch in take(loader(part, rank=rank, world_size=ranks), 30):
            for one in unpacked(batch):
                number = int(written(one.positions["input_ids"]).split("n")[1].split(".")[0])
                whole = encode(part.document({"key": "", "number": number}, 0))
                assert all(torch.equal(a[name], b[name]) for a, b in zip(one, whole) for name in b)
                if number % 3:
                    assert one.values["pixel_values"].unique().tolist() == [number]
                seen[number, rank] += 1
    assert {number for number, _ in seen} == set(range(40))
    per_document = Counter()
    for (number, _), count in seen.items():
        per_document[number] += count
    assert max(per_document.values()) - min(per_document.values()) <= 2 + ranks  # drift of readers, packing window


@pytest.mark.parametrize("kind", [Made, Sequence])
def test_the_first_epoch_over_all_ranks_has_every_document_once(kind):
    part = kind(num_workers=0, pack_window=1)
    found = []
    for rank in range(2):
        stream = loader(part, rank=rank, world_size=2).stream
        readers = [stream.documents(number) for number in range(2)]
        for reader in readers:
            found += [int(ids_of(next(reader)[2]).sum()) for _ in range(10)]
    assert sorted(found) == sorted(
        int(ids_of(encode(part.document({"key": "", "number": i}, 0))).sum()) for i in range(40)
    )


@pytest.mark.parametrize("kind", [Made, Sequence])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_workers(kind, workers):
    alone = take(loader(kind(num_workers=0)), 12)
    assert same(alone, take(loader(kind(num_workers=workers)), 12))


@pytest.mark.parametrize("kind", [Made, Sequence])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_stopped_run_resumes_with_the_same_batches(kind, stop):
    part = kind(num_workers=0, broken=[3])
    part.max_skipped_rate = 0.5
    whole = take(loader(part), 14)
    state = None
    for batch in whole[:stop]:
        state = advance(state, batch["position"])
    state = json.loads(json.dumps(state))
    assert same(whole[stop:], take(loader(part, start=state), 14 - stop))
    part.num_workers = 2
    assert same(whole[stop:], take(loader(part, start=state), 14 - stop))


def test_a_mixture_is_weighted_reproducible_and_resumable(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"a{i}"}) + "\n" for i in range(30)))
    (tmp_path / "b.txt").write_text("\n\n".join(f"b{i}" for i in range(20)))
    sources = [{"kind": "text", "source": str(tmp_path / name)} for name in ("a.jsonl", "b.txt")]
    part = DATA.parse({"kind": "mixture", "sources": sources, "weights": [1, 3], "num_workers": 0})
    whole = take(loader(part), 40)
    found = [written(one.positions["input_ids"])[0] for batch in whole for one in unpacked(batch)]
    assert 0.2 < found.count("a") / len(found) < 0.3
    assert not same(whole, take(loader(part, seed=1), 40))
    state = advance(None, whole[16]["position"])
    assert same(whole[17:], take(loader(part, start=state), 23))
    again = DATA.parse(part.model_dump(mode="json", serialize_as_any=True))
    assert same(whole[:3], take(loader(again), 3))


def test_invalid_mixtures():
    with pytest.raises(ConfigError, match="2 weights for 1 sources"):
        Mixture(sources=[{"kind": "text", "source": "glosses"}], weights=[1, 2])
    with pytest.raises(ConfigError, match="a mixture needs sources of documents; 'images' has none"):
        Mixture(sources=[{"kind": "images", "source": "emoji"}])
    with pytest.raises(ConfigError, match=r"data.sources\[1\]: .*no such file"):
        loader(Mixture(sources=[{"kind": "text", "source": name} for name in ("glosses", "./nothing.txt")]))


def test_choices_follow_the_weights():
    choose = Choose([1.0, 0.5, 2.5], 0)
    counts = Counter(choose(0, i) for i in range(4000))
    assert all(abs(counts[k] / 4000 - share) < 0.03 for k, share in enumerate((0.25, 0.125, 0.625)))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"world_size": 2}, "number of ranks"), ({"num_readers": 4}, "data.num_readers")],
)
def test_resuming_with_other_readers_is_an_error(options, words):
    state = advance(None, take(loader(Made(num_workers=0)), 1)[0]["position"])
    part = Made(num_workers=0, num_readers=options.pop("num_readers", 2))
    with pytest.raises(ConfigError, match=words):
        loader(part, start=state, **options)
    with pytest.raises(ConfigError, match="not on packed documents"):
        loader(part, start={"next": 4})


@pytest.mark.parametrize("ranks", [1, 2])
def test_epochs_are_counted_in_documents_not_in_packed_rows(ranks):
    part = Made(num_workers=0)
    first = loader(part, max_length=96, world_size=ranks)
    assert (first.num_rows, first.facts()["epoch"]) == (None, 0)
    seen = 0
    for batch in islice(first, 10):
        seen += len(unpacked(batch))
        assert first.facts()["documents_seen"] == seen * ranks
        assert first.facts()["epoch"] == seen * ranks / part.num
    assert seen > 2 * 2 * 10  # more documents than rows in ten batches
    again = loader(part, max_length=96, world_size=ranks, start=advance(None, batch["position"]))
    assert again.facts()["documents_seen"] == seen * ranks
    more = len(unpacked(take(again, 1)[0]))
    assert again.facts()["documents_seen"] == (seen + more) * ranks


def test_unreadable_documents_are_skipped_listed_and_counted(tmp_path):
    part = Made(num_workers=2, broken=[5], max_skipped_rate=0.1)
    found = loader(part, skipped_path=tmp_path / "skipped.jsonl")
    assert 5 not in numbers(take(found, 12)) and found.counts["unreadable"] >= 1
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(line["key"], line["reason"]) for line in lines] == [("5", "no image")]
    with pytest.raises(DataError, match=r"3 of 40 documents are unreadable \(7.5%\).*1: no image"):
        take(loader(Made(num_workers=1, broken=[1, 2, 3], max_skipped_rate=0.05), skipped_path=tmp_path / "b"), 30)
    with pytest.raises(DataError, match=r"unreadable|can be used"):
        take(loader(Made(num_workers=0, num=4, broken=[0, 1, 2, 3], max_skipped_rate=1.0)), 3)


def test_an_empty_split_and_too_many_ranks():
    with pytest.raises(ConfigError, match="split is empty"):
        loader(Made(num=0))
    with pytest.raises(ConfigError, match="fewer than ranks"):
        loader(Made(num=1), world_size=2)
    assert len(numbers(take(loader(Made(num=1, num_workers=0)), 2))) > 2


def shown(value=7):
    return {"kind": "image", "value": torch.full((3, 2, 2), value, dtype=torch.uint8), "loss": True}


def test_truncated_documents_keep_whole_images():
    document = {"key": "", "segments": [text("ab"), shown(1), text("cdef"), shown(2), text("gh")]}
    whole = encode(document)  # begin a b [image: 3 positions + 2 tokens] c d e f [5] g h stop: 20
    for length in range(1, len(whole.positions["input_ids"]) + 1):
        outcome, found = Fit(encode, length, "truncate")(document)
        if found is None:
            assert outcome == TOO_LONG
            continue
        ids = found.positions["input_ids"].tolist()
        assert len(ids) <= length and ids.count(IMAGE) == 3 * len(found.values["pixel_values"]) == 3 * ids.count(END)
        if length < len(whole.positions["input_ids"]):
            assert outcome == TRUNCATED and STOP not in ids
            assert ids == whole.positions["input_ids"][: len(ids)].tolist()
            assert torch.equal(found.positions["labels"], whole.positions["labels"][: len(ids)])
            assert found.values["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 2.0][: len(found.values["pixel_values"])]
            unused = length - len(ids)
            assert unused <= 5  # only an image that does not fit with its end token is dropped
    assert Fit(encode, 8, "skip")(document) == (TOO_LONG, None)
    asked = {"key": "", "segments": [text("question", loss=False), text("answer")]}
    assert Fit(encode, 6, "truncate")(asked) == (TOO_LONG, None)  # no prediction target is left


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=40))
def test_first_fit_places_every_document_once(lengths):
    def one(number, length):
        ids = torch.full((length,), 100 + number)
        return encoded(ids, ids.clone(), torch.ones(length).bool(), torch.zeros(0, 3, 1, 1))

    waiting = [(DocumentPlace(0, 0, 0, i), one(i, length)) for i, length in enumerate(lengths)]
    rows = []
    while waiting:
        oldest = waiting[0][1]
        rows.append(first_fit(waiting, 16))
        assert rows[-1][0] is oldest and sum(len(d.positions["input_ids"]) for d in rows[-1]) <= 16
    batch = pack(rows, 16, [0])
    found = unpacked(batch)
    assert sorted(int(d.positions["input_ids"][0]) for d in found) == [100 + i for i in range(len(lengths))]
    assert all(d.positions["labels"][0] == -100 and not d.positions["regression_mask"][0] for d in found)


def test_real_text_leaves_little_padding():
    part = DATA.parse({"kind": "text", "source": "glosses", "num_workers": 0})
    found = loader(part, max_length=256, micro_batch_size=8)
    take(found, 20)
    assert found.fill_rate > 0.93
