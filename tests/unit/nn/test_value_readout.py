"""Readouts derived by hand, and neighbours on grids in any order."""

import pytest
import torch

from nextembed.nn.orders import order_of
from nextembed.nn.positions import patch_coordinates
from nextembed.nn.value_readout import OFFSETS, ValueReadout, neighbours, ranks

DECODERS = ["linear", "mlp", "conv"]


def grid(num_times, height, width):
    plane = patch_coordinates(height, width)
    time = torch.arange(num_times, dtype=torch.float32).repeat_interleave(len(plane)) + 7
    return torch.cat((time[:, None], plane.repeat(num_times, 1)), dim=1)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(decoder, **settings):
    torch.manual_seed(0)
    return ValueReadout(8, 5, decoder, width=16, **settings).eval()


def test_ranks_are_within_each_segment():
    values = torch.tensor([0.3, -1.0, 0.3, 5.0, 5.0, -2.0, 0.1])
    segments = torch.tensor([2, 2, 2, 9, 9, 9, 2])
    assert ranks(values, segments).tolist() == [2, 0, 2, 1, 1, 0, 1]
    assert ranks(values[:0], segments[:0]).tolist() == []


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("order", ["raster", "hilbert", "random"])
def test_neighbours_by_hand(causal, order):
    """Against brute force over all pairs, for three segments with different grids."""
    shapes = [(1, 3, 4), (3, 2, 2), (4, 1, 1)]
    cells, places, segments = [], [], []
    for number, shape in enumerate(shapes):
        natural = torch.cartesian_prod(*(torch.arange(size) for size in shape))
        steps = order_of(order, shape, torch.Generator().manual_seed(1))
        cells += [(number, *cell) for cell in natural[steps].tolist()]
        places.append(grid(*shape)[steps])
        segments.append(torch.full((len(steps),), 3 * number + 1))
    found = neighbours(torch.cat(places), torch.cat(segments), causal)
    for own, (number, *cell) in enumerate(cells):
        for tap, offset in enumerate(OFFSETS):
            wanted = (number, *(c + o for c, o in zip(cell, offset)))
            there = wanted in cells and (not causal or cells.index(wanted) <= own)
            assert found[own, tap] == (cells.index(wanted) if there else len(cells))


def test_neighbours_of_single_and_duplicate_positions():
    alone = neighbours(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), False)
    assert (alone == 0).sum() == 1 and (alone == 1).sum() == len(OFFSETS) - 1
    own = OFFSETS.index((0, 0, 0))
    assert neighbours(torch.zeros(3, 3), torch.zeros(3, dtype=torch.int64), False)[:, own].tolist() == [0, 1, 2]
    assert neighbours(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), True).shape == (0, len(OFFSETS))


@pytest.mark.parametrize("decoder", DECODERS)
def test_only_directions_are_read(decoder):
    readout, x, places = build(decoder), draw(12, 8), grid(1, 3, 4)
    assert readout(x, places).shape == (12, 5)
    torch.testing.assert_close(readout(x, places), readout(x * draw(12, 1).abs(), places), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(readout(x, places), readout(-x, places))


def test_linear_is_one_matrix():
    readout, x = build("linear"), draw(6, 8)
    unit = x / x.norm(dim=1, keepdim=True)
    expected = unit @ readout.direct.weight.T * 8**0.5 + readout.direct.bias
    torch.testing.assert_close(readout(x), expected)


def reach(decoder, causal, shape=(2, 3, 4), num_layers=1):
    """[N, N]: whether the values of each row depend on each latent."""
    readout, x, places = build(decoder, causal=causal, num_layers=num_layers), draw(2 * 3 * 4, 8), grid(*shape)
    before = readout(x, places)
    changed = []
    for number in range(len(x)):
        other = x.clone()
        other[number] = draw(8, seed=9)
        changed.append((readout(other, places) != before).any(1))
    return torch.stack(changed, dim=1)


def test_conv_depends_only_on_neighbours():
    cells = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4))
    apart = (cells[:, None] - cells).abs()
    near = (apart[..., 0] == 0) & (apart[..., 1:].amax(-1) <= 1)
    near |= (apart[..., 0] == 1) & (apart[..., 1:].sum(-1) == 0)
    assert torch.equal(reach("conv", False), near)
    assert torch.equal(reach("conv", True), near.tril())
    assert not reach("conv", True, num_layers=3).triu(1).any() and reach("conv", False, num_layers=3).triu(1).any()
    for decoder in ("linear", "mlp"):
        assert torch.equal(reach(decoder, False), torch.eye(24, dtype=torch.bool))


def test_segments_do_not_see_each_other():
    readout, x, places = build("conv"), draw(12, 8), grid(1, 2, 3).repeat(2, 1)
    segments = torch.tensor([4] * 6 + [5] * 6)
    together = readout(x, places, segments)
    apart = torch.cat((readout(x[:6], places[:6]), readout(x[6:], places[6:])))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_order_does_not_matter_without_causality():
    readout, x, places = build("conv"), draw(12, 8), grid(1, 3, 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(readout(x[order], places[order]), readout(x, places)[order], atol=1e-5, rtol=1e-4)


def test_conv_requires_coordinates():
    with pytest.raises(ValueError, match="give it their places"):
        build("conv")(draw(3, 8))
