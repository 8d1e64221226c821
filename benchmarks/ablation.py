"""The paper's core ablation at small scale: effect of the shift, stop-gradient, causal mask and input masking.

    python benchmarks/ablation.py --data PATH_TO_FASHION_MNIST --output benchmarks/results/ablation.json

Each run is `nextembed train fashion_mnist ...` with one setting changed, all else equal, on one thread; `--jobs` runs
in parallel. Layer, pooling, attention and penalty are chosen on validation images; test accuracy is measured once per
run. Finished runs in the output folder are reused, so an interrupted benchmark can be continued.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VARIANTS = {
    "full": [],
    "no shift": ["objective.shift=false"],
    "no stop-gradient": ["objective.stop_gradient=false"],
    "no causal mask": ["objective.causal=false"],
    "input masking 40 %": ["objective.input_mask_rate=0.4"],
}
BEYOND_THE_PAPER = {"InfoNCE": ["objective.distance=info_nce"]}  # run last


def run(name: str, seed: int, args: argparse.Namespace) -> dict:
    """Trains and probes one variant; returns its row."""
    folder = args.runs / f"{name.replace(' ', '_').replace('%', 'percent')}-{seed}"
    if not (folder / "probe.json").is_file():
        command = [sys.executable, "-m", "nextembed_cli", "train", "fashion_mnist", f"data.source={args.data}"]
        command += [f"name={folder.name}", f"output_dir={args.runs}", f"seed={seed}", f"train.max_steps={args.steps}"]
        command += [*(VARIANTS | BEYOND_THE_PAPER)[name], *args.settings]
        log = folder.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            subprocess.run(command, check=True, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
    probe = json.loads((folder / "probe.json").read_text())
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in metrics if "cos_next" in row][-1]
    row = {"variant": name, "seed": seed, "final": last}
    for weights in ("raw", "untrained"):
        linear = [r for r in probe["rows"] if r["probe"] == "linear" and r["weights"] == weights]
        best = max(linear, key=lambda r: r["validation_accuracy"])
        output = next(r for r in linear if r.get("default"))
        row[weights] = {"best": best, "output": output}
    row["pixels"] = probe["pixels"]["linear"]
    print(f"{name}, seed {seed}: {row['raw']['best']['accuracy']:.1%}", flush=True)
    return row


def summary(rows: list[dict]) -> list[dict]:
    """Mean and sample standard deviation over seeds, one line per variant."""

    def spread(values: list[float]) -> list[float]:
        return [statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0]

    table = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        line: dict = {"variant": name, "seeds": len(mine)}
        line["best"] = spread([r["raw"]["best"]["accuracy"] for r in mine])
        line["output"] = spread([r["raw"]["output"]["accuracy"] for r in mine])
        line["layers"] = [r["raw"]["best"]["layer"] for r in mine]
        for key in ("loss", "cos_next", "cos_current", "copy_win", "latent_rank", "hidden_rank", "latent_std"):
            line[key] = spread([r["final"][key] for r in mine])
        table.append(line)
    untrained = [row for row in rows if row["variant"] == "full"]
    table.append(
        {
            "variant": "untrained",
            "seeds": len(untrained),
            "best": spread([r["untrained"]["best"]["accuracy"] for r in untrained]),
            "output": spread([r["untrained"]["output"]["accuracy"] for r in untrained]),
        }
    )
    table.append({"variant": "raw pixels", "best": [untrained[0]["pixels"], 0.0]})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with Fashion-MNIST's train.parquet and test.parquet")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/ablation.json"))
    parser.add_argument("settings", nargs="*", help="further field=value settings, the same for every run")
    args = parser.parse_args()
    jobs = [(name, seed) for group in (VARIANTS, BEYOND_THE_PAPER) for seed in args.seeds for name in group]
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda job: run(*job, args), jobs))
    command = "python benchmarks/ablation.py --data FASHION_MNIST " + " ".join(
        [f"--steps {args.steps} --seeds", *map(str, args.seeds), *args.settings]
    )
    result = {"command": command, "table": summary(rows), "rows": rows}
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'variant':20} {'best linear':>16} {'output':>16}  layers")
    for line in result["table"]:
        best, output = line["best"], line.get("output")
        print(
            f"{line['variant']:20} {best[0]:9.1%} ± {best[1]:.1%} "
            + (f"{output[0]:9.1%} ± {output[1]:.1%}  {line.get('layers', '')}" if output else "")
        )


if __name__ == "__main__":
    main()
