"""Images to codes and back: a small convolutional network around a quantiser, with one map of codes or maps from coarse
to fine.

Shapes: B images, V numbers a code, g x h cells of the finest map, L codes of an image, all maps in order.
"""

from itertools import zip_longest
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..core.config import Config
from ..core.sizes import MAX_SIDE, MAX_WIDTH
from .quantize import nearest

IDENTITY = 0.5  # share of a map's residual that bypasses its convolution
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]


class TokenizerShape(Config):
    """What an `ImageTokenizer` is built from.

    Attributes:
        image_shape: pixels, height and width; a patch is a cell of the finest map.
        patch_shape: pixels, height and width; a patch is a cell of the finest map.
        num_channels: channels of an image.
        num_codes: how many codes the codebook has.
        code_width: width of a code.
        width: width of the convolution networks.
        num_blocks: residual blocks of the convolution networks.
        scales: sides of the maps, coarse to fine; empty: one map of normalised codes.
    """

    image_shape: tuple[Side, Side]
    patch_shape: tuple[Side, Side]
    num_channels: int = Field(ge=1, le=4)
    num_codes: int = Field(ge=2, le=65536)
    code_width: int = Field(gt=0, le=MAX_WIDTH)
    width: int = Field(gt=0, le=MAX_WIDTH)
    num_blocks: int = Field(ge=0, le=64)
    scales: list[Side] = []

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the finest map."""
        return self.image_shape[0] // self.patch_shape[0], self.image_shape[1] // self.patch_shape[1]

    @property
    def maps(self) -> list[tuple[int, int]]:
        """Rows and columns of every map."""
        return [(side, side) for side in self.scales] or [self.grid]

    @property
    def num_tokens(self) -> int:
        """L."""
        return sum(rows * columns for rows, columns in self.maps)


class Quantised(NamedTuple):
    """features [B, V, g, h]: what is decoded, with the encoder's gradient (straight through). ids [B, L]. loss [B]: of
    codes and encoder. vectors [N, V]: what was compared with the codes, in the order of ids."""

    features: Tensor
    ids: Tensor
    loss: Tensor
    vectors: Tensor


class MapQuantizer(nn.Module):
    """Features as codes of maps, each of the residual of the coarser ones.

        for each map k:   code = nearest(area(rest, k));   total += half(conv_k)(bicubic(code));   rest = f - total
        loss = mean over k of (total_k - sg(f))^2 + 0.25 (sg(total_k) - f)^2

    With one map there is no convolution, and f and codes are normalised.

    Source: VAR (arXiv 2404.02905), its Algorithms 1 and 2, with a convolution for each map, where the paper shares
    four; of one map LlamaGen (arXiv 2406.06525), after ViT-VQGAN (arXiv 2110.04627).
    """

    def __init__(self, shape: TokenizerShape, commitment: float = 0.25):
        super().__init__()
        self.maps, self.commitment = shape.maps, commitment
        self.normalised = not shape.scales
        self.codes = nn.Parameter(torch.randn(shape.num_codes, shape.code_width))
        width = shape.code_width
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in shape.scales)

    @property
    def sizes(self) -> list[int]:
        """Codes of each map."""
        return [rows * columns for rows, columns in self.maps]

    def table(self) -> Tensor:
        """The codes as they are compared with features, [K, V]."""
        return F.normalize(self.codes, dim=-1) if self.normalised else self.codes

    def forward(self, f: Tensor) -> Quantised:
        """f [B, V, g, h], float32."""
        f = F.normalize(f, dim=1) if self.normalised else f
        codes, known = self.table(), f.detach()
        total = torch.zeros_like(known)
        loss = known.new_zeros(len(f))
        ids, vectors = [], []
        for number in range(len(self.maps)):
            found = self.shrunk(known - total.detach(), number)
            vectors.append(found)
            ids.append(nearest(found, codes.detach()))
            total = total + self.enlarged(codes[ids[-1]], number)
            loss = loss + (total - known).square().flatten(1).mean(1)
            loss = loss + self.commitment * (total.detach() - f).square().flatten(1).mean(1)
        features = f + (total - f).detach()
        return Quantised(features, torch.cat(ids, 1), loss / len(self.maps), torch.cat(vectors, 1).flatten(0, 1))

    def shrunk(self, features: Tensor, number: int) -> Tensor:
        """Features [B, V, g, h] at the size of a map, as rows [B, cells, V]."""
        if features.shape[-2:] != self.maps[number]:
            features = F.interpolate(features, self.maps[number], mode="area")
        return features.flatten(2).mT

    def enlarged(self, vectors: Tensor, number: int) -> Tensor:
        """What the codes [B, cells, V] of a map add to the features, [B, V, g, h]."""
        features = vectors.mT.unflatten(2, self.maps[number])
        if self.maps[number] != self.maps[-1]:
            features = F.interpolate(features, self.maps[-1], mode="bicubic")
        if self.normalised:
            return features
        return IDENTITY * features + (1 - IDENTITY) * self.smooth[number](features)

    def decode(self, ids: Tensor) -> Tensor:
        """Codes of all maps, int64 [B, L], or of the first ones, as features [B, V, g, h]."""
        codes = self.table()
        parts = ids.split(self.sizes[: 1 + _maps_in(ids.shape[1], self.sizes)], 1)
        return torch.stack([self.enlarged(codes[part], number) for number, part in enumerate(parts)]).sum(0)

    def coarser(self, ids: Tensor) -> Tensor:
        """What each map but the first is predicted from: the sum of those before it at its size, [B, L - first, V]."""
        codes, rows = self.table(), []
        total = codes.new_zeros(len(ids), codes.shape[1], *self.maps[-1])
        for number, part in enumerate(ids.split(self.sizes, 1)[:-1]):
            total = total + self.enlarged(codes[part], number)
            rows.append(self.shrunk(total, number + 1))
        return torch.cat(rows, 1)


def _maps_in(length: int, sizes: list[int]) -> int:
    """The index of the map at which this number of codes ends. Raises ValueError if it ends inside a map."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if total == length:
            return number
    raise ValueError(f"{length} codes do not fill whole maps of {sizes}")


