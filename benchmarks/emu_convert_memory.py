"""Peak memory of `nextembed convert` on an Emu checkpoint of about 1.5 GB, written as many shards.

    python benchmarks/emu_convert_memory.py -o benchmarks/results/emu_convert_memory.json
    python benchmarks/emu_convert_memory.py --scale 0.1 --folder SCRATCH

Writes a folder in the released format with random weights (one `multimodal_encoder/pytorch_model.bin`), converts it in
a separate process, and reads the memory of that process from /proc every 5 ms:

    anonymous   memory private to the process, which the system cannot reclaim
    resident    all resident pages, including those of mapped files (which the system may drop at any time)

both relative to the values after all imports and before reading. The benchmark fails unless "resident", the stricter
of the two, stays below 1.5 times the largest shard. Loading everything at once and saving it is measured as well.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

SIZES = {"vision": 704, "vision_layers": 4, "former": 256, "text": 2048, "text_layers": 6, "text_mlp": 5504}
VOCABULARY = 32004
WAYS = {
    "streamed": "convert_emu(source, target, max_shard_size=shard, **options)",
    "streamed, to bf16": "convert_emu(source, target, max_shard_size=shard, dtype='bf16', **options)",
    "all at once": """
state = torch.load(f"{source}/multimodal_encoder/pytorch_model.bin", weights_only=True)
model = EmuForConditionalGeneration(config).eval()
parts = map_official({name: tuple(tensor.shape) for name, tensor in state.items()}).parts
ours = {name: part.make(*(state[theirs] for theirs in part.sources)) for name, part in parts.items()}
model.load_state_dict(ours, strict=True)
model.save_pretrained(target, max_shard_size=shard)
""",
}
CHILD = """
import sys, json, torch
from nextembed.export.emu import convert_emu
from nextembed.models.emu import EmuConfig, EmuForConditionalGeneration
from nextembed.models.emu.official import map_official
source, target, shard, config = sys.argv[1:]
config = EmuConfig.from_pretrained(config) if config else None
options = {}
print("ready", flush=True)
sys.stdin.readline()
%s
print("done", flush=True)
"""


def released_state(scale: float) -> dict[str, torch.Tensor]:
    """Random weights under the released names; scale: factor on the number of layers."""
    s, state = SIZES, {}
    layers = max(1, round(s["text_layers"] * scale))
    width, former, text, mlp = s["vision"], s["former"], s["text"], s["text_mlp"]

    def put(name: str, *shape: int) -> None:
        state[name] = torch.randn(*shape) * 0.02

    put("visual.cls_token", 1, 1, width)
    put("visual.pos_embed", 1, 257, width)
    put("visual.patch_embed.proj.weight", width, 3, 14, 14)
    put("visual.patch_embed.proj.bias", width)
    for i in range(s["vision_layers"]):
        block = f"visual.blocks.{i}."
        for norm in ("norm1", "norm2"):
            put(f"{block}{norm}.weight", width)
            put(f"{block}{norm}.bias", width)
        put(block + "attn.qkv.weight", 3 * width, width)
        put(block + "attn.q_bias", width)
        put(block + "attn.v_bias", width)
        for name, out, into in (
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            put(f"{block}{name}.weight", out, into)
            put(f"{block}{name}.bias", out)
    put("ln_visual.weight", width)
    put("ln_visual.bias", width)
    put("cformer.causal_tokens", 1, 32, former)
    block = "cformer.cformer.block.0.layer."
    put(block + "0.SelfAttention.relative_attention_bias.weight", 32, 4)
    for layer, name in ((0, "SelfAttention"), (1, "EncDecAttention")):
        for matrix in "qkvo":
            put(f"{block}{layer}.{name}.{matrix}.weight", former, width if layer and matrix in "kv" else former)
    for layer in range(3):
        put(f"{block}{layer}.layer_norm.weight", former)
    put(block + "2.DenseReluDense.wi.weight", 4 * former, former)
    put(block + "2.DenseReluDense.wo.weight", former, 4 * former)
    put("cformer.cformer.final_layer_norm.weight", former)
    put("cformer.projection.weight", text, former)
    put("cformer.projection.bias", text)
    put("decoder.lm.model.embed_tokens.weight", VOCABULARY, text)
    put("decoder.lm.lm_head.weight", VOCABULARY, text)
    put("decoder.lm.model.norm.weight", text)
    put("decoder.lm.stu_regress_head.weight", text, text)
    for i in range(layers):
        block = f"decoder.lm.model.layers.{i}."
        for name in "qkvo":
            put(f"{block}self_attn.{name}_proj.weight", text, text)
        put(block + "mlp.gate_proj.weight", mlp, text)
        put(block + "mlp.up_proj.weight", mlp, text)
        put(block + "mlp.down_proj.weight", text, mlp)
        put(block + "input_layernorm.weight", text)
        put(block + "post_attention_layernorm.weight", text)
    return state


def memory(pid: int) -> tuple[int, int]:
    """Current (anonymous, resident) bytes of a process; zeros if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    found = dict(re.findall(r"^(RssAnon|VmRSS):\s+(\d+) kB", text, re.MULTILINE))
    return 1024 * int(found.get("RssAnon", 0)), 1024 * int(found.get("VmRSS", 0))


