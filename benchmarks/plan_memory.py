"""Memory predicted by `nextembed plan` against the measured memory of training steps on the CPU.

    python benchmarks/plan_memory.py                    # all settings
    python benchmarks/plan_memory.py --only nepa_bf16   # one setting

The result file is written after each setting. Settings in it are not measured again, so an interrupted benchmark can be
continued.

Each setting runs two optimizer steps of the trainer, on random batches of the planned shape, in separate processes
with one thread:

- rss: growth of the resident set to its peak (VmHWM, reset by /proc/self/clear_refs; Linux only), measured after the
  imports and a first tiny run (which triggers lazy loading in libraries). By default glibc keeps freed memory, which
  distorts the measurement; here blocks of 64 KiB and more are returned at once (MALLOC_MMAP_THRESHOLD_,
  MALLOC_TRIM_THRESHOLD_), and there is one arena. Predictions are compared with this number.
- allocated: peak memory allocated by torch's CPU allocator, from the memory events of the profiler, in a separate
  process because the profiler needs memory itself. It does not include internal allocations of kernels.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "plan_memory.json"
WIDE = "model.hidden_size=384 model.num_attention_heads=6 model.intermediate_size=1024 model.image_size=64"
LARGE = "{image_size: 64, patch_size: 8, hidden_size: 384, num_hidden_layers: 6, num_attention_heads: 6}"
EMU = (
    "nepa_demo data.kind=EMU model.kind=emu objective.kind=emu model.tokenizer=bundled model.num_image_latents=8"
    " 'model.vision_config={model_type: vit_nepa, image_size: 64, patch_size: 8, hidden_size: 256,"
    " num_hidden_layers: 6, num_attention_heads: 4, intermediate_size: 1024}'"
    " 'model.language_config={model_type: llama, vocab_size: 8192, hidden_size: 384, num_hidden_layers: 6,"
    " num_attention_heads: 6, num_key_value_heads: 6, intermediate_size: 1024}'"
    " 'model.causal_former={num_layers: 4, num_heads: 4, d_ff: 512, d_model: 256, d_kv: 64}'"
    " model.max_length=256 train.ema_decay=null"
).replace("data.kind=EMU ", "")
FAMILIES = {"aim": 128, "igpt": 64, "mae": 128, "ijepa": 128, "mar": 64, "vjepa": 32, "cpc": 32, "simsiam": 64,
            "lejepa": 32, "vq": 64, "msvq": 64}  # fmt: skip
SETTINGS = {
    "nepa": "nepa_demo train.batch_size=128",
    "nepa_bf16": "nepa_demo train.batch_size=128 train.precision=bf16",
    "nepa_wide": f"nepa_demo {WIDE} train.batch_size=32",
    "nepa_wide_checkpointing": f"nepa_demo {WIDE} train.batch_size=64 train.gradient_checkpointing=true",
    "nepa_accumulated": f"nepa_demo {WIDE} train.batch_size=64 train.micro_batch_size=16",
    "nepa_weights": "nepa_demo model.hidden_size=768 model.num_attention_heads=12 model.num_hidden_layers=6"
    " model.intermediate_size=2048 train.batch_size=8",
    "nepa_teacher": "nepa_demo train.batch_size=128 objective.target=teacher objective.target_layer=-1"
    " objective.every_layer=true",
    "finetune": f"finetune 'model.architecture={LARGE}' train.batch_size=24",
    "finetune_lora": f"finetune 'model.architecture={LARGE}' train.batch_size=24 'train.lora={{rank: 8}}'",
    "latent_decoder": f"latent_decoder model.pretrained=null model.patch_size=8 {WIDE} train.batch_size=64",
    "segmentation": "emoji_scenes train.batch_size=32",
    "segmentation_upernet": f"emoji_scenes model.head=upernet model.head_width=128 'model.architecture={LARGE}'"
    " train.batch_size=12",
    **{name: f"{name}_demo train.batch_size={size}" for name, size in FAMILIES.items()},
    "omni": "omni_emoji train.batch_size=16",
    "emu": f"{EMU} train.batch_size=4",
    "emu_bf16": f"{EMU} train.batch_size=4 train.precision=bf16",
    "emu_lora_checkpointing": f"{EMU} train.batch_size=4 train.gradient_checkpointing=true"
    " 'train.lora={rank: 8, targets: [q_proj, v_proj], within: language_model}'",
}
ALWAYS = ["train.device=cpu", "train.max_steps=2", "train.log_steps=1", "train.trackers=[]", "train.save_steps=1000",
          "train.probe_steps=null", "train.epochs=null"]  # fmt: skip
CLASSES = 10
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


def settings_of(words: str) -> Any:
    """The run config of a recipe name followed by settings."""
    import nextembed.models.emu.settings
    import nextembed.objectives.emu  # noqa: F401  # both register their kinds
    from nextembed import recipes
    from nextembed.core.config import apply_overrides

    recipe, *overrides = shlex.split(words)
    return apply_overrides(recipes.load(recipe), [*overrides, *ALWAYS])


def train(config: Any, folder: Path) -> None:
    """Two steps of the trainer on random batches."""
    import torch

    from nextembed.core.objective import PretrainingModel
    from nextembed.planning.step import class_names, example_batch, needs_classes
    from nextembed.training.adapt import adapt
    from nextembed.training.loop import Loop, Source

    torch.manual_seed(0)
    backbone = config.model.build(class_names(config, CLASSES) if needs_classes(config) else [])
    adapt(backbone, config.train)
    objective = config.objective.build(backbone)
    batch: Any = example_batch(config, backbone, objective, config.train.micro_batch(1))

    def batches() -> Iterator[Any]:
        while True:
            yield {n: torch.randn(v.shape) if v.is_floating_point() else v.contiguous() for n, v in batch.items()}

    def advance(state: Any, position: Any) -> dict:
        return {}

    model = PretrainingModel(backbone, objective)
    Loop(model, config.train, config.optim, folder, Source(batches(), advance), seed=0).train()


def memory_of(field: str) -> int:
    """A field of /proc/self/status in bytes, e.g. VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def rss(run: Callable[[], None]) -> int:
    """Peak growth of the resident set in bytes while `run` runs."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_of("VmRSS")
    run()
    return memory_of("VmHWM") - before


def allocated(run: Callable[[], None]) -> int:
    """Peak bytes allocated by torch's allocator while `run` runs."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    now = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


