"""Speed of an Omni: padding in packed batches, generation with a cache, training on mixed documents.

    python benchmarks/omni_speed.py DATA_FOLDER

DATA_FOLDER: with speech/ (audio, text) and series/BasicMotions/ (series, label); emoji come with the package. Unless
noted otherwise, models have the transformer of the recipe `omni_emoji` with random weights. Measured:
  packing      share of padding positions, for documents with images, text, sound and series
  position     generation of one latent after 1,000 latents against after 50
  cache        generation of 512 latents against one full forward pass per latent over the sequence so far, and of one
               latent at that length; also for a transformer of width 512 with 8 layers
  training     positions per second (without padding) on mixed documents against images only, both packed, and against
               NEPA, which reads images unpacked
Seconds are CPU time of this process on one thread, so that other processes have little effect. Compared variants run in
turn; medians over rounds are reported.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers

from nextembed.core.config import DATA
from nextembed.core.objective import PretrainingModel
from nextembed.core.types import Loading
from nextembed.models.nepa import NepaModel
from nextembed.models.omni import OmniForPreTraining, OmniParts
from nextembed.models.omni.generation import Rollout
from nextembed.objectives import NextEmbeddingSettings
from nextembed.toys import kinds  # noqa: F401  registers the kinds of data

SIZES: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "layerscale_value": 0.1}
IMAGE = {"image": {"image_size": 32, "patch_size": 4}}
MIXED = {"text": {}, **IMAGE, "audio": {}, "series": {"channels": 6}}
LARGER: dict[str, Any] = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
LENGTH, ROWS = 512, 4
GROWN = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is run (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=100, help="packed batches for padding (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", help="measure only these: packing, generation, ...; others are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "omni_speed.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.parts and args.out.is_file() else {}
    result |= {
        "command": shlex.join(["python", "benchmarks/omni_speed.py", *sys.argv[1:]]),
        "machine": platform.platform(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "packing": lambda: packing(args.data, args.batches),
        "generation": lambda: generation(SIZES, args.rounds),
        "generation_512_wide": lambda: generation(LARGER, args.rounds),
        "training": lambda: training(args.data, args.rounds),
    }
    for name, measure in parts.items():
        if args.parts and name not in args.parts:
            continue
        result[name] = measure()
        print(name, json.dumps(result[name], indent=1), flush=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def spent(call: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, after one warm-up round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            seconds = spent(call)
            if number:
                found[name].append(seconds)
    return {name: statistics.median(values) for name, values in found.items()}


# -- packing


def mixed_data(folder: Path) -> Any:
    speech = {"kind": "records", "source": str(folder / "speech"), "pieces": {"audio": "audio", "text": "text"}}
    series = {"kind": "records", "source": str(folder / "series" / "BasicMotions"),
              "pieces": {"series": "series", "what": {"kind": "text", "column": "label"}}}  # fmt: skip
    return DATA.parse({"kind": "mixture", "sources": [{"kind": "emoji_documents"}, speech, series],
                       "weights": [3, 1, 1], "num_workers": 0})  # fmt: skip


def loader_of(data: Any, parts: OmniParts, model: Any) -> Any:
    return data.train_loader(Loading(ROWS), **parts.loader_arguments(model))


def packing(folder: Path, num: int) -> dict[str, Any]:
    parts = OmniParts(modalities=MIXED, tokenizer="bundled", max_length=LENGTH, **SIZES)
    model = parts.build()
    loader = loader_of(mixed_data(folder), parts, model)
    found = torch.zeros(2 + len(MIXED), dtype=torch.int64)
    documents = 0
    for batch in islice(loader, num):
        found += batch["kinds"].flatten().bincount(minlength=len(found))
        documents += int(batch["document_ids"].amax(1).sum())
    positions = dict(zip(["padding", *model.kind_names], found.tolist()))
    return {"rows": num * ROWS, "row_length": LENGTH, "documents": documents, "positions": positions,
            "waste": 1 - loader.fill_rate, "left_out": loader.counts}  # fmt: skip


# -- generation


def rollout_after(model: Any, processor: Any, length: int) -> Rollout:
    """A rollout over a text document of `length` latents."""
    return Rollout(model, processor([["a" * (length - 1)]]))


def feed(model: Any, rollout: Rollout, num: int) -> None:
    """Like `generation.write`, but without a choice: the same latent is always fed back."""
    z = model.model.modality("text").table.weight[:1]
    for _ in range(num):
        places = torch.zeros(1, 3)
        places[:, 0] = rollout.time + 1
        rollout.feed(z, places)


@torch.no_grad()
def generation(sizes: dict[str, Any], rounds: int, num: int = 20, stride: int = 64) -> dict[str, Any]:
    torch.manual_seed(0)
    parts = OmniParts(modalities={"text": {}}, **sizes)  # byte level: one latent per letter
    model, processor = parts.build().eval(), parts.processor()
    seconds: dict[str, list[float]] = {"behind_50": [], "behind_1000": []}
    for number in range(rounds + 1):
        for length, values in zip((50, 1000), seconds.values()):
            rollout = rollout_after(model, processor, length)
            taken = spent(lambda rollout=rollout: feed(model, rollout, num))
            if number:
                values.append(taken / num)
    each = {name: statistics.median(values) for name, values in seconds.items()}

    def whole(length: int) -> float:
        inputs = processor([["a" * (length - 1)]])
        return spent(lambda: model.encode(model.embed(inputs)))

    lengths = list(range(stride, GROWN + 1, stride))
    found: dict[int, list[float]] = {length: [] for length in lengths}
    cached, ends = [], []
    for _ in range(rounds):
        for length in lengths:
            found[length].append(whole(length))
        cached.append(spent(lambda: feed(model, rollout_after(model, processor, 2), GROWN)))
        rollout = rollout_after(model, processor, GROWN)
        ends.append(spent(lambda rollout=rollout: feed(model, rollout, num)) / num)
    passes = [statistics.median(values) for values in found.values()]
    grown, at_end, end = statistics.median(cached), statistics.median(ends), passes[-1]
    recomputed = stride * (sum(passes) - passes[-1] / 2)  # trapezoidal rule, starting from about 0
    return {
        "seconds_a_latent": each,
        "behind_1000_over_50": each["behind_1000"] / each["behind_50"],
        "seconds_for_512": {"cached": grown, "whole_passes": recomputed, "measured_every": stride},
        "whole_over_cached": recomputed / grown,
        "seconds_at_512": {"cached": at_end, "whole_pass": end},
        "whole_over_cached_at_512": end / at_end,
    }


# -- training


class Step:
    """A training step of one model, with a few batches that are used in turn."""

    def __init__(self, model: torch.nn.Module, objective: NextEmbeddingSettings, batches: list[Any]):
        self.whole = PretrainingModel(model, objective.build(model)).train()  # type: ignore[arg-type]
        self.whole.objective.diagnose = False  # the trainer turns diagnostics on only for the steps it logs
        self.batches, self.number = batches, 0
        self.optimizer = torch.optim.AdamW(self.whole.parameters(), lr=1e-4, fused=True)
        counts = [int((b["document_ids"] > 0).sum()) if "document_ids" in b else b["latent_mask"].numel()
                  for b in batches]  # fmt: skip
        self.positions = statistics.mean(counts)

    def __call__(self) -> None:
        batch = self.batches[self.number % len(self.batches)]
        self.number += 1
        out = self.whole(batch)
        (out.loss_sum / out.num_targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def omni(modalities: dict[str, Any], data: Any, distance: str, rounds: int) -> Step:
    torch.manual_seed(0)
    parts = OmniParts(modalities=modalities, tokenizer="bundled" if "text" in modalities else None, max_length=LENGTH,
                      **SIZES)  # fmt: skip
    model: OmniForPreTraining = parts.build()
    return Step(model, NextEmbeddingSettings(distance=distance), list(islice(loader_of(data, parts, model), rounds)))  # type: ignore[arg-type]


def training(folder: Path, rounds: int) -> dict[str, Any]:
    images = DATA.parse({"kind": "records", "source": "emoji", "pieces": {"image": "image"}, "num_workers": 0})
    side = IMAGE["image"]["image_size"] // IMAGE["image"]["patch_size"]
    latents = 1 + side**2
    num = ROWS * LENGTH // latents
    nepa = NepaModel(**SIZES, image_size=IMAGE["image"]["image_size"], patch_size=IMAGE["image"]["patch_size"]).build()
    pixels = {"pixel_values": torch.randn(num, 3, 32, 32), "latent_mask": torch.ones(num, latents, dtype=torch.bool)}
    steps: dict[str, Step] = {
        "images": omni(IMAGE, images, "cosine", rounds),
        "mixed_cosine": omni(MIXED, mixed_data(folder), "cosine", rounds),
        "mixed_vocabulary": omni(MIXED, mixed_data(folder), "vocabulary", rounds),
        "nepa": Step(nepa, NextEmbeddingSettings(), [pixels]),
    }
    seconds = in_turn(dict(steps), rounds)
    rates = {name: step.positions / seconds[name] for name, step in steps.items()}
    return {
        "positions_a_second": rates,
        "mixed_over_images": {name: rates[name] / rates["images"] for name in ("mixed_cosine", "mixed_vocabulary")},
        "mixed_over_nepa": {name: rates[name] / rates["nepa"] for name in ("mixed_cosine", "mixed_vocabulary")},
    }


if __name__ == "__main__":
    main()
