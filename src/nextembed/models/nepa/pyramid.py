"""Feature maps at four scales, for UPerNet, from a transformer whose layers all have the same."""

from collections.abc import Sequence

from torch import Tensor, nn


class ViTNepaPyramid(nn.Module):
    """Four maps [B, D, rows, columns] to four times, twice, once and half their size.

    Upsampled by deconvolution, downsampled by the maximum of 2 x 2, as in BEiT with UPerNet (arXiv 2106.08254).
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(hidden_size, hidden_size, 2, 2),
            nn.BatchNorm2d(hidden_size),
            nn.GELU(),
            nn.ConvTranspose2d(hidden_size, hidden_size, 2, 2),
        )
        self.up2 = nn.ConvTranspose2d(hidden_size, hidden_size, 2, 2)
        self.down = nn.MaxPool2d(2, 2, ceil_mode=True)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        first, second, third, fourth = maps
        return self.up4(first), self.up2(second), third, self.down(fourth)
