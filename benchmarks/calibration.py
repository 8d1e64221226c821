"""Calibration of predicted densities: expected against actual cosines, coverage, likelihood."""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nextembed.core.files import write_json
from nextembed.evaluation.language.scores import Metric
from nextembed.nn.density import Density
from nextembed.nn.directional import cosines

NUM_DRAWS = 19  # samples per position: the truth then has one of 20 ranks, so that 50 and 90 % regions are exact
REGIONS = (0.5, 0.9)


class PositionScores(NamedTuple):
    """Scores of N positions (numbers instead of densities); `join` concatenates batches.

    expected [N]: cosine of the predicted direction with the next latent, expected under the density; cosine [N]: the
    actual cosine. log_prob [N]: at the truth, in nats, relative to the uniform density. place [N], int: rank by weight
    of the component nearest to the truth, 0 for the heaviest. weights [N, K]: in descending order. drawn
    [N, NUM_DRAWS]: cosines of samples of the density. above [N], int: number of those samples at which the density is
    higher than at the truth. dim: width of a latent.
    """

    expected: np.ndarray
    cosine: np.ndarray
    log_prob: np.ndarray
    place: np.ndarray
    weights: np.ndarray
    drawn: np.ndarray
    above: np.ndarray
    dim: int


@dataclass
class Bin:
    """Positions of similar expected cosine: their number, the means of both cosines, the 95 % interval of the actual
    cosine, and the angles in degrees that correspond to the means."""

    count: int
    expected: float
    cosine: float
    low: float
    high: float
    expected_degrees: float
    degrees: float


@dataclass
class Coverage:
    """share: of the true latents that are nearest to one of the k heaviest components, with its 95 % interval; weight:
    the mean sum of the weights of those components. The share should equal the weight if components do not overlap
    (with wide components, which overlap, the heaviest may get less)."""

    k: int
    share: float
    low: float
    high: float
    weight: float


@dataclass
class Calibration:
    """metrics, over all positions:

    nll: mean negative log density relative to the uniform one, in nats (chance: 0; lower is better); nll_per_dimension.
    expected_cosine, cosine: of the predicted direction, expected under the density and actual.
    calibration_error: mean over positions of the difference of the two in their bin (expected calibration error).
    calibration_error_of_samples: the same with samples of the densities as the truth: the error due to chance alone.
    region_50, region_90: share of true latents in the highest-density region that should contain 50 and 90 %.
    """

    num_positions: int
    num_documents: int
    dim: int
    metrics: list[Metric]
    bins: list[Bin]
    coverage: list[Coverage]

    def __getitem__(self, name: str) -> float:
        """The value of a metric. Raises KeyError for an unknown name."""
        return {metric.name: metric.value for metric in self.metrics}[name]

    def save(self, path: str | Path) -> Path:
        """Writes it as JSON. Raises ConfigError if it cannot be written."""
        write_json(path, asdict(self))
        return Path(path)


@torch.no_grad()
def score_positions(density: Density, latents: Tensor, generator: torch.Generator | None = None) -> PositionScores:
    """Scores of densities [...] at the true latents [..., D] (of any norm); N is the product of the leading axes.

    generator: of the samples. Raises ValueError if shapes differ.
    """
    if density.directions.shape[:-2] != latents.shape[:-1] or density.directions.shape[-1] != latents.shape[-1]:
        shapes = f"{tuple(density.directions.shape)} and {tuple(latents.shape)}"
        raise ValueError(f"directions and latents of shapes {shapes} do not belong together")
    dim = latents.shape[-1]
    density = Density(density.directions.flatten(0, -3), *(v.flatten(0, -2) for v in density[1:]))
    truth, predicted = F.normalize(latents.float().reshape(-1, dim), dim=-1), density.mean()
    log_prob = density.log_prob(truth)
    order = density.log_weights.argsort(dim=-1, descending=True, stable=True)
    nearest = cosines(density.directions, truth[:, None]).argmax(-1, keepdim=True)
    drawn, above = [], torch.zeros_like(log_prob, dtype=torch.long)
    for _ in range(NUM_DRAWS):
        sample = density.sample(generator)
        drawn.append((sample * predicted).sum(-1))
        above += density.log_prob(sample) > log_prob
    found = (
        density.expected_cosine(),
        (truth * predicted).sum(-1),
        log_prob,
        (order == nearest).int().argmax(-1),
        density.log_weights.exp().gather(-1, order),
        torch.stack(drawn, dim=-1),
        above,
    )
    columns: list[Any] = [v.cpu().double().numpy() if v.is_floating_point() else v.cpu().numpy() for v in found]
    return PositionScores._make([*columns, dim])


def join(scores: Sequence[PositionScores]) -> PositionScores:
    """Concatenates the scores of several batches."""
    columns: list[Any] = [np.concatenate(column) for column in zip(*(batch[:-1] for batch in scores), strict=True)]
    return PositionScores._make([*columns, scores[0].dim])


