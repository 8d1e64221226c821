"""From latents to pixels: the least-squares inverse of a patch embedding, and a small trainable decoder.

Shapes: B images, P patches in raster order on a grid of (rows, columns), D latent width, C channels, h x w pixels a
patch. A patch's pixels are in the order of `F.unfold`: channel, row, column.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .positions import patch_coordinates

NUM_FREQUENCIES = 8  # of the decoder's positions, on each axis


def to_patches(pixels: Tensor, patch_shape: tuple[int, int]) -> Tensor:
    """Pixels [B, C, height, width] -> [B, P, C * h * w]."""
    return F.unfold(pixels, patch_shape, stride=patch_shape).mT


def to_image(patches: Tensor, grid: tuple[int, int], patch_shape: tuple[int, int]) -> Tensor:
    """Patches [B, P, C * h * w] -> pixels [B, C, rows * h, columns * w]; the inverse of `to_patches`."""
    size = (grid[0] * patch_shape[0], grid[1] * patch_shape[1])
    return F.fold(patches.mT, size, patch_shape, stride=patch_shape)


class PatchInverse:
    """The least-squares inverse of a patch embedding z = W x + b: x = pinv(W) (z - b), in float64 on the CPU.

    embedding: module from pixels [B, C, height, width] to latents [B, P, D], the same affine map for every patch; it is
    copied. singular_values [min(D, C h w)], descending; rank: how many are above 1e-7 of the largest. exact: whether W
    is invertible on patches, so that latents give the image back; otherwise the result is its projection on the `rank`
    directions of pixels that W sees; `bias` (the pixels of a zero latent) does not fill the rest. Raises ValueError if
    the embedding is not affine.
    """

    def __init__(self, embedding: nn.Module, patch_shape: tuple[int, int], num_channels: int):
        self.patch_shape = patch_shape
        embedding = copy.deepcopy(embedding).cpu().double().eval()
        num = num_channels * patch_shape[0] * patch_shape[1]
        basis = torch.eye(num, dtype=torch.float64).view(num, num_channels, *patch_shape)
        sample = torch.randn(basis[:1].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.bias = embedding(0 * basis[:1])[0, 0]  # [D]
            weight = (embedding(basis)[:, 0] - self.bias).T  # [D, C * h * w]
            found = embedding(sample)[0, 0]
        if not torch.allclose(found, weight @ sample.flatten() + self.bias, rtol=1e-6, atol=1e-9):
            raise ValueError("the patch embedding is not a linear map of the pixels")
        self.u, self.singular_values, self.vt = torch.linalg.svd(weight, full_matrices=False)
        self.rank = int((self.singular_values > 1e-7 * self.singular_values[0]).sum())
        self.exact = self.rank == num
        self.num_pixels, self.width = num, len(self.bias)

    def __call__(self, z: Tensor, grid: tuple[int, int], cutoff: float = 1e-7) -> Tensor:
        """Latents [B, P, D] -> pixels [B, C, rows * h, columns * w], float32, as the model takes them (normalised).

        cutoff: singular values below this share of the largest are left out. A latent that does not come from an image,
        such as a prediction, also has components along the weakest directions; dividing by these would dominate the
        result.
        """
        keep = self.singular_values > max(cutoff, 1e-7) * self.singular_values[0]
        scores = (z.detach().cpu().double() - self.bias) @ self.u[:, keep] / self.singular_values[keep]
        return to_image(scores @ self.vt[keep], grid, self.patch_shape).float()


class LatentDecoder(nn.Module):
    """A small transformer from latents to the pixels of their patches, [B, P, D] -> [B, P, C * h * w].

    Only the direction of a latent is read, since that is all a cosine loss fixes of a prediction. A patch is decoded
    from itself and the patches before it: a later prediction has already read this patch and would reveal the answer.
    width, num_layers, num_heads: of the decoder. hidden_size: D.
    """

    def __init__(
        self,
        hidden_size: int,
        patch_shape: tuple[int, int],
        num_channels: int,
        width: int = 192,
        num_layers: int = 2,
        num_heads: int = 4,
    ):
        super().__init__()
        self.shape: dict[str, Any] = {
            "hidden_size": hidden_size,
            "patch_shape": list(patch_shape),
            "num_channels": num_channels,
            "width": width,
            "num_layers": num_layers,
            "num_heads": num_heads,
        }
        num = num_channels * patch_shape[0] * patch_shape[1]
        self.patch_shape, self.scale = (patch_shape[0], patch_shape[1]), hidden_size**0.5
        self.enter = nn.Linear(hidden_size, width)
        self.place = nn.Linear(4 * NUM_FREQUENCIES, width)
        block = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.leave = nn.Linear(width, num)
        self.direct = nn.Linear(hidden_size, num, bias=False)  # a linear readout; the blocks add to it

    def forward(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        x = F.normalize(latents.float(), dim=-1) * self.scale
        places = patch_coordinates(*grid, device=x.device)[: x.shape[1], :, None]  # [P, 2, 1]
        angles = places * torch.arange(1, NUM_FREQUENCIES + 1, device=x.device) * (torch.pi / 2)
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(1)  # [P, 4 * frequencies]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        h = self.blocks(self.enter(x) + self.place(waves), mask=mask, is_causal=True)
        return self.leave(h) + self.direct(x)

    def image(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """Latents [B, P, D] -> pixels [B, C, rows * h, columns * w], as the model takes them (normalised)."""
        return to_image(self(latents, grid), grid, self.patch_shape)
