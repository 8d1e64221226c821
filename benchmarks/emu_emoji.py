"""Scores of the small Emu of the recipes `emu_emoji*` on emoji it was not trained on, with simple baselines.

    nextembed train emu_emoji_decoder        # also trains all earlier stages
    nextembed train emu_emoji_instruct
    python benchmarks/emu_emoji.py EMOJI_FOLDER --out benchmarks/results/emu_emoji.json

EMOJI_FOLDER: train, validation and test Parquet files with image, vendor, hexcode, name, group (noto and twemoji). The
model is trained on the bundled Noto drawings of the train split. Tasks:
  captions   known emoji in an unseen drawing style (twemoji): exact match and CIDEr, zero-shot and 2-shot
  groups     questions about unseen emoji (test split, both styles): exact match, with trained and held-out wordings
  painting   text to image: retrieval rank of the requested emoji among the training images, and sharpness (gradient
             energy relative to that of the real images)
Intervals: the middle 95 % of 1,000 bootstrap samples over items.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nextembed import EmuForConditionalGeneration, EmuPipeline, EmuProcessor
from nextembed.evaluation.drawn import sharpness
from nextembed.evaluation.images import feature_space
from nextembed.evaluation.language.captions import cider, words
from nextembed.evaluation.language.scores import mean_metric
from nextembed.toys.emoji_documents import FORMS, EmojiDocuments

SIZE = 32  # pixels per side, as in the bundled images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emoji")
    parser.add_argument("--model", default="runs/emu_emoji/model")
    parser.add_argument("--instruct", help="model folder after instruction tuning")
    parser.add_argument("--decoder", help="run of emu_emoji_decoder")
    parser.add_argument("--encoder", help="NEPA model for nearest neighbours")
    parser.add_argument("--captions", type=int, default=500, help="number of emoji to caption")
    parser.add_argument("--paintings", type=int, default=100, help="number of emoji to generate images of")
    parser.add_argument("--forms", type=int, help="number of wordings of the group question; default: all")
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale of the visual decoder; 1: none")
    parser.add_argument("--sheet", help="PNG with generated images")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    started = time.monotonic()
    model, processor = loaded(args.model)
    known, foreign = rows_of(args.emoji, "noto", "train"), rows_of(args.emoji, "twemoji", "train")
    chosen = np.random.default_rng(0).permutation(len(foreign))[: args.captions]
    foreign = [foreign[i] for i in sorted(chosen)]
    result: dict[str, Any] = {"model": args.model, "trained_on": len(known)}
    result["captions"] = captions(model, processor, known, foreign, args.encoder)
    result["groups"] = groups(model, processor, args, known)
    if args.instruct:
        tuned = loaded(args.instruct)
        result["groups_instruct"] = groups(*tuned, args, known, baselines=False)
    if args.decoder:
        result["painting"] = painting(args, known)
    result["minutes"] = (time.monotonic() - started) / 60
    Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def loaded(folder: str) -> tuple[Any, Any]:
    return EmuForConditionalGeneration.from_pretrained(folder).eval(), EmuProcessor.from_pretrained(folder)


def rows_of(folder: str, vendor: str, split: str) -> list[dict[str, Any]]:
    """Name, group and image (32 x 32 pixels on white) of each emoji."""
    data = EmojiDocuments(source=folder, vendor=vendor)
    table = data.rows(split)  # type: ignore[arg-type]
    found = []
    for i in range(len(table)):
        row = table[i]
        pixels = data.picture(row, None)["value"].permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels)
        if image.size != (SIZE, SIZE):
            image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        found.append({"name": row["name"], "group": row["group"], "image": image})
    return found


@torch.no_grad()
def said(model: Any, processor: Any, prompts: list[list[Any]], size: int = 50) -> list[str]:
    """Greedy answers, up to the first full stop."""
    answers: list[str] = []
    for start in range(0, len(prompts), size):
        inputs = processor(prompts[start : start + size])
        ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        answers += [text.partition(".")[0].strip() for text in processor.batch_decode(ids)]
    return answers


def percent(name: str, values: list[bool]) -> dict[str, Any]:
    found = mean_metric(name, np.array(values, float), scale=100)
    return {"value": found.value, "low": found.low, "high": found.high, "items": len(values)}


def caption_scores(answers: list[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = [row["name"] for row in rows]
    each = cider([words(a) for a in answers], [[words(n)] for n in names])
    metric = mean_metric("CIDEr", each)
    return {
        "exact": percent("exact", [a == n for a, n in zip(answers, names)]),
        "cider": {"value": metric.value, "low": metric.low, "high": metric.high},
        "examples": list(zip(names, answers))[:12],
    }


def nearest(queries: torch.Tensor, keys: torch.Tensor) -> list[int]:
    return torch.cdist(queries.float(), keys.float()).argmin(1).tolist()


def pixels_of(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.asarray(row["image"], dtype=np.float32)).flatten() for row in rows])


def features_of(space: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.nn.functional.normalize(space.encode([row["image"] for row in rows]), dim=-1)


def captions(model: Any, processor: Any, known: list, foreign: list, encoder: str | None) -> dict[str, Any]:
    """Scores of captions for known emoji in another style: of the model and of the nearest training image."""
    rng = np.random.default_rng(1)
    few = []
    for row in foreign:
        shown = [foreign[i] for i in rng.permutation(len(foreign))[:3] if foreign[i] is not row][:2]
        few.append([piece for one in shown for piece in (one["image"], f"{one['name']}.")] + [row["image"]])
    found = {
        "model": caption_scores(said(model, processor, [[row["image"]] for row in foreign]), foreign),
        "model_2_shot": caption_scores(said(model, processor, few), foreign),
        "nearest_pixels": by_nearest(pixels_of(foreign), pixels_of(known), known, foreign),
        "model_on_trained_pictures": caption_scores(
            said(model, processor, [[r["image"]] for r in known[:300]]), known[:300]
        ),
    }
    if encoder:
        space = feature_space(encoder)
        scores = by_nearest(features_of(space, foreign), features_of(space, known), known, foreign)
        found["nearest_nepa"] = {**scores, "features": space.name}
    return found


def by_nearest(queries: torch.Tensor, keys: torch.Tensor, known: list, rows: list) -> dict[str, Any]:
    return caption_scores([known[i]["name"] for i in nearest(queries, keys)], rows)


def groups(model: Any, processor: Any, args: Any, known: list, baselines: bool = True) -> dict[str, Any]:
    """Scores of group questions about emoji of the test split, in both styles."""
    found: dict[str, Any] = {}
    for vendor in ("noto", "twemoji"):
        rows = rows_of(args.emoji, vendor, "test")
        for forms in ("train", "heldout"):
            right = []
            for form in FORMS[forms][: args.forms]:
                answers = said(model, processor, [[row["image"], form] for row in rows])
                right += [a == row["group"] for a, row in zip(answers, rows)]
            found[f"{vendor}_{forms}_forms"] = percent("exact", right)
        if baselines:
            nearest_pixels = nearest(pixels_of(rows), pixels_of(known))
            found[f"{vendor}_nearest_pixels"] = percent(
                "exact", [known[i]["group"] == row["group"] for i, row in zip(nearest_pixels, rows)]
            )
            counts = [row["group"] for row in known]
            largest = max(set(counts), key=counts.count)
            found[f"{vendor}_largest_group"] = percent("exact", [row["group"] == largest for row in rows])
            if args.encoder:
                space = feature_space(args.encoder)
                near = nearest(features_of(space, rows), features_of(space, known))
                found[f"{vendor}_nearest_nepa"] = percent(
                    "exact", [known[i]["group"] == row["group"] for i, row in zip(near, rows)]
                )
    return found


def painting(args: Any, known: list) -> dict[str, Any]:
    """Images generated from names and from the latents of the real image: rank of the target among training images."""
    pipeline = EmuPipeline.from_pretrained(args.model, visual_decoder=args.decoder)
    chosen = np.random.default_rng(2).permutation(len(known))[: args.paintings].tolist()
    rows = [known[i] for i in chosen]
    from_text = pipeline(
        [[f"{row['name']}:"] for row in rows], num_inference_steps=30, guidance_scale=args.guidance, progress=False
    )
    inputs = pipeline.processor([[row["image"]] for row in rows])
    own = pipeline.paint(pipeline.model.image_latents(inputs["pixel_values"]), num_inference_steps=30)
    found: dict[str, Any] = {"chance": 100 / len(known), "guidance": args.guidance}
    keys = pixels_of(known)
    real = sharpness_of(rows)
    for name, images in (("from_text", from_text), ("from_own_latents", own)):
        painted = [{"image": image.resize((SIZE, SIZE))} for image in images]
        distance = torch.cdist(pixels_of(painted), keys)
        ranks = [int((d < d[i]).sum()) + 1 for d, i in zip(distance, chosen)]
        found[name] = {
            "top1": percent("top1", [r == 1 for r in ranks]),
            "top10": percent("top10", [r <= 10 for r in ranks]),
            "median_rank": float(np.median(ranks)),
            "sharpness": sharpness_of(painted) / real,
        }
    if args.sheet:
        contact_sheet(rows[:24], from_text, own).save(args.sheet)
    return found


def sharpness_of(rows: list) -> float:
    return float(sharpness(pixels_of(rows).view(-1, SIZE, SIZE, 3).permute(0, 3, 1, 2) / 255).mean())


def contact_sheet(rows: list, from_text: list, own: list, side: int = 64, columns: int = 8) -> Image.Image:
    """Grid of triples: the emoji, its image from its own latents, its image from its name."""
    height = -(-len(rows) // columns) * (3 * side + 12)
    sheet = Image.new("RGB", (columns * (side + 8), height), (245, 245, 245))
    for i, row in enumerate(rows):
        left, top = i % columns * (side + 8), i // columns * (3 * side + 12)
        for j, image in enumerate((row["image"], own[i], from_text[i])):
            sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (left, top + j * (side + 2)))
    return sheet


if __name__ == "__main__":
    main()
