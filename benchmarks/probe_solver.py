"""The solver of the linear probe against its predecessor, on Fashion-MNIST.

    python benchmarks/probe_solver.py FOLDER_WITH_PARQUET -o benchmarks/results/probe_solver.json

For each seed 10,000 training images are sampled; features are raw pixels and those of an untrained NEPA. Both solvers
solve the same problem; the new one sums its gradient over minibatches (here of 2^16 logits, so that there are several)
and runs on any device. They are compared by accuracy on all 10,000 test images, in percentage points.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nextembed.data.sources import ImageData
from nextembed.evaluation.features.extract import PIXELS, FeatureKey, extract, extract_pixels
from nextembed.evaluation.probes import solvers
from nextembed.models.nepa import NepaModel

PENALTIES = [1e-3, 1e-2, 1e-1, 1.0]
KEY = FeatureKey(2, "mean", "causal")


def fit_before(features: Tensor, labels: Tensor, num_classes: int) -> list[solvers.LinearProbe]:
    """The solver before November 2026: all rows and penalties in one matrix product, on the CPU."""
    mean, scale = features.mean(0), features.std(0, correction=0)
    scale = torch.where(scale > 1e-6, scale, 1.0)
    x = (features - mean) / scale
    variance, basis = torch.linalg.eigh(x.T @ x / len(x))
    x = x @ basis
    l2 = torch.tensor(PENALTIES).view(-1, 1, 1)
    shrink = (0.5 * variance.clamp(min=0)[:, None] + l2).rsqrt()
    u = torch.zeros(len(l2), x.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(len(l2), num_classes, requires_grad=True)
    targets = labels.repeat(len(l2))
    options = {"max_iter": 40, "history_size": 20, "tolerance_grad": 1e-5, "line_search_fn": "strong_wolfe"}
    solver = torch.optim.LBFGS([u, bias], **options)

    def loss() -> Tensor:
        solver.zero_grad()
        w = u * shrink
        flat = x @ w.permute(1, 0, 2).flatten(1)
        logits = flat.view(len(x), len(l2), num_classes).transpose(0, 1) + bias[:, None]
        value = F.cross_entropy(logits.flatten(0, 1), targets) * len(l2) + 0.5 * (l2 * w.square()).sum()
        value.backward()
        return value

    solver.step(loss)
    weights = basis @ (u * shrink).detach()
    return [solvers.LinearProbe(w, b, mean, scale, p) for w, b, p in zip(weights, bias.detach(), PENALTIES)]


def timed(solve) -> tuple[list[solvers.LinearProbe], float]:
    start = time.perf_counter()
    return solve(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-train", type=int, default=10_000)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    solvers.MAX_LOGITS = 2**16
    data = ImageData(source=args.source)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    sizes = {"image_size": 28, "num_channels": 1}
    train = data.eval_samples("train", **sizes, num_samples=60_000)
    test = data.eval_samples("test", **sizes, num_samples=10_000)
    torch.manual_seed(0)
    net = NepaModel(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, layerscale_value=1.0, patch_size=4,
                    **sizes).build()  # fmt: skip
    rows = []
    for seed in range(args.seeds):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: args.num_train]
        own = torch.utils.data.Subset(train, order.tolist())
        for name, key, read in (
            ("pixels", PIXELS, extract_pixels),
            ("untrained NEPA", KEY, lambda part: extract(net, part, [KEY])),
        ):
            seen, unseen = read(own), read(test)
            x, y = seen.values[key], seen.labels
            before, seconds_before = timed(lambda x=x, y=y: fit_before(x, y, 10))
            after, seconds = timed(lambda x=x, y=y: solvers.fit_linear(x, y, 10, PENALTIES, device=device))
            for one, two in zip(before, after):
                scores = [
                    100 * (p.predict(unseen.values[key]) == unseen.labels).double().mean().item() for p in (one, two)
                ]
                rows.append({"seed": seed, "features": name, "penalty": one.penalty, "before": round(scores[0], 2),
                             "after": round(scores[1], 2), "difference": round(scores[1] - scores[0], 2),
                             "seconds_before": round(seconds_before, 1), "seconds": round(seconds, 1)})  # fmt: skip
                print(rows[-1], flush=True)
    found = {"device": str(device), "num_train": args.num_train,
             "largest_difference": max(abs(row["difference"]) for row in rows), "rows": rows}  # fmt: skip
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    print("largest difference:", found["largest_difference"], "points")


if __name__ == "__main__":
    main()
