"""From directions of latents back to the values that a linear map embedded.

Shapes: N latents, D latent width, P values a patch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENGTH_SPREAD = 1.0  # of latents of one modality, relative to their mean length


class ValueStatistics(nn.Module):
    """Statistics of the values of a modality: mean [P] and covariance [P, P], or variances [P] for more than `most`
    values per patch. At first mean 0 and variance 1, uncorrelated."""

    mean: Tensor
    covariance: Tensor

    def __init__(self, size: int, most: int = 1024):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("covariance", torch.eye(size) if size <= most else torch.ones(size))

    @torch.no_grad()
    def measure(self, values: Tensor) -> None:
        """Measures values [N, P] of training; a tenth of the variance is spread evenly, for unseen values."""
        if len(values) < 2:
            return
        values = values.detach().float()
        own = values.var(0)
        self.mean.copy_(values.mean(0))
        if self.covariance.ndim == 1:
            self.covariance.copy_(own.clamp(min=0.1 * own.mean()))
        else:
            self.covariance.copy_(0.9 * values.T.cov() + 0.1 * own.mean() * torch.eye(len(own), device=values.device))


class LinearInverse:
    """The likeliest values of patches [N, P], given the directions of their latents weight @ values + bias.

    The prior is a Gaussian with the statistics of the values; the error of a prediction has variance `noise` times a
    latent's mean squared length, the same in all directions: a ridge regression. Plain least squares would divide that
    error by the weakest directions of the weight. A direction has no length. If patches do not fill the space (P < D),
    the bias determines it: the part of length * direction that no values can explain is all bias. Otherwise it is
    `length`, the mean.

    weight [D, P], bias [D].
    """

    def __init__(self, weight: Tensor, bias: Tensor, statistics: ValueStatistics, length: Tensor, noise: float):
        self.bias, self.length = bias, length
        self.mean, covariance = statistics.mean, statistics.covariance
        spread = weight @ covariance if covariance.ndim == 2 else weight * covariance  # [D, P]
        error = noise * length.square() / len(weight)
        seen = spread @ weight.T + error * torch.eye(len(weight), device=weight.device)
        self.back = torch.linalg.solve(seen, spread)  # [D, P]
        self.start = bias + weight @ self.mean
        # [D, P]: basis of what values can reach; None: the whole space
        self.basis = torch.linalg.qr(weight).Q if weight.shape[1] < len(weight) else None
        self.doubt = error / (LENGTH_SPREAD * length).square()

    def __call__(self, direction: Tensor) -> Tensor:
        """direction [N, D], of any length -> values [N, P]."""
        unit = F.normalize(direction.float(), dim=-1)
        length = self.length
        if self.basis is not None:
            left = unit - unit @ self.basis @ self.basis.T
            length = (left @ self.bias + self.doubt * length) / ((left * unit).sum(-1) + self.doubt)
            length = length.clamp(min=0)[:, None]
        return self.mean + (length * unit - self.start) @ self.back
