"""The visual decoder: shapes, seeds, guidance, schedulers, folders, clear errors."""

import builtins
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from emu_painting import edit_json, latent_decoder, pixel_decoder, safety_checker

from nextembed.errors import ConfigError, MissingExtra
from nextembed.models.emu import PixelDecoder, StableDiffusionDecoder, VisualDecoder


def latents(rows=2, width=48, seed=0):
    return torch.randn(rows, 4, width, generator=torch.Generator().manual_seed(seed))


def images(rows=2, size=16):
    return torch.rand(rows, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


BOTH = pytest.mark.parametrize("make", [pixel_decoder, latent_decoder], ids=["pixels", "latent"])


@BOTH
def test_shapes_sizes_and_range(make):
    decoder = make()
    assert (decoder.image_size, decoder.latent_width, decoder.stride) == (16, 48, 2)
    x = decoder.encode(images())
    assert x.shape == (2, decoder.unet.config.in_channels, 8, 8)
    assert decoder(x, torch.tensor([1, 900]), latents()).shape == x.shape
    assert decoder.decode(x).shape == (2, 3, 16, 16)
    painted = decoder.paint(latents(), num_inference_steps=2, height=24, width=16)
    assert painted.shape == (2, 3, 24, 16) and painted.min() >= 0 and painted.max() <= 1
    with pytest.raises(ConfigError, match="multiples of 2 pixels, got 15"):
        decoder.paint(latents(), height=15)


def test_folded_pixels_round_trip_exactly():
    decoder = pixel_decoder()
    torch.testing.assert_close(decoder.decode(decoder.encode(images())), images())


def test_vae_latents_are_scaled_and_unscaled():
    decoder = latent_decoder()
    torch.manual_seed(3)
    scaled = decoder.encode(images())
    torch.manual_seed(3)
    raw = decoder.vae.encode(images()).latent_dist.sample()
    torch.testing.assert_close(scaled, raw * 0.18215)
    torch.testing.assert_close(decoder.decode(scaled), decoder.vae.decode(raw).sample.clamp(-1, 1))


@BOTH
def test_images_depend_on_the_seed_and_not_on_the_batch(make):
    decoder, z = make(), latents(3)
    empty = latents(1, seed=9)
    paint = lambda rows, **more: decoder.paint(z[rows], empty, 3, 4.0, **more)  # noqa: E731
    whole = paint([0, 1, 2])
    assert torch.equal(whole, paint([0, 1, 2]))
    assert not torch.allclose(whole, paint([0, 1, 2], seed=1), atol=1e-3)
    for row in range(3):
        torch.testing.assert_close(whole[row : row + 1], paint([row]), atol=1e-4, rtol=0)
    torch.testing.assert_close(paint([0, 0], seed=[0, 7])[:1], whole[:1], atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="2 seeds for 3 images"):
        paint([0, 1, 2], seed=[1, 2])


def test_a_stochastic_scheduler_is_seeded():
    decoder, z = pixel_decoder(prediction="epsilon"), latents(2)
    decoder.scheduler = EulerAncestralDiscreteScheduler.from_config(decoder.scheduler.config)
    whole = decoder.paint(z, num_inference_steps=4)
    assert torch.equal(whole, decoder.paint(z, num_inference_steps=4))
    torch.testing.assert_close(whole[1:], decoder.paint(z[1:], num_inference_steps=4), atol=1e-4, rtol=0)


@BOTH
def test_guidance_is_one_batch_and_off_is_a_single_pass(make):
    decoder, z, empty = make(), latents(2), latents(1, seed=9)
    sizes = []
    hook = decoder.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    plain = decoder.paint(z, None, 2)
    count = len(sizes)
    assert set(sizes) == {2}
    for scale in (0.0, 1.0):
        assert torch.equal(plain, decoder.paint(z, empty, 2, scale))
    assert set(sizes) == {2} and len(sizes) == 3 * count
    guided = decoder.paint(z, empty, 2, 5.0)
    assert sizes[-1] == 4 and not torch.allclose(plain, guided, atol=1e-4)
    torch.testing.assert_close(decoder.paint(z, z, 2, 5.0), plain, atol=1e-4, rtol=0)  # no difference
    hook.remove()


def test_guidance_is_the_formula():
    """With one DDIM step and a UNet that predicts the clean image, the output is that prediction."""
    decoder, z, empty = pixel_decoder(prediction="sample"), latents(1), latents(1, seed=9)
    noise = torch.randn(1, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with_prompt, without = (decoder(noise, torch.tensor([999]), c) for c in (z, empty))
    expected = decoder.decode((without + 3 * (with_prompt - without)).clamp(-1, 1)) / 2 + 0.5
    torch.testing.assert_close(decoder.paint(z, empty, 1, 3.0), expected, atol=1e-3, rtol=0)


def test_schedulers_can_be_replaced():
    decoder, z = latent_decoder(), latents(1)
    assert type(decoder.scheduler).__name__ == "PNDMScheduler"
    first = decoder.paint(z, num_inference_steps=3)
    for kind in (DDIMScheduler, DPMSolverMultistepScheduler):
        decoder.scheduler = kind.from_config(decoder.scheduler.config)
        assert decoder.paint(z, num_inference_steps=3).isfinite().all()
    assert not torch.allclose(first, decoder.paint(z, num_inference_steps=3), atol=1e-4)


@BOTH
def test_saved_folders_round_trip(make, tmp_path):
    decoder, z = make(), latents()
    decoder.save_pretrained(tmp_path / "d")
    folders = {"unet", "scheduler"} | ({"vae"} if decoder.vae else set())
    assert {p.name for p in (tmp_path / "d").iterdir()} == folders
    assert not list(tmp_path.rglob("*.bin")) and list(tmp_path.rglob("*.safetensors"))
    loaded = VisualDecoder.from_pretrained(tmp_path / "d")
    assert torch.equal(loaded.paint(z, num_inference_steps=2), decoder.paint(z, num_inference_steps=2))
    decoder.save_pretrained(tmp_path / "d")  # overwrites the existing folder
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_parts_by_keyword(tmp_path):
    latent_decoder().save_pretrained(tmp_path / "a")
    other = latent_decoder(seed=1)
    other.save_pretrained(tmp_path / "b")
    mixed = VisualDecoder.from_pretrained(tmp_path / "a", unet=tmp_path / "b/unet", scheduler=other.scheduler)
    assert torch.equal(next(mixed.unet.parameters()), next(other.unet.parameters()))
    assert mixed.scheduler is other.scheduler
    with pytest.raises(ConfigError, match=r"'unets' is not known\. Did you mean 'unet'"):
        VisualDecoder.from_pretrained(tmp_path / "a", unets=tmp_path)


def test_standardisation_folds_into_the_layout():
    decoder, z = pixel_decoder(), latents() * 3 + 5
    mean, std = z.mean((0, 1)), z.std((0, 1))
    x, steps = decoder.encode(images()), torch.tensor([10, 700])
    with torch.no_grad():
        expected = decoder(x, steps, (z - mean) / std)
        decoder.fold_standardisation(mean, std)
        torch.testing.assert_close(decoder(x, steps, z), expected, atol=1e-4, rtol=1e-4)


def test_a_new_pixel_decoder_is_a_linear_map_of_the_latents(tmp_path):
    decoder, z = PixelDecoder(image_size=16, patch_size=2, channels=[16], head_width=8).build(48, 4).eval(), latents()
    x, steps = torch.randn(2, 12, 8, 8), torch.tensor([3, 700])
    expected = decoder.unet.mean(z.flatten(1)).view(2, 12, 8, 8)
    torch.testing.assert_close(decoder(x, steps, z), expected)
    torch.nn.init.normal_(decoder.unet.conv_out.weight)
    decoder.save_pretrained(tmp_path)
    again = VisualDecoder.from_pretrained(tmp_path)
    assert type(again.unet).__name__ == "LatentUNet" and again.unet.config.num_latents == 4
    assert torch.equal(again(x, steps, z), decoder(x, steps, z))
    assert not torch.allclose(decoder(x, steps, z), expected, atol=0.1)
    assert again.paint(z, num_inference_steps=2, height=32, width=16).shape == (2, 3, 32, 16)
    plain = PixelDecoder(image_size=16, patch_size=2, channels=[16], head_width=8, prediction="epsilon").build(48, 4)
    assert type(plain.unet).__name__ == "UNet2DConditionModel"


def test_safety_checker(tmp_path):
    flagging, passing = latent_decoder(checker=safety_checker(True)), latent_decoder(checker=safety_checker(False))
    painted = torch.rand(2, 3, 16, 16)
    before = painted.clone()
    assert flagging.flagged(painted) == [True, True] and passing.flagged(painted) == [False, False]
    assert torch.equal(painted, before)
    flagging.save_pretrained(tmp_path / "d")
    names = {p.name for p in (tmp_path / "d").iterdir()}
    assert names == {"unet", "vae", "scheduler", "feature_extractor", "safety_checker"}
    assert VisualDecoder.from_pretrained(tmp_path / "d").flagged(painted) == [True, True]
    without = VisualDecoder.from_pretrained(tmp_path / "d", safety_checker=False)
    assert without.safety_checker is None and without.flagged(painted) == [False, False]
    shutil.rmtree(tmp_path / "d/feature_extractor")
    with pytest.raises(ConfigError, match="belong together"):
        VisualDecoder.from_pretrained(tmp_path / "d")


def test_pretrained_decoder_for_other_latents_keeps_all_but_keys_and_values(tmp_path):
    old = latent_decoder(width=32)
    old.save_pretrained(tmp_path / "sd")
    new = StableDiffusionDecoder(pretrained=str(tmp_path / "sd")).build(48, 4)
    assert new.latent_width == 48
    ours, theirs = new.unet.state_dict(), old.unet.state_dict()
    differ = {
        n.rsplit(".attn2.", 1)[-1] for n in ours if ours[n].shape != theirs[n].shape or ours[n].ne(theirs[n]).any()
    }
    assert differ == {"to_k.weight", "to_v.weight"}
    assert torch.equal(next(new.vae.parameters()), next(old.vae.parameters()))
    same = StableDiffusionDecoder(pretrained=str(tmp_path / "sd"), prediction="v_prediction").build(32, 4)
    assert same.scheduler.config.prediction_type == "v_prediction"
    assert torch.equal(next(same.unet.parameters()), next(old.unet.parameters()))


def damaged(folder, change):
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)


def test_loading_errors(tmp_path):
    def fresh():
        latent_decoder().save_pretrained(tmp_path / "d")
        return tmp_path / "d"

    with pytest.raises(ConfigError, match="it has no unet/ and no scheduler/"):
        VisualDecoder.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="unet: no such folder"):
        VisualDecoder.from_pretrained(fresh(), unet=tmp_path / "nowhere")
    shutil.rmtree(fresh() / "vae")
    with pytest.raises(ConfigError, match="outputs 4 channels, which are not pixels: it needs its vae/"):
        VisualDecoder.from_pretrained(tmp_path / "d")
    damaged(fresh(), lambda state: state.pop("conv_in.bias"))
    with pytest.raises(ConfigError, match=r"lacks parameters: conv_in\.bias"):
        VisualDecoder.from_pretrained(tmp_path / "d")
    damaged(fresh(), lambda state: state.update(more=torch.zeros(1)))
    with pytest.raises(ConfigError, match="has unknown parameters: more"):
        VisualDecoder.from_pretrained(tmp_path / "d")
    file = fresh() / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigError, match="cannot load unet from") as err:
        VisualDecoder.from_pretrained(tmp_path / "d")
    assert "\n" not in str(err.value)
    edit_json(fresh() / "scheduler/scheduler_config.json", _class_name="PNDMSchedular")
    with pytest.raises(ConfigError, match=r"'PNDMSchedular' is not known\. Did you mean 'PNDMScheduler'"):
        VisualDecoder.from_pretrained(tmp_path / "d")
    with pytest.raises(ConfigError, match="the UNet expects 48-wide latents, the model gives 32"):
        latent_decoder().paint(latents(width=32))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_size": 30}, "image_size 30 is not a multiple of 4"),
        ({"patch_size": 2, "head_width": 7}, "head_width 7 does not divide"),
        ({"patch_size": 2, "channels": [32], "attention": [True, False]}, "2 entries for 1 resolutions"),
        ({"prediction": "noise"}, "prediction"),
    ],
)
def test_invalid_settings(fields, words):
    with pytest.raises(ConfigError, match=words):
        PixelDecoder(**{"patch_size": 2, "channels": [32, 64], **fields})


def test_without_diffusers_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **more):
        if name.split(".")[0] == "diffusers":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"needs diffusers: pip install 'nextembed\[paint\]'"):
        PixelDecoder().build(48, 4)
