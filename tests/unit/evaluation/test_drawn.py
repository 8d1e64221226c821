"""Scores of generated images against real ones: values by hand and in closed form."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nextembed import ViTNepaConfig, ViTNepaForImageClassification
from nextembed.core.sample_scores import Estimate, SampleRow, SampleScores
from nextembed.errors import ConfigError
from nextembed.evaluation.drawn import (
    Bootstrap,
    Judged,
    Measured,
    estimate,
    last_features,
    open_judge,
    row_of,
    sharpness,
)
from nextembed.evaluation.images import frechet_distance


def test_the_distance_of_two_normal_distributions_in_closed_form() -> None:
    """One axis: (m1 - m2)^2 + (s1 - s2)^2 = 9 + 4. Two axes: the sum over the axes, unchanged by a rotation."""
    unit = np.array([-1.0, 1.0]) / np.sqrt(2)  # variance 1 with N - 1
    first, second = unit[:, None], 3 + 3 * unit[:, None]
    assert frechet_distance(first, second) == pytest.approx(13)
    cross = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]) * np.sqrt(1.5)  # covariance 1
    moved = cross * [2.0, 4.0] + [1.0, -2.0]
    assert frechet_distance(cross, moved) == pytest.approx(1 + 4 + (1 - 2) ** 2 + (1 - 4) ** 2)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert frechet_distance(cross @ turn, moved @ turn) == pytest.approx(15)


def test_sharpness_by_hand() -> None:
    """Squared differences of the first 2 x 2 image: 4, 4 horizontally and 9, 1 vertically."""
    images = torch.tensor([[[[0, 2], [3, 1]]], [[[5, 5], [5, 5]]], [[[0, 255], [0, 255]]]], dtype=torch.uint8)
    across, down = (4 + 4) / 2, (9 + 1) / 2
    assert sharpness(images).tolist() == [across + down, 0.0, 255.0**2]


def test_the_interval_of_a_share() -> None:
    """The half-width is 1.96 sqrt(p (1 - p) / N) for N answers, clipped to the range of a share."""
    right = np.array([1.0] * 300 + [0.0] * 100)
    found = estimate(np.mean, right, draws=4000, seed=0, high=1.0)
    assert found.value == 0.75
    assert found.high - 0.75 == pytest.approx(0.75 - found.low) == pytest.approx(1.96 * (0.1875 / 400) ** 0.5, rel=0.05)
    assert found == estimate(np.mean, right, draws=4000, seed=0, high=1.0)
    assert estimate(np.mean, np.ones(5), draws=50, seed=0, high=1.0) == Estimate(1.0, 1.0, 1.0)
    few = estimate(np.mean, np.array([1.0, 1.0, 0.0]), draws=50, seed=0, high=1.0)
    assert few.high == 1.0 and few.low < 0.3
    assert estimate(np.mean, right, draws=0, seed=0) == Estimate(0.75, 0.75, 0.75)


def seen(features: list[float], answers: list[int] | None, labels: list[int], nearest: list[float], sharp: list[float]):
    judged = Judged(torch.tensor(features)[:, None], None if answers is None else torch.tensor(answers))
    return Measured(judged, torch.tensor(labels), torch.tensor(nearest), torch.tensor(sharp).double())


def test_a_row_by_hand() -> None:
    held = seen([-1.0, 1.0, 0.0, 0.0], [0, 1, 1, 1], [0, 1, 0, -100], [3.0, 5.0, 4.0, 9.0], [1.0, 3.0, 2.0, 2.0])
    drawn = seen([2.0, 3.0, 3.0, 4.0], [1, 1, 0, 0], [1, 0, 0, 0], [2.0, 3.0, 6.0, 5.0], [1.0, 1.0, 1.0, 1.0])
    row = row_of("samples", drawn, held, Bootstrap(0, 0))
    assert row.num_images == 4 and row.frechet is not None and row.accuracy is not None
    assert row.frechet.value == pytest.approx(9.0, abs=1e-6)  # means 0 and 3, the same variance
    assert row.accuracy.value == 0.75 and row.nearest.value == 4.0 and row.sharpness.value == 0.5
    assert row.copies.value == 0.5  # two are no farther than 3, the smallest distance of a held-out image
    real = row_of("held-out", held, held, Bootstrap(0, 0))
    assert real.frechet is None and real.accuracy is not None and real.sharpness.value == 1.0
    assert real.accuracy.value == pytest.approx(2 / 3)  # the image without a class is ignored
    assert (
        row_of("samples", drawn._replace(judged=Judged(drawn.judged.features, None)), held, Bootstrap(0, 0)).accuracy
        is None
    )
    with pytest.raises(ConfigError, match="all held-out images are of one colour"):
        row_of("samples", drawn, held._replace(sharpness=torch.zeros(4)), Bootstrap(0, 0))


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = ViTNepaConfig(**sizes, num_channels=3, id2label={0: "cat", 1: "dog", 2: "owl"})
    ViTNepaForImageClassification(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_features_before_the_last_layer_and_classes_by_name(classifier: Path) -> None:
    model = ViTNepaForImageClassification.from_pretrained(classifier).eval()
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    features, logits = last_features(model, images.float() / 127.5 - 1)
    assert features.shape == (5, 16) and torch.allclose(model.classifier(features), logits, atol=1e-6)
    judge = open_judge(classifier, ["owl", "dog", "cat"], batch_size=2)
    found = judge.look(images)
    assert torch.allclose(found.features, features, atol=1e-5)
    assert found.answers is not None and found.answers.tolist() == (2 - logits.argmax(1)).tolist()
    assert judge.name == f"features before the last layer of the classifier {classifier}"
    with pytest.raises(ConfigError, match="classes that the model does not know"):
        open_judge(classifier, ["cat", "zebra"])
    grey = open_judge(classifier, ["cat", "dog"]).look(images[:, :1])  # fewer classes, and greyscale images
    assert grey.features.shape == (5, 16) and set(grey.answers.tolist()) <= {-1, 0, 1}  # type: ignore[union-attr]


def scores(copies: float, sharp: float, frechet: float = 5.0) -> SampleScores:
    def row(name: str, near: float, energy: float, distance: float | None) -> SampleRow:
        exact = lambda value: Estimate(value, value, value)  # noqa: E731
        far = None if distance is None else exact(distance)
        return SampleRow(name, 50, far, exact(0.5), exact(20.0), exact(near), exact(energy))

    rows = [row("samples", copies, sharp, frechet), row("held-out", 0.01, 1.0, None), row("training", 1.0, 1.0, 1.25)]
    return SampleScores("runs/a", "ema", "test", "features of a classifier", 64, 1000, rows)


def test_sentences(tmp_path: Path) -> None:
    found = scores(0.0, 0.5)
    said = " ".join(found.sentences())
    assert "Fréchet distance 5 to 50 test images, where as many training images have 1.25, in 64 features" in said
    assert "not more images than feature dimensions" in said and "not with the FID of papers" in said
    assert "smoother than real images (0.50, real ones 1)" in said and "No sign that it repeats" in said
    copying = scores(0.4, 1.0).memory()
    assert copying.startswith("It may repeat training images: 40.0 % of the samples") and "smooth" not in copying
    assert "smooth images are closer to all others" in scores(0.4, 0.5).memory()
    assert SampleScores.load(found.save(tmp_path / "samples.json")) == found
    with pytest.raises(KeyError):
        found["nothing"]
