"""MAR: masks, loss, visibility of masked patches, and sampling."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextembed.core.objective import SampleSettings
from nextembed.core.randomness import drawn_by, normal
from nextembed.core.types import Batch
from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.nn.readout import to_patches
from nextembed.objectives.mar import NOISE, Mar, MarSettings, drawn_after, masked_share

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 1,
    "layerscale_value": 1.0,
    "pos_embed_rescale": None,
}
SMALL: dict[str, Any] = {"decoder_width": 16, "decoder_heads": 2, "decoder_layers": 1, "head_blocks": 1}


def built(**settings: Any) -> tuple[Any, Mar]:
    """A backbone and objective in eval mode, without zero parameters."""
    torch.manual_seed(0)
    backbone: Any = NepaModel(**SIZES).build().eval()
    objective = MarSettings(**SMALL, **settings).build(backbone).eval()
    with torch.no_grad():
        for parameter in objective.painter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone, objective


def images(num: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(num, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def batch(settings: MarSettings, pixels: Tensor, seed: int = 0) -> Batch:
    sample = {"latent_mask": torch.ones(17, dtype=torch.bool)}
    rows = [settings.draw(sample, torch.Generator().manual_seed(seed + i)) for i in range(len(pixels))]
    drawn = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    valid = torch.ones(len(pixels), 17, dtype=torch.bool)
    return {"pixel_values": pixels, "latent_mask": valid, "labels": torch.arange(len(pixels)), **drawn}  # type: ignore[typeddict-item]


class Fixed(nn.Module):
    """Replaces the network of a head; it returns zeros."""

    def forward(self, x: Tensor, hidden: Tensor, time: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_mask_rates_follow_the_truncated_normal() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([masked_share(generator) for _ in range(2000)])
    assert shares.min() >= 0.7 and shares.max() <= 1
    # normal truncated to [mean - 1.2 sd, mean]: 1 - 0.25 (phi(0) - phi(1.2)) / (1/2 - Phi(-1.2))
    density = [math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) for x in (0.0, 1.2)]
    expected = 1 - 0.25 * (density[0] - density[1]) / (0.5 - 0.5 * (1 + math.erf(-1.2 / math.sqrt(2))))
    assert float(shares.mean()) == pytest.approx(expected, abs=0.005)


def test_draws_of_a_sample_are_consistent() -> None:
    settings, sample = MarSettings(num_classes=3), {"latent_mask": torch.ones(17)}
    counts, dropped = set(), 0
    for seed in range(200):
        drawn = settings.draw(sample, torch.Generator().manual_seed(seed))
        mask, kept = drawn["input_mask"], drawn["kept"]
        counts.add(int(mask.sum()))
        dropped += int(drawn["class_dropped"])
        assert not mask[0] and kept[0] == 0 and len(kept) == 1 + 4 and len(kept.unique()) == 5
        seen = ~mask[kept]
        assert int(seen.sum()) == 17 - int(mask.sum())  # all unmasked patches are kept
        assert (seen.int().diff() <= 0).all()  # masked patches come last
    assert counts == {12, 13, 14, 15, 16}
    assert 8 <= dropped <= 35


def test_the_loss_by_hand() -> None:
    """For a head that predicts zero, the error is the mean square of x - e over masked patches and draws."""
    backbone, objective = built(draws=2)
    objective.painter.head.network = Fixed()  # type: ignore[assignment, attr-defined]
    one = batch(objective.settings, images())
    objective.prepare(backbone, [one])
    seeds = torch.tensor([5, 6, 7])
    with drawn_by(seeds):
        output = objective(backbone, one)
        noise = normal(3, 16 * 2 * 17, NOISE, torch.device("cpu")).view(3, 16, 2, 17)[..., :16]
    pixels = one["pixel_values"]
    target = to_patches((pixels - pixels.mean()) / pixels.std(correction=0), (4, 4))
    errors = (target[:, :, None] - noise).square().mean((-1, -2))  # [B, P]
    masked = one["input_mask"][:, 1:]
    assert output.num_targets == masked.sum() == objective.count_targets(one)
    assert torch.allclose(output.loss_sum, errors[masked].sum(), rtol=1e-5)


def test_hidden_patches_are_not_seen() -> None:
    backbone, objective = built()
    one = batch(objective.settings, images(), seed=3)
    valid = ~one["input_mask"].gather(1, one["kept"])
    assert int(valid[0].sum()) > 1  # some patches are visible

    def states(pixels: Tensor) -> Tensor:
        latents = backbone.embed({"pixel_values": pixels})
        return objective.painter(backbone, latents, one["kept"], valid, one["labels"])

    hidden = one["input_mask"][:, 1:].view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    before, pixels = states(images()), images()
    assert torch.allclose(states(pixels + 3.0 * hidden), before, atol=1e-5)
    assert not torch.allclose(states(pixels + 3.0 * ~hidden), before, atol=1e-3)


def test_images_with_different_mask_rates_are_independent() -> None:
    """Rows with fewer visible patches are padded, which has no effect."""
    backbone, objective = built()
    one = batch(objective.settings, images(6))
    assert len(one["input_mask"].sum(1).unique()) > 1
    latents, kept = backbone.embed(one), one["kept"]
    valid = ~one["input_mask"].gather(1, kept)
    together = objective.painter(backbone, latents, kept, valid, one["labels"])
    for row in range(6):
        own = kept[row : row + 1, : int(valid[row].sum())]
        part = latents._map(lambda x, row=row: x[row : row + 1])
        alone = objective.painter(
            backbone, part, own, torch.ones_like(own, dtype=torch.bool), one["labels"][row : row + 1]
        )
        assert torch.allclose(alone[0], together[row], atol=1e-5)


def test_the_schedule_generates_each_patch_once_and_few_at_first() -> None:
    assert drawn_after(16, 4) == [0, 2, 5, 10, 16]  # 16 cos(pi / 8) = 14.8, 11.3, 6.1
    assert drawn_after(5, 100) == [0, 1, 2, 3, 4, 5]
    assert drawn_after(9, 1) == [0, 9]


def test_images_are_sampled_by_class_with_averaged_weights() -> None:
    backbone, objective = built(num_classes=3, ema_decay=0.5)
    objective.after_step(backbone, 1, 10)
    told: Batch = {"labels": torch.tensor([0, 1, -100])}

    def draw(labels: Batch = told, **settings: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        chosen = SampleSettings(num_steps=3, num_denoising_steps=2, **settings)
        return objective.sample(backbone, labels, chosen, generator)

    first = draw()
    assert first.shape == (3, 1, 16, 16) and torch.equal(draw(), first)
    other = draw({"labels": torch.tensor([2, 1, -100])})
    assert torch.allclose(other[1:], first[1:], atol=1e-5) and not torch.allclose(other[0], first[0], atol=1e-4)
    without = draw(guidance=4.0)
    assert not torch.allclose(without[0], first[0], atol=1e-4)
    assert torch.allclose(without[2], first[2], atol=1e-4)  # without a class, guidance has no effect
    assert objective.averaged is not None
    with torch.no_grad():
        for parameter in objective.averaged.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(draw(), first, atol=1e-3)


def test_invalid_settings() -> None:
    backbone, objective = built(num_classes=2)
    with pytest.raises(ConfigError, match="num_classes 2: the data has a class 2"):
        objective(backbone, batch(objective.settings, images()))
    with pytest.raises(ConfigError, match="decoder_heads 3 does not divide"):
        MarSettings(decoder_heads=3).build(backbone)
    small = NepaModel(**{**SIZES, "image_size": 4}).build()
    with pytest.raises(ConfigError, match="needs four patches or more"):
        MarSettings().build(small)


def test_the_verdict_depends_on_the_gain_from_context() -> None:
    assert MarSettings().verdict([{"context_gain": 0.0}]).word == "undecided"
    assert MarSettings().verdict([{"context_gain": 0.3}]).word == "learning"
    assert "30.0 %" in MarSettings().verdict([{"context_gain": 0.3}]).sentence
