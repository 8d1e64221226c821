"""What the Omni of the recipe `omni_emoji` knows of emoji: captions for images, images for captions, both made anew.

    nextembed train omni_emoji
    python benchmarks/omni_emoji.py EMOJI_FOLDER --sheets docs/assets --out benchmarks/results/omni_emoji.json

EMOJI_FOLDER: train, validation and test Parquet files with image, vendor, hexcode, name, group (noto and twemoji). The
model is trained on the bundled Noto drawings of the train split. Sets of emoji:
  known_noto      drawings that it was trained on
  heldout_noto    emoji of the test split, in the style trained on
  known_twemoji, heldout_twemoji   the same emoji in a style never seen
On each: the right caption of 100 for an image and the right image of 100 for a caption (chance 1 %), by
  likelihood          `model.score(context, candidates)`
  against_nothing     the same, less what each candidate scores with nothing before it
  against_others      the same, less what each candidate scores in the mean after the other queries
  the_other_way       how well the context continues after each candidate: Bayes' rule with all candidates alike
Each query meets every choice of 99 other emoji of its set, so its figure is a share. Then captions that the model
writes (exact name, CIDEr) and pictures that it paints: is the nearest of 100 pictures the one asked for, and how sharp
are they (gradient energy in units of the real pictures')?
Baseline: an image is taken for the training picture nearest in raw pixels, and captions are compared with that
picture's name by their words. Intervals: the middle 95 % of 1,000 bootstrap draws over items.
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
    parser.add_argument("--model", default="runs/omni_emoji", help="a run, or a model folder in it")
    parser.add_argument("--items", type=int, default=150, help="emoji of each set, at most (default: %(default)s)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--quick", action="store_true", help="score no images, which takes nine tenths of the time")
    parser.add_argument("--sheets", help="folder for omni_SET.png: pictures and captions that the model makes")
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
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")  # after each: what is done is kept
        print(name, json.dumps(found, indent=1), flush=True)


def some(rows: list[dict[str, Any]], num: int) -> list[dict[str, Any]]:
    """At most `num`, drawn with a fixed seed, each name once."""
    rows = list({row["name"]: row for row in rows}.values())
    return [rows[i] for i in sorted(np.random.default_rng(0).permutation(len(rows))[:num])]


# -- choosing


def retrieval(model: Any, rows: list[dict[str, Any]], trained: list[dict[str, Any]], quick: bool) -> dict[str, Any]:
    """Right choices, both ways. quick: by the scores of captions alone."""
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
    """Figures by what the choice is made from; scores, other [N, N]: query by candidate; nothing [N]."""
    found = {} if scores is None else {"likelihood": scores, "against_nothing": scores - nothing.cpu()}
    if scores is not None and len(scores) > 1:
        others = (scores.sum(0) - scores) / (len(scores) - 1)
        found["against_others"] = scores - others
    found |= {} if other is None else {"the_other_way": other}
    return {name: chosen(one) for name, one in found.items()}


def chosen(scores: Tensor, num: int = CANDIDATES) -> dict[str, Any]:
    """How often the right one, on the diagonal of scores [N, N], beats num - 1 others: over all choices of these.

    Of equal scores one is drawn.
    """
    noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranked = np.lexsort((noise.numpy(), scores.double().numpy()), axis=1)[:, ::-1]
    better = (ranked == np.arange(len(scores))[:, None]).argmax(1)  # how many are before the right one
    others, num = len(scores) - 1, min(num, len(scores))
    share = [math.comb(others - int(b), num - 1) / math.comb(others, num - 1) for b in better]
    found = mean_metric("top1", np.array(share), scale=100)
    return {"value": round(found.value, 2), "low": round(found.low or 0, 2), "high": round(found.high or 0, 2),
            "median_rank": float(np.median(better)) + 1}  # fmt: skip


def nearest_named(rows: list[dict[str, Any]], trained: list[dict[str, Any]]) -> Tensor:
    """[image, caption]: share of words that a caption has in common with the name of the training picture nearest in
    raw pixels to an image."""
    near = torch.cdist(pixels_of(rows), pixels_of(trained)).argmin(1).tolist()
    found = [[overlap(trained[i]["name"], row["name"]) for row in rows] for i in near]
    return torch.tensor(found)


def overlap(a: str, b: str) -> float:
    one, other = (set(text.lower().replace(":", " ").replace("-", " ").split()) for text in (a, b))
    return len(one & other) / max(1, len(one | other))


# -- making


def captions(model: Any, rows: list[dict[str, Any]], size: int = 50) -> list[str]:
    """What the model writes after each picture."""
    made = []
    for start in range(0, len(rows), size):
        documents = [[row["image"]] for row in rows[start : start + size]]
        made += model.generate(documents, target="text", max_latents=24)
    return [one.value for one in made]


def paintings(model: Any, rows: list[dict[str, Any]], size: int = 50) -> list[Any]:
    """Pictures that the model paints of names."""
    made = []
    for start in range(0, len(rows), size):
        documents = [[f"{row['name']}:"] for row in rows[start : start + size]]
        made += model.generate(documents, target="image")
    return [picture(one.value) for one in made]


def pixels(images: list[Any]) -> Tensor:
    return pixels_of([{"image": image} for image in images])


def energy(flat: Tensor) -> Tensor:
    """Mean gradient energy of pictures [N, H W 3]."""
    side = math.isqrt(flat.shape[1] // 3)
    return sharpness(flat.view(-1, side, side, 3).permute(0, 3, 1, 2)).mean()


def sheet(rows: list[dict[str, Any]], written: list[str], painted: list[Any], file: Path, num: int = 24) -> None:
    """The first `num` emoji as a PNG: the picture, what the model paints of its name, its name, what is written."""
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
