"""The decoder is trained while the model is frozen, on the same conditions as in generation."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))  # the tiny Emu is shared with its tests

from emu_painting import SMALL, emu_parts, latent_decoder, picture, safety_checker

from nextembed.core.objective import OBJECTIVES, PretrainingModel
from nextembed.errors import ConfigError
from nextembed.models.emu import EmuPipeline, VisualDecoder
from nextembed.models.nepa import NepaModel
from nextembed.nn.diffusion import add_noise, diffusion_target, min_snr_weight
from nextembed.objectives.visual_decoder import contexts, has_context, target_images

PIXELS = {"kind": "pixels", **SMALL}


def prepared(batch, **settings):
    """The model as at the start of training."""
    model = build(**settings)
    assert model.prepare([batch])
    return model


def build(seed=0, decoder=PIXELS, **settings):
    torch.manual_seed(seed)
    backbone = emu_parts().build()
    objective = OBJECTIVES.parse({"kind": "visual_decoder", "decoder": decoder, **settings}).build(backbone)
    return PretrainingModel(backbone, objective)


@pytest.fixture(scope="module")
def batch():
    """Two rows: packed [image, caption] and [caption, image], then [caption, image, caption, image]."""
    processor = emu_parts().processor()

    def encode(*pieces):
        kinds = ["text" if isinstance(piece, str) else "image" for piece in pieces]
        segments = [{"kind": kind, "value": piece} for kind, piece in zip(kinds, pieces, strict=True)]
        return processor.encode_document({"key": "", "segments": segments})

    rows = [[encode(picture("red"), "an apple"), encode("a blue bird:", picture("blue"))],
            [encode("green:", picture("green"), "white:", picture("white"))]]  # fmt: skip
    length = 64
    made = {name: torch.zeros(2, length, dtype=torch.int64) for name in ("input_ids", "document_ids")}
    for row, documents in enumerate(rows):
        begin = 0
        for number, one in enumerate(documents, 1):
            end = begin + len(one.positions["input_ids"])
            made["input_ids"][row, begin:end] = one.positions["input_ids"]
            made["document_ids"][row, begin:end] = number
            begin = end
    pixels = torch.cat([one.values["pixel_values"] for documents in rows for one in documents])
    return made | {"pixel_values": pixels, "labels": made["input_ids"]}


@pytest.mark.parametrize(
    "settings",
    [{"standardise": False}, {"ema_decay": 0.9}, {"min_snr_gamma": 5.0, "regressed_rate": 1.0},
     {"gradient_checkpointing": True}],
    ids=str,
)  # fmt: skip
def test_the_unet_is_trained_and_the_backbone_is_frozen(batch, settings):
    model = prepared(batch, **settings).train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for step in range(12):
        model.train()  # as in the trainer
        torch.manual_seed(step % 2)
        out = model(batch)
        assert out.num_targets == 4 == model.objective.count_targets(batch)
        assert out.metrics["psnr"].isfinite()
        losses.append(out.loss_sum.item())
        optimizer.zero_grad()
        out.loss_sum.backward()
        optimizer.step()
        model.objective.after_step(model.backbone, step + 1, 12)
    assert sum(losses[-2:]) < sum(losses[:2])
    for name, parameter in model.named_parameters():
        if name.startswith("backbone."):
            assert parameter.grad is None and torch.equal(parameter, before[name]), name
        elif name.startswith("objective.decoder.unet.mean."):  # fitted, without gradients
            assert parameter.grad is None and not torch.equal(parameter, before[name]), name
        elif name.startswith("objective.decoder.unet."):
            assert parameter.grad is not None and not torch.equal(parameter, before[name]), name
        else:
            assert parameter.grad is None and name.startswith("objective.ema."), name
    if "ema_decay" in settings:
        raw, averaged = model.objective.decoder.unet.conv_in.weight, model.objective.ema.network.conv_in.weight
        start = before["objective.decoder.unet.conv_in.weight"]
        assert 0 < (averaged - start).norm() < (raw - start).norm()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_is_the_mean_error_of_each_image(batch, kind, gamma):
    model = build(decoder={**PIXELS, "prediction": kind}, drop_rate=0.0, min_snr_gamma=gamma, standardise=False)
    objective, backbone = model.objective, model.backbone
    torch.manual_seed(7)
    found = model(batch).loss_sum
    torch.manual_seed(7)
    torch.rand(4, 1)  # draws which conditions are dropped
    clean = objective.decoder.encode(batch["pixel_values"])
    steps = (torch.rand(4, 1)[:, 0] * 1000).long()
    radius, angle = torch.rand(4, 2 * clean[0].numel()).chunk(2, dim=1)
    noise = ((-2 * (1 - radius).log()).sqrt() * (2 * torch.pi * angle).cos()).view_as(clean)
    signal = objective.decoder.scheduler.alphas_cumprod[steps]
    with torch.no_grad():
        z = backbone.eval().image_latents(batch["pixel_values"])
        pred = objective.decoder(add_noise(clean, noise, signal), steps, z)
    error = (pred - diffusion_target(clean, noise, signal, kind)).square().mean((1, 2, 3))
    if gamma is not None:
        error = error * min_snr_weight(signal, kind, gamma)
    torch.testing.assert_close(found, error.sum())


def test_dropped_conditions_are_the_empty_prompts():
    model = build(drop_rate=0.1)
    objective, backbone = model.objective, model.backbone.eval()
    latents = torch.randn(2000, 4, 48)
    objective.measure(backbone, latents[:4])
    empty = backbone.generate_image_embeddings(**emu_parts().processor()([]))[0]
    torch.testing.assert_close(objective.empty, empty, atol=1e-5, rtol=0)
    torch.manual_seed(0)
    found = objective.with_dropped(latents)
    dropped = (found == objective.empty).all(-1).all(-1)
    assert torch.equal(found[~dropped], latents[~dropped])
    assert 0.08 < dropped.float().mean() < 0.12  # within 3 standard deviations


def test_statistics_are_from_the_first_batch():
    model = build(standardise=True)
    latents = torch.randn(50, 4, 48) * torch.linspace(0.1, 5, 48) + torch.linspace(-3, 3, 48)
    latents[..., 7] = 1.5  # constant dimension
    model.objective.measure(model.backbone.eval(), latents)
    flat = model.objective.standardised(latents).flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), torch.zeros(48), atol=1e-4, rtol=0)
    others = torch.arange(48) != 7
    torch.testing.assert_close(flat.std(0)[others], torch.ones(47), atol=0.01, rtol=0)
    assert flat.isfinite().all() and flat[:, 7].abs().max() < 1e-3


def test_context_of_an_image_is_its_own_document(batch):
    config, processor = build().backbone.config, emu_parts().processor()
    assert has_context(batch, config).tolist() == [False, True, True, True]
    found = contexts(batch, torch.tensor([False, True, False, True]), config)
    expected = processor([["a blue bird:"], ["green:", picture("green"), "white:"]])
    assert torch.equal(found["attention_mask"], expected["attention_mask"])
    mask = expected["attention_mask"].bool()
    # "white:" is between two images in training and at the end of a prompt in generation: the tokens are the same
    assert torch.equal(found["input_ids"][mask], expected["input_ids"][mask])
    assert torch.equal(found["pixel_values"], batch["pixel_values"][2:3])


def test_regressed_latents_equal_those_of_the_pipeline(batch):
    model = build(regressed_rate=1.0)
    backbone, processor = model.backbone.eval(), emu_parts().processor()
    latents = model.objective.latents(backbone, batch)
    own = backbone.image_latents(batch["pixel_values"])
    torch.testing.assert_close(latents[0], own[0])  # it has no context
    torch.testing.assert_close(
        latents[1], backbone.generate_image_embeddings(**processor(["a blue bird:"]))[0], atol=1e-5, rtol=0
    )
    assert not torch.allclose(latents[2], own[2], atol=1e-3)


def test_targets():
    settings = OBJECTIVES.parse({"kind": "visual_decoder", "decoder": PIXELS, "mean": [0.2, 0.4, 0.6], "std": [0.5]})
    images = torch.rand(2, 3, 16, 16)
    normal = (images - torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1)) / 0.5
    torch.testing.assert_close(target_images({"pixel_values": normal}, settings, 16), images * 2 - 1)
    given = torch.rand(2, 3, 16, 16)
    assert torch.equal(target_images({"pixel_values": normal, "target_pixel_values": given}, settings, 16), given)
    flat = torch.full((1, 1, 32, 32), 0.3)
    assert target_images({"target_pixel_values": flat}, settings, 16).shape == (1, 3, 16, 16)
    with pytest.raises(ConfigError, match="images of 8 x 8 pixels are too small to train a decoder of 16 x 16"):
        target_images({"target_pixel_values": flat[..., :8, :8]}, settings, 16)


def test_a_batch_without_images_still_reaches_the_unet(batch):
    model = build()
    out = model(batch | {"pixel_values": batch["pixel_values"][:0]})
    out.loss_sum.backward()
    assert out.num_targets == 0 and out.loss_sum == 0
    trained = [p for p in model.objective.decoder.unet.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and not p.grad.any() for p in trained)
    model.objective.after_step(model.backbone, 1, 1)  # a regression of nothing changes nothing


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_map_to_mean_images_is_the_regression_of_all_that_was_read(batch, ema_decay):
    model = prepared(batch, drop_rate=0.0, ema_decay=ema_decay).train()
    objective = model.objective
    objective.regression.prior = 1e-4
    with torch.no_grad():
        model(batch)
        model(batch)
    objective.after_step(model.backbone, 5, 100)
    clean = objective.decoder.encode(batch["pixel_values"])
    z = objective.standardised(model.backbone.image_latents(batch["pixel_values"])).flatten(1)
    for unet in (objective.decoder.unet, *([] if objective.ema is None else [objective.ema.network])):
        assert (unet.mean(z).view_as(clean) - clean).abs().max() < 0.1
    again = prepared(batch, drop_rate=0.0, ema_decay=ema_decay)
    again.load_state_dict(model.state_dict())
    again.objective.regression.prior = 1e-4
    again.objective.after_step(again.backbone, 5, 100)  # a run that resumes has read the same
    assert torch.equal(again.objective.decoder.unet.mean.weight, objective.decoder.unet.mean.weight)
    with torch.no_grad():
        before = objective.decoder.unet.mean.weight.clone()
        model.eval()(batch)  # what is only evaluated is not read
    objective.after_step(model.backbone, 6, 100)  # not one of the 20
    objective.after_step(model.backbone, 10, 100)
    assert torch.equal(objective.decoder.unet.mean.weight, before)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_a_saved_decoder_equals_the_trained_one(batch, standardise, ema_decay, tmp_path):
    model = prepared(batch, standardise=standardise, ema_decay=ema_decay)
    objective = model.objective
    model(batch).loss_sum.backward()
    with torch.no_grad():
        for p in objective.decoder.unet.parameters():
            if p.requires_grad:
                p -= 0.1 * p.grad
    objective.after_step(model.backbone, 1, 2)
    (name, write), = objective.folders(objective.state_dict()).items()  # fmt: skip
    assert name == "visual_decoder"
    (tmp_path / "model").mkdir()
    (tmp_path / name).mkdir()
    write(tmp_path / name)
    model.backbone.save_pretrained(tmp_path / "model")
    emu_parts().processor().save_pretrained(tmp_path / "model")
    unet = objective.decoder.unet if objective.ema is None else objective.ema.network
    x, steps = torch.randn(4, 12, 8, 8), torch.tensor([1, 5, 500, 999])
    z = model.backbone.eval().image_latents(batch["pixel_values"])
    loaded = VisualDecoder.from_pretrained(tmp_path / name)
    with torch.no_grad():
        expected = unet(x, steps, encoder_hidden_states=objective.standardised(z)).sample
        torch.testing.assert_close(loaded(x, steps, z), expected, atol=1e-4, rtol=1e-4)
    assert EmuPipeline.from_pretrained(tmp_path)(["an apple"], 2, progress=False).size == (16, 16)


def test_stable_diffusion_layout_trains_and_keeps_its_other_parts(batch, tmp_path):
    latent_decoder(width=32, checker=safety_checker(False)).save_pretrained(tmp_path / "sd")
    model = prepared(batch, decoder={"kind": "stable_diffusion", "pretrained": str(tmp_path / "sd")}).train()
    out = model(batch)
    out.loss_sum.backward()
    assert all(p.grad is not None for p in model.objective.decoder.unet.parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.objective.decoder.vae.parameters())
    ((_, write),) = model.objective.folders(model.objective.state_dict()).items()
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"unet", "vae", "scheduler", "feature_extractor", "safety_checker"}
    assert VisualDecoder.from_pretrained(tmp_path / "out").latent_width == 48


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_further_training_starts_from_the_same_function(batch, ema_decay, tmp_path):
    latent_decoder().save_pretrained(tmp_path / "sd")
    decoder = {"kind": "stable_diffusion", "pretrained": str(tmp_path / "sd")}
    model = prepared(batch, decoder=decoder, standardise=True, ema_decay=ema_decay)
    assert model.objective.spread.ne(1).any()
    ((_, write),) = model.objective.folders(model.objective.state_dict()).items()
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    x, steps, z = torch.randn(4, 4, 8, 8), torch.tensor([1, 5, 500, 999]), torch.randn(4, 4, 48)
    with torch.no_grad():
        before, after = (VisualDecoder.from_pretrained(tmp_path / name)(x, steps, z) for name in ("sd", "out"))
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
        trained = model.objective.decoder(x, steps, model.objective.standardised(z))
        torch.testing.assert_close(trained, before, atol=1e-4, rtol=1e-4)


def test_invalid_models_and_settings():
    nepa = NepaModel(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8).build()
    with pytest.raises(ConfigError, match=r"needs a model with image_latents: set model\.kind=emu"):
        OBJECTIVES.parse({"kind": "visual_decoder", "decoder": PIXELS}).build(nepa)
    with pytest.raises(ConfigError, match=r"'pixel' is not known\. Did you mean 'pixels'"):
        OBJECTIVES.parse({"kind": "visual_decoder", "decoder": "pixel"})
    with pytest.raises(ConfigError, match="no visual decoder in"):
        build(decoder={"kind": "stable_diffusion", "pretrained": "nowhere"})


def test_a_rank_without_images_takes_part_in_the_statistics(batch, monkeypatch):
    """Otherwise the other ranks would wait. If no rank has images, the next step measures."""
    from nextembed.core import distributed

    calls = []
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda values: calls.append(values.clone()) or values)
    model = build().train()
    nothing = {**batch, "pixel_values": batch["pixel_values"][:0]}
    assert not model.prepare([nothing])
    assert len(calls) == 1 and not calls[0].any() and not model.objective.measured
    out = model(nothing)
    assert out.num_targets == 0 and out.loss_sum.requires_grad and len(calls) == 1
    assert model.prepare([nothing, batch])
    assert len(calls) == 2 and model.objective.measured and bool((calls[1][0] == 16).all())
    model.objective.empty.zero_()
    assert model.prepare([batch]) and not model.objective.empty.any()  # measured only once
    assert len(calls) == 2
