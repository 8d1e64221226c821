"""Is it learning, copying or collapsing? Figures that the loss does not show, and sentences about them.

A falling loss proves little: a model that repeats the current latent scores well where neighbours are alike, and one
whose latents all point the same way scores perfectly. These diagnostics tell the three apart.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.objective import Verdict

MAX_ROWS = 2048  # rows for estimating spread and rank; more change little and cost time

COLLAPSED_STD = 0.3  # any two latents then have a cosine of 0.91 or more; healthy runs stay near 0.9
COLLAPSED_RANK = 2.0
RANK_LOSS = 0.6  # share of the highest rank seen so far below which a loss of rank is reported
COPY_WIN = 0.5
OUTGROWN = 15  # times as long as begin latents
LEARNT_GAP = 0.02  # cos(prediction, next) has to pass cos(prediction, current) by this to call it learning


def spread(x: Tensor) -> Tensor:
    """How far directions differ: 1 if they cancel out, 0 if all point the same way.

    Args:
        x: [N, D].

    Returns:
        [], in [0, 1].
    """
    return (1 - F.normalize(x.float(), dim=-1).mean(0).square().sum()).clamp(min=0).sqrt()


def effective_rank(x: Tensor) -> Tensor:
    """Number of directions in use: exp of the entropy of the singular values (normalised to sum 1) after centring.

    Args:
        x: [N, D].

    Returns:
        [], in [1, min(N, D)].

    Source:
        RankMe (arXiv 2210.02885). Ours centres first, so that a shared offset does not count as a direction.
    """
    x = x.float()
    x = x - x.mean(0)
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    eigenvalues = torch.linalg.eigvalsh(gram.nan_to_num())  # nan would raise before the trainer reports it
    singular = eigenvalues.clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=1e-12)
    return torch.exp(-torch.xlogy(p, p).sum())


@torch.no_grad()
def diagnose(z: Tensor, h: Tensor, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Diagnostics of one batch, each a float32 scalar.

    The begin token (position 0) is left out: it is no current latent to copy. The last latent predicts nothing, so its
    hidden state may be missing.

    Args:
        z: latents [B, T, D].
        h: hidden states [B, T or T - 1, D].
        pred: predictions made at t, of the shape of `h`.
        target: what is predicted, mostly z, [B, T, D].

    Returns:
        cos_next, cos_current: mean cosine of pred[t] with target[t + 1] and with target[t]; cos_gap: their difference.
        copy_win: share of positions whose prediction is nearer to the current target than to the next. cos_neighbours:
        mean cosine of target[t] with target[t + 1], which is what copying would score. latent_std, hidden_std:
        `spread`; latent_rank, hidden_rank: `effective_rank`.
    """
    last = target.shape[1] - 1
    states = (x[:, 1:].flatten(0, 1) for x in (z, h))
    return diagnose_pairs(pred[:, 1:last], target[:, 1:last], target[:, 2:], *states)


