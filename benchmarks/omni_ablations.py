"""Ablations of the distance for text and of the patch order for images, on the same small transformer.

    python benchmarks/omni_ablations.py text --seeds 3 --out benchmarks/results/omni_text.json
    python benchmarks/omni_ablations.py orders --seeds 3 --out benchmarks/results/omni_orders.json

text: the recipe omni_text (bytes) with distance cosine, vocabulary, and vocabulary with a detached table. Measured on
2,000 held-out texts: top-1 accuracy of the next byte by the nearest row of the table, and bits per byte of a softmax
over the cosines. The temperature is the learned one, or, if none was learned, the best one on training texts. The
spread of the table shows whether it collapsed.
orders: emoji images of 32 px in patches of 8 px, without text, in raster, Hilbert, random and coarse-to-fine order. The
model gets the position of the next patch in all orders but raster. Measured: accuracy on held-out emoji of a linear
probe of the group on frozen mean-pooled latents (regularisation by cross-validation on train). Rows are saved after
each run; finished runs are not repeated.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegressionCV

import nextembed
from nextembed import recipes
from nextembed.core.config import apply_overrides
from nextembed.nn.diagnostics import spread
from nextembed.nn.losses import vocabulary_scores
from nextembed.toys.emoji_documents import EmojiDocuments, KindWeights

DISTANCES = {
    "cosine": ["objective.distance=cosine"],
    "vocabulary": ["objective.distance=vocabulary"],
    "vocabulary, table detached": ["objective.distance=vocabulary", "objective.stop_gradient_table=true"],
}
ORDERS = ("raster", "hilbert", "coarse_to_fine", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["text", "orders"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", help="variants to run (default: all)")
    parser.add_argument("--steps", type=int, help="training steps (default: those of the recipe)")
    parser.add_argument("--runs", default="runs", help="folder for runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []
    variants = DISTANCES if args.what == "text" else {name: [] for name in ORDERS}
    for seed in range(args.seeds):
        for name, changes in variants.items():
            if args.variants and name not in args.variants:
                continue
            if any(row["variant"] == name and row["seed"] == seed for row in rows):
                continue
            config = text_run(changes) if args.what == "text" else order_run(name)
            slug = re.sub(r"\W+", "_", name)
            more = [f"seed={seed}", f"output_dir={args.runs}", f"name=omni_{args.what}_{slug}_{seed}"]
            more += [f"train.max_steps={args.steps}", f"train.save_steps={args.steps}"] if args.steps else []
            run = nextembed.fit(apply_overrides(config, more))
            measured = read_text(run) if args.what == "text" else probe_groups(run)
            rows.append({"variant": name, "seed": seed, "steps": run.config.train.max_steps, **measured})
            args.out.write_text(json.dumps({"rows": rows, "means": means(rows)}, indent=1) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(means(rows), indent=1))


def means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of every metric."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        figures = [key for key in own[0] if key not in ("variant", "seed", "steps")]
        found[name] = {key: [float(np.mean([row[key] for row in own])), float(np.std([row[key] for row in own]))]
                       for key in figures}  # fmt: skip
    return found


def text_run(changes: list[str]) -> Any:
    return apply_overrides(recipes.omni_text(), changes)


def order_run(order: str) -> Any:
    """Documents with one image and no text."""
    config = recipes.omni_emoji()
    config.data = ImagesAlone(kinds=KindWeights(caption=1, paint=0, tags=0, question=0, context=0), max_shift=0.1,
                              num_workers=0)  # fmt: skip
    config.objective.distance = "cosine"
    return apply_overrides(config, [
        "model.modalities={image: {image_size: 32, patch_size: 8}}", "model.tokenizer=null", "model.hidden_size=128",
        "model.num_hidden_layers=4", "model.num_attention_heads=4", "model.max_length=144",
        f"model.orders={{image: {order}}}", f"model.tell_next={str(order != 'raster').lower()}",
        "objective.weights={}", "optim.learning_rate=1e-3", "train.batch_size=16",
        "train.max_steps=200", "train.save_steps=200", "train.probe_steps=null",
    ])  # fmt: skip


class ImagesAlone(EmojiDocuments):
    """Emoji images without text."""

    def caption(self, row: Any, seed: int | None = None) -> Any:
        return self._made(row, [self.picture(row, seed)])


@torch.no_grad()
def read_text(run: Any, num: int = 2000) -> dict[str, float]:
    model = run.trained
    processor = run.config.model.processor()
    right, scores = [], []
    scale = model.log_scale
    if run.config.objective.distance == "cosine":  # no learned temperature: use the best one on training texts
        hidden, table, codes = hidden_of(model, processor, run.config.data.documents("train", 200))
        grid = torch.linspace(0, 5, 51)
        losses = [F.cross_entropy(vocabulary_scores(hidden, table, s), codes) for s in grid]
        scale = grid[int(torch.stack(losses).argmin())]
    documents = run.config.data.documents("validation", num)
    hidden, table, codes = hidden_of(model, processor, documents)
    for part, wanted in zip(hidden.split(4096), codes.split(4096)):
        logits = vocabulary_scores(part, table, scale)
        right.append((logits.argmax(-1) == wanted).float())
        scores.append(F.cross_entropy(logits, wanted, reduction="none"))
    rows = model.model.modality("text").table.weight
    return {"top1": float(torch.cat(right).mean()), "bits": float(torch.cat(scores).mean() / np.log(2)),
            "table_spread": float(spread(rows)), "log_scale": float(scale)}  # fmt: skip


def hidden_of(model: Any, processor: Any, documents: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The hidden state before each byte, the table, and the index in the table of each byte."""
    hidden, wanted = [], []
    for document in documents:
        inputs = processor([piece["value"] for piece in document["segments"]], end=False)
        latents = model.embed(inputs)
        codes = model.codes(inputs)
        hidden.append(model.encode(latents).last[0, 1:-1])  # the begin latent is given
        wanted.append(codes.codes[0, 2:])
    return torch.cat(hidden), codes.table, torch.cat(wanted)


@torch.no_grad()
def probe_groups(run: Any) -> dict[str, float]:
    model, processor = run.trained, run.config.model.processor()
    features, groups = {}, {}
    for split in ("train", "validation", "test"):
        rows = run.config.data.rows(split)
        pictures = [[run.config.data.picture(rows[i], None)["value"]] for i in range(len(rows))]
        layers = []
        for start in range(0, len(pictures), 128):
            hidden = model.encode(model.embed(processor(pictures[start : start + 128])), output_layers=True)
            layers.append(torch.stack([h[:, 1:].mean(1) for h in hidden.layers], 1))
        features[split] = torch.cat(layers).numpy()
        groups[split] = [rows[i]["group"] for i in range(len(rows))]
    found = {}
    held_x = np.concatenate([features["validation"], features["test"]])
    held_y = groups["validation"] + groups["test"]
    for layer in (2, features["train"].shape[1] - 1):
        mean, std = features["train"][:, layer].mean(0), features["train"][:, layer].std(0) + 1e-6
        probe = LogisticRegressionCV(Cs=np.logspace(-3, 1, 5), cv=3, max_iter=500)
        probe.fit((features["train"][:, layer] - mean) / std, groups["train"])
        found[f"linear, layer {layer}"] = float(probe.score((held_x[:, layer] - mean) / std, held_y))
    return found | {"cos_next": float(run.metrics["cos_next/image"])}


if __name__ == "__main__":
    main()
