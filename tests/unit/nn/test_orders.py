"""Orders visit each latent once, and have their documented properties."""

import itertools

import pytest
import torch

from nextembed.nn.orders import ORDERS, coarse_to_fine, hilbert, inverse, order_of
from nextembed.nn.positions import patch_coordinates

SIZES = list(itertools.product(range(1, 21), range(1, 21)))


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def coordinates(num_times, height, width):
    """Coordinates [N, 3] in natural order, as from modalities."""
    plane = patch_coordinates(height, width)
    time = torch.arange(num_times, dtype=torch.float32).repeat_interleave(len(plane))
    return torch.cat((time[:, None], plane.repeat(num_times, 1)), dim=1)


@pytest.mark.parametrize("name", ORDERS)
def test_every_order_reads_each_latent_once(name):
    for size in SIZES:
        order = order_of(name, size, draw())
        assert order.dtype == torch.int64
        assert torch.equal(order.sort().values, torch.arange(size[0] * size[1])), size
        natural = torch.arange(len(order))
        assert torch.equal(order[inverse(order)], natural) and torch.equal(inverse(order)[order], natural)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (1, 1, 1), (2, 3, 4), (3, 1, 5), (4, 1, 1)], ids=str)
def test_shape_and_its_coordinates_give_the_same_order(name, shape):
    full = {1: (*shape, 1, 1), 2: (1, *shape), 3: shape}[len(shape)]
    order = order_of(name, shape, draw())
    assert torch.equal(order.sort().values, torch.arange(full[0] * full[1] * full[2]))
    assert torch.equal(order, order_of(name, coordinates(*full), draw()))


def test_hilbert_moves_to_neighbours_on_every_grid():
    for height, width in SIZES:
        order = hilbert(height, width)
        steps = (order // width).diff().abs() + (order % width).diff().abs()
        assert (steps == 1).all(), (height, width)


def test_hilbert_of_a_power_of_two_is_the_standard_curve():
    assert inverse(hilbert(4, 4)).view(4, 4).tolist() == [[0, 1, 14, 15], [3, 2, 13, 12], [4, 7, 8, 11], [5, 6, 9, 10]]


@pytest.mark.parametrize("size", [(16, 16), (14, 14), (15, 20), (18, 11)], ids=str)
def test_hilbert_keeps_neighbours_close(size):
    """Spans of 16 steps cover compact blocks; in raster order they are as wide as the grid."""

    def extent(order):
        spans = torch.stack((order // size[1], order % size[1]))[:, : len(order) // 16 * 16].unflatten(1, (-1, 16))
        return (spans.amax(2) - spans.amin(2)).max(0).values.float().mean()

    assert extent(hilbert(*size)) < 6 < extent(torch.arange(size[0] * size[1]))


def test_each_prefix_of_coarse_to_fine_is_spread_evenly():
    """With n cells visited, every cell is within 1.6 times the spacing of an even n-cell grid from a visited cell,
    and visited cells are at least half that spacing apart."""
    for height, width in SIZES:
        if not 0.5 <= height / width <= 2:
            continue
        order = coarse_to_fine(height, width)
        place = torch.stack((order // width, order % width), dim=1).float()
        apart = torch.cdist(place, place, p=float("inf"))
        num = torch.arange(1, len(order) + 1)
        even = (height * width / num).sqrt()
        assert (apart.cummin(0).values.amax(1) <= 1.6 * even).all(), (height, width)
        near = (apart + torch.eye(len(order)) * 1e6).tril(-1)
        near[near == 0] = 1e6
        near = near.amin(1).cummin(0).values  # the smallest distance between visited cells
        assert (near[1:] >= 0.5 * even[1:].floor()).all(), (height, width)


def test_coarse_to_fine_begins_with_whole_grids():
    order = coarse_to_fine(8, 8)
    for step in (4, 2):
        first = order[: (8 // step) ** 2]
        rows, columns = first // 8, first % 8
        assert len(set((rows % step).tolist())) == 1 == len(set((columns % step).tolist()))
        twice = order[: 2 * (8 // step) ** 2]  # followed by the centres of the squares
        assert torch.equal((twice // 8 - twice[0] // 8) % step, (twice % 8 - twice[0] % 8) % step)


def test_coarse_to_fine_over_a_line_of_time():
    order = order_of("coarse_to_fine", (16,))
    for num in (2, 4, 8):
        assert (order[:num].sort().values.diff() == 16 // num).all()


def test_times_are_visited_in_sequence():
    plane = (3, 5)
    for name in ("hilbert", "coarse_to_fine"):
        order = order_of(name, (4, *plane))
        assert torch.equal(order.view(4, 15), order_of(name, plane) + 15 * torch.arange(4)[:, None])


def test_time_orders_by_time_and_then_naturally():
    where = coordinates(3, 2, 2)
    mixed = torch.randperm(12, generator=draw())
    order = order_of("time", where[mixed])
    assert where[mixed][order][:, 0].tolist() == sorted(where[:, 0].tolist())
    assert (order.view(3, 4).diff(dim=1) > 0).all()
    assert torch.equal(order_of("raster", where[mixed]), torch.arange(12))


def test_random_order_depends_on_its_generator():
    one, again, other = (order_of("random", (8, 8), draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    firsts = torch.stack([order_of("random", (2, 2), draw(seed))[0] for seed in range(200)])
    assert firsts.bincount(minlength=4).min() > 25


@pytest.mark.parametrize("name", ["hilbert", "coarse_to_fine"])
def test_scattered_coordinates_are_read_once_each(name):
    points = torch.rand(400, 3, generator=draw()) * 2 - 1
    points[:, 0] = 0
    order = order_of(name, points)
    assert torch.equal(order.sort().values, torch.arange(400))
    steps = points[order].diff(dim=0).norm(dim=1).mean()
    shuffled = points.diff(dim=0).norm(dim=1).mean()
    assert steps < 0.35 * shuffled if name == "hilbert" else steps > 0.5 * shuffled


def test_returned_orders_are_copies():
    order_of("hilbert", (4, 4)).zero_()
    assert order_of("hilbert", (4, 4)).sum() == 120
    assert order_of("hilbert", torch.zeros(0, 3)).tolist() == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("spiral", (2, 2)), "no order 'spiral'; there are raster, hilbert"),
        (("random", (2, 2)), "needs a generator"),
        (("raster", (2, 2, 2, 2)), "a grid is"),
        (("raster", (0, 2)), "a grid is"),
        (("raster", torch.zeros(4, 2)), r"coordinates are \[N, 3\].*\(4, 2\)"),
    ],
)
def test_invalid_orders(call, words):
    with pytest.raises(ValueError, match=words):
        order_of(*call)
