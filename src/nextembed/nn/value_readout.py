"""A small decoder from latents of any continuous modality to the values of their patches, and the neighbours of each.

Shapes: N latents of any number of segments in reading order, D latent width, P values a patch, K neighbours.
"""

import itertools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Decoder = Literal["linear", "mlp", "conv"]

# The position itself, its neighbours in height and width, and the same position one time step before and after.
OFFSETS = [(0, *step) for step in itertools.product((-1, 0, 1), repeat=2)] + [(-1, 0, 0), (1, 0, 0)]


class ValueReadout(nn.Module):
    """Latents [N, D] to values [N, P].

    Only the direction of a latent is read, since that is all a cosine loss fixes. decoder: "linear" is one matrix;
    "mlp" adds `num_layers` residual layers of `width` to it; "conv" the same layers over a latent and its neighbours on
    the grid of its segment: 3 x 3 in height and width, and one step of time to each side. causal: neighbours are those
    that were read before. Necessary for predictions: a later one has already read this patch and would reveal the
    answer.
    """

    def __init__(
        self,
        hidden_size: int,
        value_size: int,
        decoder: Decoder = "linear",
        width: int = 256,
        num_layers: int = 2,
        causal: bool = False,
    ):
        super().__init__()
        self.shape: dict[str, Any] = {"hidden_size": hidden_size, "value_size": value_size, "decoder": decoder,
                                      "width": width, "num_layers": num_layers, "causal": causal}  # fmt: skip
        self.scale, self.decoder, self.causal = hidden_size**0.5, decoder, causal
        self.direct = nn.Linear(hidden_size, value_size)
        if decoder != "linear":
            taps = len(OFFSETS) if decoder == "conv" else 1
            self.enter = nn.Linear(hidden_size, width)
            self.layers = nn.ModuleList(
                nn.ModuleDict({"norm": nn.LayerNorm(width), "mix": nn.Linear(taps * width, width),
                               "out": nn.Linear(width, width)})
                for _ in range(num_layers)
            )  # fmt: skip
            self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, value_size))

    def forward(self, latents: Tensor, places: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """places [N, 3]: time, height, width, which "conv" needs. segments [N], int64: which segment each latent
        belongs to; None: all to one. Raises ValueError if "conv" is given no places."""
        if self.decoder == "conv" and places is None:
            raise ValueError("a conv readout reads whole segments: also give it their places")
        x = F.normalize(latents.float(), dim=-1) * self.scale
        values = self.direct(x)
        if self.decoder == "linear":
            return values
        near = None
        if self.decoder == "conv" and places is not None:
            segments = torch.zeros(len(x), dtype=torch.int64, device=x.device) if segments is None else segments
            near = neighbours(places, segments, self.causal)
        h = self.enter(x)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            mixed = layer["norm"](h)
            if near is not None:
                mixed = F.pad(mixed, (0, 0, 0, 1))[near].flatten(1)  # the last row: no neighbour
            h = h + layer["out"](F.gelu(layer["mix"](mixed)))
        return values + self.leave(h)


def neighbours(places: Tensor, segments: Tensor, causal: bool) -> Tensor:
    """Where the latents at `OFFSETS` of each latent are, int64 [N, K]; N where there is none.

    places [N, 3], of a grid or of part of one: what counts are ranks within the segment along each axis. segments [N].
    causal: only those at lower (or the same) numbers.
    """
    num = len(places)
    cells = torch.stack([ranks(places[:, axis], segments) for axis in range(3)], dim=1) + 1
    sizes = [int(size) + 2 for size in cells.amax(0)] if num else [1, 1, 1]
    steps = torch.tensor([sizes[1] * sizes[2], sizes[2], 1], device=places.device)
    keys = segments.long() * (sizes[0] * steps[0]) + (cells * steps).sum(1)
    ordered, order = keys.sort(stable=True)
    wanted = keys[:, None] + (torch.tensor(OFFSETS, device=places.device) * steps).sum(1)  # [N, K]
    found = torch.searchsorted(ordered, wanted).clamp(max=max(num - 1, 0))
    there = ordered[found] == wanted
    found = order[found]
    own = torch.arange(num, device=places.device)[:, None]
    if causal:
        there = there & (found <= own)
    found = torch.where(there, found, num)
    found[:, OFFSETS.index((0, 0, 0))] = own[:, 0]  # also if two latents share a position
    return found


def ranks(values: Tensor, segments: Tensor) -> Tensor:
    """The rank of each value [N] among the different ones of its segment [N], int64, from 0."""
    if not len(values):
        return torch.zeros(0, dtype=torch.int64, device=values.device)
    by_value = values.argsort(stable=True)
    order = by_value[segments[by_value].argsort(stable=True)]
    values, segments = values[order], segments[order]
    first = F.pad(segments.diff() != 0, (1, 0), value=True)
    steps = (F.pad(values.diff() != 0, (1, 0)) & ~first).long().cumsum(0)
    starts = first.nonzero()[:, 0]
    counted = steps - steps[starts][first.long().cumsum(0) - 1]
    return torch.empty_like(counted).scatter_(0, order, counted)
