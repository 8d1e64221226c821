"""Benefit of pretraining for segmentation of emoji scenes: pretrained NEPA, from scratch, and frozen features.

    python benchmarks/segmentation.py --emoji EMOJI --backgrounds PICTURES

EMOJI, PICTURES: Parquet folders (see docs/segmentation.md); without them, the bundled emoji on plain colours. One NEPA
is pretrained for each seed on the unlabelled training scenes. Then each variant is trained with the same steps and the
same grid of learning rates; the rate is chosen by validation mIoU, and each run is tested once. Finished runs in the
output folder are reused, so an interrupted benchmark can be continued. One thread per run, `--jobs` runs in parallel.
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
    "pretrained": [],
    "from scratch": ["model.from_scratch=true"],
    "pretrained, frozen, linear head": ["train.freeze=[vit_nepa]"],
    "untrained, frozen, linear head": ["train.freeze=[vit_nepa]", "model.from_scratch=true"],
}
SIZES = "hidden_size=128 num_hidden_layers=4 num_attention_heads=4 intermediate_size=336"


def train(folder: Path, recipe: str, settings: list[str]) -> Path:
    """Runs `nextembed train` unless the run is finished; returns its folder."""
    if not (folder / "report.html").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "nextembed_cli", "train", recipe, f"name={folder.name}"]
        command += [f"output_dir={folder.parent}", "train.trackers=[]", *settings]
        with (folder.parent / f"{folder.name}.log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder


def pretrain(seed: int, args: argparse.Namespace) -> Path:
    sizes = [f"model.{size}" for size in SIZES.split()]
    settings = ["data.kind=emoji_scenes", *data_settings(args), "model.image_size=64", *sizes, f"seed={seed}"]
    settings += [f"train.max_steps={args.pretrain_steps}", "train.batch_size=64", "optim.learning_rate=5e-4"]
    settings += ["probe.enabled=false"]
    return train(args.runs / f"pretrained-{seed}", "nepa_demo", settings)


def data_settings(args: argparse.Namespace) -> list[str]:
    found = [f"data.emoji={args.emoji}"] if args.emoji else []
    found += [f"data.backgrounds={args.backgrounds}"] if args.backgrounds else []
    return [*found, f"data.num_scenes={args.num_scenes}"]


def segment(name: str, seed: int, rate: float, pretrained: Path, args: argparse.Namespace) -> dict:
    """Trains and scores one variant at one learning rate; returns its row."""
    folder = args.runs / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}-{rate:g}"
    settings = [*data_settings(args), f"seed={seed}", "model.architecture=null"]
    settings += [f"model.pretrained={pretrained / 'ema'}", f"optim.learning_rate={rate}"]
    settings += [f"train.max_steps={args.steps}", "train.batch_size=32", f"train.probe_steps={max(1, args.steps // 4)}"]
    settings += ["data.num_validation=200", "optim.layer_decay=1.0", *VARIANTS[name]]
    train(folder, "emoji_scenes", settings)
    scores = json.loads((folder / "scores.json").read_text())
    best = json.loads((folder / "best" / "score.json").read_text())
    print(f"{name}, seed {seed}, rate {rate:g}: validation {best['value']:.1%}, test {scores['miou']:.1%}", flush=True)
    row = {"variant": name, "seed": seed, "rate": rate, "validation_miou": best["value"], "step": best["step"]}
    return row | {key: scores[key] for key in ("miou", "pixel_accuracy", "num_images", "per_class")}


def table(rows: list[dict]) -> list[dict]:
    """Mean and sample standard deviation over seeds of the rows with the best learning rate on validation."""
    found = []
    for name in VARIANTS:
        seeds = sorted({row["seed"] for row in rows if row["variant"] == name})
        chosen = [
            max((r for r in rows if (r["variant"], r["seed"]) == (name, seed)), key=lambda r: r["validation_miou"])
            for seed in seeds
        ]
        line: dict = {"variant": name, "seeds": len(chosen), "rates": [row["rate"] for row in chosen]}
        for key in ("miou", "pixel_accuracy"):
            values = [row[key] for row in chosen]
            line[key] = [statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0]
        found.append(line)
    return found


def largest_class(row: dict) -> dict:
    """Scores of always predicting the largest class."""
    shares = [one["share"] for one in row["per_class"]]
    return {"miou": max(shares) / sum(share > 0 for share in shares), "pixel_accuracy": max(shares)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emoji", help="Parquet folder of emoji with the columns image and group")
    parser.add_argument("--backgrounds", help="folder or Parquet files of images")
    parser.add_argument("--pretrain-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--num-scenes", type=int, default=2000)
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 2e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/segmentation"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/segmentation.json"))
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        trunks = dict(zip(args.seeds, pool.map(lambda seed: pretrain(seed, args), args.seeds), strict=True))
        jobs = [(name, seed, rate) for seed in args.seeds for name in VARIANTS for rate in args.rates]
        rows = list(pool.map(lambda job: segment(*job, trunks[job[1]], args), jobs))
    named = "--emoji EMOJI " * bool(args.emoji) + "--backgrounds PICTURES " * bool(args.backgrounds)
    command = (
        f"python benchmarks/segmentation.py {named}--pretrain-steps {args.pretrain_steps} --steps {args.steps} "
        f"--num-scenes {args.num_scenes} --rates {' '.join(f'{rate:g}' for rate in args.rates)} "
        f"--seeds {' '.join(map(str, args.seeds))}"
    )
    result = {"command": command, "table": table(rows), "largest class": largest_class(rows[0]), "rows": rows}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    for line in result["table"]:
        (miou, spread), (accuracy, _) = line["miou"], line["pixel_accuracy"]
        print(f"{line['variant']:34} mIoU {miou:6.1%} ± {spread:.1%}  pixels {accuracy:.1%}  rates {line['rates']}")


if __name__ == "__main__":
    main()
