"""Heads that belong to an objective and are not part of the saved model: token-wise networks, projectors, predictors of
positions."""

from itertools import pairwise
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import distributed

NUM_FREQUENCIES = 8  # of a decoder's positions, on each axis


class TokenHead(nn.Module):
    """Residual MLP blocks on each token, [..., D] -> [..., out]: a transformer's blocks without attention.

    Source: AIM's head (arXiv 2401.08541, section 3.3); with num_blocks=0 a linear layer.
    """

    def __init__(self, width: int, out: int, num_blocks: int, hidden: int):
        super().__init__()
        self.enter = nn.Linear(width, hidden) if num_blocks else nn.Identity()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))
            for _ in range(num_blocks)
        )
        self.leave = nn.Sequential(
            nn.LayerNorm(hidden if num_blocks else width), nn.Linear(hidden if num_blocks else width, out)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return cast(Tensor, self.leave(x))


class PlaceDecoder(nn.Module):
    """A small transformer with full attention over tokens with positions, [B, T, D] -> [B, T, out].

    Source: MAE's decoder (arXiv 2111.06377), fixed sine and cosine positions; ours are those of coordinates in [-1, 1],
    so that any grid is read.
    """

    def __init__(self, width_in: int, out: int, width: int, num_layers: int, num_heads: int):
        super().__init__()
        self.enter, self.place = nn.Linear(width_in, width), nn.Linear(4 * NUM_FREQUENCIES, width)
        self.unknown = nn.Parameter(torch.zeros(width))  # in place of tokens that were not read
        nn.init.normal_(self.unknown, std=0.02)
        self.blocks = layers(width, num_layers, num_heads)
        self.leave = nn.Linear(width, out)

    def forward(self, known: Tensor, kept: Tensor, coordinates: Tensor, valid: Tensor | None = None) -> Tensor:
        """
        Args:
            known: hidden states [B, K, D] of the tokens that were read.
            kept: where each stands, int64 [B, K].
            coordinates: of all tokens, [B, T, 2].
            valid: which of `kept` were read, bool [B, K]; None: all.
        """
        tokens = self.enter(known)
        if valid is not None:
            tokens = torch.where(valid[..., None], tokens, self.unknown.to(tokens.dtype))
        every = self.unknown.to(tokens.dtype).expand(len(known), coordinates.shape[1], -1)
        every = every.scatter(1, kept[..., None].expand(-1, -1, every.shape[-1]), tokens)
        return cast(Tensor, self.leave(self.blocks(every + self.place(waves(coordinates).to(every.dtype)))))


class Predictor(nn.Module):
    """A narrow transformer that predicts the tokens at some positions from those at others. num_axes: A, axes of a
    position. num_kinds: kinds of masks; each has a mask token of its own. Source: the predictors of I-JEPA (arXiv
    2301.08243) and V-JEPA (arXiv 2404.08471), fixed sine and cosine positions.
    """

    def __init__(self, width_in: int, width: int, num_layers: int, num_heads: int, num_axes: int, num_kinds: int = 1):
        super().__init__()
        self.enter, self.place = nn.Linear(width_in, width), nn.Linear(2 * num_axes * NUM_FREQUENCIES, width)
        self.unknown = nn.Parameter(torch.zeros(num_kinds, width))
        nn.init.normal_(self.unknown, std=0.02)
        self.blocks = layers(width, num_layers, num_heads)
        self.leave = nn.Linear(width, width_in)

    def forward(self, known: Tensor, places: Tensor, wanted: Tensor, valid: Tensor, kind: int = 0) -> Tensor:
        """Predicted tokens at the positions `wanted`, [B, Q, D].

        Args:
            known: hidden states [B, K, D].
            places: their coordinates, [B, K, A].
            wanted: positions to predict, [B, Q, A].
            valid: bool [B, Q]; False for padding.
            kind: of the mask.
        """
        num = known.shape[1]
        unknown = self.unknown[kind].to(known.dtype).expand(*wanted.shape[:2], -1)
        where = self.place(waves(torch.cat((places, wanted), dim=1)).to(known.dtype))
        hidden = F.pad(~valid, (num, 0))
        tokens = self.blocks(torch.cat((self.enter(known), unknown), dim=1) + where, src_key_padding_mask=hidden)
        return cast(Tensor, self.leave(tokens[:, num:]))


def waves(coordinates: Tensor) -> Tensor:
    """Sines and cosines of places [B, T, A] in [-1, 1], [B, T, 2 A NUM_FREQUENCIES]."""
    angles = coordinates[..., None] * torch.arange(1, NUM_FREQUENCIES + 1, device=coordinates.device) * (torch.pi / 2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(2)


def layers(width: int, num_layers: int, num_heads: int) -> nn.TransformerEncoder:
    """A transformer with full attention, [B, T, width] -> [B, T, width]."""
    block = nn.TransformerEncoderLayer(
        width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(block, num_layers, nn.LayerNorm(width), enable_nested_tensor=False)


class SyncedBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics are those of all ranks together, also on CPUs, where torch's own does not run.

    Raises ValueError for a batch of one, as `BatchNorm1d` does.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        count = x.new_tensor(float(len(x)))
        sums = summed(torch.cat((x.sum(0), x.square().sum(0), count[None])))
        total, width = sums[-1], x.shape[1]
        mean = sums[:width] / total
        variance = (sums[width:-1] / total - mean.square()).clamp(min=0)
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            if self.running_mean is not None and self.running_var is not None:
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * total / (total - 1), momentum)
        out = (x - mean) / (variance + self.eps).sqrt()
        return out if self.weight is None else out * self.weight + self.bias


class _Sum(torch.autograd.Function):
    """A sum over ranks; the gradient of a sum is the sum of gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


def summed(x: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, with its gradient."""
    return cast(Tensor, _Sum.apply(x)) if distributed.world_size() > 1 else x


def projector(widths: list[int], last_affine: bool | None = None) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them. last_affine: whether the final batch norm has parameters;
    None: there is no final batch norm."""
    found: list[nn.Module] = []
    for number, (a, b) in enumerate(pairwise(widths)):
        ends = number == len(widths) - 2
        norm = not ends or last_affine is not None
        found.append(nn.Linear(a, b, bias=not norm))
        if norm:
            found.append(SyncedBatchNorm(b, affine=not ends or bool(last_affine)))
        if not ends:
            found.append(nn.ReLU())
    return nn.Sequential(*found)
