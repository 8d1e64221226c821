"""Converted Emu releases against the reference values: base, and instruction-tuned with LoRA merged or kept."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_emu_reference import FOLDER, near
from transformers import LlamaForCausalLM

from nextembed.export.emu import convert_emu
from nextembed.models.emu import EmuForConditionalGeneration
from nextembed.models.emu.vocabulary import grow_vocabulary

HINTS = {"vision_heads": 3, "relative_max_distance": 16}


@pytest.fixture(scope="module")
def base_state():
    return load_file(FOLDER / "weights.safetensors")


@pytest.fixture(scope="module")
def instruct_state(base_state):
    """The single released file with the whole model; names of the language model are those of peft."""
    images = {name: t for name, t in base_state.items() if not name.startswith("decoder.")}
    return images | load_file(FOLDER / "instruct_weights.safetensors")


@pytest.fixture(scope="module")
def io():
    return load_file(FOLDER / "io.safetensors")


@pytest.fixture(scope="module")
def instruct_io():
    return load_file(FOLDER / "instruct_io.safetensors")


def released(folder, state, form):
    """A released folder in one of its forms."""
    inner = folder / "multimodal_encoder"
    inner.mkdir(parents=True)
    names = sorted(state)
    halves = {
        "00001-of-00002": {n: state[n] for n in names[::2]},
        "00002-of-00002": {n: state[n] for n in names[1::2]},
    }
    if form == "plain":
        torch.save(state, inner / "pytorch_model.bin")
    elif form == "module":
        torch.save({"module": state}, inner / "pytorch_model.bin")
    elif form == "prefix":
        torch.save({f"module.{n}": t for n, t in state.items()}, inner / "pytorch_model.bin")
    elif form == "old file":
        torch.save(state, inner / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        save_file(state, inner / "model.safetensors")
    else:
        kind = "pytorch_model-{}.bin" if form == "torch index" else "model-{}.safetensors"
        for part, tensors in halves.items():
            (torch.save if form == "torch index" else save_file)(tensors, inner / kind.format(part))
        places = {n: kind.format(part) for part, tensors in halves.items() for n in tensors}
        index = "pytorch_model.bin.index.json" if form == "torch index" else "model.safetensors.index.json"
        (inner / index).write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.mark.parametrize(
    "form", ["plain", "module", "prefix", "old file", "safetensors", "torch index", "safetensors index"]
)
@torch.no_grad()
def test_the_base_layout_in_all_its_forms(tmp_path, base_state, io, form):
    convert_emu(released(tmp_path / "emu", base_state, form), tmp_path / "out", max_shard_size="300KB", **HINTS)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) in (4, 5)
    model = EmuForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    out = model(io["input_ids"], io["pixels"], io["attention_mask"], labels=io["text_targets"])
    near(out.image_latents, io["causal_embeds"])
    near(out.logits, io["logits"], io["attention_mask"])
    near(out.text_loss[None], io["text_loss"])
    near(out.regression_pred, io["regress_pred"])


def with_base_layer(state):
    """The state with the names of peft since 0.7."""
    return {
        name.replace("_proj.weight", "_proj.base_layer.weight") if ".base_model.model." in name
        and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")) else name: tensor
        for name, tensor in state.items()
    }  # fmt: skip


def without_adapter_name(state):
    return {name.replace(".default.", "."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("change", [dict, with_base_layer, without_adapter_name])
@pytest.mark.parametrize("adapter", ["merge", "keep"])
@torch.no_grad()
def test_the_instruction_tuned_file(tmp_path, instruct_state, instruct_io, adapter, change):
    torch.save(change(instruct_state), tmp_path / "Emu-instruct.pt")
    found = convert_emu(tmp_path / "Emu-instruct.pt", tmp_path / "out", adapter=adapter, lora_alpha=8, **HINTS)
    assert found.rank == 4
    model = EmuForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    io = instruct_io
    prompt = (io["input_ids"], io["pixels"], io["attention_mask"])
    if adapter == "keep":
        assert (model(*prompt).logits - io["logits"]).abs().max() > 0.1  # the base without the adapter differs
        model = PeftModel.from_pretrained(model, str(tmp_path / "out" / "adapter")).base_model.model.eval()
    out = model(*prompt)
    near(out.inputs_embeds, io["inputs_embeds"])
    near(out.last_hidden_state, io["last_hidden_state"])
    near(out.logits, io["logits"])
    for beams, name in ((1, "greedy"), (5, "beam5")):
        length = {"length_penalty": 0.0} if beams > 1 else {}
        ids = model.generate(*prompt, max_new_tokens=10, num_beams=beams, do_sample=False, min_length=1, **length)
        ids = torch.nn.functional.pad(ids, (0, 10 - ids.shape[1]), value=512)
        assert torch.equal(ids, io[name])


def test_lora_scale_is_alpha_over_rank(tmp_path, instruct_state):
    """Without --lora-alpha, the release's value of 16 is used, so the update is scaled by 16 / 4 here."""
    torch.save(instruct_state, tmp_path / "x.pt")
    convert_emu(tmp_path / "x.pt", tmp_path / "out", **HINTS)
    name = "self_attn.q_proj"
    peft = "decoder.lm.base_model.model.model.layers.0." + name
    a, b = (instruct_state[f"{peft}.lora_{side}.default.weight"] for side in "AB")
    wanted = instruct_state[peft + ".weight"] + 4 * b @ a
    ours = load_file(tmp_path / "out" / "model.safetensors")[f"model.language_model.model.layers.0.{name}.weight"]
    assert torch.allclose(ours, wanted, atol=1e-5)


def test_round_trip(tmp_path, base_state):
    """All used weights round-trip exactly, with every name that a strict load requires."""
    convert_emu(released(tmp_path / "emu", base_state, "plain"), tmp_path / "ours", max_shard_size="300KB", **HINTS)
    convert_emu(tmp_path / "ours", tmp_path / "back", to="official")
    back = torch.load(tmp_path / "back" / "multimodal_encoder" / "pytorch_model.bin", weights_only=True)
    assert back.keys() == base_state.keys()
    unread = ("visual.norm.", "visual.head.", "cformer.cformer.embed_tokens.")
    for name, tensor in base_state.items():
        if name.endswith("inv_freq"):
            assert torch.allclose(back[name], tensor)
        elif not name.startswith(unread):
            assert torch.equal(back[name], tensor), name


def test_vocabulary_growth(base_state, io):
    """New rows are initialised to the mean of the first `base_vocab_size` rows of each table."""
    ref = json.loads((FOLDER / "config.json").read_text())["text"]
    language_model = LlamaForCausalLM.config_class(
        vocab_size=ref["base_vocab_size"], hidden_size=ref["hidden_size"], intermediate_size=ref["intermediate_size"],
        num_hidden_layers=1, num_attention_heads=ref["heads"],
    )  # fmt: skip
    language_model = LlamaForCausalLM(language_model)
    tables = language_model.get_input_embeddings().weight, language_model.get_output_embeddings().weight
    with torch.no_grad():
        for table, name in zip(tables, ("model.embed_tokens", "lm_head")):
            table.copy_(base_state[f"decoder.lm.{name}.weight"][: ref["base_vocab_size"]])
    grow_vocabulary(language_model, ref["vocab_size"])
    near(language_model.get_input_embeddings().weight[ref["base_vocab_size"] :], io["resize.new_input_rows"])
    near(language_model.get_output_embeddings().weight[ref["base_vocab_size"] :], io["resize.new_output_rows"])
