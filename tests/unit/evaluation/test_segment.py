"""Scores of segmentation models: counts over the whole split, absent classes, sliding windows, clear errors."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nextembed.errors import ConfigError, DataError, MissingExtra
from nextembed.evaluation.probes.sweep import ProbeConfig
from nextembed.evaluation.segmentation import QuickSegment, score_segmenter
from nextembed.models.nepa import NepaModel, NepaSegmenter, ViTNepaConfig
from nextembed.runs import open_run
from nextembed.tasks.scoring import score
from nextembed.toys.scenes import EmojiScenes

NAMES = ["a", "b", "c", "never"]
SIZES = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


class Reader(nn.Module):
    """Predicts the class given by the first channel, at full resolution."""

    def __init__(self, window=8):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.config = ViTNepaConfig(image_size=window, patch_size=window, num_labels=4)
        self.shapes = []

    def forward(self, pixel_values):
        self.shapes.append(tuple(pixel_values.shape))
        classes = torch.arange(4.0)[:, None, None]
        return SimpleNamespace(logits=-((pixel_values[:, :1] - classes) ** 2) * self.scale)


def sample(answer, truth, key="x"):
    answer = torch.as_tensor(answer, dtype=torch.float32)
    return {"pixel_values": answer.expand(3, *answer.shape), "label": torch.as_tensor(truth), "key": key}


def hand_made():
    """Two different images; the counts are derived by hand below."""
    first_truth, first = torch.zeros(8, 8, dtype=torch.long), torch.zeros(8, 8)
    first[:4] = 1  # 32 pixels of a predicted as b
    second_truth, second = torch.ones(8, 8, dtype=torch.long), torch.ones(8, 8)
    second_truth[0] = 2  # 8 pixels of c predicted as b
    second_truth[1] = 255  # 8 ignored pixels
    second[1] = 3
    return [sample(first, first_truth), sample(second, second_truth)]


def test_scores_are_counted_over_the_whole_split():
    scores = score_segmenter(Reader(), hand_made(), NAMES, "test")
    ious = {row.name: row.iou for row in scores.per_class}
    # a: 32 of 64 correct; b: 48 of 48 correct and 40 false positives; c: 0 of 8; never: in neither
    assert ious["a"] == pytest.approx(32 / 64, abs=1e-6) and ious["b"] == pytest.approx(48 / 88, abs=1e-6)
    assert ious["c"] == 0 and ious["never"] is None
    assert scores.miou == pytest.approx((32 / 64 + 48 / 88 + 0) / 3)
    assert scores.pixel_accuracy == pytest.approx(80 / 120)
    assert (scores.num_images, scores.num_pixels) == (2, 120)
    assert [row.share for row in scores.per_class] == pytest.approx([64 / 120, 48 / 120, 8 / 120, 0], abs=1e-6)


def test_batching_and_windows_do_not_change_the_scores():
    generator = torch.Generator().manual_seed(0)
    samples = []
    for shape in ((8, 8), (8, 8), (8, 19), (13, 8), (8, 8)):
        truth = torch.randint(0, 4, shape, generator=generator)
        answer = torch.where(torch.rand(shape, generator=generator) < 0.7, truth, 0)
        samples.append(sample(answer, truth))
    first = score_segmenter(Reader(), samples, NAMES, "test", batch_size=1)
    for settings in ({"batch_size": 64}, {"batch_size": 3, "stride": 8}, {"stride": 1}):
        other = score_segmenter(Reader(), samples, NAMES, "test", **settings)
        assert (other.miou, other.pixel_accuracy) == (first.miou, first.pixel_accuracy)
    model = Reader()
    score_segmenter(model, samples, NAMES, "test", batch_size=64)
    assert {shape[2:] for shape in model.shapes} == {(8, 8)} and model.training


def test_predictions_are_resized_to_the_mask():
    truth = torch.zeros(16, 16, dtype=torch.long)
    truth[:, 8:] = 1
    answer = torch.zeros(8, 8)
    answer[:, 4:] = 1
    assert score_segmenter(Reader(), [sample(answer, truth)], NAMES, "test").pixel_accuracy == 1


def test_saved_scores_describe_themselves(tmp_path):
    scores = score_segmenter(Reader(), hand_made(), NAMES, "test")
    scores.step, scores.weights = 30, "ema"
    values = json.loads(scores.save(tmp_path / "scores.json").read_text())
    assert values["task"] == "segmentation" and values["split"] == "test" and values["num_images"] == 2
    assert values["sentence"] == scores.sentence()
    assert "mIoU 34.8% over 3 classes, 66.7% pixel accuracy, on 2 test images" in values["sentence"]
    assert "step 30, the best on validation, averaged (EMA)" in values["sentence"]
    assert "Always guessing 'a': mIoU 17.8%, 53.3% of the pixels." in values["sentence"]
    assert scores.render().row_count == 4


def test_quick_score_names():
    found = QuickSegment(hand_made())(Reader())
    assert set(found) == {"eval/miou", "eval/pixel_accuracy", "eval/loss"}
    assert found["eval/pixel_accuracy"] == pytest.approx(80 / 120) and found["eval/loss"] > 0


def test_unscorable_data():
    nothing = [sample(torch.zeros(8, 8), torch.full((8, 8), 255))]
    with pytest.raises(DataError, match="no pixel of the test images has a label"):
        score_segmenter(Reader(), nothing, NAMES, "test")
    with pytest.raises(DataError, match="a test mask has class 7, the model knows 4"):
        score_segmenter(Reader(), [sample(torch.zeros(8, 8), torch.full((8, 8), 7))], NAMES, "test")
    with pytest.raises(ConfigError, match=r"probe.stride 9: more than the window of 8 pixels"):
        score_segmenter(Reader(), hand_made(), NAMES, "test", stride=9)


def test_without_torchmetrics_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.classification", None)
    with pytest.raises(MissingExtra, match=r"torchmetrics: pip install 'nextembed\[segment\]'"):
        score_segmenter(Reader(), hand_made(), NAMES, "test")


@pytest.fixture
def saved(tmp_path):
    data = EmojiScenes(scene_size=16, num_scenes=4, num_validation=4, num_test=4)
    part = NepaSegmenter(architecture=SIZES)
    part.build(data.class_names()).save_pretrained(tmp_path / "model")
    return tmp_path / "model", data


def test_a_saved_segmenter_is_scored_on_the_requested_split(saved):
    folder, data = saved
    assert score(open_run(folder), data).split == "test"
    scores = score(open_run(folder), data, splits=("validation",))
    assert (scores.split, scores.num_images, len(scores.per_class)) == ("validation", 4, 10)
    assert score(open_run(folder), data, ProbeConfig(num_test=2, stride=3)).num_images == 2


def test_class_list_must_match_the_model(saved, tmp_path, monkeypatch):
    folder, data = saved
    names = data.class_names()
    monkeypatch.setattr(EmojiScenes, "class_names", lambda self: [*names[:3], "other", *names[4:]])
    with pytest.raises(ConfigError, match=r"class list does not match the head: .* class 3 is 'other' in the data"):
        score(open_run(folder), data)
    monkeypatch.setattr(EmojiScenes, "class_names", lambda self: names[:3])
    with pytest.raises(ConfigError, match="it has 3 classes, the model 10; class 3 is 'nothing' in the data"):
        score(open_run(folder), data)
    NepaModel(**SIZES).build().save_pretrained(tmp_path / "pretrained")
    with pytest.raises(ConfigError, match="contains no fine-tuned model to score"):
        score(open_run(tmp_path / "pretrained"), data)


def test_images_without_masks_are_refused(saved):
    from nextembed.data.sources import ImageData

    with pytest.raises(ConfigError, match="data of kind 'images' has no masks"):
        score(open_run(saved[0]), ImageData(source="emoji"))
