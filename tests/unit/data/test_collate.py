import pickle

import torch

from nextembed.core.objective import ObjectiveSettings
from nextembed.core.types import Encoded
from nextembed.data.collate import Collate
from nextembed.data.draws import DrawnEncode, drawing, sample_seed
from nextembed.data.packing import pack
from nextembed.objectives import NextEmbeddingSettings


def draw(sample, generator: torch.Generator):
    assert sample["pixel_values"].shape == (1, 2, 2)
    return {"input_mask": torch.rand(sample["latent_mask"].shape, generator=generator) < 0.4}


def test_batch_has_all_fields():
    pixels = torch.full((3, 1, 4, 4), 255, dtype=torch.uint8)
    batch = Collate(0.5, 0.5, num_latents=17)([pixels], [4, -100, 0], torch.zeros(3, 2, dtype=torch.int64), [1, 2, 3])
    assert batch["pixel_values"].dtype == torch.float32 and bool((batch["pixel_values"] == 1).all())
    assert batch["labels"].tolist() == [4, -100, 0] and batch["labels"].dtype == torch.int64
    assert batch["latent_mask"].shape == (3, 17) and bool(batch["latent_mask"].all())
    assert "input_mask" not in batch


def test_draws_depend_only_on_the_sample():
    collate = Collate(0.5, 0.5, num_latents=9, draw=draw)
    pixels, position = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, 2, dtype=torch.int64)
    seeds = [sample_seed(0, 0, key) for key in "abcd"]
    whole = collate([pixels], [0] * 4, position, seeds)["input_mask"]
    halves = [collate([pixels[:2]], [0] * 2, position[:2], s)["input_mask"] for s in (seeds[:2], seeds[2:])]
    assert torch.equal(whole, torch.cat(halves))
    assert len({tuple(row.tolist()) for row in whole}) == 4
    before = torch.get_rng_state()
    collate([pixels], [0] * 4, position, seeds)
    assert torch.equal(before, torch.get_rng_state())


def test_an_objective_without_draws_adds_nothing():
    class Still(ObjectiveSettings):
        pass

    class Drawing(ObjectiveSettings):
        def draw(self, sample, generator):
            return {"input_mask": sample["latent_mask"]}

    assert drawing(Still()) is None
    own = drawing(Drawing())
    args = ([torch.zeros(2, 1, 2, 2)], [0, 0], torch.zeros(2, 2, dtype=torch.int64), [1, 2])
    assert "input_mask" not in Collate(0.5, 0.5, 5, drawing(Still()))(*args)
    assert Collate(0.5, 0.5, 5, own)(*args)["input_mask"].shape == (2, 5)
    assert len(pickle.dumps(NextEmbeddingSettings(input_mask_rate=0.5).draw)) < 2000


def test_draws_of_documents_are_reproducible_and_per_document():
    def encode(document):
        num = len(document["segments"][0]["value"])
        return Encoded({"latent_mask": torch.ones(num, dtype=torch.bool)}, {})

    class Orders(ObjectiveSettings):
        def draw(self, sample, generator):
            return {"order": torch.randperm(len(sample["latent_mask"]), generator=generator)}

    both = DrawnEncode(encode, Orders().draw)
    documents = [{"seed": seed, "segments": [{"kind": "text", "value": "x" * num}]} for seed, num in ((3, 9), (4, 7))]
    encoded = [both(document) for document in documents]
    packed = pack([[encoded[0], encoded[1]]], 20, [0])
    assert packed["order"].shape == (1, 20)
    assert packed["order"][0, :9].sort().values.tolist() == list(range(9))
    assert packed["order"][0, 9:16].sort().values.tolist() == list(range(7))
    assert torch.equal(both(documents[1]).positions["order"], encoded[1].positions["order"])
    assert not torch.equal(both({**documents[0], "seed": 5}).positions["order"], encoded[0].positions["order"])


def test_seeds_depend_on_every_argument():
    seeds = {sample_seed(s, e, k) for s in (0, 1, 12) for e in (0, 1, 12) for k in ("0", "1", "2/0")}
    assert len(seeds) == 27 and all(0 <= seed < 2**64 for seed in seeds)
