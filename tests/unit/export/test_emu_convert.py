"""Conversion of Emu checkpoints: files, memory use, and errors that leave no files behind."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_shards import tiny_llama_tokenizer

import nextembed
from nextembed.cli import main
from nextembed.errors import ConfigError
from nextembed.export.emu import Converted, convert_emu, is_emu
from nextembed.models.emu import EmuForConditionalGeneration, EmuProcessor

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "tests" / "parity" / "reference" / "emu"
NEPA = ROOT / "tests" / "parity" / "reference" / "nepa" / "swiglu"
HINTS = {"vision_heads": 3, "relative_max_distance": 16}


@pytest.fixture(scope="module")
def state():
    return load_file(REFERENCE / "weights.safetensors")


@pytest.fixture(scope="module")
def instruct(state):
    images = {name: t for name, t in state.items() if not name.startswith("decoder.")}
    return images | load_file(REFERENCE / "instruct_weights.safetensors")


@pytest.fixture
def released(tmp_path, state):
    folder = tmp_path / "released"
    (folder / "multimodal_encoder").mkdir(parents=True)
    torch.save(state, folder / "multimodal_encoder" / "pytorch_model.bin")
    for name in ("unet", "vae", "scheduler", "feature_extractor", "safety_checker"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"part": name}))
    return folder


def leaves_nothing(tmp_path, words, *args, **kwargs):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=words) as found:
        convert_emu(*args, **{**HINTS, **kwargs})
    assert "\n" not in str(found.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_released_folder(released, tmp_path, capsys):
    tokens = tiny_llama_tokenizer(tmp_path / "llama", 512)
    words = ["convert", released, tmp_path / "out", "--vision-heads", 3, "--relative-max-distance", 16]
    assert main([str(w) for w in [*words, "--tokenizer", tokens, "--max-shard-size", "300KB", "--dtype", "bf16"]]) == 0
    out = capsys.readouterr().out
    assert "Emu, released" in out and "3 x 48, 56 px; 8 latents; language model 2 x 64, 516 tokens" in out
    assert "Copied: unet, vae, scheduler, feature_extractor, safety_checker" in out and "no tokenizer" not in out
    for name in ("unet", "vae", "safety_checker"):
        assert json.loads((tmp_path / "out" / "visual_decoder" / name / "config.json").read_text()) == {"part": name}
    model = EmuForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16 and model.config.image_token_id == 515
    processor = EmuProcessor.from_pretrained(tmp_path / "out")
    processor.check(model.config)
    assert processor.image_processor.size == {"height": 56, "width": 56}
    pixels = torch.zeros(3, 40, 90, dtype=torch.uint8)
    batch = processor(["a photo:", pixels, "It shows"])
    assert batch["pixel_values"].shape == (1, 3, 56, 56)
    assert torch.allclose(batch["pixel_values"][0, 0], torch.tensor(-0.48145466 / 0.26862954), atol=1e-5)
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "back"), "--to", "official"]) == 0
    assert (tmp_path / "back" / "multimodal_encoder" / "pytorch_model.bin").is_file()
    assert (tmp_path / "back" / "unet" / "config.json").is_file()


def test_python_takes_both_models(released, tmp_path):
    """`nextembed.convert` distinguishes Emu from NEPA and rejects options of the other model."""
    found = nextembed.convert(released, tmp_path / "emu", num_attention_heads=4, max_shard_size="300KB", **HINTS)
    assert isinstance(found, Converted) and len(found.files) > 1 and all(file.is_file() for file in found.files)
    assert nextembed.EmuConfig.from_pretrained(tmp_path / "emu").text_config.num_attention_heads == 4
    nepa = nextembed.convert(NEPA, tmp_path / "nepa", "official")
    assert nepa.model.config.model_type == "vit_nepa" and nepa.layout == "official"
    with pytest.raises(ConfigError, match="dtype is an option for Emu checkpoints"):
        nextembed.convert(NEPA, tmp_path / "no", dtype="bf16")
    for name, value in {"weights": "ema", "qk_norm": False, "is_causal": True}.items():
        with pytest.raises(ConfigError, match=f"{name} is an option for NEPA checkpoints"):
            nextembed.convert(released, tmp_path / "no", **{name: value})
    with pytest.raises(TypeError, match="'heads'"):
        nextembed.convert(NEPA, tmp_path / "no", heads=4)
    assert not (tmp_path / "no").exists()


def test_generation_defaults_are_those_of_the_release(released, tmp_path):
    """The default generation settings are those of the release: 5 beams, 50 new tokens, no length penalty."""
    convert_emu(released, tmp_path / "out", **HINTS)
    model = EmuForConditionalGeneration.from_pretrained(tmp_path / "out")
    own = model.generation_config
    assert (own.num_beams, own.max_new_tokens, own.length_penalty) == (5, 50, 0.0)
    assert (own.eos_token_id, own.pad_token_id, own.do_sample) == (2, 512, False)
    ids = torch.tensor([[1, 5, 9, 30]])
    given = model.generate(ids, num_beams=5, max_new_tokens=50, length_penalty=0.0, do_sample=False)
    assert given.shape[1] <= 50 and torch.equal(model.generate(ids), given)
    assert model.generate(ids, num_beams=1, length_penalty=1.0, max_new_tokens=3).shape[1] <= 3


def test_emu_checkpoints_are_recognised(released, tmp_path):
    assert is_emu(released) and is_emu(released / "multimodal_encoder" / "pytorch_model.bin")
    assert is_emu(released / "multimodal_encoder")
    os.renames(released, tmp_path / "clone" / "pretrain")
    assert is_emu(tmp_path / "clone")
    assert not is_emu(NEPA)
    assert not is_emu(tmp_path / "nowhere") and not is_emu(ROOT / "README.md")


def test_missing_surplus_and_wrong_parameters_are_reported(state, tmp_path):
    def saved(change):
        changed = dict(state)
        change(changed)
        torch.save(changed, tmp_path / "w.pt")
        return tmp_path / "w.pt"

    name = "decoder.lm.model.layers.1.mlp.up_proj.weight"
    ours = "model.language_model.model.layers.1.mlp.up_proj.weight"
    file = saved(lambda s: s.pop(name))
    leaves_nothing(tmp_path, f"missing parameters: {ours}", file, tmp_path / "out")
    file = saved(lambda s: s.update({name: torch.zeros(3, 3)}))
    leaves_nothing(
        tmp_path, rf"'{ours}' has shape \[3, 3\]; the other weights require \[112, 64\]", file, tmp_path / "o"
    )
    file = saved(lambda s: s.update({"decoder.lm.model.layers.0.extra.weight": torch.zeros(1)}))
    leaves_nothing(tmp_path, "surplus parameters: model.language_model.model.layers.0.extra", file, tmp_path / "out")
    file = saved(lambda s: s.update({"resampler.weight": torch.zeros(1)}))
    leaves_nothing(tmp_path, "'resampler.weight' is not a parameter of Emu", file, tmp_path / "out")
    file = saved(lambda s: s.pop("visual.blocks.1.attn.v_bias"))
    leaves_nothing(tmp_path, "missing: visual.blocks.1.attn.v_bias", file, tmp_path / "out")
    file = saved(lambda s: s.update({f"module.{name}": s[name]}))
    leaves_nothing(tmp_path, f"contain {name} twice", file, tmp_path / "out")
    file = saved(lambda s: None)
    leaves_nothing(tmp_path, "set --vision-heads", file, tmp_path / "out", vision_heads=None)
    leaves_nothing(tmp_path, "no LoRA in these weights", file, tmp_path / "out", lora_alpha=4)
    file = saved(lambda s: s.pop("decoder.lm.model.layers.0.self_attn.rotary_emb.inv_freq"))
    leaves_nothing(tmp_path, "64: set --heads", file, tmp_path / "out")


def test_mismatched_lora(instruct, tmp_path):
    def saved(change):
        changed = dict(instruct)
        change(changed)
        torch.save(changed, tmp_path / "w.pt")
        return tmp_path / "w.pt"

    name = "decoder.lm.base_model.model.model.layers.0.self_attn.q_proj."
    file = saved(lambda s: s.pop(name + "lora_B.default.weight"))
    leaves_nothing(tmp_path, "is incomplete", file, tmp_path / "out")
    file = saved(lambda s: s.update({name + "lora_A.default.weight": torch.zeros(5, 64)}))
    leaves_nothing(tmp_path, "LoRA of .* has shapes", file, tmp_path / "out")
    file = saved(lambda s: s.update({name + "lora_A.other.weight": torch.zeros(4, 64)}))
    leaves_nothing(tmp_path, "several adapters", file, tmp_path / "out")
    file = saved(lambda s: s.pop(name + "weight"))
    leaves_nothing(tmp_path, "which is missing", file, tmp_path / "out")


def test_files_that_are_not_weights(released, tmp_path):
    file = released / "multimodal_encoder" / "pytorch_model.bin"
    torch.save({"cformer.x": Path("/")}, file)
    leaves_nothing(tmp_path, "a pickle of code or objects, not weights", released, tmp_path / "out")
    file.write_bytes(b"nothing")
    leaves_nothing(tmp_path, "cannot read", released, tmp_path / "out")
    torch.save([1], file)
    leaves_nothing(tmp_path, "contains a list", released, tmp_path / "out")
    file.unlink()
    leaves_nothing(tmp_path, "no pytorch_model.bin in", released, tmp_path / "out")
    (file.parent / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "gone.bin"}}')
    leaves_nothing(tmp_path, "names gone.bin, which is not there", released, tmp_path / "out")


def test_invalid_options(released, tmp_path, capsys):
    leaves_nothing(tmp_path, "exists", released, released)
    leaves_nothing(tmp_path, "a size is like", released, tmp_path / "out", max_shard_size="big")
    leaves_nothing(tmp_path, "a dtype is one of", released, tmp_path / "out", dtype="int8")
    leaves_nothing(tmp_path, "does not support Emu", released, tmp_path / "out", "stable-pretraining")
    leaves_nothing(tmp_path, "there is no tokenizer.model", released, tmp_path / "out", tokenizer=tmp_path)
    tokens = tiny_llama_tokenizer(tmp_path / "llama", 300)
    leaves_nothing(tmp_path, "has 304 tokens with Emu's, the weights 516", released, tmp_path / "out", tokenizer=tokens)
    for words, line in (
        ("dtype is an option for Emu checkpoints", ["convert", NEPA, tmp_path / "out", "--dtype", "bf16"]),
        ("image_size is an option for NEPA checkpoints", ["convert", released, tmp_path / "out", "--image-size", "8"]),
    ):
        assert main([str(w) for w in line]) == 2 and words in capsys.readouterr().err


def test_a_full_disk_and_ctrl_c_leave_nothing(released, tmp_path, monkeypatch):
    import nextembed.export.emu as emu
    import nextembed.export.shards as shards

    monkeypatch.setattr(emu.shutil, "disk_usage", lambda path: type("usage", (), {"free": 10}))
    leaves_nothing(tmp_path, "0.0 GB are free there", released, tmp_path / "out")
    monkeypatch.undo()
    calls = []

    def failing(error):
        def write(*args):
            calls.append(args)
            if len(calls) % 20 == 0:
                raise error
            return own(*args)

        return write

    own = shards.write_numbers
    monkeypatch.setattr(shards, "write_numbers", failing(OSError(28, "No space left on device")))
    leaves_nothing(tmp_path, "cannot write .*: the disk is full", released, tmp_path / "out")
    monkeypatch.setattr(shards, "write_numbers", failing(KeyboardInterrupt()))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        convert_emu(released, tmp_path / "out", **HINTS)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_models_are_rejected_for_the_released_layout(tmp_path):
    from transformers import GPT2Config

    from nextembed.models.emu import EmuConfig

    config = EmuConfig(
        vision_config={"model_type": "blip_2_vision_model", "hidden_size": 16, "num_hidden_layers": 1,
                       "num_attention_heads": 2, "image_size": 28, "intermediate_size": 16},
        text_config=GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2),
        causal_former_config={"d_model": 8, "d_kv": 4, "num_heads": 2, "num_layers": 1, "d_ff": 8}, num_image_latents=2,
        image_token_id=299, image_start_token_id=297, image_end_token_id=298,
    )  # fmt: skip
    EmuForConditionalGeneration(config).save_pretrained(tmp_path / "ours")
    with pytest.raises(ConfigError, match="an EVA-CLIP tower and LLaMA, not blip_2_vision_model and gpt2"):
        convert_emu(tmp_path / "ours", tmp_path / "out", "official")
    with pytest.raises(ConfigError, match="is in nextembed's layout already"):
        convert_emu(tmp_path / "ours", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads memory use from /proc")
def test_memory_stays_below_one_and_a_half_shards(tmp_path, monkeypatch):
    """Anonymous memory of a process that converts 210 MB in shards of 20 MB."""
    spec = importlib.util.spec_from_file_location("emu_convert_memory", ROOT / "benchmarks" / "emu_convert_memory.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    bench.SIZES.update(text=1024, text_layers=4, text_mlp=2752)
    bench.VOCABULARY = 4004
    (tmp_path / "released" / "multimodal_encoder").mkdir(parents=True)
    torch.save(bench.released_state(1.0), tmp_path / "released" / "multimodal_encoder" / "pytorch_model.bin")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    found = bench.measure("streamed", tmp_path / "released", tmp_path / "out", "20MB", "")
    shards = [file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")]
    assert len(shards) > 8 and max(shards) <= 20.1e6
    assert found["anonymous"] < 1.5 * max(shards)
