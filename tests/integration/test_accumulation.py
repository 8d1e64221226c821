"""The weights do not depend on how a batch is divided."""

import pytest
import torch
from tiny import model, trainer

from nextembed.core.optim import OptimConfig
from nextembed.objectives.latent_decoder import LatentDecoderSettings
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.training.watch import Watcher

# With Adam's usual eps, a gradient of pure rounding noise (as for the bias of keys) would cause a full step; this
# larger eps keeps noise small.
OPTIM = OptimConfig(learning_rate=1e-1 * 16 / 256, warmup_steps=2, eps=1e-3)


def train(run_dir, micro_batch_size, objective=None, masked=False, optim=OPTIM):
    net = model(drop_path_prob=0.2, objective=objective)  # positions are also augmented by default
    run = trainer(run_dir, net, optim, micro_batch_size=micro_batch_size, max_steps=4)
    if masked:
        run.loader = (drop_latents(batch) for batch in run.loader)
    run.train()
    return dict(net.named_parameters()), run


def drop_latents(batch):
    """The number of targets varies between images, so a mean of means would be wrong."""
    batch["latent_mask"][:, 3:] = batch["pixel_values"][:, 0, 0, 0, None] > 0
    return batch


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("micro", [4, 1])
def test_accumulation_gives_the_weights_of_the_whole_batch(tmp_path, micro, masked):
    start = dict(model().named_parameters())
    whole, _ = train(tmp_path / "whole", None, masked=masked)
    parts, run = train(tmp_path / "parts", micro, masked=masked)
    assert run.num_micro_batches == 16 // micro
    for name, weight in whole.items():
        scale = weight.abs().max()
        assert (parts[name] - weight).abs().max() <= 5e-6 * scale, name
    moved = max((whole[n] - start[n]).abs().max() for n in whole)
    assert moved > 1e-3


def test_gradient_of_accumulation_equals_that_of_the_whole_batch(tmp_path):
    """Up to float precision, before Adam amplifies small differences."""
    gradients = []
    for micro in (16, 4):
        run = trainer(tmp_path / str(micro), model(), micro_batch_size=micro, max_steps=1)
        seen = {}
        run.optimizer.register_step_pre_hook(
            lambda *_, run=run, seen=seen: seen.update({n: p.grad.clone() for n, p in run.model.named_parameters()})
        )
        run.train()
        gradients.append(seen)
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-5, atol=1e-6 * float(whole.abs().max()))


def test_logged_loss_is_the_mean_over_all_targets(tmp_path):
    lines = []

    class Keep(Watcher):
        def logged(self, loop, line):
            lines.append(line)

    for micro in (16, 2):
        net = model()
        run = trainer(tmp_path / str(micro), net, micro_batch_size=micro, max_steps=2, watchers=[Keep()])
        run.loader = (drop_latents(batch) for batch in run.loader)
        run.train()
    assert lines[0]["loss"] == pytest.approx(lines[2]["loss"], rel=1e-5)
    assert lines[1]["loss"] == pytest.approx(lines[3]["loss"], rel=1e-5)


def test_info_nce_with_accumulation(tmp_path):
    whole, _ = train(tmp_path / "whole", None, NextEmbeddingSettings(distance="info_nce"))
    parts, _ = train(tmp_path / "parts", 4, NextEmbeddingSettings(distance="info_nce"))
    for name, weight in whole.items():
        assert (parts[name] - weight).abs().max() <= 5e-6 * weight.abs().max(), name


def test_muon_with_accumulation_up_to_bf16_precision(tmp_path):
    muon = OPTIM.model_copy(update={"kind": "muon"})
    start = dict(model().named_parameters())
    whole, _ = train(tmp_path / "whole", None, optim=muon)
    parts, _ = train(tmp_path / "parts", 4, optim=muon)
    for name, weight in whole.items():
        assert torch.linalg.norm(parts[name] - weight) <= 0.05 * torch.linalg.norm(weight - start[name]) + 1e-6, name


def test_averages_of_a_frozen_backbone_equal_its_weights(tmp_path):
    net = model(objective=LatentDecoderSettings(width=8, num_layers=1, num_heads=2))
    before = {n: p.clone() for n, p in net.backbone.named_parameters()}
    run = trainer(tmp_path, net, ema_decay=0.9, max_steps=2)
    run.train()
    run.save_folders()
    for n, p in net.backbone.named_parameters():
        assert torch.equal(p, before[n])