def child(measure: str, words: str) -> None:
    """Prints one measured number."""
    config = settings_of(words)
    small = settings_of("nepa_demo_tiny train.precision=" + config.train.precision)
    with tempfile.TemporaryDirectory() as folder:
        train(small, Path(folder))
        print(json.dumps({"rss": rss, "allocated": allocated}[measure](lambda: train(config, Path(folder)))))


def measured(measure: str, words: str) -> int:
    command = [sys.executable, __file__, "--child", measure, words]
    out = subprocess.run(command, env=os.environ | ENVIRONMENT, check=True, capture_output=True, text=True).stdout
    return int(out.splitlines()[-1])


def compare(name: str) -> dict[str, Any]:
    """One setting: predicted and measured bytes."""
    from nextembed.planning.step import trace_step

    step = trace_step(settings_of(SETTINGS[name]), 1, CLASSES)
    row: dict[str, Any] = {
        "setting": name,
        "command": f"nextembed plan {SETTINGS[name]}",
        "parameters": step.parameters,
    }
    row |= {"predicted": step.peak, "by_category": step.memory}
    for measure in ("rss", "allocated"):
        row[measure] = measured(measure, SETTINGS[name])
        row[f"predicted_over_{measure}"] = round(step.peak / row[measure], 4)
    print(
        f"{name:28} predicted {step.peak / 2**20:7.1f} MiB  rss {row['rss'] / 2**20:7.1f} "
        f"({row['predicted_over_rss'] - 1:+.1%})  allocated {row['allocated'] / 2**20:7.1f} "
        f"({row['predicted_over_allocated'] - 1:+.1%})",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--anew", action="store_true", help="also measure settings that are in the result file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return

    done = {row["setting"]: row for row in json.loads(args.output.read_text())["rows"]} if args.output.is_file() else {}
    for name in args.only:
        if name not in done or args.anew:
            done[name] = compare(name)
            save(args.output, [done[other] for other in SETTINGS if other in done])


def save(file: Path, rows: list[dict[str, Any]]) -> None:
    import torch

    result = {
        "command": "python benchmarks/plan_memory.py",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "environment": ENVIRONMENT,
        "largest_error": max(abs(row["predicted_over_rss"] - 1) for row in rows),
        "rows": rows,
    }
    scratch = file.with_suffix(".tmp")
    scratch.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(scratch, file)


if __name__ == "__main__":
    main()
