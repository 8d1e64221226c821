"""AIM and MAE: losses derived by hand, and masking."""

from typing import Any

import pytest
import torch

from nextembed.core.types import Batch, Prefix
from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.nn.readout import to_patches
from nextembed.objectives.pixels import AimSettings, MaeSettings, compared, pixel_targets

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


def images(num: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def batch(pixels: torch.Tensor, **drawn: torch.Tensor) -> Batch:
    return {"pixel_values": pixels, "latent_mask": torch.ones(len(pixels), 5, dtype=torch.bool), **drawn}  # type: ignore[typeddict-item]


def test_targets_have_mean_0_and_unbiased_variance_1() -> None:
    values = torch.arange(16.0).view(1, 1, 4, 4)
    (target,) = pixel_targets(values, (4, 4), True)[0]
    mean, variance = 7.5, sum((i - 7.5) ** 2 for i in range(16)) / 15
    expected = [(i - mean) / (variance + 1e-6) ** 0.5 for i in range(16)]
    assert torch.allclose(target, torch.tensor(expected), atol=1e-6)
    assert torch.equal(pixel_targets(values, (4, 4), False), to_patches(values, (4, 4)))


def test_the_loss_is_the_mean_over_values_summed_over_patches() -> None:
    pred = torch.tensor([[[1.0, 1.0], [0.0, 2.0], [5.0, 5.0]]])
    target = torch.tensor([[[1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, True, False]])
    output = compared(pred, target, mask, diagnose=True)
    # ((1-1)^2 + (1+1)^2) / 2 = 2 and (0 + 4) / 2 = 2; the third patch does not count
    assert output.loss_sum == 4.0 and output.num_targets == 2
    assert output.metrics is not None and output.metrics["explained"] == 1 - 4.0 / 1.0  # the first patch has variance 1


def test_the_mean_of_a_patch_explains_nothing() -> None:
    target = pixel_targets(images(), (4, 4), True)
    output = compared(torch.zeros_like(target), target, torch.ones(3, 4, dtype=torch.bool), diagnose=True)
    assert output.metrics is not None and abs(float(output.metrics["explained"])) < 1e-5


@pytest.mark.parametrize("prefix", [1, 2, 3])
def test_aim_predictions_do_not_depend_on_the_patch_or_later_ones(prefix: int) -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    objective = AimSettings().build(backbone)
    drawn = {"prefix_length": torch.full((3,), prefix)}

    def predictions(pixels: torch.Tensor) -> torch.Tensor:
        latents = backbone.embed(batch(pixels))
        return objective.head(backbone.encode(latents.until(4), Prefix(drawn["prefix_length"] + 1)).last)

    pixels = images()
    before = predictions(pixels)
    for patch in range(prefix, 4):  # in raster order, 4 x 4 pixels each
        changed = pixels.clone()
        top, left = patch // 2 * 4, patch % 2 * 4
        changed[..., top : top + 4, left : left + 4] += 3.0
        after = predictions(changed)
        assert torch.allclose(after[:, prefix : patch + 1], before[:, prefix : patch + 1], atol=1e-5)
        if patch + 1 < 4:
            assert not torch.allclose(after[:, patch + 1], before[:, patch + 1], atol=1e-5)
    early = pixels.clone()
    early[..., :4, :4] += 3.0  # the first patch is in the prefix, so every prediction may depend on it
    assert not torch.allclose(predictions(early)[:, prefix], before[:, prefix], atol=1e-5)


def test_aim_counts_patches_after_the_prefix() -> None:
    objective = AimSettings().build(NepaModel(**SIZES).build())
    drawn = {"prefix_length": torch.tensor([1, 2, 3])}
    assert objective.count_targets(batch(images(), **drawn)) == 3 + 2 + 1
    sample, settings = {"latent_mask": torch.ones(5)}, AimSettings()
    drawn_lengths = [settings.draw(sample, torch.Generator().manual_seed(i))["prefix_length"] for i in range(60)]
    assert set(map(int, drawn_lengths)) == {1, 2, 3}


def test_mae_drops_patches_and_predictions_do_not_depend_on_them() -> None:
    torch.manual_seed(0)
    backbone = NepaModel(**SIZES).build().eval()
    settings = MaeSettings(decoder_width=16, decoder_heads=2, decoder_layers=1)
    objective = settings.build(backbone).eval()
    kept = settings.draw({"latent_mask": torch.ones(5)}, torch.Generator().manual_seed(1))["kept"]
    assert kept[0] == 0 and len(kept) == 2  # one of four patches is visible
    assert (kept.diff() > 0).all()
    drawn = {"kept": kept.expand(3, -1)}
    assert objective.count_targets(batch(images(), **drawn)) == 9

    def predictions(pixels: torch.Tensor) -> torch.Tensor:
        latents = backbone.embed(batch(pixels))
        hidden = backbone.encode(latents.take(drawn["kept"]), "full").last
        return objective.decoder(hidden, drawn["kept"], latents.coordinates)[:, 1:]

    pixels, left = images(), int(kept[1]) - 1
    before = predictions(pixels)
    changed = pixels + 2.0
    top, side = left // 2 * 4, left % 2 * 4
    changed[..., top : top + 4, side : side + 4] = pixels[..., top : top + 4, side : side + 4]
    assert torch.allclose(predictions(changed), before, atol=1e-5)  # only dropped patches differ
    seen = pixels.clone()
    seen[..., top : top + 4, side : side + 4] += 2.0
    assert not torch.allclose(predictions(seen), before, atol=1e-4)


def test_invalid_image_sizes_and_heads() -> None:
    small = NepaModel(**{**SIZES, "image_size": 4, "patch_size": 4}).build()
    for settings in (AimSettings(), MaeSettings()):
        with pytest.raises(ConfigError, match="needs four patches or more"):
            settings.build(small)
    with pytest.raises(ConfigError, match="decoder_heads 3 does not divide"):
        MaeSettings(decoder_heads=3).build(NepaModel(**SIZES).build())


def test_the_verdict_depends_on_the_explained_variance() -> None:
    assert AimSettings().verdict([{"explained": 0.01}]).word == "undecided"
    assert AimSettings().verdict([{"explained": 0.4}]).word == "learning"
    assert MaeSettings().verdict([{"loss": 1.0}]).word == "undecided"
