"""Sensor series: benefit of next-latent pretraining for frozen probes and generated classes, with raw baselines.

    python benchmarks/omni_series.py SERIES_FOLDER --out benchmarks/results/omni_series.json

SERIES_FOLDER: folders BasicMotions and JapaneseVowels of train.parquet and test.parquet (columns series, label), as in
the UEA archive. For each seed and data set `omni_series` is trained on the train split without labels, then
`omni_series_classes` from it and from scratch. Test accuracy of
  probe      logistic regression on frozen features; layer, pooling and strength are chosen by cross-validation on train
  untrained  the same on the network at initialisation
  written    the class with the best score() after the series: pretrained, and from scratch with the same steps
  raw        logistic regression on resampled values, and on mean and standard deviation of each channel (strength by
             cross-validation); nearest neighbour by Euclidean distance of resampled values, and by dynamic time warping
Channels are always scaled by the standard deviation of the train split; for Omni they are also centred. Intervals: the
middle 95 % of 1,000 bootstrap samples over test items, of means over seeds; sd: over seeds.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nextembed import recipes
from nextembed.core.config import apply_overrides
from nextembed.data.records import Records
from nextembed.evaluation.language.scores import mean_metric
from nextembed.inference.generate import load_omni
from nextembed.run import fit

SETS = {"BasicMotions": {"patch_size": 5, "resampled": 50}, "JapaneseVowels": {"patch_size": 2, "resampled": 16}}
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
POOLINGS = ("mean", "last", "mean+std")


def read(folder: Path) -> dict[str, tuple[list[np.ndarray], np.ndarray, list[str]]]:
    """By split: series [C, T], class indices, and the names of the classes."""
    found = {}
    for split in ("train", "test"):
        part = Records(source=str(folder), pieces={"series": "series", "label": "text"}, layouts={"series label": 1})
        documents = list(part.documents(split))  # type: ignore[arg-type]
        series = [d["segments"][0]["value"].numpy() for d in documents]
        names = [d["segments"][1]["value"] for d in documents]
        found[split] = (series, names)
    classes = sorted(set(found["train"][1]))
    return {s: (x, np.array([classes.index(n) for n in names]), classes) for s, (x, names) in found.items()}


# -- baselines on raw series


def resampled(series: list[np.ndarray], scale: np.ndarray, num: int) -> np.ndarray:
    """[N, C * num]: each channel linearly interpolated at `num` points."""
    rows = []
    for one in series:
        at = np.linspace(0, one.shape[1] - 1, num)
        rows.append(np.concatenate([np.interp(at, np.arange(one.shape[1]), channel) for channel in one / scale]))
    return np.stack(rows)


def moments(series: list[np.ndarray], scale: np.ndarray) -> np.ndarray:
    """[N, 2 * C]: mean and standard deviation of each channel."""
    return np.stack([np.concatenate(((one / scale).mean(1), (one / scale).std(1))) for one in series])


def classifier(strength: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))


def cross_validated(x: np.ndarray, y: np.ndarray, strength: float) -> float:
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(classifier(strength), x, y, cv=folds).mean())


def logistic(x: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> dict[str, Any]:
    """Correctness of each test item, with the strength chosen by cross-validation on train."""
    scores = {c: cross_validated(x["train"], y["train"], c) for c in STRENGTHS}
    best = max(scores, key=lambda c: scores[c])
    right = classifier(best).fit(x["train"], y["train"]).predict(x["test"]) == y["test"]
    return {"right": right, "strength": best, "validation": scores[best]}


def nearest(x: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> np.ndarray:
    distance = ((x["test"][:, None] - x["train"][None]) ** 2).sum(-1)
    return y["train"][distance.argmin(1)] == y["test"]


def warped(test: np.ndarray, train: list[np.ndarray]) -> np.ndarray:
    """Dynamic time warping distance (over all channels jointly) of one series to many: [N]. Source: Sakoe and Chiba
    1978, without a window."""
    longest = max(one.shape[1] for one in train)
    others = np.stack([np.pad(one, ((0, 0), (0, longest - one.shape[1]))) for one in train])  # [N, C, L]
    cost = ((test[None, :, :, None] - others[:, :, None, :]) ** 2).sum(1)  # [N, T, L]
    before = np.full((len(train), longest + 1), np.inf)
    before[:, 0] = 0
    for row in range(cost.shape[1]):
        now = np.full_like(before, np.inf)
        for column in range(longest):
            least = np.minimum(np.minimum(before[:, column], before[:, column + 1]), now[:, column])
            now[:, column + 1] = cost[:, row, column] + least
        before = now
    return before[np.arange(len(train)), [one.shape[1] for one in train]]


def nearest_warped(x: dict[str, list[np.ndarray]], y: dict[str, np.ndarray], scale: np.ndarray) -> np.ndarray:
    train = [one / scale for one in x["train"]]
    return np.array([y["train"][warped(one / scale, train).argmin()] for one in x["test"]]) == y["test"]


# -- Omni


@torch.no_grad()
def features(model: Any, series: list[np.ndarray]) -> dict[tuple[int, str], np.ndarray]:
    """[N, D] by layer and pooling over the latents of each series."""
    found: dict[tuple[int, str], list[np.ndarray]] = {}
    for start in range(0, len(series), 64):
        inputs = model.processor([[{"series": one}] for one in series[start : start + 64]])
        own = inputs["kinds"] == 2 + model.processor.names.index("series")
        layers = model.encode(model.embed(inputs), output_layers=True).layers
        for number, layer in enumerate(layers):
            count = own.sum(1, keepdim=True)
            mean = (layer * own[..., None]).sum(1) / count
            spread = (((layer - mean[:, None]) ** 2 * own[..., None]).sum(1) / count).sqrt()
            pooled = {"mean": mean, "last": layer[:, -1], "mean+std": torch.cat((mean, spread), -1)}
            for pooling in POOLINGS:
                found.setdefault((number, pooling), []).append(pooled[pooling].numpy())
    return {key: np.concatenate(parts) for key, parts in found.items()}


def probe(model: Any, x: dict[str, list[np.ndarray]], y: dict[str, np.ndarray]) -> dict[str, Any]:
    """A linear probe with layer, pooling and strength chosen by cross-validation on train."""
    own = {split: features(model, x[split]) for split in x}
    tried = {
        (key, c): cross_validated(own["train"][key], y["train"], c) for key in own["train"] for c in STRENGTHS[1:3]
    }
    key, _ = max(tried, key=lambda k: tried[k])
    found = logistic({split: own[split][key] for split in x}, y)
    return {**found, "layer": key[0], "pooling": key[1]}


def written(model: Any, series: list[np.ndarray], classes: list[str]) -> np.ndarray:
    """The class whose name has the best score after each series."""
    candidates = [f"{name}." for name in classes]
    return np.array([int(model.score([{"series": one}], candidates).argmax()) for one in series])


def train(recipe: str, name: str, folder: Path, seed: int, overrides: list[str]) -> Any:
    if not (folder / name / "model").is_dir():
        config = recipes.load(recipe)
        fit(apply_overrides(config, [f"name={name}", f"output_dir={folder}", f"seed={seed}", *overrides]))
    return load_omni(folder / name)


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All methods on one data set."""
    splits = read(Path(args.series) / name)
    x, y = {s: part[0] for s, part in splits.items()}, {s: part[1] for s, part in splits.items()}
    classes = splits["train"][2]
    scale = np.concatenate(x["train"], 1).std(1, keepdims=True)
    flat = {s: resampled(x[s], scale, SETS[name]["resampled"]) for s in x}
    raw = logistic(flat, y)
    found: dict[str, Any] = {
        "items": {s: len(y[s]) for s in y},
        "classes": classes,
        "raw_logistic": {**stats(raw.pop("right")[None]), **raw},
        "raw_moments": stats(logistic({s: moments(x[s], scale) for s in x}, y)["right"][None]),
        "raw_nearest": stats(nearest(flat, y)[None]),
        "raw_nearest_warped": stats(nearest_warped(x, y, scale)[None]),
        "largest_class": float((y["test"] == np.bincount(y["train"]).argmax()).mean()),
    }
    boundary = {
        "text": {},
        "series": {
            "channels": len(scale),
            "patch_size": SETS[name]["patch_size"],
            "offset": np.concatenate(x["train"], 1).mean(1).round(4).tolist(),
            "scale": scale[:, 0].round(4).tolist(),
        },
    }
    where = [f"data.source={Path(args.series) / name}", *args.set]
    sizes = [f"model.modalities={json.dumps(boundary)}"]
    rows: dict[str, list[Any]] = {"probe": [], "untrained": [], "written": [], "written_from_scratch": []}
    for seed in range(args.seeds):
        tag = f"{name}_{seed}"
        model = train("omni_series", f"omni_series_{tag}", args.runs, seed, where + sizes)
        rows["probe"].append(probe(model, x, y))
        config = apply_overrides(recipes.load("omni_series"), where + sizes)
        torch.manual_seed(seed)
        blank = config.model.build().eval()  # type: ignore[attr-defined]
        blank.processor = model.processor
        rows["untrained"].append(probe(blank, x, y))
        after = [f"model.pretrained={args.runs / f'omni_series_{tag}' / 'model'}", "after=[]"]
        model = train("omni_series_classes", f"omni_series_classes_{tag}", args.runs, seed, where + after)
        rows["written"].append({"right": written(model, x["test"], classes) == y["test"]})
        scratch = ["data.layouts={series class: 1}", "train.max_steps=100", "train.save_steps=100",
                   "optim.learning_rate=2e-3"]  # fmt: skip
        model = train("omni_series", f"omni_series_scratch_{tag}", args.runs, seed, where + sizes + scratch)
        rows["written_from_scratch"].append({"right": written(model, x["test"], classes) == y["test"]})
    for method, own in rows.items():
        found[method] = stats(np.stack([one.pop("right") for one in own]))
        found[method]["seeds"] = own
    return found


def stats(right: np.ndarray) -> dict[str, float]:
    """From right [seeds, items]: accuracy in %, interval over items, sd over seeds."""
    metric = mean_metric("", right.astype(float).mean(0), scale=100)
    sd = float(100 * right.mean(1).std(ddof=1)) if len(right) > 1 else 0.0
    return {"accuracy": metric.value, "low": float(metric.low or 0), "high": float(metric.high or 0), "sd": sd}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=SETS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of both recipes")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    started = time.monotonic()
    result: dict[str, Any] = {name: compare(name, args) for name in ([args.only] if args.only else SETS)}
    result["settings"], result["minutes"] = args.set, (time.monotonic() - started) / 60
    Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
