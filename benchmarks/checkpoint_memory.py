"""Peak memory of each rank while a checkpoint is saved and while a run resumes from it.

    python benchmarks/checkpoint_memory.py --ranks 2 --layers 48 -o benchmarks/results/checkpoint_memory.json
    python benchmarks/checkpoint_memory.py --ranks 2 --layers 48 --shard

One training step runs first, so that gradients and AdamW state are allocated. Saving and resuming are measured by the
memory they need in addition: "held" is the resident set before them, "save" and "load" are its peak growth.
"""

import argparse
import json
import os
import socket
import tempfile
import time
from pathlib import Path

import torch


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def grown(action) -> tuple[int, float]:
    """Peak growth of the resident set in bytes while `action` runs, and seconds."""
    Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmRSS"), time.perf_counter()
    action()
    return memory("VmHWM") - before, time.perf_counter() - start


def rank(args: argparse.Namespace, folder: Path) -> None:
    from nextembed.core import distributed
    from nextembed.core.objective import PretrainingModel
    from nextembed.core.optim import OptimConfig
    from nextembed.models.nepa.settings import NepaModel
    from nextembed.objectives.next_embedding import NextEmbeddingSettings
    from nextembed.training import checkpoint
    from nextembed.training.adapt import shard
    from nextembed.training.optim import build_optimizer

    distributed.start("cpu")

    def made():
        torch.manual_seed(0)
        backbone = NepaModel(hidden_size=1024, num_hidden_layers=args.layers, num_attention_heads=16,
                             intermediate_size=2728, image_size=32, patch_size=16).build()  # fmt: skip
        model = PretrainingModel(backbone, NextEmbeddingSettings().build(backbone))
        model = shard(model) if args.shard else model
        return model, build_optimizer(model, OptimConfig(learning_rate=1e-3))

    model, optimizer = made()
    batch = {"pixel_values": torch.randn(1, 3, 32, 32), "latent_mask": torch.ones(1, 5, dtype=torch.bool)}
    model(batch).loss_sum.backward()
    optimizer.step()
    optimizer.zero_grad()
    size = sum(p.numel() * 4 for p in model.parameters())
    held = memory("VmRSS")
    progress = checkpoint.Progress(1, 2, [{"data": {"next": 1}, "averages": {}}] * args.ranks)
    target = checkpoint.step_dir(folder, 1)
    save = grown(lambda: checkpoint.save(target, model, optimizer, None, progress, None))
    load = grown(lambda: checkpoint.load(target, model, optimizer, None))
    row = {"model_bytes": size, "held": held, "save": save[0], "load": load[0], "save_s": save[1], "load_s": load[1]}
    rows = distributed.gather_objects(row)
    if distributed.is_main():
        result = {"ranks": args.ranks, "sharded": args.shard, "torch": torch.__version__, "by_rank": rows}
        for number, own in enumerate(rows):
            print(f"rank {number}: " + ", ".join(f"{name} {own[name] / 1e9:.2f} GB" for name in list(own)[:4]))
        if args.output:
            Path(args.output).write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=24, help="layers of width 1024; 24 take 1.2 GB in float32")
    parser.add_argument("--shard", action="store_true", help="FSDP2; without it each rank stores all weights (DDP)")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for number in range(args.ranks):
            if (pid := os.fork()) == 0:
                place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": args.ranks, "RANK": number}
                os.environ.update({name: str(value) for name, value in place.items()} | {"OMP_NUM_THREADS": "1"})
                rank(args, Path(folder))
                os._exit(0)
            children.append(pid)
        assert all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in children)


if __name__ == "__main__":
    main()
