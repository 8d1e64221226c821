"""Retrieval in all directions between the pieces of a run's rows: image, text, sound, speech.

    nextembed train omni_stamps
    python benchmarks/omni_stamps.py runs/omni_stamps --splits validation train \
        --out benchmarks/results/omni_stamps.json

For any run of an Omni on data of kind `records` (or a mixture of them): for each pair of pieces, one is retrieved among
at most 100 candidates given the other, by the scoring methods of benchmarks/omni_emoji.py, on rows of the split that
have both. With few rows there are fewer candidates; `chance` and `chance_in_ten` are the shares of guessing. Of rows
with the same text only one is used. `nearest_pixels`, of texts for images: candidates are ranked by the word overlap
with the text of the training image nearest in raw pixels (32 x 32). Intervals: the middle 95 % of 1,000 bootstrap
samples over items.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch

from nextembed.core.config import DATA
from nextembed.core.run_folder import read_config, run_folder
from nextembed.data.draws import Draws
from nextembed.data.records import Records
from nextembed.data.transforms import Unreadable, resize
from nextembed.inference.generate import load_omni
from nextembed.toys import kinds  # noqa: F401  registers the kinds of data
from omni_emoji import CANDIDATES, chosen, matrix, overlap, ways

FEWEST = 5  # rows; fewer are not evaluated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--splits", nargs="+", default=["validation"], help="train, validation, test")
    parser.add_argument("--items", type=int, default=CANDIDATES, help="rows per pair (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    started = time.monotonic()
    model = load_omni(args.run)
    folder = run_folder(args.run)
    if folder is None:
        raise SystemExit(f"{args.run} is not a run; the data settings of a run are needed")
    data: Any = DATA.parse(read_config(folder)["data"])
    sources = [part for part in getattr(data, "sources", [data]) if isinstance(part, Records)]
    result: dict[str, Any] = {"model": str(args.run), "parameters": model.num_parameters(), "splits": {}}
    for split, (number, source) in itertools.product(args.splits, enumerate(sources)):
        name = split if len(sources) == 1 else f"{split}/{number}"
        result["splits"][name] = {"source": source.source, **directions(model, source, split, args.items)}
        result["minutes"] = round((time.monotonic() - started) / 60, 1)
        args.out.write_text(json.dumps(result, indent=1) + "\n")  # after each split, in case of interruption
        print(name, json.dumps(result["splits"][name], indent=1), flush=True)


def directions(model: Any, source: Records, split: Any, num: int) -> dict[str, Any]:
    rows = source.rows(split)
    pieces = [name for name, piece in source.pieces_known().items() if not piece.is_fixed]
    found: dict[str, Any] = {}
    for a, b in itertools.combinations(pieces, 2):
        pairs = read_pairs(source, rows, a, b, num)
        if len(pairs) < FEWEST:
            found[f"{a} {b}"] = {"items": len(pairs), "note": "too few rows have both"}
            continue
        one, other = ([pair[i] for pair in pairs] for i in (0, 1))
        forth = matrix(model, [[piece] for piece in one], other)  # [a, b]
        back = matrix(model, [[piece] for piece in other], one)  # [b, a]
        many = min(CANDIDATES, len(pairs))
        size = {"items": len(pairs), "chance": 100 / many, "chance_in_ten": 100 * min(1.0, 10 / many)}
        found[f"{b} for {a}"] = size | ways(forth, model.score([], other), back.T)
        if one[0]["kind"] == "image" and other[0]["kind"] == "text":
            known = read_pairs(source, source.rows("train"), a, b, len(source.rows("train")))
            found[f"{b} for {a}"]["nearest_pixels"] = chosen(nearest_texts(pairs, known))
        found[f"{a} for {b}"] = size | ways(back, model.score([], one), forth.T)
    return found


def nearest_texts(pairs: list[tuple[Any, Any]], known: list[tuple[Any, Any]]) -> torch.Tensor:
    """[image, text]: word overlap of the text with that of the known image nearest in raw pixels."""
    small, others = (
        torch.stack([resize(one["value"], 32).flatten().float() for one, _ in part]) for part in (pairs, known)
    )
    near = [known[i][1]["value"] for i in torch.cdist(small, others).argmin(1).tolist()]
    return torch.tensor([[overlap(text, other["value"]) for _, other in pairs] for text in near])


def read_pairs(source: Records, rows: Any, a: str, b: str, num: int) -> list[tuple[Any, Any]]:
    """Both pieces of at most `num` rows, sampled with a fixed seed; each text occurs once."""
    pairs, seen = [], set()
    for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist():
        row = rows[i]
        try:
            if not (source.has(row, a) and source.has(row, b)):
                continue
            pair = (source.read(row, a, Draws(0)), source.read(row, b, Draws(0)))
        except Unreadable:
            continue
        texts = tuple(piece["value"] for piece in pair if isinstance(piece["value"], str))
        if seen.isdisjoint(texts):
            seen.update(texts)
            pairs.append(pair)
        if len(pairs) == num:
            break
    return pairs


if __name__ == "__main__":
    main()
