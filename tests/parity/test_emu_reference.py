"""Emu against the reference values in reference/emu/, whose README describes each tensor."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.models.blip_2 import Blip2VisionConfig

from nextembed.models.emu import EmuConfig, EmuForConditionalGeneration
from nextembed.models.emu.official import map_official

FOLDER = Path(__file__).parent / "reference" / "emu"
TOLERANCE = 1e-4


def from_official(state):
    """A released state dict with our names."""
    mapped = map_official({name: tuple(tensor.shape) for name, tensor in state.items()})
    return {name: part.make(*(state[source] for source in part.sources)) for name, part in mapped.parts.items()}


def reference_config(instruct=False) -> EmuConfig:
    ref = json.loads((FOLDER / "config.json").read_text())
    vision, former, text = ref["vision"], ref["causal_former"], ref["text"]
    ids = ref["instruct" if instruct else "config"]["special_token_ids"] if instruct else ref["special_token_ids"]
    return EmuConfig(
        vision_config=Blip2VisionConfig(
            image_size=vision["image_size"], patch_size=vision["patch_size"], hidden_size=vision["width"],
            num_hidden_layers=vision["layers"], num_attention_heads=vision["heads"],
            intermediate_size=vision["mlp_hidden"], layer_norm_eps=vision["layer_norm_eps"],
        ),
        text_config=LlamaConfig(
            vocab_size=ref["instruct"]["vocab_size"] if instruct else text["vocab_size"],
            hidden_size=text["hidden_size"], intermediate_size=text["intermediate_size"],
            num_hidden_layers=text["layers"], num_attention_heads=text["heads"],
            rms_norm_eps=text["rms_norm_eps"], max_position_embeddings=text["max_position_embeddings"],
            pad_token_id=ids["pad"], bos_token_id=ids["bos"], eos_token_id=ids["eos"],
        ),
        causal_former_config={
            "d_model": former["d_model"], "d_kv": former["d_kv"], "num_heads": former["heads"], "d_ff": former["d_ff"],
            "num_layers": former["layers"], "relative_attention_num_buckets": former["relative_attention_num_buckets"],
            "relative_attention_max_distance": former["relative_attention_max_distance"],
        },
        num_image_latents=former["n_causal"],
        image_token_id=ids["image"], image_start_token_id=ids["img_start"], image_end_token_id=ids["img_end"],
        pad_token_id=ids["pad"], bos_token_id=ids["bos"], eos_token_id=ids["eos"],
        user_token_id=ids.get("user"), assistant_token_id=ids.get("assistant"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def io():
    return load_file(FOLDER / "io.safetensors")


@pytest.fixture(scope="module")
def model():
    model = EmuForConditionalGeneration(reference_config()).eval()
    missing, surplus = model.load_state_dict(from_official(load_file(FOLDER / "weights.safetensors")), strict=False)
    assert not missing and not surplus
    return model


def near(ours, theirs, mask=None):
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs()
    if mask is not None:
        difference = difference[mask.bool()]
    assert difference.max() < TOLERANCE


@torch.no_grad()
def test_features_and_latents(model, io):
    found = model.model.visual(io["pixels"]).last_hidden_state
    near(found, io["visual_features"])
    near(model.model.visual_norm(found), io["visual_features_ln"])
    near(model.model.connector.hidden(io["visual_features_ln"]), io["causal_hidden"])
    near(model.image_latents(io["pixels"]), io["causal_embeds"])


@torch.no_grad()
def test_both_heads(model, io):
    out = model(io["input_ids"], io["pixels"], io["attention_mask"], labels=io["text_targets"])
    near(out.inputs_embeds, io["inputs_embeds"])
    near(out.last_hidden_state, io["last_hidden_state"], io["attention_mask"])
    near(out.logits, io["logits"], io["attention_mask"])
    near(out.text_loss[None], io["text_loss"])
    near(out.regression_pred, io["regress_pred"])
    near(out.regression_target, io["regress_labels"])
    near(out.regression_loss[None], io["regress_mse"])
    near(out.loss[None], io["text_loss"] + io["regress_mse"])
    mask = model.regression_mask(io["input_ids"])
    assert torch.equal(mask.long(), io["regress_label_mask"])
    assert torch.equal(mask[:, 1:].long(), io["regress_input_mask"][:, :-1])


@torch.no_grad()
def test_two_images_in_one_prompt(model, io):
    out = model(io["multi.input_ids"], io["pixels"], labels=io["multi.input_ids"].clone().masked_fill_(
        torch.isin(io["multi.input_ids"], torch.tensor([512, 513, 514, 515])), -100))  # fmt: skip
    near(out.last_hidden_state, io["multi.last_hidden_state"])
    near(out.logits, io["multi.logits"])
    near(out.text_loss[None], io["multi.text_loss"])


def test_gradients_of_the_text_loss(model, io):
    model.zero_grad()
    model(io["input_ids"], io["pixels"], io["attention_mask"], labels=io["text_targets"]).text_loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name in (n for n in io if n.startswith("grad.")):
        official = name.removeprefix("grad.")
        if official.endswith("q_bias"):
            width = len(io[name])
            near(grads["model.visual.encoder.layers.0.self_attn.qkv.bias"][:width], io[name])
        else:
            near(grads[next(iter(map_official({official: ()}).parts))], io[name])
    rows = grads["model.language_model.model.embed_tokens.weight"].norm(dim=1)
    near(rows, io["grad_row_norm.decoder.lm.model.embed_tokens.weight"])
    model.zero_grad()


@pytest.mark.parametrize("beams", [1, 5])
def test_generated_text(model, io, beams):
    prompt = (io["gen_text.input_ids"], io["gen_text.pixels"], io["gen_text.attention_mask"])
    length = {"length_penalty": 0.0} if beams > 1 else {}
    ids = model.generate(*prompt, max_new_tokens=12, num_beams=beams, do_sample=False, min_length=1, pad_token_id=512,
                         **length)  # fmt: skip
    wanted = io["gen_text.beam5" if beams > 1 else "gen_text.greedy"]
    ids = torch.nn.functional.pad(ids, (0, wanted.shape[1] - ids.shape[1]), value=512)
    assert torch.equal(ids, wanted)


def test_generated_image_embeddings(model, io):
    near(model.generate_image_embeddings(io["gen_image.text_prompt_ids"]), io["gen_image.text_only"])
    prompt = io["gen_image.prompt_ids"], io["gen_image.pixels"]
    near(model.generate_image_embeddings(*prompt), io["gen_image.with_image"])
    near(model.generate_image_embeddings(*prompt, guidance=True), io["gen_image.with_image_and_empty"])
    padded = torch.nn.functional.pad(prompt[0], (0, 3), value=512)  # padding as in the release
    mask = torch.nn.functional.pad(torch.ones_like(prompt[0]), (0, 3))
    near(model.generate_image_embeddings(padded, prompt[1], mask), io["gen_image.with_image"])
