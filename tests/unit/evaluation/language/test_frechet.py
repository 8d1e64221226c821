"""Fréchet distance against closed forms; retrieval ranks; feature spaces of saved models."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from nextembed.errors import ConfigError
from nextembed.evaluation.images import feature_space, frechet_distance, retrieval_ranks


def test_distance_of_shifted_and_scaled_sets():
    """A shift by d adds |d|^2; scaling by s turns trace(C + s^2 C - 2 s C) into (1 - s)^2 trace C."""
    x = np.random.default_rng(0).normal(size=(50, 6))
    x -= x.mean(0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + np.array([3, 0, 4, 0, 0, 0])) == pytest.approx(25)
    assert frechet_distance(x, 3 * x) == pytest.approx(4 * np.trace(np.cov(x, rowvar=False)))


def test_distance_equals_the_matrix_square_root_formula():
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(40, 5)) @ draw.normal(size=(5, 5)), draw.normal(size=(60, 5)) + 1
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(0) - y.mean(0)
    wanted = gap @ gap + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(torch.tensor(x), torch.tensor(y)) == pytest.approx(frechet_distance(y, x), rel=1e-9)


def test_fewer_images_than_features():
    """Two points each on orthogonal axes: the rank-1 covariances do not overlap, so the traces add up."""
    x, y = np.zeros((2, 100)), np.zeros((2, 100))
    x[:, 0], y[:, 1] = (-1, 1), (-2, 2)
    assert frechet_distance(x, y) == pytest.approx(2 + 8)


@pytest.mark.parametrize("shapes", [((1, 3), (4, 3)), ((4, 3), (4, 2)), ((4,), (4,))])
def test_invalid_shapes(shapes):
    with pytest.raises(ValueError, match="two sets"):
        frechet_distance(*(np.zeros(shape) for shape in shapes))


def test_retrieval_ranks():
    real = torch.eye(3)
    painted = torch.tensor([[5.0, 0, 0], [0.9, 0.5, 0.1], [1.0, 1.0, 1.0]])
    assert retrieval_ranks(painted, real).tolist() == [1, 2, 3]  # ties keep their order


def test_space_of_a_clip_folder_is_its_image_embedding(tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=small, vision_config=vision, projection_dim=8))
    model.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(tmp_path)
    images = [Image.new("RGB", (20, 20), color) for color in ("red", "blue", "white")]
    space = feature_space(tmp_path, batch_size=2)
    assert space.encode(images).shape == (3, 8) and "clip" in space.name
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="features: cannot load"):
        feature_space(tmp_path)


def test_space_of_a_nepa_run_names_layer_and_pooling(saved):
    images = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    space = feature_space(saved / "run")
    assert space.encode(images).shape == (2, 16)
    assert "layer 1" in space.name and "mean" in space.name
