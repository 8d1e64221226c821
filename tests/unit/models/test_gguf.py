"""Language models from GGUF files load as ordinary models; invalid files are one-line errors."""

import struct

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nextembed.errors import ConfigError
from nextembed.models import gguf as ours
from nextembed.models.emu import EmuParts
from nextembed.models.gguf import gguf_file, gguf_model, gguf_tokenizer

WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz.", "Ġ", "re", "red", "Ġc", "at"]
WIDTH, INNER = 32, 64


def head(magic=b"GGUF", version=3, tensors=1, values=1):
    return struct.pack("<4sIQQ", magic, version, tensors, values) + bytes(256)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is not a GGUF file"),
        (b"GGUF", "it is not a GGUF file"),
        (b"PK\x03\x04" + bytes(60), "it is not a GGUF file"),
        (head(version=1), "GGUF version 1 is not read, only 2 and 3"),
        (head(version=0x03000000), "GGUF version 50331648 is not read"),
        (head(tensors=2**60), "it is damaged"),
        (head(tensors=99_999), "it is damaged"),
        (head(values=2**40), "it is damaged"),
    ],
)
def test_invalid_gguf_files(tmp_path, content, message):
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    for load in (gguf_model, gguf_tokenizer):
        with pytest.raises(ConfigError, match=message) as error:
            load(file)
        assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(head())
    monkeypatch.setattr(ours, "is_gguf_available", lambda: False)
    with pytest.raises(ConfigError, match=r"this needs gguf: pip install --no-deps gguf$"):
        gguf_model(tmp_path / "model.gguf")


def test_which_file_a_name_refers_to(tmp_path):
    assert gguf_file(None) is None and gguf_file("owner/name") is None and gguf_file(str(tmp_path)) is None
    one = tmp_path / "one.gguf"
    one.write_bytes(head())
    assert gguf_file(str(one)) == gguf_file(str(tmp_path)) == one
    (tmp_path / "two.gguf").write_bytes(head())
    with pytest.raises(ConfigError, match="has 2 GGUF files; name one of them"):
        gguf_file(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert gguf_file(str(tmp_path)) is None


# -- a real file, written by the gguf package


def write_tiny(file):
    """Writes a two-layer LLaMA with a byte-level tokenizer; returns its tensors."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["r e", "re d", "Ġ c", "a t"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {"token_embd.weight": (len(WORDS), WIDTH), "output_norm.weight": (WIDTH,)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_norm.weight": (WIDTH,), f"blk.{i}.ffn_norm.weight": (WIDTH,),
                   f"blk.{i}.attn_q.weight": (WIDTH, WIDTH), f"blk.{i}.attn_k.weight": (WIDTH // 2, WIDTH),
                   f"blk.{i}.attn_v.weight": (WIDTH // 2, WIDTH), f"blk.{i}.attn_output.weight": (WIDTH, WIDTH),
                   f"blk.{i}.ffn_gate.weight": (INNER, WIDTH), f"blk.{i}.ffn_up.weight": (INNER, WIDTH),
                   f"blk.{i}.ffn_down.weight": (WIDTH, INNER)}  # fmt: skip
    tensors = {name: torch.randn(shape).numpy() for name, shape in shapes.items()}
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_loads_as_an_ordinary_model(tmp_path):
    tensors = write_tiny(tmp_path / "tiny.gguf")
    model, tokenizer = gguf_model(tmp_path / "tiny.gguf"), gguf_tokenizer(tmp_path / "tiny.gguf")
    assert model.dtype == torch.float32 and (model.config.hidden_size, model.config.num_hidden_layers) == (WIDTH, 2)
    assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(tensors["token_embd.weight"]))
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, torch.from_numpy(tensors["blk.1.ffn_down.weight"]))
    assert tokenizer("red cat.")["input_ids"] == [WORDS.index(word) for word in ("red", "Ġc", "at", ".")]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(again.model.layers[0].self_attn.q_proj.weight, model.model.layers[0].self_attn.q_proj.weight)
    assert AutoTokenizer.from_pretrained(tmp_path / "plain")("red cat.") == tokenizer("red cat.")


def test_an_emu_on_a_gguf_file(tmp_path):
    write_tiny(tmp_path / "tiny.gguf")
    parts = EmuParts(
        vision_config={"model_type": "vit_nepa", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "intermediate_size": 32, "image_size": 8, "patch_size": 4},
        language=str(tmp_path),
        num_image_latents=2,
        causal_former={"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 1},
    )  # fmt: skip
    model, processor = parts.build(), parts.processor()
    assert model.config.hidden_size == WIDTH and model.config.eos_token_id == 2
    assert model.get_input_embeddings().weight.shape[0] == len(WORDS) + 4  # [PAD], [IMG], [/IMG], <image>
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    ids = model.generate(**processor([image, "a red cat"]), max_new_tokens=2, do_sample=False)
    assert ids.shape[1] == 2
    model.save_pretrained(tmp_path / "emu")
    with pytest.raises(ConfigError, match=r"model\.quantize: a GGUF file is read as float32"):
        parts.model_copy(update={"quantize": "4bit"}).build()


def test_a_truncated_file(tmp_path):
    write_tiny(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for share in (0.1, 0.5, 0.95):
        file = tmp_path / f"cut{share}.gguf"
        file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ConfigError, match=r"cannot load|it is damaged") as error:
            gguf_model(file)
        assert "\n" not in str(error.value)


def test_a_missing_file_is_not_a_hub_id():
    with pytest.raises(ConfigError, match=r"no such run, checkpoint or folder: smollm2/model\.gguf"):
        EmuParts(vision_config={"model_type": "vit_nepa"}, language="smollm2/model.gguf").tokens()