def calibrate(
    scores: PositionScores,
    documents: Sequence[Hashable] | np.ndarray,
    num_bins: int = 10,
    top: Sequence[int] = (1, 2, 4, 8),
    draws: int = 1000,
    seed: int = 0,
) -> Calibration:
    """Calibration of scored positions; documents [N]: the document of each position.

    num_bins: of the reliability curve, with equal counts except for ties. top: values of k for the coverage; those
    above K are left out. Intervals are the middle 95 % of `draws` bootstrap values; documents are resampled. Raises
    ValueError for no positions, a wrong number of documents and non-finite log densities.
    """
    count = len(scores.expected)
    if count == 0 or len(documents) != count:
        raise ValueError(f"{len(documents)} documents for {count} positions; one each is needed, and at least one")
    if bad := int((~np.isfinite(scores.log_prob)).sum()):
        raise ValueError(f"{bad} of {count} positions have a log density that is not finite")
    which = _number(documents)
    top = [k for k in top if k <= scores.weights.shape[1]]
    bins = bin_numbers(scores.expected, num_bins)
    ones = np.eye(bins.max() + 1)[bins]  # [N, bins]
    blocks = {
        "plain": np.stack([np.ones(count), -scores.log_prob, scores.expected, scores.cosine], axis=1),
        "regions": np.stack([scores.above < region * (NUM_DRAWS + 1) for region in REGIONS], axis=1).astype(float),
        "top": np.stack([scores.place < k for k in top], axis=1).astype(float) if top else np.zeros((count, 0)),
        "bins": ones,
        "expected": ones * scores.expected[:, None],
        "cosine": ones * scores.cosine[:, None],
    }
    table = np.zeros((which.max() + 1, sum(block.shape[1] for block in blocks.values())))
    np.add.at(table, which, np.concatenate(list(blocks.values()), axis=1))
    ends = np.cumsum([block.shape[1] for block in blocks.values()])[:-1]
    sums = _resampled(table, draws, seed)  # the first row is of the original documents
    parts = dict(zip(blocks, np.split(sums, ends, axis=1), strict=True))
    total = parts["plain"][:, :1]
    nll, expected, cosine = (parts["plain"][:, 1:] / total).T
    error = np.abs(parts["expected"] - parts["cosine"]).sum(1) / total[:, 0]
    drawn = [np.abs(ones.T @ (scores.expected - sample)).sum() / count for sample in scores.drawn.T]
    regions = {f"region_{100 * r:.0f}": v for r, v in zip(REGIONS, (parts["regions"] / total).T, strict=True)}
    with np.errstate(invalid="ignore"):
        curve = parts["cosine"] / parts["bins"]  # nan for a resample without a position in the bin
    weights = scores.weights.cumsum(axis=1).mean(axis=0)
    return Calibration(
        num_positions=count,
        num_documents=len(table),
        dim=scores.dim,
        metrics=[
            _metric("nll", nll, "nats"),
            _metric("nll_per_dimension", nll / scores.dim, "nats"),
            _metric("expected_cosine", expected),
            _metric("cosine", cosine),
            _metric("calibration_error", error),
            Metric("calibration_error_of_samples", float(np.mean(drawn))),
            *(_metric(name, values) for name, values in regions.items()),
        ],
        bins=[
            _bin(int(n), float(e / n), values)
            for n, e, values in zip(parts["bins"][0], parts["expected"][0], curve.T, strict=True)
        ],
        coverage=[
            Coverage(k, float(values[0]), *_interval(values), float(weights[k - 1]))
            for k, values in zip(top, (parts["top"] / total).T, strict=True)
        ],
    )


def bin_numbers(values: np.ndarray, num_bins: int) -> np.ndarray:
    """Bin of each value, from 0 upwards: bins have equal counts except for ties (never split); no bin is empty."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, num_bins + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1]


def _number(documents: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(document, len(numbers)) for document in documents])


def _resampled(table: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Sums over rows, [1 + draws, columns]: first of all rows, then of bootstrap samples of them."""
    generator = np.random.default_rng(seed)
    uniform = np.full(len(table), 1 / len(table))
    return np.stack([table.sum(0), *(generator.multinomial(len(table), uniform) @ table for _ in range(draws))])


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a statistic from its value (first) and bootstrap values; (value, value) if there are none."""
    known = values[1:][~np.isnan(values[1:])]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (values[0], values[0])
    return float(low), float(high)


def _metric(name: str, values: np.ndarray, unit: str = "") -> Metric:
    return Metric(name, float(values[0]), *_interval(values), unit)


def _bin(count: int, expected: float, values: np.ndarray) -> Bin:
    degrees = [float(np.degrees(np.arccos(np.clip(c, -1, 1)))) for c in (expected, values[0])]
    return Bin(count, expected, float(values[0]), *_interval(values), *degrees)
