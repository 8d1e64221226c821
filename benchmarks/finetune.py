"""Benefit of pretraining: fine-tuning from NEPA against the same network from scratch, with few and with all labels.

    python benchmarks/finetune.py --data SHARED --pretrained runs/fashion_mnist/model --task fashion_mnist
    python benchmarks/finetune.py --data SHARED --pretrained runs/emoji/model --task emoji

`--data` is a folder with fashion_mnist/, emoji/ and stamps/ (one Parquet file per split). NEPA and scratch each get a
grid with the same number of settings. Each setting runs once at the tuning size of the task; the one with the highest
validation accuracy then runs with every size and three seeds (of labels, head and data order), with one test score per
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
from typing import Any

STARTS = {"NEPA": ["model.from_scratch=false"], "scratch": ["model.from_scratch=true"]}

TASKS: dict[str, dict[str, Any]] = {
    "fashion_mnist": {
        "recipe": "fashion_mnist_finetune",
        "settings": ["data.source={data}/fashion_mnist"],
        "sizes": {"60": 6, "600": 60, "6000": 600},  # labels per class
        "steps": {"60": 200, "600": 400, "6000": 600},
        "tune": "600",
    },
    "emoji": {  # trained on one drawing style, also tested on another: same emoji groups, other emoji
        "recipe": "finetune",
        "settings": [
            "data.source={data}/emoji",
            "data.label_column=group",
            "data.where={{vendor: noto}}",
            "data.num_workers=0",
        ],
        "other": ["data.where={{vendor: twemoji}}"],
        "sizes": {"all": None},
        "steps": {"all": 400},
        "tune": "all",
    },
    "stamps": {
        "recipe": "finetune",
        "settings": [
            "data.source={data}/stamps",
            "data.label_column=category",
            "data.split=train[:-120]",
            "data.validation=train[-120:]",
            "data.test=validation",
            "data.num_workers=0",
        ],
        "sizes": {"all": None},
        "steps": {"all": 400},
        "tune": "all",
    },
}

# The same number of settings for both: three learning rates with four layers and causal attention, then full attention
# at the middle rate with four and with six layers.
BEST_RATES = {"NEPA": (5e-4, 1e-3, 2e-3), "scratch": (2.5e-4, 5e-4, 1e-3)}
DECAY = {"NEPA": 0.75, "scratch": 1.0}


def grid(start: str) -> list[list[str]]:
    rates = BEST_RATES[start]
    trials = [(rate, "causal", 4) for rate in rates]
    trials += [(rates[1], "full", 4), (rates[1], "full", 6)]
    return [
        [
            f"optim.learning_rate={rate:g}",
            f"optim.layer_decay={DECAY[start]:g}",
            f"model.attention={attention}",
            f"model.num_layers={layers}",
        ]
        for rate, attention, layers in trials
    ]


class Runner:
    """Runs `nextembed train` with settings, each run in its own folder; finished runs are not repeated."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.task = args, TASKS[args.task]
        self.root = args.runs / args.task

    def __call__(self, name: str, start: str, size: str, seed: int, extra: list[str], score: bool) -> Path:
        folder = self.root / name
        if (folder / ("scores.json" if score else "report.html")).is_file():
            return folder
        per_class = self.task["sizes"][size]
        steps = int(self.task["steps"][size] * self.args.length)
        settings = [
            *(text.format(data=self.args.data) for text in self.task["settings"]),
            f"model.pretrained={self.args.pretrained}",
            *STARTS[start],
            f"data.labels_per_class={'null' if per_class is None else per_class}",
            f"data.labels_seed={seed}",
            f"seed={seed}",
            f"name={name}",
            f"output_dir={self.root}",
            f"train.max_steps={steps}",
            f"train.probe_steps={max(1, steps // 2)}",
            f"train.save_steps={steps}",
            "train.trackers=[]",
            f"probe.enabled={str(score).lower()}",
            f"probe.num_validation={self.args.num_validation}",
            *self.args.settings,
            *extra,
        ]
        self.root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "nextembed_cli", "train", self.task["recipe"], *settings]
        self.call(command, name)
        if score and "other" in self.task:
            other = [text.format() for text in self.task["other"]]
            command = [sys.executable, "-m", "nextembed_cli", "evaluate", str(folder), *other]
            self.call([*command, "-o", str(folder / "other.json")], f"{name}-other")
        return folder

    def call(self, command: list[str], name: str) -> None:
        with (self.root / f"{name}.log").open("w") as out:
            subprocess.run(command, check=True, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})


