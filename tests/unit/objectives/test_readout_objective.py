"""Readouts are trained while the model is frozen; saved readouts load and check their model."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nextembed.core.config import validated
from nextembed.core.objective import OBJECTIVES, PretrainingModel
from nextembed.core.optim import OptimConfig
from nextembed.errors import ConfigError
from nextembed.models.nepa import NepaModel
from nextembed.models.omni import OmniParts
from nextembed.objectives.readout import ReadoutSettings, load_readouts, readout_metrics
from nextembed.training.optim import build_optimizer

MODALITIES = {
    "text": {},
    "image": {"image_size": 8, "patch_size": 2},
    "touch": {"kind": "series", "channels": 2, "patch_size": 3},
}
CASES = [(source, decoder) for source in ("latents", "predictions") for decoder in ("linear", "mlp", "conv")]


def parts(hidden=32, modalities=MODALITIES, **settings):
    return OmniParts(modalities=modalities, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2,
                     layerscale_value=0.5, drop_path_prob=0.5, **settings)  # fmt: skip


def build(seed=0, hidden=32, modalities=MODALITIES, model=None, **settings):
    torch.manual_seed(seed)
    backbone = parts(hidden, modalities, **(model or {})).build()
    objective = OBJECTIVES.parse({"kind": "readout", "width": 16, **settings}).build(backbone)
    return PretrainingModel(backbone, objective)


def documents(loss=True, order="raster"):
    draw = torch.Generator().manual_seed(0)

    def image():
        value = torch.randint(256, (3, 8, 8), dtype=torch.uint8, generator=draw)
        return {"kind": "image", "value": value, "loss": loss, "order": order}

    touch = {"kind": "touch", "value": torch.randn(2, 10, generator=draw)}
    text = {"kind": "text", "value": "ab"}
    return [[text, image(), touch], [image(), text], [text]]


def batch(**settings):
    return dict(parts().processor()(documents(**settings), end=True))


@pytest.mark.parametrize(("source", "decoder"), CASES)
def test_readouts_are_trained_and_the_backbone_is_frozen(source, decoder):
    model = build(source=source, decoder=decoder).train()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.5, learning_rate=1e-2))
    losses = []
    for _ in range(5):
        model.train()  # as in the trainer: the objective must switch the frozen model to eval mode
        out = model(batch())
        assert out.num_targets.tolist() == [32, 4] and out.loss_sum.isfinite().all()
        losses.append((out.loss_sum / out.num_targets).tolist())
        optimizer.zero_grad()
        (out.loss_sum / out.num_targets).sum().backward()
        optimizer.step()
    assert losses[-1][0] < losses[0][0] and losses[-1][1] < losses[0][1]
    for name, value in model.state_dict().items():
        stays = name.startswith("backbone.") or name == "objective.mark"
        assert torch.equal(value, before[name]) == stays, name


@pytest.mark.parametrize("order", ["raster", "random"])
def test_loss_of_latents_by_hand(order):
    model, made = build().eval(), batch(order=order)
    out = model(made)
    for number, name in enumerate(("image", "touch")):
        x = model.backbone.embed(made).z[made["kinds"] == 3 + number]
        error = (model.objective.readouts[name](x) - made[f"values.{name}"]).square().mean(-1)
        torch.testing.assert_close(out.loss_sum[number], error.sum())
        total, count = out.metrics[f"mse/{name}"]
        assert total == pytest.approx(error.sum().item(), rel=1e-5) and count == len(error) == out.num_targets[number]


@pytest.mark.parametrize("model", [{}, {"density": "von_mises_fisher"}, {"density": "mixture"}], ids=str)
def test_predictions_are_shifted_by_one_latent(model):
    built, made = build(source="predictions", model=model).eval(), batch()
    hidden = built.backbone.encode(built.backbone.embed(made), "causal").last
    if model:
        hidden = built.backbone.density_head(hidden).mode()
    rows, steps = (made["kinds"] == 3).nonzero().unbind(1)
    error = (built.objective.readouts["image"](hidden[rows, steps - 1]) - made["values.image"]).square().mean(-1)
    torch.testing.assert_close(built(made).loss_sum[0], error.sum())


@pytest.mark.parametrize("decoder", ["linear", "conv"])
def test_untrained_predictions_do_not_count(decoder):
    made = batch(loss=False)
    for source, expected in (("latents", [32, 4]), ("predictions", [0, 4])):
        model = build(source=source, decoder=decoder)
        out = model(made)
        assert out.num_targets.tolist() == expected == model.objective.count_targets(made).tolist()
        assert (out.loss_sum[0] == 0) == (expected[0] == 0) and out.loss_sum[1] > 0
        out.loss_sum.sum().backward()
        assert all(p.grad is not None for p in model.objective.parameters())  # including parameters without targets


def test_conv_reads_each_segment_alone():
    """The values of the first document do not depend on the second."""
    model = build(decoder="conv", modalities={"image": MODALITIES["image"]}).eval()
    processor = parts(modalities={"image": MODALITIES["image"]}).processor()
    images = [[segment] for document in documents() for segment in document if segment["kind"] == "image"]
    both, one = (model(dict(processor(images[:num], end=True))) for num in (2, 1))
    two = model(dict(processor(images[1:], end=True)))
    torch.testing.assert_close(both.loss_sum, one.loss_sum + two.loss_sum)
    packed = model(dict(processor([images[0] + images[1]], end=True)))  # both images in one document
    torch.testing.assert_close(packed.loss_sum, both.loss_sum)


def test_causal_conv_does_not_leak_the_target():
    """The readout for a patch does not depend on the patch itself or on later ones."""
    model = build(source="predictions", decoder="conv", modalities={"image": MODALITIES["image"]}).eval()
    processor = parts(modalities={"image": MODALITIES["image"]}).processor()
    image = documents()[1][0]
    inputs = dict(processor([[image]], end=True))
    values = inputs["values.image"].clone()
    values[5] += 1

    def found(own):
        made = {**inputs, "values.image": own}
        z = model.backbone.encode(model.backbone.embed(made), "causal").last[:, :16]
        return model.objective.readouts["image"](z[0], made["coordinates"][0, 1:17])

    with torch.no_grad():
        changed = (found(values) - found(inputs["values.image"])).abs().amax(1) > 1e-6
    assert not changed[:6].any() and changed[6:].any()


def test_metrics_by_hand():
    target = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    found = readout_metrics("image", target + 0.2, target)
    assert found["psnr/image"] == pytest.approx(20.0, abs=1e-4)  # 10 log10(4 / 0.04)
    assert found["mse/image"][0] == pytest.approx(0.08) and found["mse/image"][1] == 2
    assert readout_metrics("image", target + 0.2, target, span=2 / 0.5)["psnr/image"] == pytest.approx(26.02, abs=0.01)
    assert found["mse_mean/image"][0] == pytest.approx(1.0)  # half of the values differ from their mean by 1


def test_only_chosen_modalities_have_readouts():
    assert list(build().objective.readouts) == ["image", "touch"]
    model = build()
    chosen = OBJECTIVES.parse({"kind": "readout", "modalities": ["touch"]}).build(model.backbone)
    out = chosen(model.backbone, batch())
    assert out.num_targets.tolist() == [4] and set(out.metrics) == {"mse/touch", "mse_mean/touch", "psnr/touch"}


def test_invalid_settings():
    with pytest.raises(ConfigError, match="Did you mean 'predictions'"):
        validated(ReadoutSettings, {"source": "prediction"})
    with pytest.raises(ConfigError, match="Did you mean 'touch'"):
        ReadoutSettings(modalities=["tuch"]).build(parts().build())
    with pytest.raises(ConfigError, match="no modality with values"):
        ReadoutSettings().build(parts(modalities={"text": {}}).build())
    nepa = NepaModel(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4).build()
    with pytest.raises(ConfigError, match=r"model\.kind=omni"):
        ReadoutSettings().build(nepa)


def saved(folder, model):
    for name, (values, state) in model.objective.folders(model.objective.state_dict()).items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(values))
        save_file({n: t.contiguous() for n, t in state.items()}, folder / name / "model.safetensors")
    return folder


@pytest.mark.parametrize(("source", "decoder"), CASES)
def test_saved_readouts_load_and_check_their_model(tmp_path, source, decoder):
    model = build(source=source, decoder=decoder).eval()
    loaded = load_readouts(saved(tmp_path / "run", model))
    x, places = torch.randn(16, 32), model.backbone.model.modality("image").places((4, 4))
    with torch.no_grad():
        torch.testing.assert_close(loaded.values("image", x, places), model.objective.readouts["image"](x, places))
    assert (loaded.source, loaded.name) == (source, "run") == (source, load_readouts(tmp_path / "run/readout").name)
    assert loaded.check(model.backbone) == ""
    assert "run was trained on different weights" in loaded.check(build(seed=5).backbone)
    with pytest.raises(ConfigError, match=r"'image' in run was trained for hidden_size 32; the model has 64"):
        loaded.check(build(hidden=64).backbone)
    with pytest.raises(ConfigError, match=r"was trained for value_size 12; the model has 48"):
        loaded.check(build(modalities={**MODALITIES, "image": {"image_size": 8, "patch_size": 4}}).backbone)
    with pytest.raises(ConfigError, match=r"for a modality 'touch', which the model does not have"):
        loaded.check(build(modalities={"image": MODALITIES["image"]}).backbone)
    with pytest.raises(ConfigError, match="readouts of run: 'film' is not known"):
        loaded.values("film", x, places)


def test_model_uses_them(tmp_path):
    model = build(source="predictions", decoder="mlp").eval()
    loaded = load_readouts(saved(tmp_path / "run", model))
    model.backbone.readouts |= loaded.readouts
    x = torch.randn(3, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone.values_of("image", x), loaded.readouts["image"](x))


def test_loading_errors(tmp_path):
    with pytest.raises(ConfigError, match="no such readouts"):
        load_readouts(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="contains no finished readouts"):
        load_readouts(tmp_path)
    folder = saved(tmp_path / "run", build())
    weights = folder / "readout/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ConfigError, match="cannot load the readouts in") as err:
        load_readouts(folder)
    assert "\n" not in str(err.value)
    (folder / "readout/config.json").write_text('{"model_type": "omni"}')
    with pytest.raises(ConfigError, match="contains no readouts: train them"):
        load_readouts(folder)
