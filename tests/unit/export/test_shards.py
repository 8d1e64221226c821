"""Streamed safetensors, and the tokenizer of a released Emu."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer

from nextembed.errors import ConfigError
from nextembed.export.lazy_state import LazyState
from nextembed.export.shards import Planned, parse_size, write_sharded
from nextembed.models.emu import EmuProcessor
from nextembed.models.emu.tokens import llama_tokenizer

TEXT = ["There is a cat.", "It shows a red house : and a tree", "What is this? The image depicts a photo of There"] * 3


def tiny_llama_tokenizer(folder, size):
    """A SentencePiece-like BPE with byte fallback, saved as LLaMA's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )

    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(model["vocab"])
    for number in range(len(vocab), size):
        vocab[f"filler{number}"] = number
    merges = [tuple(pair) for pair in model["merges"]]
    LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True).save_pretrained(folder)
    return folder


def test_shards_match_the_plan(tmp_path):
    tensors = {f"t{i}": torch.randn(10, 100) for i in range(5)}
    tensors |= {"half": torch.randn(3).half(), "bf": torch.randn(2, 2).bfloat16(), "one": torch.tensor(3.5),
                "none": torch.zeros(0, 4), "turned": torch.randn(4, 6).T}  # fmt: skip
    plan = {name: Planned(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    files = write_sharded(tmp_path, plan, tensors.__getitem__, 9000)
    assert len(files) == 3
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert places.keys() == plan.keys()
    for names, file in zip((["t0", "t1"], ["t2", "t3"], list(plan)[4:]), files):
        found = load_file(file)
        assert set(found) == set(names) == {name for name, place in places.items() if place == file.name}
        assert all(torch.equal(found[n], tensors[n]) and found[n].dtype == tensors[n].dtype for n in names)
    state = LazyState(files)
    assert all(torch.equal(state.read(name), t) for name, t in tensors.items())


def test_one_shard_needs_no_index_and_dtypes_are_converted(tmp_path):
    tensor = torch.randn(7, 5)
    (file,) = write_sharded(tmp_path, {"x": Planned((7, 5), torch.bfloat16)}, lambda name: tensor, 10**9)
    assert file.name == "model.safetensors" and [p.name for p in tmp_path.iterdir()] == [file.name]
    assert torch.equal(load_file(file)["x"], tensor.bfloat16())
    with pytest.raises(ConfigError, match="float16 cannot hold"):
        write_sharded(tmp_path, {"x": Planned((1,), torch.float16)}, lambda name: torch.tensor([1e6]), 10**9)
    with pytest.raises(ValueError, match="has shape"):
        write_sharded(tmp_path, {"x": Planned((1,), torch.float32)}, lambda name: torch.zeros(2), 10**9)


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("2GiB", 2**31), ("1.5kb", 1500), ("77", 77)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["big", "", "0", "-1GB", "5 XB", "5I"])
def test_invalid_sizes(text):
    with pytest.raises(ConfigError, match="a size is like"):
        parse_size(text)


# -- the tokenizer


@pytest.fixture(scope="module", params=["folder", "tokenizer.json alone"])
def tokenizer(request, tmp_path_factory):
    folder = tiny_llama_tokenizer(tmp_path_factory.mktemp("llama") / "x", 400)
    if request.param != "folder":
        (folder / "tokenizer_config.json").unlink()
    return llama_tokenizer(folder, instruct=True)


def check_spaces(tokenizer):
    """Splits like the release's slow tokenizer: Emu's tokens absorb white space, and a prefix space follows them."""
    there, colon = (tokenizer.convert_tokens_to_ids(word) for word in ("▁There", "▁:"))
    assert tokenizer.tokenize("[/IMG]There") == ["[/IMG]", "▁There"]
    assert tokenizer("[/IMG]There")["input_ids"] == [1, 402, there]
    assert tokenizer("There [/IMG]  There")["input_ids"] == [1, there, 402, there]
    assert tokenizer("[USER]:")["input_ids"] == [1, 404, colon]
    assert tokenizer("")["input_ids"] == [1]
    assert tokenizer("There")["input_ids"] == [1, there]


def test_released_tokens_and_white_space(tokenizer, tmp_path):
    names = ["[PAD]", "[IMG]", "[/IMG]", "<image>", "[USER]", "[ASSISTANT]"]
    assert tokenizer.convert_tokens_to_ids(names) == [400, 401, 402, 403, 404, 405]
    assert tokenizer.pad_token == "[PAD]" and len(tokenizer) == 406
    check_spaces(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    check_spaces(AutoTokenizer.from_pretrained(tmp_path))


def test_a_prompt_by_the_processor(tokenizer):
    from transformers import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(size={"height": 8, "width": 8}, do_center_crop=False)
    processor = EmuProcessor(images, tokenizer, num_image_latents=2)
    pixels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    there = tokenizer.convert_tokens_to_ids("▁There")
    found = processor(["There ", pixels, "There"])["input_ids"][0].tolist()
    assert found == [1, there, 401, 403, 403, 402, there]
    assert processor([""])["input_ids"].tolist() == [[1]]