def validation(folder: Path) -> float:
    """The validation accuracy of the best weights of a run."""
    return json.loads((folder / "best" / "score.json").read_text())["value"]


def mean_sd(values: list[float]) -> list[float]:
    return [statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path, required=True)
    parser.add_argument("--task", choices=list(TASKS), default="fashion_mnist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--trials", type=int, default=5, help="settings to try of each grid (default: %(default)s)")
    parser.add_argument("--length", type=float, default=1.0, help="factor on the default number of steps")
    parser.add_argument("--num-validation", type=int, default=2000)
    parser.add_argument("--runs", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("settings", nargs="*", help="further field=value settings, the same for every run")
    args = parser.parse_args()
    run, size = Runner(args), TASKS[args.task]["tune"]
    grids = {start: grid(start)[: args.trials] for start in STARTS}

    with ThreadPoolExecutor(args.jobs) as pool:
        trials = [(start, i, extra) for start, settings in grids.items() for i, extra in enumerate(settings)]
        folders = list(pool.map(lambda t: run(f"tune-{t[0]}-{t[1]}", t[0], size, 0, t[2], False), trials))
        tuned = [
            {"start": start, "settings": extra, "validation": validation(folder)}
            for (start, _, extra), folder in zip(trials, folders, strict=True)
        ]
        chosen = {
            start: max((t for t in tuned if t["start"] == start), key=lambda t: t["validation"]) for start in STARTS
        }
        for start, trial in chosen.items():
            print(f"{start}: {' '.join(trial['settings'])} ({trial['validation']:.1%} on validation)", flush=True)
        jobs = [(start, n, seed) for n in TASKS[args.task]["sizes"] for seed in args.seeds for start in STARTS]
        folders = list(pool.map(lambda j: run(f"{j[0]}-{j[1]}-{j[2]}", *j, chosen[j[0]]["settings"], True), jobs))
    rows = []
    for (start, n, seed), folder in zip(jobs, folders, strict=True):
        scores = json.loads((folder / "scores.json").read_text())
        row = {"start": start, "labels": n, "seed": seed, "top1": scores["top1"], "validation": validation(folder)}
        row["num_images"] = scores["num_images"]
        if (folder / "other.json").is_file():
            row["other"] = json.loads((folder / "other.json").read_text())["top1"]
        rows.append(row)
    table = []
    for n in TASKS[args.task]["sizes"]:
        for start in STARTS:
            mine = [row for row in rows if (row["labels"], row["start"]) == (n, start)]
            line = {"labels": n, "start": start}
            line |= {name: mean_sd([row[name] for row in mine]) for name in ("top1", "other") if name in mine[0]}
            table.append(line)
            texts = [f"{name} {line[name][0]:6.1%} ± {line[name][1]:.1%}" for name in ("top1", "other") if name in line]
            print(f"{n:>6} labels  {start:8} {'  '.join(texts)}")
    command = f"python benchmarks/finetune.py --data SHARED --pretrained PRETRAINED --task {args.task} "
    command += " ".join(
        [f"--trials {args.trials} --length {args.length:g}", "--seeds", *map(str, args.seeds), *args.settings]
    )
    output = args.output or Path("benchmarks/results") / f"finetune_{args.task}.json"
    result = {"command": command, "table": table, "tuned": tuned, "rows": rows}
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
