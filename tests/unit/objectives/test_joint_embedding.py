"""SimSiam and LeJEPA: formulas, stop-gradient, collapse."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.objectives.joint_embedding import LeJepaSettings, SimSiamSettings, batch_sigreg

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
                         "patch_size": 4, "num_channels": 1, "layerscale_value": 1.0}  # fmt: skip


def views(num: int, local: int = 0) -> Any:
    generator = torch.Generator().manual_seed(0)
    found = {"global_views": torch.randn(num, 2, 1, 8, 8, generator=generator)}
    return found | ({"local_views": torch.randn(num, local, 1, 4, 4, generator=generator)} if local else {})


def test_sigreg_follows_its_equation() -> None:
    """N = 3 points in one dimension, with the trapezoidal rule written out."""
    points = torch.tensor([[0.5], [-1.0], [2.0]])
    knots = [3 * i / 16 for i in range(17)]
    values = []
    for t in knots:
        real = sum(math.cos(t * float(x)) for x in points) / 3 - math.exp(-t * t / 2)
        imaginary = sum(math.sin(t * float(x)) for x in points) / 3
        values.append((real**2 + imaginary**2) * math.exp(-t * t / 2))
    area = sum((a + b) / 2 * 3 / 16 for a, b in pairwise(values))
    assert float(batch_sigreg(points, torch.tensor([[2.0]]))) == pytest.approx(3 * 2 * area, rel=1e-5)


def test_sigreg_distinguishes_normal_vectors_at_any_batch_size() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(8, 64, generator=generator)
    small, large = (batch_sigreg(torch.randn(n, 8, generator=generator), directions) for n in (64, 1024))
    assert 0.5 < float(small / large) < 2  # scaled by N: for normal vectors it does not grow with N
    assert batch_sigreg(torch.zeros(64, 8), directions) > 10 * small  # collapsed
    assert batch_sigreg(5 * torch.randn(64, 8, generator=generator), directions) > 5 * small


def test_simsiam_follows_algorithm_1() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    objective = SimSiamSettings(width=8).build(backbone)
    batch = views(4)
    output = objective(backbone, batch)
    vectors = objective.vectors(backbone, batch, batch["global_views"])
    z1, z2 = (objective.projector(vectors[:, i]) for i in range(2))
    p1, p2 = objective.predictor(z1), objective.predictor(z2)
    expected = -(F.cosine_similarity(p1, z2) + F.cosine_similarity(p2, z1)).mean() / 2
    assert torch.allclose(output.loss_sum / output.num_targets, expected, atol=1e-5)
    assert output.num_targets == 4
    (grad,) = torch.autograd.grad(output.loss_sum, objective.predictor[0].weight, retain_graph=True)
    assert grad.abs().sum() > 0
    with torch.no_grad():
        stopped = [z1.clone(), z2.clone()]
    again = -(F.cosine_similarity(p1, stopped[1]) + F.cosine_similarity(p2, stopped[0])).sum() / 2
    weight = backbone.vit_nepa.embeddings.patch_embeddings.projection.weight
    ours, theirs = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (output.loss_sum, again))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_lejepa_follows_its_equation() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    settings = LeJepaSettings(width=4, num_directions=8, weight=0.3)
    objective = settings.build(backbone)
    batch = views(5, local=2)
    torch.manual_seed(7)
    output = objective(backbone, batch)
    torch.manual_seed(7)
    directions = torch.randn(4, 8)
    parts = [objective.projector(objective.vectors(backbone, batch, batch[n])) for n in ("global_views", "local_views")]
    z = torch.cat(parts, 1)
    centre = parts[0].mean(1, keepdim=True)
    distance = (z - centre).square().mean()
    gaussian = sum(batch_sigreg(z[:, v], directions) for v in range(4)) / 4
    assert torch.allclose(output.loss_sum / output.num_targets, 0.7 * distance + 0.3 * gaussian, rtol=1e-4)


def test_mismatched_settings() -> None:
    backbone = NepaModel(**SIZES).build()
    settings = SimSiamSettings(width=8)
    objective = settings.build(backbone).train()
    with pytest.raises(ConfigError, match="micro_batch_size should be 2 or more"):
        objective(backbone, views(1))
    crops = settings.crops.model_copy(update={"num_global": 3})
    with pytest.raises(ConfigError, match="compares two crops"):
        SimSiamSettings(crops=crops).build(backbone)
    with pytest.raises(ConfigError, match="two or more"):
        LeJepaSettings(crops=crops.model_copy(update={"num_global": 1})).build(backbone)


def test_collapse_is_detected() -> None:
    backbone = NepaModel(**SIZES).build()
    objective = SimSiamSettings(width=8).build(backbone)
    alike = torch.ones(16, 8)
    metrics = {k: float(v) for k, v in objective.metrics_of(alike, alike).items()}
    assert objective.settings.verdict([metrics]).word == "collapsed"
    apart = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    metrics = {k: float(v) for k, v in objective.metrics_of(apart, apart + 0.01).items()}
    assert objective.settings.verdict([metrics]).word == "learning" and metrics["embedding_spread"] > 0.9
