"""Scores of the Omni of the recipe `omni_emoji` on emoji: retrieval of captions and images, and generation of both.

    nextembed train omni_emoji
    python benchmarks/omni_emoji.py EMOJI_FOLDER --sheets docs/assets --out benchmarks/results/omni_emoji.json

EMOJI_FOLDER: train, validation and test Parquet files with image, vendor, hexcode, name, group (noto and twemoji). The
model is trained on the bundled Noto drawings of the train split. Sets of emoji:
  known_noto      drawings in the training data
  heldout_noto    emoji of the test split, in the training style
  known_twemoji, heldout_twemoji   the same emoji in an unseen style
Retrieval (top-1 among 100 candidates, chance 1 %) of the caption for an image and of the image for a caption, by
  likelihood          `model.score(context, candidates)`
  against_nothing     the same minus the score of the candidate without a context
  against_others      the same minus the mean score of the candidate after the other queries
  the_other_way       score of the context after the candidate (Bayes' rule with a uniform prior over candidates)
The accuracy of a query is averaged over all choices of 99 other emoji of its set, so it is a share. Generated captions
are scored by exact match and CIDEr; generated images by retrieval (is the target the nearest of 100 real images?) and
by sharpness (gradient energy relative to that of the real images).
Baseline: candidates are ranked by the word overlap of their captions with the name of the training image nearest in
raw pixels. Intervals: the middle 95 % of 1,000 bootstrap samples over items.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from emu_emoji import caption_scores, pixels_of, rows_of
from nextembed.evaluation.drawn import sharpness
from nextembed.evaluation.language.scores import mean_metric
from nextembed.inference.generate import load_omni
from nextembed.inference.signals import picture

CANDIDATES = 100
SETS = {
    "known_noto": ("noto", "train"),
    "heldout_noto": ("noto", "test"),
    "heldout_twemoji": ("twemoji", "test"),
    "known_twemoji": ("twemoji", "train"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emoji")
    parser.add_argument("--model", default="runs/omni_emoji", help="a run or a model folder")
    parser.add_argument("--items", type=int, default=150, help="at most so many emoji per set (default: %(default)s)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--quick", action="store_true", help="do not score images (saves 90 %% of the time)")
    parser.add_argument("--sheets", help="folder for omni_SET.png with generated images and captions")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    started = time.monotonic()
    model = load_omni(args.model)
    trained = rows_of(args.emoji, "noto", "train")
    result: dict[str, Any] = {"model": args.model, "parameters": model.num_parameters(), "trained_on": len(trained)}
    result["sets"] = {}
    for name in args.sets:
        rows = some(rows_of(args.emoji, *SETS[name]), args.items)
        found = result["sets"][name] = {"items": len(rows), "chance": 100 / min(CANDIDATES, len(rows))}
        written, painted = captions(model, rows), paintings(model, rows)
        found["written"] = caption_scores([said.partition(".")[0].strip() for said in written], rows)
        drawn = pixels(painted)
        found["painted"] = chosen(-torch.cdist(drawn, pixels_of(rows)))
        found["sharpness"] = round(float(energy(drawn) / energy(pixels_of(rows))), 3)
        found |= retrieval(model, rows, trained, args.quick)
        if args.sheets:
            sheet(rows, written, painted, Path(args.sheets) / f"omni_{name}.png")
        result["minutes"] = round((time.monotonic() - started) / 60, 1)
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")  # after each set, in case of interruption
        print(name, json.dumps(found, indent=1), flush=True)


def some(rows: list[dict[str, Any]], num: int) -> list[dict[str, Any]]:
    """At most `num` rows with distinct names, sampled with a fixed seed."""
    rows = list({row["name"]: row for row in rows}.values())
    return [rows[i] for i in sorted(np.random.default_rng(0).permutation(len(rows))[:num])]


# -- retrieval


def retrieval(model: Any, rows: list[dict[str, Any]], trained: list[dict[str, Any]], quick: bool) -> dict[str, Any]:
    """Retrieval scores in both directions. quick: uses only the scores of captions."""
    names = [f"{row['name']}." for row in rows]
    images = [row["image"] for row in rows]
    near = nearest_named(rows, trained)
    by_caption = matrix(model, [[image] for image in images], names)  # [image, caption]
    by_image = None if quick else matrix(model, [[f"{row['name']}:"] for row in rows], images)  # [caption, image]
    return {
        "caption_for_image": ways(by_caption, model.score([], names), None if by_image is None else by_image.T)
        | {"nearest_pixels": chosen(near)},
        "image_for_caption": ways(by_image, model.score([], images), by_caption.T) | {"nearest_pixels": chosen(near.T)},
    }


def matrix(model: Any, contexts: list[list[Any]], candidates: list[Any]) -> Tensor:
    """Scores [contexts, candidates]."""
    return torch.stack([model.score(context, candidates) for context in contexts]).cpu()


def ways(scores: Tensor | None, nothing: Tensor, other: Tensor | None) -> dict[str, Any]:
    """Retrieval metrics by scoring method; scores, other [N, N]: query by candidate; nothing [N]."""
    found = {} if scores is None else {"likelihood": scores, "against_nothing": scores - nothing.cpu()}
    if scores is not None and len(scores) > 1:
        others = (scores.sum(0) - scores) / (len(scores) - 1)
        found["against_others"] = scores - others
    found |= {} if other is None else {"the_other_way": other}
    return {name: chosen(one) for name, one in found.items()}


def chosen(scores: Tensor, num: int = CANDIDATES) -> dict[str, Any]:
    """Of the diagonal of scores [N, N] against num - 1 other candidates, averaged over their choices: top-1 accuracy,
    and the share among the first ten, each with an interval.

    Ties are broken at random.
    """
    noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranked = np.lexsort((noise.numpy(), scores.double().numpy()), axis=1)[:, ::-1]
    better = (ranked == np.arange(len(scores))[:, None]).argmax(1)  # number of candidates ranked above the target
    others, num = len(scores) - 1, min(num, len(scores))
    found: dict[str, Any] = {}
    for first, names in ((1, ("value", "low", "high")), (10, ("in_ten", "in_ten_low", "in_ten_high"))):
        share = np.array([within(int(b), others, num - 1, first) for b in better])
        metric = mean_metric("", share, scale=100)
        found |= dict(zip(names, (round(metric.value, 2), round(metric.low or 0, 2), round(metric.high or 0, 2))))
    return found | {"median_rank": float(np.median(better)) + 1}


def within(better: int, others: int, drawn: int, first: int) -> float:
    """Probability that fewer than `first` of `better` candidates are among `drawn` of `others`."""
    ways = (math.comb(better, i) * math.comb(others - better, drawn - i) for i in range(min(first, drawn + 1)))
    return sum(ways) / math.comb(others, drawn)


def nearest_named(rows: list[dict[str, Any]], trained: list[dict[str, Any]]) -> Tensor:
    """[image, caption]: word overlap of the caption with the name of the training image nearest to the image in raw
    pixels."""
    near = torch.cdist(pixels_of(rows), pixels_of(trained)).argmin(1).tolist()
    found = [[overlap(trained[i]["name"], row["name"]) for row in rows] for i in near]
    return torch.tensor(found)


def overlap(a: str, b: str) -> float:
    one, other = (set(text.lower().replace(":", " ").replace("-", " ").split()) for text in (a, b))
    return len(one & other) / max(1, len(one | other))


# -- generation


def captions(model: Any, rows: list[dict[str, Any]], size: int = 50) -> list[str]:
    """The caption generated for each image."""
    made = []
    for start in range(0, len(rows), size):
        documents = [[row["image"]] for row in rows[start : start + size]]
        made += model.generate(documents, target="text", max_latents=24)
    return [one.value for one in made]


def paintings(model: Any, rows: list[dict[str, Any]], size: int = 50) -> list[Any]:
    """The image generated for each name."""
    made = []
    for start in range(0, len(rows), size):
        documents = [[f"{row['name']}:"] for row in rows[start : start + size]]
        made += model.generate(documents, target="image")
    return [picture(one.value) for one in made]


def pixels(images: list[Any]) -> Tensor:
    return pixels_of([{"image": image} for image in images])


def energy(flat: Tensor) -> Tensor:
    """Mean gradient energy of images [N, H W 3]."""
    side = math.isqrt(flat.shape[1] // 3)
    return sharpness(flat.view(-1, side, side, 3).permute(0, 3, 1, 2)).mean()


def sheet(rows: list[dict[str, Any]], written: list[str], painted: list[Any], file: Path, num: int = 24) -> None:
    """Writes a PNG of the first `num` emoji: image, image generated from the name, name, generated caption."""
    columns = 4
    figure, axes = plt.subplots(-(-num // columns), columns, figsize=(12, 1.35 * (-(-num // columns))), dpi=80)
    for place in axes.flat:
        place.axis("off")
    for place, row, said, image in zip(axes.flat, rows[:num], written, painted):
        both = np.full((32, 70, 3), 255, np.uint8)
        both[:, :32], both[:, 38:] = np.asarray(row["image"]), np.asarray(image.resize((32, 32)))
        place.imshow(both, interpolation="nearest")
        place.set_title(f"is: {row['name'][:38]}\nsays: {said.partition('.')[0][:38]}", fontsize=7.5, loc="left")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)


if __name__ == "__main__":
    main()
