"""Lines before the first step: run folder, device, data, model, length and expected time."""

import io
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from PIL import Image
from torch import nn

from ..core import distributed
from ..core.config import Part
from ..core.run_folder import DataCounts
from ..core.terminal import print
from ..core.types import Role, reads_clips
from ..data.documents import DocumentPart
from ..data.images import ImagePart
from ..data.mixture import Mixture
from ..data.rows import Rows, RowSequence
from ..data.segmentation import MaskPart
from ..data.stored import StreamedRows
from ..errors import MissingSplit
from .loop import Loop
from .settings import TrainConfig
from .watch import Say, Training, Watcher

FEW = 100  # number of images below which nothing general is learned
SMALLER = 8  # factor of shrinking that is reported


def announce(text: str) -> None:
    """Prints a line before training, on the main rank, to standard output; only errors go to standard error."""
    if distributed.is_main():
        print(text, flush=True)


def place_line(run_dir: Path, wanted: Path, resumes: bool) -> str:
    """ "Run:     runs/mine-2 (runs/mine exists)"."""
    where = os.path.relpath(run_dir)
    if resumes:
        return f"Run:     {where}, resumed"
    return f"Run:     {where}" + (f" ({os.path.relpath(wanted)} exists)" if run_dir.name != wanted.name else "")


def device_line(train: TrainConfig) -> str:
    """ "Device:  cpu, 4 threads"."""
    if train.on_cpu():
        text = f"CPU, {torch.get_num_threads()} {'thread' if torch.get_num_threads() == 1 else 'threads'}"
    else:
        device = torch.accelerator.current_accelerator()
        kind = device.type if device is not None else "cpu"
        text = torch.cuda.get_device_name() if kind == "cuda" else kind
    ranks = distributed.world_size()
    line = f"Device:  {text}" + (f", {ranks} ranks" if ranks > 1 else "") + f", {train.precision}"
    if distributed.restart_may_hang():
        line += "\n         a restart may hang in torch; start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
    return line


class ModelOf(NamedTuple):
    """Properties of a model for messages about its data. image_size: side in pixels, None if unknown."""

    image_size: int | None = None
    reads_clips: bool = False


UNKNOWN = ModelOf()


def found_data(data: Part, batch_size: int, model: ModelOf = UNKNOWN) -> tuple[list[str], DataCounts]:
    """Findings about the data and warnings, as lines and as numbers."""
    source = data.named() if isinstance(data, Mixture) else getattr(data, "source", None) or data.kind
    if isinstance(data, DocumentPart):
        check_splits(data)
        found = data.summary("train")
        number = "a stream of" if found.used is None else f"{found.used:,}"
        beside = [line for line in found.lines("documents")[1:] if not line.startswith("splits: ")]
        if found.used is None:
            beside += [line for one in data.row_sources("train") for line in divided(one.rows, data.num_workers)]
        lines = [f"Data:    {source}: {number} documents for training", *(f"         {line}" for line in beside)]
        return lines, DataCounts(found.used, what="documents")
    if not isinstance(data, ImagePart | MaskPart):
        return [f"Data:    {source}"], DataCounts()
    rows = data.training_rows() if isinstance(data, ImagePart) else data.rows("train")
    if not isinstance(rows, Rows):
        lines = [f"Data:    {source}: a stream of {'clips' if model.reads_clips else 'images'}"]
        return [*lines, *(f"         {line}" for line in divided(rows, data.num_workers))], DataCounts()
    names = data.class_names()
    what: Literal["clips", "images"] = "clips" if model.reads_clips else "images"
    counts = DataCounts(len(rows), classes=len(names), what=what)
    text = f"Data:    {source}: {len(rows):,} {what if len(rows) != 1 else what[:-1]} for training{class_words(names)}"
    said: list[str] = []
    if here(data):
        counts.validation, counts.test = count(data, "validation"), count(data, "test")
        for role, num in (("validation", counts.validation), ("test", counts.test)):
            text += f"; {role} " + ("a stream" if num is None else f"{num:,}" if num else "none")
        said = data.summary("train").lines()[1:]
    left_out = [line for line in said if not line.startswith("splits: ")]  # counted above
    return [text, *(f"         {line}" for line in (*left_out, *odd(rows, batch_size, model)))], counts


def divided(rows: Rows | RowSequence, num_workers: int) -> list[str]:
    """How the shards of a stream are divided among ranks and workers."""
    num_readers = distributed.world_size() * max(1, num_workers)
    return [rows.divided(num_readers)] if isinstance(rows, StreamedRows) else []


def here(data: Part) -> bool:
    """Whether the data lies on this machine, so that counting its splits downloads nothing."""
    source = getattr(data, "source", "")
    return source == "emoji" or Path(str(source)).expanduser().exists()


def count(data: "ImagePart | MaskPart", role: Role) -> int | None:
    """Number of images in a split; 0 if there is no such split, None for a stream.

    Raises ConfigError for a split that the settings name and the data lacks: training would continue without it.
    """
    try:
        rows = data.split_rows(role) if isinstance(data, ImagePart) else data.rows(role)
    except MissingSplit:
        return 0
    return len(rows) if isinstance(rows, Rows) else None


def check_splits(data: DocumentPart) -> None:
    """Raises ConfigError if the settings name a validation or test split that the data on this machine lacks."""
    for part in data.parts() if isinstance(data, Mixture) else [data]:
        if not here(part):
            continue
        for role in cast(tuple[Role, ...], ("validation", "test")):
            with suppress(MissingSplit):
                part.row_sources(role)


