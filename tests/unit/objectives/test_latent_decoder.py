"""The decoder is trained while the model is frozen; a saved decoder loads and checks its model."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from nextembed.core.config import validated
from nextembed.core.objective import OBJECTIVES, PretrainingModel
from nextembed.core.optim import OptimConfig
from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.nn.readout import to_patches
from nextembed.objectives import LatentDecoderSettings, load_decoder
from nextembed.objectives.latent_decoder import decoding_metrics
from nextembed.training.optim import build_optimizer

SMALL = {"width": 16, "num_layers": 1, "num_heads": 2}


def build(seed=0, patch=4, hidden=32, **settings):
    torch.manual_seed(seed)
    backbone = NepaModel(
        hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=patch,
        layerscale_value=0.5, drop_path_prob=0.5,
    ).build()  # fmt: skip
    objective = OBJECTIVES.parse({"kind": "latent_decoder", **SMALL, **settings}).build(backbone)
    return PretrainingModel(backbone, objective)


def batch(size=3):
    return {
        "pixel_values": torch.rand(size, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1,
        "latent_mask": torch.ones(size, 17, dtype=torch.bool),
    }


@pytest.mark.parametrize("source", ["latents", "predictions"])
@pytest.mark.parametrize("switches", [{}, {"distance": "l1"}, {"edge_weight": 0.5}], ids=str)
def test_the_decoder_is_trained_and_the_backbone_is_frozen(source, switches):
    model = build(source=source, **switches).train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.5, learning_rate=1e-2))
    losses = []
    for _ in range(5):
        model.train()  # as in the trainer: the objective must switch the frozen model to eval mode
        out = model(batch())
        assert out.num_targets == 48 and out.loss_sum.isfinite()
        losses.append(out.loss_sum.item())
        optimizer.zero_grad()
        out.loss_sum.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        if name.startswith("backbone."):
            assert parameter.grad is None and torch.equal(parameter, before[name]), name
        else:
            assert parameter.grad is not None and not torch.equal(parameter, before[name]), name


def test_loss_is_the_sum_of_unmasked_patch_errors():
    model = build().eval()
    made = batch()
    made["latent_mask"][1, 9:] = False
    out = model(made)
    z = model.backbone.embed(made).z[:, 1:]
    error = (model.objective.decoder(z, (4, 4)) - to_patches(made["pixel_values"], (4, 4))).square().mean(-1)
    error[1, 8:] = 0
    torch.testing.assert_close(out.loss_sum, error.sum())
    assert out.num_targets == 40 == model.objective.count_targets(made)


def test_edges_are_invariant_to_an_offset():
    objective = build(edge_weight=2.0, distance="mse").objective
    target = to_patches(batch()["pixel_values"], (4, 4))
    torch.testing.assert_close(objective.distance(target + 0.5, target), torch.full((3, 16), 0.25))
    found = target.clone()
    found[0, 0, 0] += 1  # one pixel changes one value and one edge per axis
    expected = 1 / 48 + 2 * (1 / 36 + 1 / 36)
    assert objective.distance(found, target)[0, 0] == pytest.approx(expected, rel=1e-4)


def test_predictions_are_aligned_with_patches():
    model = build(source="predictions").eval()
    made = batch()
    hidden = model.backbone.encode(model.backbone.embed(made), "causal").last
    expected = F.mse_loss(
        model.objective.decoder(hidden[:, :-1], (4, 4)), to_patches(made["pixel_values"], (4, 4)), reduction="none"
    )
    torch.testing.assert_close(model(made).loss_sum, expected.mean(-1).sum())


def test_metrics_by_hand():
    target = torch.zeros(1, 1, 8)
    target[0, 0, :4] = 1.0  # the first four values are constant, so their mean is exact
    target[0, 0, 4:] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = decoding_metrics(target + 0.2, target, torch.ones(1, 1, dtype=torch.bool), 2)
    assert found["psnr"] == pytest.approx(20.0, abs=1e-4)  # 10 log10(4 / 0.04)
    assert found["psnr_flat"] == pytest.approx(10 * torch.log10(torch.tensor(8.0)).item(), abs=1e-4)


def test_invalid_settings():
    with pytest.raises(ConfigError, match="num_heads 5 does not divide width 192"):
        validated(LatentDecoderSettings, {"num_heads": 5})
    with pytest.raises(ConfigError, match="Did you mean 'predictions'"):
        validated(LatentDecoderSettings, {"source": "prediction"})


def saved(folder, model):
    for name, (values, state) in model.objective.folders(model.objective.state_dict()).items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(values))
        save_file({n: t.contiguous() for n, t in state.items()}, folder / name / "model.safetensors")
    return folder


@pytest.mark.parametrize("source", ["latents", "predictions"])
def test_a_saved_decoder_loads_and_checks_its_model(tmp_path, source):
    model = build(source=source).eval()
    loaded = load_decoder(saved(tmp_path / "run", model))
    x = torch.randn(2, 16, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.decoder(x, (4, 4)), model.objective.decoder(x, (4, 4)))
    assert (loaded.source, loaded.name) == (source, "run") == (source, load_decoder(tmp_path / "run/decoder").name)
    assert loaded.check(model.backbone) == ""
    assert "run was trained on different weights" in loaded.check(build(seed=5).backbone)
    with pytest.raises(ConfigError, match=r"trained for hidden_size 32; the model has 64"):
        loaded.check(build(hidden=64).backbone)
    with pytest.raises(ConfigError, match=r"trained for patch_shape \[4, 4\]; the model has \[8, 8\]"):
        loaded.check(build(patch=8).backbone)


def test_loading_errors(tmp_path):
    with pytest.raises(ConfigError, match="no such decoder"):
        load_decoder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="contains no finished decoder"):
        load_decoder(tmp_path)
    folder = saved(tmp_path / "run", build())
    weights = folder / "decoder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ConfigError, match="cannot load the decoder in") as err:
        load_decoder(folder)
    assert "\n" not in str(err.value)
    (folder / "decoder/config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigError, match="contains no decoder: train one"):
        load_decoder(folder)
