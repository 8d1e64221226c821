"""Losses as pure functions. Each returns a sum over targets and their number.

Shapes: B samples, T positions, D width. Sums and norms are in float32 whatever the inputs are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(pred: Tensor, target: Tensor, steps: int = 1) -> tuple[Tensor, Tensor]:
    """The pairs that are compared when position t predicts position t + steps: pred[:, :T - steps] and target[:,
    steps:].

    Args:
        pred: [B, T, D], or without its last positions, which have no target.
        target: [B, T, D].
        steps: how many positions ahead; 0 compares each position with itself.

    Returns:
        Both, [B, T - steps, D].

    Raises:
        ValueError: Shapes do not fit, or T <= steps.
    """
    num = target.shape[1] - steps
    if num < 1:
        raise ValueError(f"{target.shape[1]} positions are too few to predict {steps} ahead")
    if pred[:, :num].shape != target[:, steps:].shape or pred.shape[1] > target.shape[1]:
        raise ValueError(f"prediction {tuple(pred.shape)} and target {tuple(target.shape)} have different shapes")
    return pred[:, :num], target[:, steps:]


def next_embedding(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Summed negative cosine and number of targets; their ratio is a mean in [-1, 1].

    Args:
        pred: hidden states [B, T, D]; step t predicts target step t + 1.
        target: latents [B, T, D]; no gradient flows into them.
        mask: where a step may be a target, bool [B, T]; step 0 never is. None: everywhere.

    Returns:
        The sum [], float32, and the count [], int64.

    Raises:
        ValueError: Shapes differ, or T < 2.

    Source:
        NEPA (arXiv 2512.16922), Algorithm 1.
    """
    # --8<-- [start:nepa]
    pred, target = shifted(pred, target.detach())
    return masked_sum(negative_cosine(pred, target), None if mask is None else mask[:, 1:])
    # --8<-- [end:nepa]


def masked_sum(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum and number of the values that are not masked out.

    Args:
        values: [B, T].
        mask: bool [B, T]; None takes all.

    Returns:
        The sum [], and the count int64 [].
    """
    if mask is None:
        return values.sum(), torch.tensor(values.numel(), device=values.device)
    return values.masked_fill(~mask, 0.0).sum(), mask.sum()


def negative_cosine(pred: Tensor, target: Tensor) -> Tensor:
    """Minus the cosine along the last axis. F.cosine_similarity would keep normalised copies in memory.

    Args:
        pred: [..., D].
        target: [..., D].

    Returns:
        [...], in [-1, 1].
    """
    # --8<-- [start:cosine]
    pred, target = pred.float(), target.float()
    lengths = [torch.linalg.vector_norm(x, dim=-1).clamp(min=1e-12) for x in (pred, target)]
    return -torch.linalg.vecdot(pred, target) / (lengths[0] * lengths[1])
    # --8<-- [end:cosine]


def mse(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference over the last axis.

    Args:
        pred: [..., D].
        target: [..., D].

    Returns:
        [...].
    """
    return (pred.float() - target.float()).square().mean(dim=-1)


def l1(pred: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference over the last axis.

    Args:
        pred: [..., D].
        target: [..., D].

    Returns:
        [...].
    """
    return (pred.float() - target.float()).abs().mean(dim=-1)


def smooth_l1(pred: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Mean over the last axis of a distance that is squared below `beta` and linear above.

    Args:
        pred: [..., D].
        target: [..., D].
        beta: where it becomes linear.

    Returns:
        [...].
    """
    return F.smooth_l1_loss(pred.float(), target.float(), reduction="none", beta=beta).mean(dim=-1)


def regression_distance(pred: Tensor, target: Tensor, distance: str) -> Tensor:
    """Distance between predicted and true embeddings, by name.

    Args:
        pred: [..., D].
        target: [..., D].
        distance: "mse", "cosine" (minus the cosine, as in NEPA), "l1" or "smooth_l1".

    Returns:
        [...].
    """
    return {"mse": mse, "cosine": negative_cosine, "l1": l1, "smooth_l1": smooth_l1}[distance](pred, target)


def token_cross_entropy(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of the right tokens, and their number.

    Args:
        logits: [N, V].
        tokens: int64 [N].

    Returns:
        The sum [], in nats, and the count int64 [].
    """
    total = F.cross_entropy(logits.float(), tokens, reduction="sum")
    return total, torch.tensor(len(tokens), device=tokens.device)


def vocabulary_scores(pred: Tensor, table: Tensor, log_scale: Tensor) -> Tensor:
    """Scaled cosines of predictions with the rows of a table. Their softmax is the distribution over tokens that a
    predicted latent stands for.

    Args:
        pred: [N, D].
        table: [V, D].
        log_scale: logarithm of the scale, [].

    Returns:
        float32 [N, V].
    """
    cosines = F.normalize(pred.float(), dim=-1) @ F.normalize(table.float(), dim=-1).T
    return cosines * log_scale.float().exp()


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Minus the log softmax of the right token.

    Args:
        logits: [N, V].
        tokens: int64 [N].

    Returns:
        [N], in nats.
    """
    return F.cross_entropy(logits.float(), tokens, reduction="none")


def info_nce(pred: Tensor, target: Tensor, mask: Tensor | None = None, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of choosing the right target among all targets of the same sample.

    Args:
        pred: [B, T, D].
        target: [B, T, D].
        mask: targets that may be chosen, bool [B, T]; None takes all.
        temperature: what cosines are divided by.

    Returns:
        [B, T], in nats.

    Source:
        InfoNCE (arXiv 1807.03748) with the patches of one image as candidates, as in NEPA-DiT (arXiv 2610.02203).
    """
    scores = F.normalize(pred.float(), dim=-1) @ F.normalize(target.float(), dim=-1).mT / temperature  # [B, T, T]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, :], torch.finfo(scores.dtype).min)
    return torch.logsumexp(scores, dim=-1) - scores.diagonal(dim1=-2, dim2=-1)


def sigreg(x: Tensor, directions: Tensor, knots: int = 17, limit: float = 5.0) -> Tensor:
    """How far each set of samples is from a standard normal distribution.

    Samples are projected on each direction; the empirical characteristic function of the N projections is compared with
    that of a standard normal, phi(t) = exp(-t^2 / 2): mean over directions of the integral of |phi_N(t) - phi(t)|^2
    exp(-t^2) dt over [-limit, limit], by the trapezoid rule.

    Args:
        x: sets of samples [..., N, K].
        directions: [K, M], or [..., K, M] for each set its own; columns are normalised here.
        knots: points of the trapezoid rule.
        limit: of the integral.

    Returns:
        [...], 0 or more.

    Source:
        LeJEPA (arXiv 2511.08544), SIGReg with the Epps-Pulley statistic. Ours is not multiplied by N, so that its
        weight does not depend on how many samples there are.
    """
    t = torch.linspace(-limit, limit, knots, device=x.device, dtype=torch.float32)
    angles = (x.float() @ F.normalize(directions.float(), dim=-2))[..., None] * t  # [..., N, M, knots]
    real, imaginary = angles.cos().mean(-3), angles.sin().mean(-3)  # [..., M, knots]
    distance = (real - torch.exp(-t.square() / 2)).square() + imaginary.square()
    return torch.trapezoid(distance * torch.exp(-t.square()), t, dim=-1).mean(-1)
