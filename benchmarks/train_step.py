"""Images per second, share of this machine's GEMM peak and peak memory of NEPA and of timm's ViT of the same size.

    python benchmarks/train_step.py                      # both sizes, training and inference
    python benchmarks/train_step.py --sizes small --compile
    python benchmarks/train_step.py --modes inference    # in a process that has not trained

Everything is measured in one run on one machine, because only ratios within a run are meaningful. The two models run in
turn, so that changes in the speed of the machine affect both; each number is the median over rounds. timm's ViT has no
rotary positions, QK-norm or LayerScale. A training step is forward, loss (NEPA: next-embedding, timm: cross-entropy),
backward and a fused AdamW step. Peak memory is measured in a separate process.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nextembed.core.objective import PretrainingModel
from nextembed.models.nepa import NepaModel
from nextembed.objectives import NextEmbeddingSettings

SIZES = {
    # name: width, depth, heads, image pixels, patch pixels, batch
    "small": (192, 12, 3, 64, 8, 64),
    "base": (768, 12, 12, 224, 14, 8),
}


def gemm_peak(size: int = 2048, rounds: int = 10) -> float:
    """FLOP/s of a float32 matrix product, the fastest of `rounds`."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return max(2 * size**3 / timed(lambda: a @ b) for _ in range(rounds))


def timed(call: Callable[[], object]) -> float:
    """Seconds; of CPU time with one thread, so that other work on the machine hardly matters."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def forward_flops(size: str) -> float:
    """FLOPs of the forward pass of one image (two per multiply-add): linear layers, patch embedding and attention
    products. Attention is counted in full for both models, although causal attention needs only half of it."""
    width, depth, _, image, patch, _ = SIZES[size]
    tokens = 1 + (image // patch) ** 2
    layer = 12 * width**2 + 2 * tokens * width
    return 2.0 * (tokens * depth * layer + tokens * 3 * patch**2 * width)


def nepa(size: str) -> nn.Module:
    """NEPA in the released variant (GELU, QK-norm without learned scale, LayerScale)."""
    width, depth, heads, image, patch, _ = SIZES[size]
    model = NepaModel(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=image,
        patch_size=patch,
        use_gated_mlp=False,
        hidden_act="gelu",
    ).build()
    objective = NextEmbeddingSettings().build(model)
    objective.diagnose = False  # the trainer turns diagnostics on only for the steps it logs
    return PretrainingModel(model, objective)


def timm_vit(size: str) -> nn.Module:
    import timm

    width, depth, heads, image, patch, _ = SIZES[size]
    return timm.models.vision_transformer.VisionTransformer(
        img_size=image, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=1000
    )


class Runner:
    """One model, ready for training or inference on one fixed batch."""

    def __init__(self, name: str, size: str, training: bool, compile: bool):
        torch.manual_seed(0)
        _, _, _, image, patch, batch = SIZES[size]
        self.name, self.training = name, training
        self.model = (nepa if name == "nepa" else timm_vit)(size).train(training)
        self.pixels = torch.randn(batch, 3, image, image)
        self.labels = torch.randint(1000, (batch,))
        self.mask = torch.ones(batch, 1 + (image // patch) ** 2, dtype=torch.bool)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.call: Callable[..., Tensor] = torch.compile(self.forward) if compile else self.forward

    def forward(self) -> Tensor:
        if self.name == "timm":
            logits = self.model(self.pixels)
            return nn.functional.cross_entropy(logits, self.labels) if self.training else logits
        if not self.training:
            return self.model.backbone(self.pixels).last_hidden_state
        out = self.model({"pixel_values": self.pixels, "latent_mask": self.mask})
        return out.loss_sum / out.num_targets

    def step(self) -> None:
        if self.training:
            self.call().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        else:
            with torch.inference_mode():
                self.call()


def speed(size: str, training: bool, rounds: int, compile: bool) -> dict[str, list[float]]:
    """Images per second of each round, for both models in turn."""
    runners = [Runner(name, size, training, compile) for name in ("nepa", "timm")]
    for runner in runners:
        runner.step()
        runner.step()
    rates: dict[str, list[float]] = {runner.name: [] for runner in runners}
    for _ in range(rounds):
        for runner in runners:
            rates[runner.name].append(SIZES[size][5] / timed(runner.step))
    return rates


def peak_memory(name: str, size: str, training: bool) -> float:
    """Peak resident memory in GB of a new process that runs three steps, minus the memory after imports."""
    command = [sys.executable, __file__, "--memory-of", name, "--sizes", size] + ["--training"] * training
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(name: str, size: str, training: bool) -> float:
    importlib.import_module("timm" if name == "timm" else "nextembed.models.nepa")
    before = highest_resident_kb()
    runner = Runner(name, size, training, compile=False)
    for _ in range(3):
        runner.step()
    return (highest_resident_kb() - before) / 1024**2


def highest_resident_kb() -> int:
    """Peak resident memory of this process. getrusage is not usable: a child inherits the peak of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument(
        "--modes", nargs="+", default=["training", "inference"], choices=["training", "inference"],
        help="inference alone runs in memory that is new to the process, as it does where nothing was trained before",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="use torch.compile for both models")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--training", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(measure_memory(args.memory_of, args.sizes[0], args.training))
        return
    peak = gemm_peak()
    result = {
        "command": "python benchmarks/train_step.py " + " ".join(sys.argv[1:]),
        "machine": f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}",
        "gemm_peak_gflops": round(peak / 1e9, 1),
        "rows": [],
    }
    print(f"{result['machine']}; float32 GEMM peak {peak / 1e9:.0f} GFLOP/s (2048^3)")
    print(f"{'size':6} {'mode':10} {'model':5} {'images/s':>9} {'of peak':>8} {'memory GB':>10} {'nepa / timm':>12}")
    for size in args.sizes:
        for training in (mode == "training" for mode in args.modes):
            rates = speed(size, training, args.rounds, args.compile)
            ratio = statistics.median(a / b for a, b in zip(rates["nepa"], rates["timm"], strict=True))
            for name, values in rates.items():
                rate = statistics.median(values)
                row = {
                    "size": size,
                    "mode": "training" if training else "inference",
                    "model": name,
                    "images_per_second": round(rate, 2),
                    "share_of_peak": round(rate * forward_flops(size) * (3 if training else 1) / peak, 3),
                    "peak_memory_gb": round(peak_memory(name, size, training), 2),
                    "nepa_over_timm": round(ratio, 3),
                }
                result["rows"].append(row)
                print(
                    f"{size:6} {row['mode']:10} {name:5} {rate:9.1f} {row['share_of_peak']:8.0%} "
                    f"{row['peak_memory_gb']:10.2f} {ratio if name == 'nepa' else 1:12.2f}",
                    flush=True,
                )
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
