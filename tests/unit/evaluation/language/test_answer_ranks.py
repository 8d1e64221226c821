"""Ranks of candidates, NDCG, bootstrap intervals."""

import json
import math

import numpy as np
import pytest

from nextembed.errors import ConfigError
from nextembed.evaluation.language.ranks import ndcg, rank_of
from nextembed.evaluation.language.scores import LanguageScores, Metric, mean_metric, statistic_metric


def test_ranks():
    scores = [-1.0, -3.0, -0.5, -1.0]
    assert [rank_of(scores, i) for i in range(4)] == [2, 4, 1, 3]


def test_ndcg_by_hand():
    """Relevance of a, b, c: 1, 0, 0.5; two are relevant, so two ranks count. DCG of c, a: 0.5 / log2 2 + 1 / log2 3;
    the best order, a, c, has 1 + 0.5 / log2 3."""
    found = ndcg([0.2, 0.1, 0.3], [1.0, 0.0, 0.5])
    assert found == pytest.approx((0.5 + 1 / math.log2(3)) / (1 + 0.5 / math.log2(3)))
    assert ndcg([3, 1, 2], [1.0, 0.0, 0.5]) == pytest.approx(1)
    assert ndcg([1, 2, 3], [1, 0, 0]) == 0
    assert ndcg([1, 2], [0, 0]) == 0


def test_interval_agrees_with_theory():
    """For n values of 0 or 1 with mean p, the interval is close to p +- 1.96 sqrt(p (1 - p) / n)."""
    values = np.r_[np.ones(100), np.zeros(300)]
    found = mean_metric("x", values, 100, "%", draws=4000)
    half = 196 * math.sqrt(0.25 * 0.75 / 400)
    assert found.value == 25
    assert found.low == pytest.approx(25 - half, abs=0.5) and found.high == pytest.approx(25 + half, abs=0.5)
    assert mean_metric("x", values, 100, "%", draws=4000) == found  # the same seed
    assert mean_metric("x", [1.0]).low is None


def test_interval_of_a_ratio_of_sums():
    table = np.array([[1.0, 2.0], [3.0, 4.0]])
    found = statistic_metric("ratio", table, lambda sums: sums[..., 0] / sums[..., 1], draws=200)
    assert found.value == pytest.approx(4 / 6)
    assert found.low == pytest.approx(0.5) and found.high == pytest.approx(0.75)


def test_scores_are_saved_atomically(tmp_path):
    scores = LanguageScores("caption", "table", "m", "d", 2, [Metric("CIDEr", 12.5, 10.0, 15.0)], ["careful"])
    assert scores["CIDEr"] == 12.5
    values = json.loads(scores.save(tmp_path / "new" / "scores.json").read_text())
    assert values["metrics"] == [{"name": "CIDEr", "value": 12.5, "low": 10.0, "high": 15.0, "unit": ""}]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["scores.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        scores.save(tmp_path / "file" / "scores.json")
    with pytest.raises(KeyError):
        scores["BLEU"]
