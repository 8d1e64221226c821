"""Ranks of candidates by score, for Visual Dialog."""

from collections.abc import Sequence

import numpy as np


def rank_of(scores: Sequence[float], target: int) -> int:
    """Rank of a candidate, from 1, by descending score; equal ones keep their order."""
    values = np.asarray(scores, dtype=np.float64)
    return 1 + int((values > values[target]).sum() + (values[:target] == values[target]).sum())


def ndcg(scores: Sequence[float], relevance: Sequence[float]) -> float:
    """Normalised discounted cumulative gain in [0, 1], over as many ranks as there are relevant candidates.

    Relevance / log2(place + 1), summed, divided by the sum of the best order. 0 if nothing is relevant.
    Source: the Visual Dialog challenge 2018.
    """
    gains = np.asarray(relevance, dtype=np.float64)
    places = int((gains > 0).sum())
    if places == 0:
        return 0.0
    discounts = 1 / np.log2(np.arange(2, places + 2))
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[:places]
    return float((gains[order] * discounts).sum() / (np.sort(gains)[::-1][:places] * discounts).sum())
