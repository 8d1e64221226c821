"""Minimal runs and their images."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

QUICK = ["train.trackers=[]", "train.device=cpu", "train.probe_steps=null", "probe.enabled=false", "train.log_steps=1",
         "train.batch_size=4", "optim.warmup_steps=1"]  # fmt: skip
MODEL = ["model.hidden_size=16", "model.num_hidden_layers=1", "model.intermediate_size=16", "model.image_size=16"]


def images(folder: Path, count: int = 12, labels: bool = False) -> Path:
    folder.mkdir(parents=True)
    if labels:
        rows = [f"{number:02}.png,{number % 2}\n" for number in range(count)]
        (folder / "metadata.csv").write_text("file_name,label\n" + "".join(rows))
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def words(source: Path, steps: int, *more: str) -> list[str]:
    """The `train` command for a tiny model on the images of a folder."""
    return ["train", "nepa_demo_tiny", *QUICK, *MODEL, f"data.source={source}", f"train.max_steps={steps}", *more]


def without_report() -> None:
    """Disables reports in this process, because they take most of the time."""
    import nextembed.run

    nextembed.run.write_report = lambda *args, **kwargs: None  # type: ignore[assignment]


def same_weights(run: Path, other: Path) -> str | None:
    """The first bitwise difference between two runs."""
    for name in ("model", "ema"):
        found, expected = (load_file(one / name / "model.safetensors") for one in (run, other))
        if found.keys() != expected.keys() or not all(torch.equal(found[n], t) for n, t in expected.items()):
            return f"{name}/model.safetensors differs from the uninterrupted run's"
    return None


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """The contents of a folder: file contents and link targets."""
    found: dict[str, bytes | str | None] = {}
    for path in folder.rglob("*"):
        value = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = value
    return found
