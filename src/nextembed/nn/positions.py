"""Coordinates of latents, and rotary positions on any number of axes."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.randomness import uniform

PLACE_FREQUENCIES = 4
TIME_THETA = 10_000.0
POSITIONS = 2  # the stream of augmented coordinates


def patch_coordinates(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Centres of a grid of patches in raster order, [height * width, 2], float32, (y, x) in [-1, 1]."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * (2 / width) - 1
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)


def tubelet_coordinates(patches: Tensor, num: int) -> Tensor:
    """Coordinates of the patches [P, 2] of a clip at `num` times, [num * P, 3], (time, y, x) in [-1, 1], time first."""
    time = (torch.arange(num, device=patches.device, dtype=torch.float32) + 0.5) * (2 / num) - 1
    times = time[:, None, None].expand(-1, len(patches), -1)
    return torch.cat((times, patches.expand(num, -1, -1)), dim=-1).flatten(0, 1)


def augment_coordinates(
    coordinates: Tensor, shift: float | None = None, jitter: float | None = None, rescale: float | None = None
) -> Tensor:
    """Coordinates [B, T, A] moved, stretched along each axis, and scaled at random; one draw for each sample.

    shift: uniform in [-shift, shift], for each axis. jitter: log-uniform factor in [1/jitter, jitter], for each axis.
    rescale: log-uniform factor in [1/rescale, rescale], the same for all axes. None switches a step off.
    Source: NEPA's released configuration (arXiv 2512.16922), which follows DINOv3. The release draws once for a batch;
    ours for each sample, by its own seed, so that the weights do not depend on how a batch is divided.
    """
    num, axes = coordinates.shape[0], coordinates.shape[-1]
    drawn = (2 * uniform(num, 2 * axes + 1, POSITIONS, coordinates.device) - 1)[:, None]  # [B, 1, 2 A + 1]
    if shift is not None:
        coordinates = coordinates + shift * drawn[..., :axes]
    if jitter is not None:
        coordinates = coordinates * (math.log(jitter) * drawn[..., axes:-1]).exp()
    if rescale is not None:
        coordinates = coordinates * (math.log(rescale) * drawn[..., -1:]).exp()
    return coordinates


def once(coordinates: Tensor) -> Tensor:
    """Coordinates [B, T, A] as [1, T, A] if all samples share one tensor, so that tables are computed once."""
    return coordinates[:1] if coordinates.stride(0) == 0 else coordinates


def rotary_tables(
    coordinates: Tensor, head_dim: int, theta: float = 100.0, split: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables [..., T, head_dim], float32, for `rotate`.

    coordinates [..., T, A]; each axis gets head_dim / (2 A) frequencies i:
    angle = 2 pi * coordinate * theta^(-2 A i / head_dim).
    split: how many frequencies each axis gets instead, which sum to head_dim / 2. Then the first axis is time, counted
    in steps: angle = coordinate * 10000^(-i / n), as in language models; the others are as above with their own n.
    A latent at the origin is not rotated. Raises ValueError if the frequencies do not fit head_dim.
    Source: axial rotary positions as in NEPA (arXiv 2512.16922), y angles then x angles, the whole repeated twice;
    time as in RoFormer (arXiv 2104.09864).
    """
    axes = coordinates.shape[-1]
    if split is None and head_dim % (2 * axes):
        raise ValueError(
            f"head width {head_dim} is not a multiple of {2 * axes}, which {axes}-axis rotary positions need"
        )
    numbers = [head_dim // (2 * axes)] * axes if split is None else list(split)
    if len(numbers) != axes or 2 * sum(numbers) != head_dim:
        raise ValueError(f"head width {head_dim} has {head_dim // 2} frequencies; {numbers} does not share them out")
    with torch.autocast(coordinates.device.type, enabled=False):  # bfloat16 is too coarse for angles
        places = coordinates.float()
        parts = []
        for axis, num in enumerate(numbers):
            steps = torch.arange(num, device=coordinates.device, dtype=torch.float32) / max(num, 1)
            in_steps = split is not None and axis == 0
            turns = TIME_THETA**-steps if in_steps else 2 * math.pi * theta**-steps
            parts.append(places[..., axis, None] * turns)
        angles = torch.cat(parts, dim=-1)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


class _Rotate(torch.autograd.Function):
    """x * cos + (first half <-> second half, first negated) * sin in two passes over memory instead of six, and
    without keeping x for the backward pass, which is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        out = x * cos
        out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        out[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(grads[0], cos, -sin), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: pairs (i, i + d/2) of the last axis turned by their angle.

    x [..., d]; cos, sin broadcastable to x, no gradient flows into them, and the two halves of the last axis are
    equal. Keeps x's dtype. Source: RoFormer (arXiv 2104.09864), half-split pairing.
    """
    return _Rotate.apply(x, cos.to(x.dtype), sin.to(x.dtype))


class NextPlace(nn.Module):
    """An embedding of the next latent's position, added to each latent: [B, T, 3] -> [B, T, D]; 0 at the origin."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, 3 * 2 * PLACE_FREQUENCIES))

    def forward(self, places: Tensor) -> Tensor:
        steps = torch.pi * 2.0 ** torch.arange(PLACE_FREQUENCIES, device=places.device) / 2
        angles = (places.float()[..., None] * steps).flatten(-2)
        features = torch.cat((angles.sin(), angles.cos()), dim=-1)
        told = (places != 0).any(dim=-1, keepdim=True)
        return F.linear((features * told).to(self.weight.dtype), self.weight)