@torch.no_grad()
def diagnose_pairs(pred: Tensor, current: Tensor, following: Tensor, z: Tensor, h: Tensor) -> dict[str, Tensor]:
    """The figures of `diagnose`, from pairs that are already aligned.

    Args:
        pred: predictions [..., D].
        current: the latents at the same positions [..., D].
        following: the latents that are predicted [..., D].
        z: rows of latents [N, D].
        h: rows of hidden states [N, D].

    Returns:
        See `diagnose`.
    """
    # --8<-- [start:diagnose]
    pred, current, following = (F.normalize(x.float(), dim=-1) for x in (pred, current, following))
    to_next, to_current = (pred * following).sum(-1), (pred * current).sum(-1)
    result = {
        "cos_next": to_next.mean(),
        "cos_current": to_current.mean(),
        "cos_gap": (to_next - to_current).mean(),
        "copy_win": (to_current > to_next).float().mean(),
        "cos_neighbours": (current * following).sum(-1).mean(),
    }
    # --8<-- [end:diagnose]
    for name, x in (("latent", z), ("hidden", h)):
        rows = x[:: max(1, len(x) // MAX_ROWS)][:MAX_ROWS]
        result |= {f"{name}_std": spread(rows), f"{name}_rank": effective_rank(rows)}
    return result


def warnings(metrics: Mapping[str, float], peak: Mapping[str, float] | None = None) -> list[str]:
    """What is wrong now, in sentences.

    Args:
        metrics: the latest values of `diagnose`; missing ones are skipped.
        peak: the highest value of each so far, to recognise loss of rank.

    Returns:
        One sentence per warning; empty if nothing is wrong.
    """
    found = []
    std, rank = metrics.get("latent_std", 1.0), metrics.get("latent_rank", math.inf)
    if std < COLLAPSED_STD or rank < COLLAPSED_RANK:
        found.append(
            f"collapsed: almost all latents point in the same direction (spread {std:.3f}, effective rank "
            f"{rank:.1f}), so the loss is low whatever is predicted. Keep the stop-gradient, lower the "
            "learning rate of the embedding."
        )
    elif "hidden_rank" in metrics and metrics["hidden_rank"] < COLLAPSED_RANK:
        found.append(
            "collapsed: the hidden states are nearly identical (effective rank "
            f"{metrics['hidden_rank']:.1f}): the model predicts one average latent. Lower the learning rate "
            "or train longer."
        )
    if metrics.get("copy_win", 0.0) > COPY_WIN and metrics.get("cos_current", 0.0) > 0.2:
        found.append(
            f"copying: {metrics['copy_win']:.0%} of the predictions are closer to the current latent than to "
            f"the next (cosine {metrics['cos_current']:.2f} against {metrics.get('cos_next', math.nan):.2f}). "
            "Is the shift on? Otherwise train longer, use larger patches or info_nce."
        )
    for name in ("latent_rank", "hidden_rank"):
        best = (peak or {}).get(name, 0.0)
        if COLLAPSED_RANK <= metrics.get(name, math.inf) < RANK_LOSS * best:
            what = "latents" if name == "latent_rank" else "hidden states"
            found.append(
                f"losing rank: the {what} use {metrics[name]:.1f} directions, down from {best:.1f}: a partial "
                "collapse that the loss does not show. Lower the learning rate (optim.learning_rate, "
                "optim.embed_lr_rate), or try distance=info_nce."
            )
    usual = metrics.get("length/begin") or math.inf
    for name in (key.partition("/")[2] for key in metrics if key.startswith("length/")):
        if metrics[f"length/{name}"] > OUTGROWN * usual:
            found.append(
                f"outgrown: latents of {name} have {metrics[f'length/{name}'] / usual:.0f} times the norm of "
                "begin latents. Layers hardly change them, and they become nearly identical. Lower the learning "
                f"rate of their projection: optim.part_lr_rates={{modalities.{name}: 0.1}}."
            )
    return found


def peaks(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Highest effective ranks of a run, counted from where it predicts the next latent better than the current one.
    Before that, hidden states merely repeat an untrained embedding, and their rank means nothing.

    Args:
        history: logged lines, oldest first.

    Returns:
        By name, `latent_rank` and `hidden_rank`.
    """
    names = ("latent_rank", "hidden_rank")
    rows = [row for row in history if row.get("cos_gap", 0.0) > LEARNT_GAP]
    return {n: max(values) for n in names if (values := [row[n] for row in rows if n in row])}


def lasting_warnings(history: Sequence[Mapping[str, float]]) -> list[str]:
    """What is wrong at the last logged line. An untrained network always copies (its output repeats its input), so
    copying is reported only once the learning rate has stopped rising.

    Args:
        history: logged lines, oldest first.

    Returns:
        One sentence per warning; empty if nothing is wrong.
    """
    found = warnings(history[-1], peaks(history))
    rates = [line.get("learning_rate", 0.0) for line in history[-2:]]
    warming_up = len(rates) < 2 or rates[-1] > rates[-2]
    return [text for text in found if not (warming_up and text.startswith("copying"))]


def verdict(history: Sequence[Mapping[str, float]]) -> Verdict:
    """What a run did: learning, copying, collapsed or undecided.

    Args:
        history: logged lines, oldest first; lines without diagnostics are skipped.

    Returns:
        A word and a sentence.
    """
    needed = ("cos_next", "cos_current", "cos_gap")
    rows = [row for row in history if all(name in row for name in needed)]
    if not rows:
        return Verdict("undecided", "No diagnostics were logged.")
    last = rows[-1]
    warned = warnings(last, peaks(rows))
    for word in ("collapsed", "copying"):
        for text in warned:
            if text.startswith(word):
                return Verdict(word, text.partition(": ")[2])
    nearer = "nearer" if last["cos_gap"] > 0 else "no nearer"
    figures = (
        f"predictions are {nearer} to the next latent (cosine {last['cos_next']:.2f}) than to the current one "
        f"({last['cos_current']:.2f})"
    )
    if "cos_neighbours" in last:
        figures += f"; copying would score {last['cos_neighbours']:.2f}"
    if last["cos_gap"] < LEARNT_GAP:
        return Verdict("undecided", f"The gap is still small: {figures}. Train longer.")
    ranks = (
        f" The latents use {last['latent_rank']:.0f} directions, the hidden states {last['hidden_rank']:.0f}."
        if "latent_rank" in last and "hidden_rank" in last
        else ""
    )
    losing = next((" But it is " + text for text in warned if text.startswith("losing rank")), "")
    losing += "".join(f" But {text.partition(': ')[2]}" for text in warned if text.startswith("outgrown"))
    return Verdict("learning", figures[0].upper() + figures[1:] + "." + ranks + losing)