def measure(way: str, source: Path, target: Path, shard: str, config: str) -> dict[str, float]:
    """Peaks in bytes relative to the process after its imports, and seconds."""
    command = [sys.executable, "-c", CHILD % WAYS[way], str(source), str(target), shard, config]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin and child.stdout
    assert child.stdout.readline() == "ready\n"
    before, peaks, start = memory(child.pid), (0, 0), time.perf_counter()
    child.stdin.write("go\n")
    child.stdin.flush()
    while child.poll() is None:
        peaks = tuple(max(pair) for pair in zip(peaks, memory(child.pid)))
        time.sleep(0.005)
    if child.returncode:
        raise SystemExit(f"the conversion '{way}' failed")
    seconds = time.perf_counter() - start
    return {"anonymous": peaks[0] - before[0], "resident": peaks[1] - before[1], "seconds": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of layers")
    parser.add_argument("--shard", default="300MB")
    parser.add_argument("--folder", type=Path, help="where to create the scratch folder; default: the system's")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        source = Path(scratch) / "released"
        (source / "multimodal_encoder").mkdir(parents=True)
        torch.manual_seed(0)
        state = released_state(args.scale)
        torch.save(state, source / "multimodal_encoder" / "pytorch_model.bin")
        size = sum(t.numel() * t.element_size() for t in state.values())
        largest_tensor = max(t.numel() * t.element_size() for t in state.values())
        del state
        result = {"checkpoint_bytes": size, "largest_tensor_bytes": largest_tensor, "max_shard_size": args.shard}
        config = ""
        for way in WAYS:
            target = Path(scratch) / way.replace(" ", "_").replace(",", "")
            found = measure(way, source, target, args.shard, config)
            shards = [file.stat().st_size for file in target.glob("*.safetensors")]
            found |= {"shards": len(shards), "largest_shard": max(shards)}
            for kind in ("anonymous", "resident"):
                found[f"{kind}_over_largest_shard"] = round(found[kind] / max(shards), 3)
            result[way] = found
            config = config or str(target)
            print(f"{way:20} {json.dumps(found)}", flush=True)
        result["machine"] = {"cpus": os.cpu_count(), "torch": torch.__version__, "python": sys.version.split()[0]}
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(result, indent=1) + "\n")
    for way in ("streamed", "streamed, to bf16"):
        if result[way]["resident_over_largest_shard"] >= 1.5:
            raise SystemExit(f"{way}: above 1.5 times the largest shard")


if __name__ == "__main__":
    main()
