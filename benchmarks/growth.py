"""Scaling of time and memory with the number of latents per image, layers, and files in a folder.

    python benchmarks/growth.py --out benchmarks/results/growth.json --figure docs/assets/growth.png

  latents   one training step of a NEPA of width 192 with 4 layers, on 4,096 latents in images of 64 to 4,096 latents
  layers    one training step of the same model with 1 to 64 layers, on 16 images of 64 latents
  files     listing the rows of a folder of 10 to 1,000,000 JPEGs (hard links to a few) and reading the first row
Each setting runs in a separate process. Times are CPU seconds (median of three; a single run for files), memory is the
growth of the peak resident set.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GRID = {
    "latents": [64, 256, 1024, 4096],
    "layers": [1, 4, 16, 64],
    "files": [10, 100, 1_000, 10_000, 100_000, 1_000_000],
}
LATENTS = 4096  # per step
LINKS = 50_000  # largest number of links to one file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--figure", help="PNG with the curves")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps({"files": files, "latents": latents, "layers": layers}[args.one[0]](int(args.one[1]))))
        return
    found: dict[str, Any] = {"command": f"python benchmarks/growth.py --out {args.out}", "rows": []}
    for what, sizes in GRID.items():
        for size in sizes:
            call = [sys.executable, __file__, "--out", args.out, "--one", what, str(size)]
            row = {"what": what, "size": size} | json.loads(subprocess.check_output(call, text=True).splitlines()[-1])
            found["rows"].append(row)
            print(row, flush=True)
    Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    if args.figure:
        plot(found["rows"], Path(args.figure))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def latents(num: int) -> dict[str, Any]:
    return step(side=4 * round(num**0.5), num=num, layers=4, images=LATENTS // num)


def layers(num: int) -> dict[str, Any]:
    return step(side=32, num=64, layers=num, images=16)


def step(side: int, num: int, layers: int, images: int) -> dict[str, Any]:
    """CPU seconds and memory of the forward pass, backward pass and update."""
    import torch

    from nextembed import NepaModel, NextEmbeddingSettings

    torch.manual_seed(0)
    model = NepaModel(image_size=side, patch_size=4, hidden_size=192, num_attention_heads=3, intermediate_size=512,
                      num_hidden_layers=layers).build()  # fmt: skip
    objective = NextEmbeddingSettings().build(model)
    objective.diagnose = False
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = {
        "pixel_values": torch.randn(images, 3, side, side),
        "latent_mask": torch.ones(images, 1 + num, dtype=torch.bool),
    }
    start, times = peak(), []
    for _ in range(4):
        began = time.process_time()
        objective(model, batch).loss_sum.sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.process_time() - began)
    return {"seconds": round(statistics.median(times[1:]), 4), "megabytes": round((peak() - start) / 2**20, 1)}


def files(num: int) -> dict[str, Any]:
    from nextembed.data.sources import ImageData

    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), num)
        start, began, clock = peak(), time.process_time(), time.monotonic()
        rows = ImageData(source=folder, num_workers=0).rows("train")
        rows[0]
        found = {"rows": len(rows)}
        return found | {"seconds": round(time.process_time() - began, 4), "clock": round(time.monotonic() - clock, 3),
                        "megabytes": round((peak() - start) / 2**20, 1)}  # fmt: skip


def fill(folder: Path, num: int) -> None:
    """Creates `num` JPEGs in class folders of at most 10,000 files."""
    from PIL import Image

    for number in range(num):
        where = folder / f"class-{number // 10_000:03}"
        if number % 10_000 == 0:
            where.mkdir()
        if number % LINKS == 0:
            source = where / f"{number:07}.jpg"
            Image.new("RGB", (32, 32), (number % 255, 0, 0)).save(source)
        else:
            os.link(source, where / f"{number:07}.jpg")


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    import matplotlib.pyplot as plt

    names = {"latents": "latents of an image (4,096 in a step)", "layers": "layers", "files": "files of a folder"}
    figure, axes = plt.subplots(2, 3, figsize=(10, 5), dpi=110, sharex="col")
    for column, (what, title) in enumerate(names.items()):
        own = [row for row in rows if row["what"] == what]
        sizes = [row["size"] for row in own]
        for axis, key, unit in zip(axes[:, column], ("seconds", "megabytes"), ("CPU seconds", "memory, MB")):
            values = [max(row[key], 1e-3) for row in own]
            axis.loglog(sizes, values, "o-", color="#2f6fde")
            if what != "latents":  # the number of latents per step is constant
                axis.loglog(sizes, [values[-1] * n / sizes[-1] for n in sizes], ":", color="#999999", label="linear")
            else:
                axis.set_ylim(values[0] / 3, values[-1] * 3)
            axis.grid(alpha=0.25)
            axis.set_ylabel(unit)
        axes[1, column].set_xlabel(title)
    axes[0, 1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


if __name__ == "__main__":
    main()
