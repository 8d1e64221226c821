"""The random numbers of a sample depend only on its seed."""

import torch

from nextembed.core.randomness import drawn_by, uniform

CPU = torch.device("cpu")


def test_numbers_are_uniform_and_streams_are_independent():
    with drawn_by(torch.arange(2000) - 2**62):
        x, y = uniform(2000, 8, 1, CPU), uniform(2000, 8, 2, CPU)
    assert x.min() >= 0 and x.max() < 1
    assert abs(x.mean() - 0.5) < 0.01 and abs(x.var() - 1 / 12) < 0.002
    parts = torch.cat((x, y), 1)
    assert (torch.corrcoef(parts.T) - torch.eye(16)).abs().max() < 0.1
    assert len(parts.unique()) > 0.99 * parts.numel()


def test_random_numbers_of_a_sample_do_not_depend_on_its_batch():
    seeds = torch.randint(-(2**62), 2**62, (10,))
    with drawn_by(seeds):
        whole = uniform(10, 5, 1, CPU)
    with drawn_by(seeds[3:5]):
        part = uniform(2, 5, 1, CPU)
    assert torch.equal(whole[3:5], part)
    with drawn_by(seeds.flip(0)):
        assert torch.equal(uniform(10, 5, 1, CPU).flip(0), whole)


def test_known_values():
    """Fixed values, so that a run resumes identically with a later version."""
    with drawn_by(torch.tensor([0, 1, -1])):
        found = uniform(3, 2, 1, CPU)
    expected = torch.tensor([[13980769, 13732473], [777181, 5331746], [12212902, 13924112]]) / 2.0**24
    assert torch.equal(found, expected)


def test_without_seeds_torch_generates_the_numbers():
    torch.manual_seed(0)
    first = uniform(4, 3, 1, CPU)
    torch.manual_seed(0)
    with drawn_by(torch.zeros(7, dtype=torch.int64)):  # seeds of another batch size
        assert torch.equal(uniform(4, 3, 1, CPU), first)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(4, 3), first)
