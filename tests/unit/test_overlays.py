"""The report of a segmentation run: colours, errors, bars, and a note where images are missing."""

import json

import numpy as np
import pytest

from nextembed.core.scores import ClassArea, SegmentScores
from nextembed.report.segmentation import COLOURS, Overlays, Shown, answers, class_colours, mistakes, painted
from nextembed.runs import open_run


class View:
    def __init__(self, scores):
        self.scores = scores


def shown():
    truth = np.zeros((4, 6), np.uint8)
    truth[:2], truth[3] = 1, 255
    answer = np.zeros((4, 6), np.uint8)
    answer[:1] = 1
    return Shown("a <b>", np.full((4, 6, 3), 200, np.uint8), truth, answer)


def test_colours_are_different_and_background_has_none():
    names = ["background", *(f"class {i}" for i in range(150))]
    colours = class_colours(names)
    assert colours[0] is None and len(set(colours)) == 151
    assert colours[1] == tuple(bytes.fromhex(COLOURS[0][1:]))


def test_painted_pixels_are_grey_or_of_their_class():
    one = shown()
    picture = painted(one.pixels, one.truth, class_colours(["background", "cat"]))
    assert picture.shape == (4, 6, 3) and picture.dtype == np.uint8
    assert len(np.unique(picture[2])) == 1  # background: grey
    red, green, blue = picture[0, 0]
    assert red > green > blue  # the first colour is orange
    assert len({tuple(p) for p in picture[3]}) > 1  # hatched: no label


def test_mistakes_are_red_where_labelled_pixels_differ():
    one = shown()
    red = mistakes(one)[..., 0].astype(int) - mistakes(one)[..., 2]
    assert (red[1] > 100).all() and (red[[0, 2, 3]] == 0).all()
    assert one.right == pytest.approx(12 / 18)


def scores(num):
    classes = [ClassArea(f"<c{i}>", None if i == 1 else i / num, 1 / num) for i in range(num)]
    return SegmentScores("test", 3, 24, 0.5, 0.7, classes, 8, 4)


@pytest.mark.parametrize("num", [3, 60])
def test_bars_of_every_class(num):
    html = answers(View(scores(num)), Overlays(None, [f"<c{i}>" for i in range(num)], [shown()]))
    assert html.count("&lt;c2&gt;") >= 1 and "<c2>" not in html and "a &lt;b&gt;" in html
    assert "Absent from labels and predictions: &lt;c1&gt;" in html
    assert ("Worst classes" in html) is (num == 60)
    assert html.count("data:image/png") == 4 and "no label (hatched)" in html
    assert answers(View(None), None) == ""


def test_a_run_without_model_still_has_a_page(tmp_path):
    (tmp_path / "config.yaml").write_text("name: seg\nobjective: {kind: segmentation}\ndata: {kind: emoji_scenes}\n")
    line = {"step": 1, "loss": 2.0, "samples_seen": 8, "eval/miou": 0.1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    html = open_run(tmp_path).report().read_text()
    assert "There are no pictures" in html and "Validation mIoU" in html
    assert "Next-embedding pretraining" not in html and "Probes on frozen features" not in html
