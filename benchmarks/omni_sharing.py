"""One model for all modalities against one model per modality at equal compute: the effect of sharing.

    python benchmarks/omni_sharing.py DATA_FOLDER --out benchmarks/results/omni_sharing.json \\
        --figure docs/assets/omni_sharing.png

DATA_FOLDER: emoji (image, group), stamps_speech (speech, language), video (video, group), series/JapaneseVowels
(series, label) as Parquet; texts are the bundled ones, as bytes. Each document has one segment, so only the
transformer is shared. Per seed:
  alone      five models, each trained for `--steps` on its modality
  shared     one model with the same transformer, trained for 5 x `--steps` on all, with as many positions of each
  untrained  the network at initialisation
All use the same settings, without tuning. Metrics of the frozen models on held-out rows:
  bits       bits per byte of text
  next       R2 of the values of the next patch (pixels, mel levels, samples), by ridge regression from the hidden state
             before it; `last` is the same from the values of the current patch, a baseline without a model
  class      accuracy of a linear probe (group, language, speaker) on mean and standard deviation over latents; layer
             and strength are chosen by cross-validation on train
Existing models are not trained again, so an interrupted benchmark can be continued.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nextembed.data.mixture import Mixture
from nextembed.data.pairs import TextData
from nextembed.data.records import Piece, Records
from nextembed.evaluation.language.scores import mean_metric
from nextembed.evaluation.probes.sweep import ProbeConfig
from nextembed.inference.generate import load_omni
from nextembed.models.omni import OmniParts
from nextembed.nn.losses import vocabulary_scores
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.run import RunConfig, fit
from nextembed.training.optim import OptimConfig
from nextembed.training.settings import TrainConfig

BOUNDARY: dict[str, Any] = {
    "text": {},
    "image": {"image_size": 32, "patch_size": 8},
    "audio": {"num_frames": 8, "max_seconds": 8},
    "video": {"image_size": 32, "patch_size": 8, "tube_size": 4},
    "series": {"channels": 12, "patch_size": 2},
}
# Folder, column, class column, held-out splits.
TABLES = {
    "image": ("emoji", "image", "group", ("validation", "test")),
    "audio": ("stamps_speech", "speech", "language", ("validation",)),
    "video": ("video", "video", "group", ("validation", "test")),
    "series": ("series/JapaneseVowels", "series", "label", ("test",)),
}
LENGTHS = {"text": 85, "image": 17, "audio": 20, "video": 65, "series": 9}  # approximate positions per document
NUM = 1200  # largest number of rows that probes are fitted on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120, help="steps per modality (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    started = time.monotonic()
    boundary = scaled(args.data)
    documents = {name: segments(args.data, name) for name in BOUNDARY}
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        shared = trained(args, boundary, list(BOUNDARY), seed)
        torch.manual_seed(seed)
        blank = run_of(args, boundary, list(BOUNDARY), seed).model.build().eval()  # type: ignore[attr-defined]
        blank.processor = shared.processor
        for name in BOUNDARY:
            alone = trained(args, boundary, [name], seed)
            for arm, model in (("alone", alone), ("shared", shared), ("untrained", blank)):
                rows.append({"modality": name, "arm": arm, "seed": seed, **measured(model, name, documents[name])})
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "items"}), flush=True)
            save(args, rows, documents, started)
    if args.figure:
        draw(summary(rows, documents), args.figure)


# -- training


def source(folder: Path, name: str) -> Any:
    if name == "text":
        return TextData(source="glosses", split="train[:38000]", validation="train[38000:39000]", num_workers=0)
    table, column, label, _ = TABLES[name]
    pieces = {"value": Piece(kind=name, column=column), "class": Piece(kind="text", column=label)}
    return Records(source=str(folder / table), pieces=pieces, layouts={"value": 1}, num_frames=16, num_workers=0)


def scaled(folder: Path) -> dict[str, Any]:
    """The modality settings with mean and standard deviation of the channels of series."""
    part = source(folder, "series")
    values = np.concatenate([d["segments"][0]["value"].numpy() for d in part.documents("train")], axis=1)
    own = {"offset": values.mean(1).round(4).tolist(), "scale": values.std(1).round(4).tolist()}
    return BOUNDARY | {"series": BOUNDARY["series"] | own}


def run_of(args: argparse.Namespace, boundary: dict[str, Any], names: list[str], seed: int) -> RunConfig:
    alone = len(names) == 1
    weights = [1000 / LENGTHS[name] for name in names]
    steps = args.steps * len(names)
    return RunConfig(
        name=f"omni_{names[0] if alone else 'all'}_{args.steps}_{seed}",
        seed=seed,
        output_dir=str(args.runs),
        data=Mixture(sources=[source(args.data, name) for name in names], weights=weights, num_workers=0),
        model=OmniParts(
            modalities={name: boundary[name] for name in names}, hidden_size=128, num_hidden_layers=4,
            num_attention_heads=4, layerscale_value=0.1, max_length=256,
        ),
        objective=NextEmbeddingSettings(distance="vocabulary"),
        optim=OptimConfig(
            learning_rate=1.5e-3, betas=(0.9, 0.98), warmup_rate=0.05,
            part_lr_rates={f"modalities.{name}": 0.1 for name in names if name not in ("text", "series")},
        ),
        train=TrainConfig(batch_size=16, max_steps=steps, log_steps=20, save_steps=steps),
        probe=ProbeConfig(enabled=False),
    )  # fmt: skip


def trained(args: argparse.Namespace, boundary: dict[str, Any], names: list[str], seed: int) -> Any:
    config = run_of(args, boundary, names, seed)
    folder = args.runs / config.name
    if not (folder / "model").is_dir():
        fit(config)
    return load_omni(folder)


# -- measuring


def segments(folder: Path, name: str) -> dict[str, tuple[list[Any], list[str]]]:
    """Values and classes of training rows ("train") and held-out rows ("test")."""
    part = source(folder, name)
    if name == "text":
        return {"test": ([d["segments"][0]["value"] for d in part.documents("validation", NUM)], [])}
    found: dict[str, tuple[list[Any], list[str]]] = {"train": ([], []), "test": ([], [])}
    for role in ("train", *TABLES[name][3]):
        rows = part.rows(role)
        values, classes = found["train" if role == "train" else "test"]
        for i in range(min(NUM, len(rows))):
            document = part.make(rows[i], "value class")
            values.append(document["segments"][0]["value"])
            classes.append(document["segments"][1]["value"])
    return found


@torch.no_grad()
def measured(model: Any, name: str, documents: dict[str, tuple[list[Any], list[str]]]) -> dict[str, Any]:
    """Metrics, and under "items" the values per item of those that are means."""
    if name == "text":
        items = bits(model, documents["test"][0])
        return {"bits": float(items.mean()), "items": {"bits": items.tolist()}}
    states = {split: hidden(model, name, values) for split, (values, _) in documents.items()}
    right = probe({s: x[1] for s, x in states.items()}, {s: y for s, (_, y) in documents.items()})
    pairs = {s: [torch.cat(parts).numpy() for parts in zip(*x[0])] for s, x in states.items()}
    of_hidden, of_last = (foreseen(pairs, number) for number in (0, 1))
    return {"class": 100 * float(right.mean()), "next": of_hidden, "last": of_last,
            "items": {"class": right.tolist()}}  # fmt: skip


def bits(model: Any, texts: list[str]) -> np.ndarray:
    """Mean bits per byte of each text."""
    found = []
    for text in texts:
        inputs = model.processor([[text]], end=False)
        codes = model.codes(inputs)
        last = model.encode(model.embed(inputs)).last[0, :-1]
        logits = vocabulary_scores(last, codes.table, codes.log_scale)
        found.append(float(F.cross_entropy(logits, codes.codes[0, 1:])) / np.log(2))
    return np.array(found)


def hidden(model: Any, name: str, values: list[Any], size: int = 32) -> tuple[list[tuple[Any, ...]], Any]:
    """Per document (last hidden states, current values, next values) of all latents but the last; and pooled layers
    [N, layers, 2 * D]: mean and standard deviation over latents."""
    pairs, pooled = [], []
    number = 2 + model.processor.names.index(name)
    for start in range(0, len(values), size):
        inputs = model.processor([[{name: value}] for value in values[start : start + size]], end=False)
        layers = model.encode(model.embed(inputs), output_layers=True).layers
        rows = iter(inputs[f"values.{name}"].split((inputs["kinds"] == number).sum(1).tolist()))
        for i, own in enumerate(inputs["kinds"] == number):
            patches, places = next(rows), own.nonzero()[:, 0]
            pairs.append((layers[-1][i, places[:-1]], patches[:-1], patches[1:]))
            pooled.append(torch.stack([torch.cat((x[i, places].mean(0), x[i, places].std(0, correction=0)))
                                       for x in layers]))  # fmt: skip
    return pairs, torch.stack(pooled).numpy()


def probe(x: dict[str, np.ndarray], y: dict[str, list[str]]) -> np.ndarray:
    """Correctness of each test item, with layer and strength chosen by cross-validation on train."""

    def classifier(strength: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200))

    tried = {(layer, c): cross_val_score(classifier(c), x["train"][:, layer], y["train"], cv=3).mean()
             for layer in range(0, x["train"].shape[1], 2) for c in (0.01, 0.1)}  # fmt: skip
    layer, c = max(tried, key=lambda key: tried[key])
    return classifier(c).fit(x["train"][:, layer], y["train"]).predict(x["test"][:, layer]) == np.array(y["test"])


def foreseen(pairs: dict[str, list[np.ndarray]], number: int) -> float:
    """R2 of the next values on test documents, predicted from column `number`, over all values jointly."""
    (x, y), (tx, ty) = ((pairs[split][number], pairs[split][2]) for split in ("train", "test"))
    model = make_pipeline(StandardScaler(), Ridge(alpha=1e-3 * len(x))).fit(x, y)
    return float(1 - ((model.predict(tx) - ty) ** 2).sum() / ((ty - y.mean(0)) ** 2).sum())


# -- output


def summary(rows: list[dict[str, Any]], documents: Any) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the difference shared - alone with its interval over items."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(row["modality"] for row in rows):
        own: dict[str, Any] = {}
        for arm in ("alone", "shared", "untrained"):
            these = [row for row in rows if (row["modality"], row["arm"]) == (name, arm)]
            own[arm] = {}
            for key in (key for key in these[0] if key in ("bits", "class", "next", "last")):
                values = [row[key] for row in these]
                own[arm][key] = {"mean": float(np.mean(values)),
                                 "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}  # fmt: skip
        key = "bits" if name == "text" else "class"
        by_arm = {arm: np.mean([r["items"][key] for r in rows if (r["modality"], r["arm"]) == (name, arm)], 0)
                  for arm in ("alone", "shared")}  # fmt: skip
        scale = 1 if key == "bits" else 100
        gap = mean_metric("", by_arm["shared"] - by_arm["alone"], scale=scale)
        own["shared - alone"] = {key: {"mean": gap.value, "low": gap.low, "high": gap.high}}
        own["test_items"] = len(documents[name]["test"][0])
        found[name] = own
    return found


def save(args: argparse.Namespace, rows: list[dict[str, Any]], documents: Any, started: float) -> None:
    complete = [row for row in rows if any(r["arm"] == "untrained" and r["modality"] == row["modality"] for r in rows)]
    result = {"steps": args.steps, "summary": summary(complete, documents),
              "rows": [{k: v for k, v in row.items() if k != "items"} for row in rows],
              "minutes": round((time.monotonic() - started) / 60, 1)}  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def draw(found: dict[str, Any], file: Path) -> None:
    """Bar charts by arm: class accuracy, R2 of the next values, bits per byte of text."""
    names = [name for name in found if name != "text"]
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), gridspec_kw={"width_ratios": [4, 4, 1]}, layout="constrained")
    panels = (
        ("class", names, "linear probe, %"),
        ("next", names, "next values, R²"),
        ("bits", ["text"], "bits per byte"),
    )
    colours = {"untrained": "#bbbbbb", "alone": "#4477aa", "shared": "#ee6677"}
    for place, (key, which, title) in zip(axes, panels):
        for number, (arm, colour) in enumerate(colours.items()):
            if key == "bits" and arm == "untrained":
                continue  # off the scale
            bars = [found[name][arm][key] for name in which]
            place.bar(np.arange(len(which)) + 0.27 * (number - 1), [b["mean"] for b in bars], 0.25, color=colour,
                      yerr=[b["sd"] for b in bars], label=arm)  # fmt: skip
        place.set_xticks(range(len(which)), which)
        place.set_title(title, fontsize=10)
        place.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
