"""iGPT and BEiT: the codebook, losses derived by hand, and masking."""

import math
from typing import Any

import pytest
import torch

from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.nn.quantize import Codebook
from nextembed.objectives.tokens import BeitSettings, IgptBertSettings, IgptSettings

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "layerscale_value": 1.0,
    "pos_embed_rescale": None,
}


def batch(pixels: torch.Tensor, **drawn: torch.Tensor) -> Any:
    return {"pixel_values": pixels, "latent_mask": torch.ones(len(pixels), 5, dtype=torch.bool), **drawn}


def test_k_means_finds_the_means_of_clusters_far_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = torch.cat([c + 0.1 * torch.randn(50, 2, generator=generator) for c in centres])
    book = Codebook(3, 2)
    book.fit(x, seed=3)
    found = book.codes[book.codes.sum(1).argsort()]
    assert torch.allclose(found[0], x[:50].mean(0), atol=1e-4)
    assert len(book.ids(x).view(3, 50).float().var(1).nonzero()) == 0  # each cluster has a single code
    assert torch.equal(book.decode(book.ids(book.codes)), book.codes)


def test_unused_codes_are_reassigned_and_too_few_vectors_are_an_error() -> None:
    book = Codebook(3, 1)
    book.fit(torch.tensor([[0.0]] * 50 + [[1.0]] * 50 + [[100.0]]))
    assert sorted(book.codes[:, 0].tolist()) == [0.0, 1.0, 100.0]
    with pytest.raises(ValueError, match="2 different vectors for 3 codes"):
        Codebook(3, 1).fit(torch.tensor([[0.0], [1.0], [1.0]]))


def test_a_zero_head_gives_the_log_of_the_number_of_codes() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    pixels = torch.randn(6, 1, 8, 8)
    for settings, drawn, num in (
        (IgptSettings(num_codes=5), {}, 6 * 4),
        (IgptBertSettings(num_codes=5), {"input_mask": torch.tensor([[False, True, False, False, True]] * 6)}, 6 * 2),
        (BeitSettings(num_codes=5), {"input_mask": torch.tensor([[False, True, False, True, False]] * 6)}, 6 * 2),
    ):
        objective: Any = settings.build(backbone)
        objective.prepare(backbone, [batch(pixels)])
        output = objective(backbone, batch(pixels, **drawn))
        assert float(output.loss_sum.detach()) == pytest.approx(num * math.log(5), rel=1e-5)
        assert output.num_targets == objective.count_targets(batch(pixels, **drawn)) == num


def test_igpt_does_not_see_the_patch_it_predicts_or_a_later_one() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    objective: Any = IgptSettings(num_codes=6).build(backbone)
    pixels = torch.randn(4, 1, 8, 8)
    objective.prepare(backbone, [batch(pixels)])

    def hidden(values: torch.Tensor) -> torch.Tensor:
        latents = backbone.embed(objective.quantised(batch(values)))
        return backbone.encode(latents.until(4), "causal").last

    before = hidden(pixels)
    for patch in range(4):
        changed = pixels.clone()
        top, left = patch // 2 * 4, patch % 2 * 4
        changed[..., top : top + 4, left : left + 4] = pixels.flip(0)[..., top : top + 4, left : left + 4]
        after = hidden(changed)
        assert torch.equal(after[:, : patch + 1], before[:, : patch + 1])
    shown = objective.quantised(batch(pixels))["pixel_values"]
    assert torch.equal(objective.tokens(batch(shown)), objective.tokens(batch(pixels)))


def test_beit_does_not_see_masked_patches_and_masks_the_same_number_in_each_image() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    objective: Any = BeitSettings(num_codes=6).build(backbone)
    pixels = torch.randn(4, 1, 8, 8)
    objective.prepare(backbone, [batch(pixels)])
    mask = torch.tensor([[False, False, True, False, False]] * 4)
    changed = pixels.clone()
    changed[..., :4, 4:] += 2.0  # the second patch is masked
    outputs = []
    for values in (pixels, changed):
        latents = backbone.embed(batch(values))
        z = torch.where(mask[..., None], objective.unknown, latents.z)
        outputs.append(backbone.encode(latents._replace(z=z), "full").last)
    assert torch.equal(*outputs)
    settings = BeitSettings(mask_rate=0.4, min_block=4)
    for seed in range(20):
        sample = {"pixel_values": torch.zeros(3, 32, 64), "latent_mask": torch.ones(1 + 8 * 16)}
        drawn = settings.draw(sample, torch.Generator().manual_seed(seed))["input_mask"]
        assert drawn.shape == (129,) and not drawn[0] and drawn.sum() == 51


def test_more_codes_than_patches_are_an_error() -> None:
    backbone = NepaModel(**SIZES).build()
    objective = IgptSettings(num_codes=500).build(backbone)
    with pytest.raises(ConfigError, match=r"objective.num_codes 500: the images of the first step have 8 different"):
        objective.prepare(backbone, [batch(torch.randn(2, 1, 8, 8))])


def test_the_verdict_compares_with_the_most_frequent_token() -> None:
    assert IgptSettings().verdict([{"token_top1": 0.2, "token_chance": 0.19}]).word == "undecided"
    assert IgptSettings().verdict([{"token_top1": 0.4, "token_chance": 0.19}]).word == "learning"


def test_igpt_bert_masks_random_patches() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    objective: Any = IgptBertSettings(num_codes=6).build(backbone)
    pixels = torch.randn(4, 1, 8, 8)
    objective.prepare(backbone, [batch(pixels)])
    torch.nn.init.normal_(objective.head.weight)
    changed = pixels.clone()
    changed[..., 4:, 4:] = pixels.flip(0)[..., 4:, 4:]  # the last patch
    assert not torch.equal(objective.tokens(batch(changed)), objective.tokens(batch(pixels)))
    kept, shown = objective.tokens(batch(pixels)), [objective.quantised(batch(x)) for x in (pixels, changed)]
    objective.tokens = lambda _: kept  # fixed targets, changed inputs
    objective.quantised = lambda given: given
    hidden = torch.tensor([[False, False, False, False, True]] * 4)
    first, second = (objective(backbone, {**x, "input_mask": hidden}).loss_sum for x in shown)
    assert torch.equal(first, second)
    seen = torch.tensor([[False, False, False, True, False]] * 4)
    first, second = (objective(backbone, {**x, "input_mask": seen}).loss_sum for x in shown)
    assert not torch.equal(first, second)

    sample = {"latent_mask": torch.ones(101)}
    shares = []
    for seed in range(200):
        drawn = IgptBertSettings().draw(sample, torch.Generator().manual_seed(seed))["input_mask"]
        assert drawn.shape == (101,) and drawn.dtype == torch.bool and not drawn[0]
        shares.append(float(drawn.float().sum()) / 100)
    assert sum(shares) / 200 == pytest.approx(0.15, abs=0.01)  # the standard error is 0.0025
    one = IgptBertSettings(mask_rate=1e-6).draw({"latent_mask": torch.ones(5)}, torch.Generator().manual_seed(0))
    assert one["input_mask"].sum() == 1
