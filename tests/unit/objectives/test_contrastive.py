"""CPC: candidates and loss derived by hand, and causality of the context."""

import math
from typing import Any

import pytest
import torch

from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.objectives.contrastive import CpcSettings, candidates

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
                         "patch_size": 4, "num_channels": 1, "pos_embed_rescale": None}  # fmt: skip


def test_candidates_are_the_own_image_and_the_same_position_in_others() -> None:
    keys = torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]], [[100.0], [200.0]]])  # [3 images, 2 places, 1]
    pred = torch.ones(3, 2, 1)
    found = candidates(pred, keys, torch.ones(3, 2, dtype=torch.bool))
    assert found.shape == (3, 2, 4)
    assert found[0].tolist() == [[1, 2, 10, 100], [1, 2, 20, 200]]
    assert found[1].tolist() == [[10, 20, 1, 100], [10, 20, 2, 200]]
    assert found[2].tolist() == [[100, 200, 1, 10], [100, 200, 2, 20]]


def test_padding_is_not_a_candidate() -> None:
    keys, mask = torch.ones(2, 2, 1), torch.tensor([[True, False], [True, True]])
    found = candidates(torch.ones(2, 2, 1), keys, mask)
    assert found[0, 0].tolist() == [1, -math.inf, 1] and found[1, 1].tolist() == [1, 1, -math.inf]


def test_equal_scores_give_the_log_of_the_number_of_candidates() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    objective = CpcSettings(steps=2).build(backbone)
    for weight in objective.weights:
        torch.nn.init.zeros_(weight.weight)
    pixels = torch.randn(3, 1, 8, 8)
    batch: Any = {"pixel_values": pixels, "latent_mask": torch.ones(3, 5, dtype=torch.bool)}
    output = objective(backbone, batch)
    # for each of 3 images: k=1 has 4 positions with 4 + 2 candidates; k=2 has 3 positions with 3 + 2 candidates
    assert float(output.loss_sum) == pytest.approx(3 * (4 * math.log(6) + 3 * math.log(5)), rel=1e-5)
    assert output.num_targets == objective.count_targets(batch) == 3 * 7
    total, count = output.metrics["contrast_chance"]
    assert float(total / count) == pytest.approx((4 / 6 + 3 / 5) / 7, rel=1e-5)


def test_the_context_does_not_depend_on_the_target() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    pixels = torch.randn(2, 1, 8, 8)
    changed = pixels.clone()
    changed[..., 4:, 4:] += 3.0  # the last of four patches
    contexts = []
    for values in (pixels, changed):
        latents = backbone.embed({"pixel_values": values})
        contexts.append(backbone.encode(latents.until(4), "causal").last)
    assert torch.equal(contexts[0], contexts[1])


def test_more_steps_than_patches_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"objective.steps 4: an image has only 4 patches"):
        CpcSettings(steps=4).build(NepaModel(**SIZES).build())


def test_the_verdict_compares_with_chance() -> None:
    assert CpcSettings().verdict([{"contrast_top1": 0.11, "contrast_chance": 0.1}]).word == "undecided"
    assert CpcSettings().verdict([{"contrast_top1": 0.5, "contrast_chance": 0.1}]).word == "learning"
