"""Cost of each setting on one GPU: steps of the training loop, optimizers, copies, FSDP2 and host synchronisations.

    python benchmarks/gpu.py                         # ViT-B at 224 px, under 8 minutes
    python benchmarks/gpu.py --tiny --steps 3        # the same table for a tiny model, also on a CPU

A row that cannot run on this machine gives the reason. Steps are timed after warm-up, with the device synchronised
before and after.
"""

import argparse
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from nextembed import recipes
from nextembed.core import distributed
from nextembed.core.config import apply_overrides
from nextembed.core.objective import PretrainingModel
from nextembed.planning.step import example_batch
from nextembed.training.adapt import adapt
from nextembed.training.loop import Loop, Source

CUDA = torch.cuda.is_available()
LIMIT = 460.0  # seconds for all rows
WARM = 3  # warm-up steps before timing
ROWS = {
    "eager attention, fp32": ["train.attn_implementation=eager"],
    "sdpa, fp32": ["train.attn_implementation=sdpa"],
    "sdpa, bf16": ["train.attn_implementation=sdpa", "train.precision=bf16"],
    "flash attention 2, bf16": ["train.attn_implementation=flash_attention_2", "train.precision=bf16"],
    "sdpa, bf16, compile": ["train.attn_implementation=sdpa", "train.precision=bf16", "train.compile=true"],
    "sdpa, bf16, recomputed activations": ["train.precision=bf16", "train.gradient_checkpointing=true"],
    "sdpa, bf16, FSDP2 of one rank": ["train.precision=bf16", "train.fsdp=true"],
}


def wait() -> None:
    """Waits until the device is idle."""
    if CUDA:
        torch.cuda.synchronize()


def config_of(words: list[str], tiny: bool, steps: int) -> Any:
    """A run config that never saves or probes."""
    size = [] if tiny else ["train.batch_size=128"]
    always = [f"train.max_steps={WARM + steps}", "train.epochs=null", "optim.warmup_epochs=null",
              "optim.warmup_steps=1",
              "train.log_steps=100000", "train.save_steps=100000", "train.probe_steps=null", "train.trackers=[]",
              "train.ema_decay=null", "train.micro_batch_size=null",
              f"train.device={'auto' if CUDA else 'cpu'}"]  # fmt: skip
    return apply_overrides(recipes.load("nepa_demo_tiny" if tiny else "nepa_base_imagenet"), [*size, *always, *words])


def train(config: Any) -> dict[str, float]:
    """Milliseconds per step, images per second, peak memory and host synchronisations of the training loop."""
    torch.manual_seed(0)
    backbone = config.model.build([])
    adapt(backbone, config.train)
    objective = config.objective.build(backbone)
    batch: Any = example_batch(config, backbone, objective, config.train.micro_batch(1))
    moments: list[float] = []

    def batches() -> Iterator[Any]:
        while True:
            if len(moments) in (WARM, config.train.max_steps):
                wait()
            if CUDA and len(moments) == WARM:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.set_sync_debug_mode("warn")
            moments.append(time.perf_counter())
            yield {n: v.contiguous().pin_memory() if CUDA else v.contiguous() for n, v in batch.items()}

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PretrainingModel(backbone, objective)
        source = Source(batches(), lambda state, position: {})
        Loop(model, config.train, config.optim, Path(folder), source, seed=0).train()
        wait()
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")
    seconds = (time.perf_counter() - moments[WARM]) / (config.train.max_steps - WARM)
    waits = sum("synchroniz" in str(one.message) for one in caught)
    found = {"ms": seconds * 1e3, "images_per_second": config.train.batch_size / seconds}
    return found | ({"MiB": torch.cuda.max_memory_allocated() / 2**20, "waits": waits} if CUDA else {})


def optimizers(tiny: bool, steps: int) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """The three implementations of AdamW on the weights of the model."""
    for name, options in (
        ("fused", {"fused": True}),
        ("foreach", {"foreach": True}),
        ("one by one", {"foreach": False}),
    ):

        def step(options: dict[str, bool] = options) -> dict[str, float]:
            model = config_of([], tiny, steps).model.build([]).to("cuda" if CUDA else "cpu")
            adamw = torch.optim.AdamW(model.parameters(), **options)
            for weight in model.parameters():
                weight.grad = torch.zeros_like(weight)
            return timed(adamw.step, steps)

        yield f"AdamW step, {name}", step


def copies(tiny: bool, steps: int) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """Copies of a batch of pixels to the device."""
    pixels = torch.zeros(4 if tiny else 128, 3, 224, 224)

    def pinned() -> dict[str, float]:
        held = pixels.pin_memory()
        return timed(lambda: held.to("cuda", non_blocking=True), steps)

    yield "copy of a batch, pageable", lambda: timed(lambda: pixels.to("cuda"), steps)
    yield "copy of a batch, pinned, non-blocking", pinned


def timed(call: Callable[[], object], steps: int) -> dict[str, float]:
    for _ in range(WARM):
        call()
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        call()
    wait()
    return {"ms": (time.perf_counter() - began) / steps * 1e3}


def rows(tiny: bool, steps: int) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    for name, words in ROWS.items():
        yield name, lambda words=words: train(config_of(words, tiny, steps))  # type: ignore[misc]
    yield from optimizers(tiny, steps)
    yield from copies(tiny, steps)


def measure(tiny: bool, steps: int, limit: float = LIMIT) -> dict[str, dict[str, Any]]:
    """All rows, printed as soon as they are measured; a row that fails gives the reason."""
    found: dict[str, dict[str, Any]] = {}
    until = time.monotonic() + limit
    print(f"{'':38} {'ms':>9} {'images/s':>10} {'MiB':>9} {'waits':>6}")
    for name, call in rows(tiny, steps):
        try:
            found[name] = call() if time.monotonic() < until else {"skipped": f"{limit:.0f} s are over"}
        except Exception as err:  # e.g. a feature that the machine lacks
            found[name] = {"skipped": (str(err).strip().splitlines() or [type(err).__name__])[0][:120]}
        own = found[name]
        figures = [own.get(key) for key in ("ms", "images_per_second", "MiB", "waits")]
        text = " ".join(
            "-".rjust(w) if v is None else f"{v:{w},.{d}f}" for v, w, d in zip(figures, (9, 10, 9, 6), (2, 1, 0, 0))
        )
        print(f"{name:38} {own.get('skipped') or text}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=float, default=LIMIT, help="no row is started after this many seconds")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    found = measure(args.tiny, args.steps, args.limit)
    device = torch.cuda.get_device_name() if CUDA else f"CPU, {platform.machine()}"
    print(f"device {device}, torch {torch.__version__}")
    if args.output:
        args.output.write_text(
            json.dumps({"device": device, "torch": torch.__version__, "rows": found}, indent=1) + "\n"
        )
    distributed.stop()


if __name__ == "__main__":
    main()