def class_words(names: list[str], shown: int = 4) -> str:
    """ " in 10 classes (cat, dog, ...)"."""
    if not names:
        return ", without classes"
    return f" in {len(names)} {'class' if len(names) == 1 else 'classes'} ({', '.join(names[:shown])}" + (
        ", ...)" if len(names) > shown else ")"
    )


def odd(rows: Rows, batch_size: int, model: ModelOf = UNKNOWN) -> list[str]:
    """Warnings before time is spent."""
    found, image_size, one = [], model.image_size, "clip" if model.reads_clips else "image"
    if len(rows) < FEW:
        few = f"1 {one} is" if len(rows) == 1 else f"{len(rows)} {one}s are"
        found.append(f"{few} very few: the model will memorise them and not generalise")
    if 0 < len(rows) < batch_size:
        times = batch_size / len(rows)
        found.append(
            f"train.batch_size={batch_size} is larger than the data: each step sees every {one} {times:.1f} times"
        )
    sides = sorted(side for i in range(min(5, len(rows))) if (side := short_side(rows[i].get("image"))))
    if sides and image_size and sides[len(sides) // 2] >= SMALLER * image_size:
        usual = sides[len(sides) // 2]
        found.append(
            f"images of about {usual:,} px are shrunk to {image_size} px, which loses details below "
            f"{usual / image_size:.0f} px (model.image_size)"
        )
    return found


def short_side(image: object) -> int | None:
    """Shorter side of an undecoded image in pixels; None if that cannot be read quickly."""
    if isinstance(image, Image.Image):
        return min(image.size)
    if isinstance(image, bytes | str | Path):
        try:
            with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
                return min(opened.size)
        except (OSError, ValueError, Image.DecompressionBombError):
            return None
    shape = getattr(image, "shape", None)
    return min(shape[:2]) if shape is not None and len(shape) >= 2 else None


def model_line(backbone: Any, kind: str) -> str:
    """ "Model:   vit_nepa, 2,830,464 parameters, 32 px in 16 patches"."""
    own: nn.Module = backbone
    text = f"Model:   {kind}, {sum(p.numel() for p in own.parameters()):,} parameters"
    size, patch = (getattr(backbone.config, name, None) for name in ("image_size", "patch_size"))
    if isinstance(size, int) and isinstance(patch, int):
        frames = f"{backbone.config.num_frames} frames of " if reads_clips(backbone.config) else ""
        text += f", {frames}{size} px in {(size // patch) ** 2} patches of {patch} px"
    return text


def length_line(loop: Loop) -> str:
    """ "Length:  600 steps of 128, 46.8 epochs"."""
    text = f"Length:  {loop.max_steps:,} steps of {loop.config.batch_size}"
    if loop.num_samples:
        text += f", {loop.max_steps * loop.config.batch_size / loop.num_samples:,.1f} epochs"
    return text


def minutes(seconds: float) -> str:
    """An expected time as text: "about 4 minutes"."""
    if seconds < 50:
        return f"about {max(1, round(seconds))} {'second' if round(seconds) <= 1 else 'seconds'}"
    if seconds < 100 * 60:
        return f"about {max(1, round(seconds / 60))} {'minute' if round(seconds / 60) <= 1 else 'minutes'}"
    if seconds < 48 * 3600:
        return f"about {seconds / 3600:.1f} hours"
    return f"about {seconds / 86400:.1f} days"


class Pace(Watcher):
    """Prints once, after the first seconds, how long the run will take."""

    def __init__(self, say: Say, after: float = 2.0, steps: int = 20):
        self.say, self.after, self.steps = say, after, steps
        self.begun: tuple[float, int] | None = None
        self.said = False

    def stepped(self, loop: Training) -> None:
        now = time.monotonic()
        if self.begun is None:  # the first step is slower
            self.begun = now, loop.step
            return
        began, first = self.begun
        done = loop.step - first
        if self.said or (now - began < self.after and done < self.steps):
            return
        self.said = True
        left = loop.max_steps - loop.step
        if left > done:
            self.say(f"Time:    {minutes((now - began) / done * left)} for the other {left:,} steps on this machine")


def step_seconds(loop: Loop) -> float:
    """Seconds of one optimizer step, measured on the first data; nothing is trained."""
    batches = iter(loop.loader)
    window = loop.window(batches)
    loop.model.train()
    loop.bare.prepare([loop.moved(batch) for batch in window])
    times = []
    for number in (0, 0, 0):
        began = time.monotonic()
        output = loop.forward(window[number], number)
        assert output.loss_sum is not None
        output.loss_sum.sum().backward()
        if loop.device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.monotonic() - began)
        if sum(times) > 10:
            break
    loop.bare.zero_grad(set_to_none=True)
    return min(times) * loop.num_micro_batches


@contextmanager
def busy(what: str, say: Say, after: float = 1.0, every: float = 15.0) -> Iterator[None]:
    """Prints what is being done, if the block takes long."""
    over, began = threading.Event(), time.monotonic()

    def watch() -> None:
        wait = after
        while not over.wait(wait):
            say(f"{what} ({time.monotonic() - began:.0f} s)" if wait == every else f"{what} ...")
            wait = every

    if distributed.is_main():
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
