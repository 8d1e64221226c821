"""Images per second on one core: the loading of this package against Pillow and torchvision, with image differences.

    NEXTEMBED_DATA=DATA python benchmarks/data_loading.py

JPEGs are made in memory by enlarging the images of --source (DATA/stamps/train.parquet; without it the bundled emoji),
once without noise and once with a little sensor noise, so that files have the size of photos. Each image is processed
by all contenders in turn, several times. Reported is the median CPU time over rounds, so other load on the machine has
little effect.
"""

import argparse
import io
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image, features

from nextembed.core.types import Loading
from nextembed.data.sources import ImageData
from nextembed.data.transforms import GAP, ImageReader, RandomResizedCrop, normalize, resize

RESULT = Path(__file__).parent / "results" / "data_loading.json"


def make_jpegs(source: str, count: int, side: int, noise: float) -> list[bytes]:
    """`count` JPEGs (quality 90), 4:3, longer side `side`."""
    rng, out = np.random.default_rng(0), []
    rows = ImageData(source=source).rows("train")
    for i in range(count):
        pixels = ImageReader(3).read(rows[i % len(rows)]["image"]).permute(1, 2, 0).numpy()
        img = Image.fromarray(pixels).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        grain = rng.normal(0, noise, (img.height, img.width, 1))
        img = Image.fromarray((np.asarray(img) + grain).clip(0, 255).astype(np.uint8))
        file = io.BytesIO()
        img.save(file, "JPEG", quality=90)
        out.append(file.getvalue())
    return out


def race(contenders: dict[str, Callable[[bytes, int], Any]], files: list[bytes], rounds: int) -> dict[str, float]:
    """Images per second of CPU time, by contender."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        total = dict.fromkeys(contenders, 0.0)
        for i, data in enumerate(files):
            for name, run in contenders.items():
                begin = time.process_time()
                run(data, number * len(files) + i)
                total[name] += time.process_time() - begin
        for name in contenders if number else ():  # the first round warms up
            spent[name].append(total[name])
    return {name: len(files) / float(np.median(values)) for name, values in spent.items()}


def looks(files: list[bytes], size: int) -> dict[str, float]:
    """Differences between our crops and the same crops of a full Pillow decode: PSNR in dB, mean difference."""
    reader, crop = ImageReader(3), RandomResizedCrop(size, flip_rate=0)
    psnr, mean, reduced = [], [], 0
    for seed, data in enumerate(files):
        whole = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
        (box,), _ = crop.draw([whole.shape[1:]], [seed])
        reduced += min(box.height, box.width) >= 2 * size * GAP
        error = reader.read_crop(data, crop, seed).float() - resize(whole, size, box).float()
        psnr.append(10 * math.log10(255**2 / max(error.square().mean().item(), 1e-3)))
        mean.append(error.abs().mean().item())
    return {
        "lowest_psnr_db": min(psnr),
        "median_psnr_db": float(np.median(psnr)),
        "mean_level_difference": float(np.mean(mean)),
        "share_decoded_at_reduced_scale": reduced / len(files),
    }


def jpegs(source: str, side: int, size: int, count: int, rounds: int, noise: float) -> dict[str, Any]:
    files = make_jpegs(source, count, side, noise)
    pillow = T.Compose([T.RandomResizedCrop(size), T.RandomHorizontalFlip(), T.ToTensor()])
    reader, crop = ImageReader(3), RandomResizedCrop(size)
    speed = race(
        {
            "pillow": lambda data, seed: pillow(Image.open(io.BytesIO(data)).convert("RGB")),
            "nextembed": lambda data, seed: normalize(reader.read_crop(data, crop, seed), 0.5, 0.5),
        },
        files,
        rounds,
    )
    kilobytes = sum(map(len, files)) / len(files) / 1000
    row = {"side": side, "size": size, "kilobytes": kilobytes, **speed, "ratio": speed["nextembed"] / speed["pillow"]}
    return {**row, **looks(files, size)}


def small_images(num_images: int = 20_000, batch_size: int = 128) -> dict[str, float]:
    """Images per second, 28 x 28 grey PNGs: batches from the in-memory cache (main process only) against Pillow."""
    rng = np.random.default_rng(0)
    pngs = []
    for _ in range(500):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(file, "PNG")
        pngs.append(file.getvalue())

    class Repeated(ImageData):
        def rows(self, split: Any) -> Any:
            return [{"image": pngs[i % 500], "label": 0} for i in range(num_images)]

    begin = time.process_time()
    loader = Repeated(source="emoji", num_workers=0).train_loader(
        Loading(batch_size), image_size=28, num_channels=1, num_latents=17
    )
    batches, filled = iter(loader), time.process_time() - begin
    next(batches)
    begin = time.process_time()
    for _ in range(100):
        next(batches)
    cached = 100 * batch_size / (time.process_time() - begin)
    pillow = T.Compose([T.RandomResizedCrop(28), T.RandomHorizontalFlip(), T.ToTensor()])
    begin = time.process_time()
    for data in pngs:
        pillow(Image.open(io.BytesIO(data)))
    return {
        "pillow": len(pngs) / (time.process_time() - begin),
        "nextembed": cached,
        "seconds_to_decode_60000_once": filled * 60_000 / num_images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stamps = Path(os.environ.get("NEXTEMBED_DATA", "")) / "stamps" / "train.parquet"
    parser.add_argument("--source", default=str(stamps) if stamps.exists() else "emoji", help="images to enlarge")
    parser.add_argument("--count", type=int, default=100, help="number of JPEGs (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is read (default: %(default)s)")
    parser.add_argument("--noise", type=float, default=4.0, help="sensor noise in levels (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        jpegs(args.source, side, size, args.count if side == 500 else args.count // 4, args.rounds, noise)
        for side, size, noise in (
            (500, 224, 0.0),
            (500, 224, args.noise),
            (500, 64, args.noise),
            (2000, 224, args.noise),
        )
    ]
    for row in rows:
        print(
            f"{row['side']:5d}-px JPEG ({row['kilobytes']:4.0f} kB) -> {row['size']:3d} px: "
            f"Pillow {row['pillow']:5.0f}, nextembed {row['nextembed']:5.0f} images/s/core, {row['ratio']:.2f} x; "
            f"PSNR to a full decode {row['median_psnr_db']:.0f} dB (at least {row['lowest_psnr_db']:.0f}), "
            f"mean difference {row['mean_level_difference']:.2f} of 255"
        )
    small = small_images()
    print(
        f"28-px PNG, cached: Pillow {small['pillow']:.0f}, nextembed {small['nextembed']:.0f} images/s/core; "
        f"decoding 60,000 once takes {small['seconds_to_decode_60000_once']:.1f} s"
    )
    versions = {
        "torch": torch.__version__,
        "pillow": Image.__version__,
        "libjpeg_turbo": features.check("libjpeg_turbo"),
    }
    command = shlex.join(["python", "benchmarks/data_loading.py", *sys.argv[1:]])
    pictures = "stamps" if "stamps" in args.source else args.source
    load = os.getloadavg()[0]
    result = {
        "command": command,
        "pictures": pictures,
        "machine": platform.platform(),
        "load_average": load,
        **versions,
    }
    result |= {"jpegs": rows, "small": small}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
