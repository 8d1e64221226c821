"""The loader with worker processes: the same batches, exact resume at any point, one-line errors."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from nextembed.core.types import Batch, Loading
from nextembed.data.images import ImagePart
from nextembed.data.sources import ImageData
from nextembed.data.stream import advance
from nextembed.errors import DataError


@pytest.fixture(autouse=True)
def hf_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def shards(folder, lengths, bad=()):
    """Parquet shards of unequal length; `bad` rows are not images; labels are consecutive over all shards."""
    number = 0
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for shard, length in enumerate(lengths):
        numbers = list(range(number, number + length))
        images = [{"bytes": b"no image" if n in bad else png(n), "path": f"{n}.png"} for n in numbers]
        table = datasets.Dataset.from_dict({"image": images, "label": numbers}, features)
        folder.mkdir(exist_ok=True)
        table.to_parquet(str(folder / f"train-{shard}.parquet"))
        number += length
    return str(folder)


def mask(batch: Batch, generator: torch.Generator) -> Batch:
    return {**batch, "input_mask": torch.rand(batch["latent_mask"].shape, generator=generator) < 0.4}


def take(data: ImagePart, count: int, start=None, **options):
    loading = Loading(3, seed=11, start=start, **options)
    loader = data.train_loader(loading, image_size=8, num_channels=3, num_latents=5, draw=mask)
    batches = iter(loader)
    return [next(batches) for _ in range(count)]  # deleting the iterator ends its workers


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("cache", ["on", "off"])
def test_map_batches_do_not_depend_on_workers_and_resume(tmp_path, cache):
    source = shards(tmp_path / "d", (5, 2, 6), bad=(0, 4, 5))
    runs = {n: ImageData(source=source, max_skipped_rate=1, num_workers=n, cache=cache) for n in (0, 1, 2)}
    full = take(runs[0], 14)
    assert all(same(a, b) for n in (1, 2) for a, b in zip(full, take(runs[n], 14)))
    state = None
    for number, batch in enumerate(full[:6], start=1):
        state = json.loads(json.dumps(advance(state, batch["position"])))
        if number in (1, 6):
            for workers in (0, 2):  # the number of workers may change
                assert all(same(a, b) for a, b in zip(full[number:], take(runs[workers], 4, state)))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("lengths", [(13,), (5, 2, 6)])  # readers divide rows of one shard, or three whole shards
def test_streams_resume(tmp_path, lengths, num_workers):
    source = shards(tmp_path / "d", lengths, bad=(0, 4, 5, 12))
    data = ImageData(source=source, streaming=True, shuffle_buffer=3, max_skipped_rate=1, num_workers=num_workers)
    full = take(data, 14)
    assert all(len(batch["labels"]) == 3 for batch in full)
    assert all(same(a, b) for a, b in zip(full, take(data, 14)))
    state = None
    for number, batch in enumerate(full[:7], start=1):
        state = json.loads(json.dumps(advance(state, batch["position"])))
        if number in (2, 7):
            again = take(data, 4, state)
            assert all(same(a, b) for a, b in zip(full[number:], again))
            second = advance(advance(state, again[0]["position"]), again[1]["position"])  # resumed a second time
            assert all(same(a, b) for a, b in zip(full[number + 2 :], take(data, 2, second)))


def test_ranks_of_a_stream_share_all_rows(tmp_path):
    source = shards(tmp_path / "d", (6, 6, 6, 6))
    data = ImageData(source=source, streaming=True, shuffle_buffer=4, num_workers=2)
    seen = [label for rank in (0, 1) for b in take(data, 4, rank=rank, world_size=2) for label in b["labels"].tolist()]
    assert sorted(seen) == list(range(24))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_too_many_unreadable_images_stop_the_run_with_a_one_line_error(tmp_path, num_workers, streaming):
    source = shards(tmp_path / "d", (30,), bad=range(12))
    path = tmp_path / "skipped.jsonl"
    data = ImageData(source=source, streaming=streaming, cache="off", num_workers=num_workers)
    with pytest.raises(DataError) as caught:
        take(data, 100, skipped_path=path)
    text = str(caught.value)
    assert "\n" not in text and "images are unreadable" in text and "not an image file" in text
    named = {json.loads(line)["key"] for line in path.read_text().splitlines()}
    assert 1 <= len(named) <= 12


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_short_stream_is_checked_after_an_epoch(tmp_path, num_workers):
    source = shards(tmp_path / "d", (100, 100), bad=(1, 2, 3, 101, 102))  # 2.5 %, but only five rows
    data = ImageData(source=source, streaming=True, num_workers=num_workers)
    with pytest.raises(DataError, match=r"[345] of 200 images"):
        take(data, 300)


def test_skipped_file_is_shared_by_workers(tmp_path):
    source = shards(tmp_path / "d", (30,), bad=(3, 17, 29))
    path = tmp_path / "skipped.jsonl"
    for _ in range(2):
        take(ImageData(source=source, max_skipped_rate=0.1, cache="off", num_workers=2), 30, skipped_path=path)
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert {key.split()[-1] for key in keys} == {"3.png", "17.png", "29.png"} and len(keys) <= 6


def test_loading_does_not_use_global_generators(tmp_path):
    source = shards(tmp_path / "d", (8,))
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for num_workers in (0, 2):
        take(ImageData(source=source, num_workers=num_workers), 5)
    assert torch.equal(before, torch.get_rng_state()) and np.random.get_state()[1].tolist() == numpy_before