class ConvBlock(nn.Module):
    """x + two convolutions of 3 x 3, each behind a norm and SiLU."""

    def __init__(self, width: int):
        super().__init__()
        groups = next(n for n in (8, 4, 2, 1) if width % n == 0)
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class ImageTokenizer(nn.Module):
    """Pixels to codes and back: convolutions that shrink the image until a patch is a cell, a `MapQuantizer`, and the
    same in reverse.

    Source: the shape of VQGAN (arXiv 2012.09841), without attention; trained without its perceptual and adversarial
    losses, so reconstructions are smoother.
    """

    def __init__(self, shape: TokenizerShape):
        super().__init__()
        self.shape = shape
        width, steps = shape.width, strides(shape.patch_shape)
        self.encoder = nn.Sequential()
        for number, step in enumerate(steps):
            self.encoder += nn.Sequential(nn.Conv2d(width if number else shape.num_channels, width, step, step),
                                          ConvBlock(width))  # fmt: skip
        self.encoder += nn.Sequential(*(ConvBlock(width) for _ in range(shape.num_blocks)))
        self.encoder += nn.Sequential(nn.Conv2d(width, shape.code_width, 1))
        self.quantizer = MapQuantizer(shape)
        self.decoder = nn.Sequential(nn.Conv2d(shape.code_width, width, 3, padding=1))
        self.decoder += nn.Sequential(*(ConvBlock(width) for _ in range(shape.num_blocks)))
        fine = max(width // 4, shape.num_channels)
        for number, step in reversed(list(enumerate(steps))):
            self.decoder += nn.Sequential(ConvBlock(width), nn.ConvTranspose2d(
                width, width if number else fine, step, step))  # fmt: skip
        self.decoder += nn.Sequential(nn.SiLU(), nn.Conv2d(fine, shape.num_channels, 3, padding=1))

    def quantise(self, pixels: Tensor) -> Quantised:
        """Of pixels [B, C, H, W] as the model reads them."""
        found: Quantised = self.quantizer(self.encoder(pixels.float()))
        return found

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, C, H, W] -> codes int64 [B, L], each map in raster order, coarse to fine."""
        return self.quantise(pixels).ids

    def pixels(self, features: Tensor) -> Tensor:
        """Features [B, V, g, h] -> pixels [B, C, H, W]."""
        found: Tensor = self.decoder(features)
        return found

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Codes int64 [B, L] -> pixels [B, C, H, W], in [-1, 1] about."""
        return self.pixels(self.quantizer.decode(ids))


def strides(patch_shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Factors by which an image shrinks at each step until a patch is one cell: the prime factors."""
    height, width = (_factors(side) for side in patch_shape)
    return list(zip_longest(height, width, fillvalue=1)) or [(1, 1)]


def _factors(number: int) -> list[int]:
    found, factor = [], 2
    while number > 1:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return found
