"""Ridge regression of targets on inputs from sums over everything that was read: exact where gradient steps are slow.

Shapes: B samples, D inputs, P targets.
"""

import torch
from torch import Tensor, nn

from ..core import distributed

MAX_INPUTS = 4096  # the sums take D (D + P) numbers


class RunningRegression(nn.Module):
    """Sums of a linear regression, and its solution so far.

    Gradient steps fit the directions in which inputs vary little last; the solution from sums has no such order.

    Args:
        inputs: D.
        targets: P.
        prior: ridge penalty, as a number of samples per input: the prior that all weights are 0 counts as prior x D
            samples. Inputs are scaled by their own standard deviations.
    """

    sums: Tensor
    products: Tensor

    def __init__(self, inputs: int, targets: int, prior: float = 0.05):
        super().__init__()
        self.prior = prior
        # A small penalty is smaller than the rounding of float32, which is all that MPS has.
        kind = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.register_buffer("sums", torch.zeros(1 + inputs + targets, dtype=kind))  # of 1, inputs and targets
        self.register_buffer("products", torch.zeros(inputs, inputs + targets, dtype=kind))

    @torch.no_grad()
    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Reads samples.

        Args:
            inputs: [B, D].
            targets: [B, P].
        """
        both = torch.cat([inputs, targets], dim=1).to(self.products)
        self.sums += torch.cat([both.new_tensor([len(both)]), both.sum(0)])
        self.products += both[:, : inputs.shape[1]].T @ both

    @torch.no_grad()
    def solve(self) -> tuple[Tensor, Tensor] | None:
        """The solution over all ranks; every rank has to call it.

        Returns:
            weight [P, D] and bias [P], on the CPU; None before anything was read, and if something was not
            finite.
        """
        sums = distributed.sum_over_ranks(self.sums.cpu().double())
        products = distributed.sum_over_ranks(self.products.cpu().double())
        number, width = sums[0], len(products)
        if number == 0 or not bool(products.isfinite().all()):
            return None
        mean = sums[1:] / number
        spread = products / number - mean[:width, None] * mean  # covariance [D, D + P]
        own = spread[:, :width].diagonal().clamp(min=0)
        penalty = self.prior * width / number * own + 1e-6 * own.mean() + 1e-12
        root, failed = torch.linalg.cholesky_ex(spread[:, :width] + penalty.diag())
        while failed:  # rounding of the sums can exceed a small penalty
            penalty = 10 * penalty
            root, failed = torch.linalg.cholesky_ex(spread[:, :width] + penalty.diag())
        weight = torch.cholesky_solve(spread[:, width:], root).T
        return weight.float(), (mean[width:] - weight @ mean[:width]).float()
