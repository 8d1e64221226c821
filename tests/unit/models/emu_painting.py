"""Shared by the tests of image generation: a tiny Emu, small decoders in both layouts, a safety checker."""

import json

import torch
from PIL import Image

from nextembed.models.emu import EmuParts, PixelDecoder, VisualDecoder

VISION = {"model_type": "vit_nepa", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 48, "image_size": 16, "patch_size": 8}  # fmt: skip
LANGUAGE = {"model_type": "llama", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "vocab_size": 300, "max_position_embeddings": 256}  # fmt: skip
FORMER = {"d_model": 24, "d_kv": 8, "num_heads": 3, "d_ff": 32, "num_layers": 2, "dropout_rate": 0.1}
SMALL = {"image_size": 16, "patch_size": 2, "channels": [16, 32], "head_width": 8}


def emu_parts():
    return EmuParts(vision_config=VISION, language_config=LANGUAGE, tokenizer="bundled", num_image_latents=4,
                    causal_former=FORMER)  # fmt: skip


def picture(color="red", size=16):
    return Image.new("RGB", (size, size), color)


def pixel_decoder(width=48, seed=0, **changes):
    torch.manual_seed(seed)
    decoder = PixelDecoder(**{**SMALL, **changes}).build(width, 4).eval()
    torch.nn.init.normal_(decoder.unet.conv_out.weight, std=0.1)  # zero at first: only the linear map
    return decoder


def latent_decoder(width=48, seed=0, checker=None):
    """A decoder in Stable Diffusion's layout: UNet on VAE latents, PNDM."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    torch.manual_seed(seed)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
              "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                                attention_head_dim=4, cross_attention_dim=width, **blocks)  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
                        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                        scaling_factor=0.18215)  # fmt: skip
    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
                              steps_offset=1)  # fmt: skip
    return VisualDecoder(unet, scheduler, vae, *(checker or (None, None))).eval()


def safety_checker(flags):
    """A safety checker and its feature extractor that flag everything or nothing."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8, "projection_dim": 8}  # fmt: skip
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    with torch.no_grad():  # thresholds that every cosine exceeds, or none
        for weights in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
            weights.fill_(-2.0 if flags else 2.0)
    size = {"height": 16, "width": 16}
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size), checker.eval()


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
