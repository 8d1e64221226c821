"""The plot of a comparison."""

import io

import pytest
from PIL import Image

from comparison_plot import comparison_figure, write_comparison
from nextembed.comparison.scores import RunScores
from nextembed.comparison.table import Comparison, rows_of


@pytest.mark.parametrize("seeds", [1, 3])
def test_each_score_has_a_chart_with_the_best_row_on_top(tmp_path, seeds):
    runs = [RunScores(name, seed, values={"linear": value + seed / 100, "finetune_1": 1 - value})
            for seed in range(seeds) for name, value in (("nepa", 0.5), ("mae", 0.7))]  # fmt: skip
    runs.append(RunScores("untrained", 0, kind="baseline", values={"linear": 0.4}))
    found = Comparison("demo", "5 minutes", rows_of(runs), runs)
    figure = comparison_figure(found)
    assert [[text.get_text() for text in axes.get_yticklabels()] for axes in figure.axes] == [
        ["nepa", "mae"],
        ["mae", "nepa"],
    ]
    assert (figure.get_suptitle() == "5 minutes; one seed") == (seeds == 1)
    one, two = (write_comparison(found, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert one == two and Image.open(io.BytesIO(one)).width > 500
