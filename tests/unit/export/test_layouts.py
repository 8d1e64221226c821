import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, AutoModelForPreTraining

from nextembed.errors import ConfigError
from nextembed.export.layouts import convert, read_state
from nextembed.models.nepa import ViTNepaForPreTraining

REFERENCE = Path(__file__).parents[2] / "parity" / "reference"
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def output(model, x=X):
    return model(x).last_hidden_state


def same(folder, model, x=X):
    return torch.equal(output(AutoModelForPreTraining.from_pretrained(folder).eval(), x), output(model, x))


def test_official_folder_round_trip(tmp_path):
    """Weights and configuration of the official layout survive a round trip through ours."""
    source = REFERENCE / "nepa" / "swiglu"
    convert(source, tmp_path / "ours", "nextembed")
    convert(tmp_path / "ours", tmp_path / "official", "official")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "official"))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "official"))
    assert now["model_type"] == "vit_nepa" and now["architectures"] == ["ViTNepaForPreTraining"]
    assert {n: now.get(n) for n in was if n not in ("transformers_version", "torch_dtype")} == {
        n: v for n, v in was.items() if n not in ("transformers_version", "torch_dtype")
    }


@pytest.mark.parametrize("suffix", ["bin", "pt", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone.", "_orig_mod."])
def test_bare_weights(model, tmp_path, suffix, prefix):
    state = {prefix + name: t.clone() for name, t in model.state_dict().items()}
    file = tmp_path / f"weights.{suffix}"
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    convert(file, tmp_path / "out", num_attention_heads=2, image_size=16)
    assert same(tmp_path / "out", model)
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_training_checkpoint_with_average(model, tmp_path):
    state = {f"module.{name}": t for name, t in model.state_dict().items()}
    average = {name: t + 1 for name, t in state.items()}
    known = {"num_attention_heads": 2, "image_size": 16}
    torch.save({"model": state, "model_ema": average, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "nested.pth")
    flat = state | {name.replace("module.", "module.ema_model."): t for name, t in average.items()}
    torch.save({"state_dict": flat, "epoch": 3}, tmp_path / "flat.ckpt")
    for name in ("nested.pth", "flat.ckpt"):
        for weights, value in (("raw", state), ("ema", average)):
            folder = tmp_path / f"{name}-{weights}"
            convert(tmp_path / name, folder, weights=weights, **known)
            found = load_file(folder / "model.safetensors")
            assert all(torch.equal(found[n.removeprefix("module.")], t) for n, t in value.items())
    torch.save(state, tmp_path / "raw.pt")
    with pytest.raises(ConfigError, match="no EMA weights"):
        convert(tmp_path / "raw.pt", tmp_path / "none", weights="ema", **known)


def test_classifier_weights(classifier, tmp_path):
    torch.save(classifier.state_dict(), tmp_path / "c.bin")
    convert(tmp_path / "c.bin", tmp_path / "out", "official", num_attention_heads=2, image_size=16, is_causal=False)
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(again(X).logits, classifier(X).logits)


def test_a_folder_keeps_its_image_processor(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "out", "official")
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["image_std"] == [0.25] * 3


def test_stable_pretraining_round_trip(tmp_path):
    source = REFERENCE / "stable_pretraining" / "gated" / "model.safetensors"
    found = convert(source, tmp_path / "ours", image_size=24)
    x = torch.randn(2, 3, 24, 24)
    assert found.layout == "stable-pretraining" and same(tmp_path / "ours", found.model, x)
    convert(tmp_path / "ours", tmp_path / "theirs", "stable-pretraining")
    was, now = load_file(source), load_file(tmp_path / "theirs" / "model.safetensors")
    assert was.keys() == now.keys() and all(torch.equal(was[n], now[n]) for n in was)
    about = json.loads((tmp_path / "theirs" / "arguments.json").read_text())
    assert about["class"] == "stable_pretraining.methods.nepa.NEPA" and about["arguments"]["img_size"] == 24
    again = convert(tmp_path / "theirs", tmp_path / "again")
    assert again.model.config.image_size == 24 and same(tmp_path / "again", found.model, x)


# -- errors


def leaves_nothing(tmp_path, words, *args, **kwargs):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=words):
        convert(*args, **kwargs)
    assert sorted(tmp_path.iterdir()) == before


def test_other_models(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    leaves_nothing(tmp_path, "not NEPA weights", tmp_path / "resnet.pt", tmp_path / "out")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit"}')
    leaves_nothing(tmp_path, "model of type 'vit'; this needs vit_nepa or spt_nepa", tmp_path / "vit", tmp_path / "out")
    leaves_nothing(tmp_path, "no such run or checkpoint", tmp_path / "nowhere", tmp_path / "out")


def test_layouts_that_cannot_represent_a_model(checkpoint, tmp_path):
    words = "begin token in attention, and its rotary positions"
    leaves_nothing(tmp_path, words, checkpoint, tmp_path / "out", "stable-pretraining")
    theirs = REFERENCE / "stable_pretraining" / "gated" / "model.safetensors"
    leaves_nothing(tmp_path, "the official layout cannot represent", theirs, tmp_path / "out", "official")


def test_bare_weights_with_too_little_information(model, tmp_path):
    state = model.state_dict()
    torch.save(state, tmp_path / "w.pt")
    leaves_nothing(tmp_path, "cannot be inferred from the weights: set --heads", tmp_path / "w.pt", tmp_path / "out")
    leaves_nothing(tmp_path, "3 attention heads do not fit", tmp_path / "w.pt", tmp_path / "out", num_attention_heads=3)
    del state["vit_nepa.layernorm.bias"]
    torch.save(state, tmp_path / "w.pt")
    leaves_nothing(tmp_path, "vit_nepa.layernorm.bias", tmp_path / "w.pt", tmp_path / "out", num_attention_heads=2)
    del state["vit_nepa.encoder.layer.0.intermediate.up_proj.weight"]
    torch.save(state, tmp_path / "w.pt")
    leaves_nothing(tmp_path, "a weight is missing", tmp_path / "w.pt", tmp_path / "out", num_attention_heads=2)


def test_a_folder_with_incomplete_weights(checkpoint, tmp_path):
    state = load_file(checkpoint / "model.safetensors")
    ViTNepaForPreTraining.from_pretrained(checkpoint).save_pretrained(tmp_path / "cut")
    state.pop("vit_nepa.layernorm.weight")
    save_file(state, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    leaves_nothing(tmp_path, "lacks parameter vit_nepa.layernorm.weight", tmp_path / "cut", tmp_path / "out")


def test_files_that_are_not_weights(checkpoint, tmp_path):
    (tmp_path / "x.bin").write_bytes(b"nothing")
    torch.save({"model": Path("/")}, tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, words in (("x.bin", "cannot read"), ("code.pt", "not weights"), ("list.pt", "contains a list")):
        with pytest.raises(ConfigError, match=words):
            read_state(tmp_path / name)
    leaves_nothing(tmp_path, "exists; name a new folder", checkpoint, checkpoint)
    leaves_nothing(tmp_path, "for weights without a config", checkpoint, tmp_path / "out", image_size=8)
