"""Prompts to images with a tiny Emu: outputs, folders it loads from, errors."""

import shutil

import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler
from emu_painting import emu_parts, latent_decoder, picture, pixel_decoder, safety_checker

from nextembed.errors import ConfigError
from nextembed.models.emu import EmuPipeline, VisualDecoder
from nextembed.nn.latent_flow import LatentSampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("emu") / "emu"
    torch.manual_seed(0)
    EmuPipeline(emu_parts().build(), emu_parts().processor(), pixel_decoder()).save_pretrained(path)
    return path


@pytest.fixture
def pipeline(folder):
    return EmuPipeline.from_pretrained(folder)


QUICK = {"num_inference_steps": 3, "progress": False}


def pixels(image):
    return torch.tensor(list(image.tobytes())).view(image.height, image.width, 3)


def test_one_prompt_gives_an_image_and_several_give_a_list(pipeline):
    prompts = [["a red", picture()], ["an apple"], [picture("blue"), picture("green")]]
    found = pipeline(prompts, **QUICK)
    assert [type(image) for image in found] == [Image.Image] * 3 and {image.size for image in found} == {(16, 16)}
    for prompt, image in zip(prompts, found, strict=True):
        alone = pipeline(prompt, **QUICK)
        assert (pixels(alone) - pixels(image)).abs().max() <= 1  # rounding to bytes
    assert pixels(found[1]).ne(pixels(found[2])).any()
    assert pipeline("an apple", **QUICK).tobytes() == pipeline(["an apple"], **QUICK).tobytes()
    assert pipeline(["an apple"], height=32, width=24, **QUICK).size == (24, 32)


def test_the_same_seed_gives_the_same_image(pipeline):
    first = pipeline(["an apple"], seed=3, **QUICK)
    assert pipeline(["an apple"], seed=3, **QUICK).tobytes() == first.tobytes()
    assert pipeline(["an apple"], seed=4, **QUICK).tobytes() != first.tobytes()
    two = pipeline([["an apple"]] * 2, seed=[3, 4], **QUICK)
    assert (pixels(two[0]) - pixels(first)).abs().max() <= 1


def test_guidance_extrapolates_from_the_empty_prompt(pipeline):
    model, processor = pipeline.model, pipeline.processor
    inputs = processor(["an apple"])
    pair = model.generate_image_embeddings(**inputs, guidance=True)
    torch.testing.assert_close(pair[1:], model.generate_image_embeddings(**processor([])), atol=1e-5, rtol=0)
    painted = pipeline.paint(pair[:1], pair[1:], 3, 4.0)[0]
    assert pipeline(["an apple"], guidance_scale=4.0, **QUICK).tobytes() == painted.tobytes()
    alone = pipeline.paint(pair[:1], num_inference_steps=3)[0]
    for scale in (1.0, 0.0):
        assert pipeline(["an apple"], guidance_scale=scale, **QUICK).tobytes() == alone.tobytes()
    assert pixels(painted).ne(pixels(alone)).any()


def test_latents_of_an_image_can_be_decoded(pipeline):
    inputs = pipeline.processor([picture()])
    with torch.no_grad():
        found = pipeline.paint(pipeline.model.image_latents(inputs["pixel_values"]), num_inference_steps=2)
    assert len(found) == 1 and found[0].size == (16, 16)


def test_scheduler_can_be_replaced(pipeline):
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    assert pipeline.decoder.scheduler is pipeline.scheduler
    assert pipeline(["an apple"], **QUICK).size == (16, 16)


def test_flagged_images_are_blacked_out_with_a_warning(folder):
    for flags in (True, False):
        pipeline = EmuPipeline.from_pretrained(folder, visual_decoder=latent_decoder(checker=safety_checker(flags)))
        if flags:
            with pytest.warns(UserWarning, match="flagged image 1, 2 of 2: blacked out"):
                found = pipeline([["a"], ["b"]], **QUICK)
            assert all(not pixels(image).any() for image in found)
        else:
            assert pixels(pipeline(["a"], **QUICK)).any()


def test_supported_folder_layouts(folder, tmp_path):
    expected = EmuPipeline.from_pretrained(folder)(["an apple"], **QUICK).tobytes()
    flat = shutil.copytree(folder, tmp_path / "flat")  # the decoder folders next to the model, as in the release
    for part in (flat / "visual_decoder").iterdir():
        part.rename(flat / part.name)
    (flat / "visual_decoder").rmdir()
    run = tmp_path / "run"
    shutil.copytree(folder, run / "model", ignore=shutil.ignore_patterns("visual_decoder"))
    shutil.copytree(folder / "visual_decoder", run / "visual_decoder")
    for path, more in ((flat, {}), (run, {}), (run / "model", {"visual_decoder": run}),
                       (run / "model", {"visual_decoder": run / "visual_decoder"})):  # fmt: skip
        assert EmuPipeline.from_pretrained(path, **more)(["an apple"], **QUICK).tobytes() == expected
    other = latent_decoder()
    other.save_pretrained(tmp_path / "sd")
    replaced = EmuPipeline.from_pretrained(folder, unet=tmp_path / "sd/unet", vae=tmp_path / "sd/vae")
    assert torch.equal(next(replaced.decoder.unet.parameters()), next(other.unet.parameters()))


def test_missing_and_mismatched_parts_are_reported(folder, tmp_path):
    with pytest.raises(ConfigError, match="no such run or checkpoint: "):
        EmuPipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"contains no model: neither config\.json nor"):
        EmuPipeline.from_pretrained(tmp_path)
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("visual_decoder"))
    with pytest.raises(ConfigError, match=r"no visual decoder in .*bare: it has no unet/ and no scheduler/"):
        EmuPipeline.from_pretrained(bare)
    pixel_decoder(width=32).save_pretrained(bare / "visual_decoder")
    with pytest.raises(ConfigError, match="the UNet expects 32-wide latents, the model gives 48"):
        EmuPipeline.from_pretrained(bare)


def test_invalid_prompts(pipeline):
    with pytest.raises(ConfigError, match="several prompts are a list of such lists"):
        pipeline([["an apple"], "a pear"], **QUICK)
    with pytest.raises(ConfigError, match="prompt: a piece of a document"):
        pipeline(["an apple", 3], **QUICK)


def test_saved_whole(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "again")
    loaded = EmuPipeline.from_pretrained(tmp_path / "again")
    assert isinstance(loaded.decoder, VisualDecoder)
    assert loaded(["an apple"], **QUICK).tobytes() == pipeline(["an apple"], **QUICK).tobytes()


def test_latents_are_sampled_with_a_flow_head(pipeline):
    with pytest.raises(ConfigError, match="need a model that draws its image latents"):
        pipeline(["an apple"], sampling=LatentSampling(guidance=2.0), **QUICK)
    pipeline.model.regress_by_flow()
    torch.manual_seed(0)
    for parameter in pipeline.model.regression_head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    found = [pipeline(["an apple"], seed=3, sampling=LatentSampling(*how), **QUICK).tobytes()
             for how in ((), (), (0.1,), (1.0, 3.0))]  # fmt: skip
    assert found[0] == found[1] and len(set(found)) == 3
