import torch

from nextembed.core.types import Batch, Objective
from nextembed.data.collate import Collate
from nextembed.data.draws import sample_seed


def draw(batch: Batch, generator: torch.Generator) -> Batch:
    assert batch["pixel_values"].shape[0] == 1
    return {**batch, "input_mask": torch.rand(batch["latent_mask"].shape, generator=generator) < 0.4}


def test_batch_has_everything():
    pixels = torch.full((3, 1, 4, 4), 255, dtype=torch.uint8)
    batch = Collate(0.5, 0.5, num_latents=17)(pixels, [4, -100, 0], torch.zeros(3, 2, dtype=torch.int64), [1, 2, 3])
    assert batch["pixel_values"].dtype == torch.float32 and bool((batch["pixel_values"] == 1).all())
    assert batch["labels"].tolist() == [4, -100, 0] and batch["labels"].dtype == torch.int64
    assert batch["latent_mask"].shape == (3, 17) and bool(batch["latent_mask"].all())
    assert "input_mask" not in batch


def test_draws_depend_on_the_sample_alone():
    collate = Collate(0.5, 0.5, num_latents=9, draw=draw)
    pixels, position = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, 2, dtype=torch.int64)
    seeds = [sample_seed(0, 0, key) for key in "abcd"]
    whole = collate(pixels, [0] * 4, position, seeds)["input_mask"]
    halves = [collate(pixels[:2], [0] * 2, position[:2], s)["input_mask"] for s in (seeds[:2], seeds[2:])]
    assert torch.equal(whole, torch.cat(halves))
    assert len({tuple(row.tolist()) for row in whole}) == 4
    before = torch.get_rng_state()
    collate(pixels, [0] * 4, position, seeds)
    assert torch.equal(before, torch.get_rng_state())


def test_an_objective_that_draws_nothing_costs_nothing():
    class Counting(Objective):
        calls = 0

        def draw(self, batch, generator):
            self.calls += 1
            return batch

    counting = Counting()
    for drawing, expected in ((Objective().draw, 0), (counting.draw, 2)):
        args = (torch.zeros(2, 1, 2, 2), [0, 0], torch.zeros(2, 2, dtype=torch.int64), [1, 2])
        assert len(Collate(0.5, 0.5, 5, drawing)(*args)["labels"]) == 2
        assert counting.calls == expected


def test_seeds_differ_in_every_part():
    seeds = {sample_seed(s, e, k) for s in (0, 1, 12) for e in (0, 1, 12) for k in ("0", "1", "2/0")}
    assert len(seeds) == 27 and all(0 <= seed < 2**64 for seed in seeds)
