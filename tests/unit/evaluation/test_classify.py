"""Scores of a classifier against counts by hand."""

import json
import types

import pytest
import torch
from torch import nn

from nextembed.core.scores import ClassScores
from nextembed.core.types import IGNORE_LABEL
from nextembed.errors import ConfigError, DataError
from nextembed.evaluation.classification import QuickScore, ids_by_name, score_classifier

NAMES = ["ant", "bee", "cat", "dog", "eel", "fox"]


class Told(nn.Module):
    """Returns the first pixels as logits."""

    def __init__(self, names=NAMES):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))
        self.config = types.SimpleNamespace(id2label=dict(enumerate(names)))
        self.modes = []

    def forward(self, pixel_values):
        self.modes.append(self.training)
        return types.SimpleNamespace(logits=pixel_values[:, 0, 0, : len(self.config.id2label)] + self.nothing)


class Samples(list):
    class_names: list[str] = []


def samples(answers, labels, names=(), strength=5.0):
    made = Samples()
    for i, (answer, label) in enumerate(zip(answers, labels)):
        pixels = torch.zeros(1, 8, 8)
        pixels[0, 0, :6] = torch.arange(6) * -0.1  # a fixed order after the top prediction
        pixels[0, 0, answer] = strength + i / 10
        made.append({"key": f"image {i}", "pixel_values": pixels, "label": label})
    made.class_names = list(names)
    return made


def test_counts_by_hand():
    data = samples([0, 0, 1, 2, 5, 3], [0, 1, 1, 5, 5, IGNORE_LABEL])
    model = Told().train()
    found = score_classifier(model, data, "test", batch_size=4)
    assert (found.num_images, found.num_unlabelled, found.top1) == (5, 1, pytest.approx(3 / 5))
    assert found.top5 == pytest.approx(4 / 5)  # class 5 ranks sixth where 2 was predicted
    assert found.confusion[0] == [1, 0, 0, 0, 0, 0] and found.confusion[1] == [1, 1, 0, 0, 0, 0]
    assert found.confusion[5] == [0, 0, 1, 0, 0, 1] and sum(map(sum, found.confusion)) == 5
    assert found.recalls == [1.0, 0.5, None, None, None, 0.5]
    assert found.confusions() == [(1, 0, 1), (5, 2, 1)]
    assert [(e.index, e.label, e.answer) for e in found.errors] == [(3, 5, 2), (1, 1, 0)]  # most confident first
    logits = torch.stack([row["pixel_values"][0, 0, :6] for row in data[:5]])
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 5, 5]))
    assert found.loss == pytest.approx(loss.item(), rel=1e-6)
    assert model.training and model.modes == [False, False]


@pytest.mark.parametrize(
    ("right", "total", "low", "high"), [(50, 100, 0.4038, 0.5962), (10, 10, 0.7225, 1.0), (0, 20, 0.0, 0.1611)]
)
def test_the_range_is_the_wilson_interval(right, total, low, high):
    """Values of the published Wilson formula (e.g. Agresti and Coull 1998)."""
    found = ClassScores("test", total, right / total, 1.0, 0.0, ["a", "b"], [[right, total - right], [0, 0]])
    assert found.range == (pytest.approx(low, abs=2e-4), pytest.approx(high, abs=2e-4))


def test_classes_of_other_data_are_found_by_name():
    model = Told()
    assert ids_by_name(model, ["dog", "ant"]) == [3, 0]
    assert ids_by_name(model, []) == ids_by_name(Told([f"LABEL_{i}" for i in range(6)]), ["x", "y"]) == list(range(6))
    found = score_classifier(model, samples([3, 0], [0, 1], ["dog", "ant"]), "test")
    assert found.top1 == 1 and found.class_names == NAMES and found.counts == [1, 0, 0, 1, 0, 0]
    with pytest.raises(ConfigError) as err:
        score_classifier(model, samples([0], [0], ["ant", "gnu", "yak"]), "test")
    assert str(err.value) == (
        "the data has 2 of 3 classes that the model does not know (gnu, yak); it knows 6: ant, bee, cat, dog, ..."
    )


def test_labels_that_are_missing_or_out_of_range():
    with pytest.raises(DataError, match="the test images have no labels"):
        score_classifier(Told(), samples([0, 1], [IGNORE_LABEL] * 2), "test")
    with pytest.raises(DataError, match="label 6 of the test images is not one of the 6 classes"):
        score_classifier(Told(), samples([0, 1], [0, 6]), "test")


def test_sentences_qualify_the_accuracy():
    made = {"top1": 0.5, "top5": 1.0, "loss": 1.0, "class_names": ["a", "b"], "confusion": [[2, 1], [1, 0]]}
    text = ClassScores("test", 4, **made, step=30, weights="ema").sentence()
    assert text == (
        "Top-1 50.0 % (95 % range 15.0 to 85.0 %) on 4 test images of 2 classes; always guessing the largest class: "
        "75.0 %. The weights are those of step 30, averaged (EMA), the best on validation."
    )
    assert "so the figure is slightly optimistic" in ClassScores("validation", 4, **made, step=30).sentence()
    assert "3 images without a known label were left out" in ClassScores("test", 4, **made, num_unlabelled=3).sentence()


def test_saved_scores_read_back(tmp_path):
    found = score_classifier(Told(), samples([0, 0, 1], [0, 1, 1]), "test")
    values = json.loads(found.save(tmp_path / "scores.json").read_text())
    assert values["confusion"] == found.confusion and values["sentence"] == found.sentence()
    assert tuple(values["range"]) == found.range and values["task"] == "classification"


def test_quick_score_ignores_unlabelled_images():
    scores = QuickScore(samples([0, 1, 2], [0, 0, IGNORE_LABEL]))(Told())
    assert scores["eval/accuracy"] == 0.5 and scores["eval/loss"] > 0
