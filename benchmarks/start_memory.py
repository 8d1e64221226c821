"""Peak memory of each rank until a sharded model (FSDP2) is ready: if rank 0 alone builds it, and if every rank does.

    python benchmarks/start_memory.py --ranks 2 --layers 24 -o benchmarks/results/start_memory.json

"held" is the resident set before, with all libraries; "peak" is the largest until the model is sharded, "seconds" the
time. The model is new, or loaded from bf16 weights as float32, as an Emu loads its language model.
"""

import argparse
import json
import os
import socket
import tempfile
import time
from functools import partial
from pathlib import Path

import torch


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def made(layers: int, width: int, folder: Path | None):
    from nextembed.core.objective import PretrainingModel
    from nextembed.models.nepa import ViTNepaForPreTraining
    from nextembed.models.nepa.settings import NepaModel
    from nextembed.objectives.next_embedding import NextEmbeddingSettings

    torch.manual_seed(0)
    if folder is not None:
        backbone = ViTNepaForPreTraining.from_pretrained(folder, dtype=torch.float32)
    else:
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 32}
        backbone = NepaModel(image_size=32, patch_size=16, **sizes).build()
    return PretrainingModel(backbone, NextEmbeddingSettings().build(backbone))


def rank(args: argparse.Namespace, everywhere: bool, folder: Path | None, output: Path) -> None:
    from nextembed.core import distributed
    from nextembed.training import meta_start
    from nextembed.training.adapt import shard

    distributed.start("cpu")
    shard(made(1, 64, None))  # torch loads what it needs for sharding
    Path("/proc/self/clear_refs").write_text("5")
    held, start = memory("VmRSS"), time.perf_counter()
    model = shard(meta_start.build(partial(made, args.layers, args.width, folder), not everywhere, print))
    distributed.wait()
    row = {"held": held, "peak": memory("VmHWM"), "seconds": round(time.perf_counter() - start, 2)}
    rows = distributed.gather_objects(row)
    if distributed.is_main():
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        found = {"built_by": "every rank" if everywhere else "rank 0", "loaded": folder is not None}
        output.write_text(json.dumps({**found, "model_bytes": size, "by_rank": rows}))
    distributed.stop()


def on_ranks(num: int, work) -> None:
    """Runs `work` in processes that form a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(num):
        if (pid := os.fork()) == 0:
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": num, "RANK": number,
                     "LOCAL_RANK": number}  # fmt: skip
            os.environ.update({name: str(value) for name, value in place.items()} | {"OMP_NUM_THREADS": "1"})
            work()
            os._exit(0)
        children.append(pid)
    assert all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=512, help="24 layers of 512 are 405 MB in float32")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, output = Path(scratch, "model"), Path(scratch, "row.json")
        if (pid := os.fork()) == 0:  # so that the ranks are forked from a process that has built nothing
            made(args.layers, args.width, None).backbone.to(torch.bfloat16).save_pretrained(folder)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        for loaded in (None, folder):
            for everywhere in (True, False):
                on_ranks(args.ranks, partial(rank, args, everywhere, loaded, output))
                rows.append(row := json.loads(output.read_text()))
                what = f"{'loaded' if row['loaded'] else 'new'}, built by {row['built_by']}"
                ranks = ", ".join(f"{(own['peak'] - own['held']) / 1e6:.0f} MB" for own in row["by_rank"])
                print(f"{what}: {ranks} more than before, {row['by_rank'][0]['seconds']} s")
    if args.output:
        Path(args.output).write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
