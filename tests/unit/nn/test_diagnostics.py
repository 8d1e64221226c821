"""Diagnostics: closed forms, and detection of failures in real training."""

import pytest
import torch

from nextembed.core.objective import PretrainingModel
from nextembed.models.nepa import NepaModel
from nextembed.nn.diagnostics import diagnose, effective_rank, peaks, spread, verdict, warnings
from nextembed.objectives import NextEmbeddingSettings


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_effective_rank_counts_equal_directions():
    basis, _ = torch.linalg.qr(rand(64, 64))
    x = torch.cat((basis[:5], -basis[:5]))  # five directions of equal variance, already centred
    assert effective_rank(x).item() == pytest.approx(5.0, abs=0.01)
    assert effective_rank(x + 100).item() == pytest.approx(5.0, abs=0.05)  # an offset does not count


def test_effective_rank_agrees_with_singular_values():
    x = rand(200, 16) @ rand(16, 16, seed=1)
    p = torch.linalg.svdvals(x - x.mean(0))
    p = p / p.sum()
    assert effective_rank(x).item() == pytest.approx(torch.exp(-(p * p.log()).sum()).item(), rel=1e-3)


def test_effective_rank_of_one_point_is_one_or_less():
    assert effective_rank(torch.ones(10, 4)).item() <= 1.0 + 1e-6


def test_spread_is_zero_for_one_direction_and_one_when_directions_cancel():
    one = rand(1, 8)
    assert spread(torch.cat((one, 2 * one, 3 * one))).item() == pytest.approx(0.0, abs=1e-3)
    assert spread(torch.cat((one, -one))).item() == pytest.approx(1.0, abs=1e-6)


def test_diagnose_a_perfect_prediction_and_a_perfect_copy():
    z = rand(4, 9, 32)
    perfect = diagnose(z, z, torch.cat((z[:, 1:], z[:, :1]), 1), z)
    assert perfect["cos_next"].item() == pytest.approx(1.0, abs=1e-5)
    assert perfect["copy_win"].item() == 0.0
    assert perfect["cos_current"].item() == pytest.approx(perfect["cos_neighbours"].item(), abs=1e-5)
    copied = diagnose(z, z, z, z)
    assert copied["cos_current"].item() == pytest.approx(1.0, abs=1e-5)
    assert copied["copy_win"].item() == 1.0


def train(steps=120, learning_rate=3e-3, **switches):
    """Diagnostics at every tenth step of a tiny model on smooth random images."""
    torch.manual_seed(0)
    backbone = NepaModel(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        num_channels=1,
        layerscale_value=1.0,
    ).build()
    objective = NextEmbeddingSettings(**switches).build(backbone)
    model = PretrainingModel(backbone, objective).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    coarse = rand(64, 1, 4, 4)
    pictures = torch.nn.functional.interpolate(coarse, size=16, mode="bicubic")
    history = []
    for step in range(steps):
        rows = torch.randint(64, (32,))
        out = model({"pixel_values": pictures[rows], "latent_mask": torch.ones(32, 17, dtype=torch.bool)})
        (out.loss_sum / out.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            history.append({name: value.item() for name, value in out.metrics.items()})
    return history


def test_collapse_without_stop_gradient_is_detected():
    history = train(stop_gradient=False)
    assert any(text.startswith("collapsed") for text in warnings(history[-1], peaks(history)))
    assert verdict(history).word == "collapsed"
    assert history[-1]["cos_next"] > 0.95  # the loss alone would look like success


def test_copying_without_shift_is_detected():
    history = train(shift=False)
    assert any(text.startswith("copying") for text in warnings(history[-1], peaks(history)))
    assert verdict(history).word == "copying"


def test_learning_is_recognised_without_warnings():
    history = train()
    assert verdict(history).word == "learning"
    assert not [text for text in warnings(history[-1]) if text.startswith(("collapsed", "copying"))]


def test_loss_of_rank_is_reported_against_the_peak():
    row = {"latent_std": 0.9, "latent_rank": 9.0, "hidden_rank": 30.0}
    row |= {"cos_next": 0.8, "cos_current": 0.3, "cos_gap": 0.5}
    assert warnings(row) == []
    found = warnings(row, {"latent_rank": 20.0, "hidden_rank": 34.0})
    assert len(found) == 1 and found[0].startswith("losing rank: the latents use 9.0 directions, down from 20.0")
    word, sentence = verdict([{**row, "latent_rank": 20.0}, row])
    assert word == "learning" and "losing rank" in sentence


def test_latents_that_outgrow_the_others_are_reported():
    row = {
        "cos_next": 0.8,
        "cos_current": 0.5,
        "cos_gap": 0.3,
        "length/begin": 0.3,
        "length/text": 0.4,
        "length/image": 9.0,
    }
    (found,) = warnings(row)
    assert found.startswith("outgrown: latents of image have 30 times the norm") and "{modalities.image: 0.1}" in found
    word, sentence = verdict([row])
    assert word == "learning" and "latents of image have 30 times" in sentence
    assert not warnings(row | {"length/image": 3.0})


def test_ranks_during_copying_are_not_peaks():
    early = {"cos_gap": -0.4, "latent_rank": 60.0, "hidden_rank": 100.0}
    later = {"cos_gap": 0.3, "latent_rank": 20.0, "hidden_rank": 30.0}
    assert peaks([early, later]) == {"latent_rank": 20.0, "hidden_rank": 30.0}


def test_slow_collapse_is_detected_early():
    # from the log of a run without stop-gradient on Fashion-MNIST after 400 steps
    row = {"cos_next": 0.99, "cos_current": 0.98, "cos_gap": 0.01, "copy_win": 0.31, "cos_neighbours": 0.98}
    row |= {"latent_std": 0.19, "latent_rank": 18.4, "hidden_rank": 12.7}
    assert verdict([row]).word == "collapsed"


def test_no_diagnostics_is_undecided():
    assert verdict([]).word == "undecided"
    assert verdict([{"loss": 1.0}]).word == "undecided"
    assert warnings({}) == []
