"""The two probes themselves: nearest neighbours and logistic regression, on frozen features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOGITS = 2**26  # of one minibatch: 256 MB


def knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    device: torch.device | None = None,
) -> Tensor:
    """Predicted class [Q], int64: a vote of the k nearest in the bank, by cosine similarity.

    bank [N, D], bank_labels [N], queries [Q, D]; device: for the comparison; None is theirs. A neighbour's vote weighs
    exp(similarity / temperature). Source: Wu et al., arXiv 1805.01978, section 3.4, as used by DINO (arXiv 2104.14294).
    """
    k = min(k, len(bank))
    bank, bank_labels = F.normalize(bank.to(device), dim=1).T, bank_labels.to(device)  # [D, N], [N]
    predicted = []
    for chunk in queries.split(1024):
        similarity, nearest = (F.normalize(chunk.to(device), dim=1) @ bank).topk(k, dim=1)  # [q, k]
        weight = (
            (similarity - similarity[:, :1]) / temperature
        ).exp()  # the nearest has weight 1, so there is no overflow
        votes = torch.zeros(len(chunk), num_classes, device=weight.device).scatter_add_(1, bank_labels[nearest], weight)
        predicted.append(votes.argmax(1).to(queries.device))
    return torch.cat(predicted)


class LinearProbe(NamedTuple):
    """Multinomial logistic regression on standardised features.

    weight [D, C], bias [C]: of the standardised features; mean, scale [D]: of the training features;
    penalty: as in `fit_linear`.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    penalty: float

    def predict(self, features: Tensor) -> Tensor:
        """Class [N], int64, of features [N, D]."""
        return (((features - self.mean) / self.scale) @ self.weight + self.bias).argmax(1)


def fit_linear(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    penalties: Sequence[float],
    max_iterations: int = 40,
    device: torch.device | None = None,
) -> list[LinearProbe]:
    """One probe for each penalty: minimises mean cross-entropy + penalty / 2 x |weight|^2 (the bias is free).

    features [N, D], labels [N]; device: for the computation; None is that of the features. The same problem as
    scikit-learn's LogisticRegression(C=1 / (N x penalty)) on standardised features. All penalties are solved in one
    L-BFGS run, in the eigenbasis of the features and scaled by the curvature bound of Boehning (1992), H <= X'X / 2N +
    penalty: same optimum, in fewer steps. The gradient is that of all rows, summed over minibatches.
    """
    x, labels = features.to(device), labels.to(device)
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 1e-6, scale, 1.0)  # a constant feature stays constant
    x = (x - mean) / scale
    basis, variance = _eigenbasis(x)  # [D, R], [R]
    x = x @ basis
    l2 = torch.tensor(list(penalties), device=x.device).view(-1, 1, 1)  # [P, 1, 1]
    shrink = (0.5 * variance[:, None] + l2).rsqrt()  # [P, R, 1]
    u = torch.zeros(len(l2), x.shape[1], num_classes, device=x.device)
    bias = torch.zeros(len(l2), num_classes, device=x.device)
    solver = torch.optim.LBFGS(
        [u, bias],
        max_iter=max_iterations,
        history_size=20,
        tolerance_grad=1e-5,
        line_search_fn="strong_wolfe",
    )
    size = max(1, MAX_LOGITS // (len(l2) * num_classes))

    def loss() -> Tensor:
        w = (u * shrink).requires_grad_()
        own = bias.clone().requires_grad_()
        total = 0.5 * (l2 * w.square()).sum()
        total.backward()
        total = total.detach()
        for rows, wanted in zip(x.split(size), labels.split(size)):
            part = _cross_entropy(rows, wanted, w, own) / len(x)
            part.backward()
            total += part.detach()
        assert w.grad is not None
        u.grad, bias.grad = w.grad * shrink, own.grad
        return total

    with torch.enable_grad():
        solver.step(loss)
    weights = (basis @ (u * shrink)).cpu()  # [P, D, C]
    mean, scale = mean.cpu(), scale.cpu()
    return [LinearProbe(w, b, mean, scale, p) for w, b, p in zip(weights, bias.cpu(), penalties)]


def _cross_entropy(x: Tensor, labels: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """Summed over rows [n, R] and penalties, of weights [P, R, C] and bias [P, C]."""
    num, width, classes = weights.shape
    flat = x @ weights.permute(1, 0, 2).reshape(width, -1)  # one product for all penalties: [n, P * C]
    logits = flat.view(len(x), num, classes).transpose(0, 1) + bias[:, None]  # [P, n, C]
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(num), reduction="sum")


def _eigenbasis(x: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal basis [D, R] of the rows of x [N, D] and the variance [R] along it; R = min(N, D).

    The penalised optimum lies in the span of the rows, so nothing is lost where N < D.
    """
    num, width = x.shape
    if width <= num:
        variance, basis = _eigh(x.T @ x / num)
        return basis, variance.clamp(min=0)
    variance, left = _eigh(x @ x.T / num)
    keep = variance > 1e-6 * variance[-1]  # in float32, directions below this are rounding noise
    variance, left = variance[keep], left[:, keep]
    return x.T @ left / (variance * num).sqrt(), variance


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix, also on accelerators without this function."""
    if matrix.device.type == "mps":
        values, vectors = torch.linalg.eigh(matrix.cpu())
        return values.to(matrix.device), vectors.to(matrix.device)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors
