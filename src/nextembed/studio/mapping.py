"""Embedded images as a map, and their neighbours."""

import contextlib
import csv
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..core.places import is_hub_id
from ..core.run_folder import find_saved
from ..errors import ConfigError
from ..evaluation.features.index import open_features
from ..evaluation.features.search import Bank, Hit, encoder_of, nearest
from ..evaluation.features.sheet import images_of
from ..evaluation.features.stored import FeatureFile, StoredRow
from ..inference.generate import features as omni_features
from ..inference.generate import load_omni
from ..models.loading import model_type
from ..nn.quantize import Codebook
from .folders import Folders
from .models import Models

MOST = 5000  # rows on the map; of more, some are drawn with a fixed seed
NUM_CLUSTERS = 8
NUM_NEAR = 10  # neighbours that define how far out a row lies
FEWEST = 3  # rows that UMAP lays out
Check = Callable[[], object]  # raises if the work was stopped


@dataclass
class Mapped:
    """Some rows of a file of features. numbers [N]: of the rows; vectors [N, D] of length 1; rows: what is known;
    layouts: those that have been computed, [N, 2] each."""

    name: str
    bank: Bank
    numbers: list[int]
    vectors: Tensor
    rows: list[StoredRow]
    layouts: dict[str, Tensor] = field(default_factory=dict)


class Points(TypedDict):
    """The map, as the page draws it. group: number of each point's class or cluster; groups: their names."""

    name: str
    x: list[float]
    y: list[float]
    keys: list[str]
    group: list[int]
    groups: list[str]
    text: str


def open_map(name: str, path: Path) -> Mapped:
    """Rows of a file or index of features. Raises ConfigError for other files, DataError for damaged features."""
    bank = open_features(path)
    order = torch.randperm(bank.num_rows, generator=torch.Generator().manual_seed(0))[:MOST]
    numbers = order.sort().values
    if isinstance(bank, FeatureFile):
        vectors = F.normalize(bank.gather(numbers), dim=1)
    else:
        vectors = torch.stack([bank.vector(number) for number in numbers.tolist()])
    return Mapped(name, bank, numbers.tolist(), vectors, bank.rows(numbers.tolist()))


def layouts() -> list[str]:
    """The installed layout methods."""
    return ["PCA"] + ["UMAP"] * (find_spec("umap") is not None)


def points(mapped: Mapped, layout: str = "PCA", colour: str = "class", check: Check = lambda: None) -> Points:
    """The map: coordinates, and a colour for each class or cluster. check: is called often while it is computed."""
    if layout not in mapped.layouts:
        mapped.layouts[layout] = coordinates(mapped.vectors, layout, check)
    x, y = mapped.layouts[layout].T.tolist()
    group, groups = grouped(mapped, colour)
    some = "" if len(mapped.numbers) == mapped.bank.num_rows else f" of {mapped.bank.num_rows:,}, chosen at random"
    text = f"{len(mapped.numbers):,} images{some}, {layout}. Drag to select; hover over a point to see its image."
    return Points(name=mapped.name, x=x, y=y, keys=[key_of(row, n) for row, n in zip(mapped.rows, mapped.numbers)],
                  group=group, groups=groups, text=text)  # fmt: skip


def grouped(mapped: Mapped, colour: str) -> tuple[list[int], list[str]]:
    """Number of each row's class or cluster, and their names; clusters where no row has a class."""
    found = classes(mapped.rows) if colour == "class" else ([], [])
    return found if found[1] else clusters(mapped.vectors)


def coordinates(vectors: Tensor, layout: str, check: Check = lambda: None) -> Tensor:
    """[N, D] -> [N, 2]. Raises ConfigError for UMAP where it is not installed, or fails."""
    if layout == "UMAP":
        if find_spec("umap") is None:
            raise ConfigError("UMAP is not installed: pip install umap-learn")
        if len(vectors) < FEWEST:
            raise ConfigError(f"UMAP needs at least {FEWEST} images; use PCA")
        return umap(vectors, check)
    centred = vectors - vectors.mean(0)
    _, _, vt = torch.linalg.svd(centred, full_matrices=False)
    found = centred @ vt[:2].T
    return F.pad(found, (0, 2 - found.shape[1]))


def umap(vectors: Tensor, check: Check) -> Tensor:
    """[N, D] -> [N, 2], computed by a process of its own, which ends when `check` raises."""
    with tempfile.TemporaryDirectory() as scratch:
        given, made = Path(scratch) / "vectors.npy", Path(scratch) / "layout.npy"
        np.save(given, vectors.numpy())
        program = [sys.executable, str(Path(__file__).with_name("umap_layout.py")), str(given), str(made)]
        said = Path(scratch) / "said.txt"
        with said.open("w") as log, subprocess.Popen(program, stdout=log, stderr=log) as running:
            try:
                while running.poll() is None:
                    check()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        running.wait(timeout=0.2)
            except BaseException:
                running.kill()
                raise
        if running.returncode or not made.is_file():
            lines = said.read_text(errors="replace").strip().splitlines()
            raise ConfigError(f"UMAP failed: {lines[-1][:200] if lines else 'no layout was written'}")
        return torch.from_numpy(np.load(made, allow_pickle=False))


def classes(rows: Sequence[StoredRow]) -> tuple[list[int], list[str]]:
    """Number of each row's class, and their names, the most frequent first; [] where no row has one."""
    names = [str(row.get("label_name") or row.get("label", "")) for row in rows]
    if not any(row.get("label_name") or row.get("label") is not None for row in rows):
        return [], []
    order = sorted(set(names), key=lambda name: (-names.count(name), name))
    return [order.index(name) for name in names], [name or "no class" for name in order]


def clusters(vectors: Tensor) -> tuple[list[int], list[str]]:
    """Number of each row's cluster, by k-means, and their names."""
    num = max(1, min(NUM_CLUSTERS, len(torch.unique(vectors, dim=0))))
    book = Codebook(num, vectors.shape[1])
    book.fit(vectors)
    return book.ids(vectors).tolist(), [f"cluster {number + 1}" for number in range(num)]


def key_of(row: StoredRow, number: int) -> str:
    """The name of a row."""
    return str(row.get("key", number))


def grid(mapped: Mapped, places: Sequence[int], words: Sequence[str] = ()) -> str:
    """Rows as tiles; a click shows their neighbours. places: in the map, not of the file."""
    boxes = ""
    for i, place in enumerate(places):
        key = escape(key_of(mapped.rows[place], mapped.numbers[place]), quote=True)
        label = escape(str(mapped.rows[place].get("label_name") or ""))
        source = f"studio/thumb?features={quote(mapped.name)}&row={mapped.numbers[place]}"
        boxes += (
            f'<button type="button" data-send="near" data-value="{place}" data-key="t{place}">'
            f'<img loading="lazy" alt="{key}" src="{source}"><span><b>{words[i] if words else ""}</b> '
            f"{label} {key}</span></button>"
        )
    return f'<div class="tiles">{boxes}</div>'


def near_vector(mapped: Mapped, vector: Tensor, top: int, leave_out: int | None = None) -> tuple[list[int], list[str]]:
    """Places in the map of the rows nearest to a vector [D], and their cosines in words."""
    hits = nearest(mapped.bank, vector, top * (2 if len(mapped.numbers) < mapped.bank.num_rows else 1), leave_out)
    cosines, where = {}, {key_of(row, n): i for i, (row, n) in enumerate(zip(mapped.rows, mapped.numbers))}
    for hit in hits:
        if hit.key in where:
            cosines[where[hit.key]] = f"{hit.cosine:.3f}"
    return list(cosines)[:top], list(cosines.values())[:top]


def embedded_image(mapped: Mapped, image: Image.Image, folders: Folders, models: Models) -> Tensor:
    """Features [D] of a picture, by the model that made the file. Raises ConfigError if it is missing."""
    from ..evaluation.features.encoder import encode

    path = folders.inside(checkpoint_of(mapped))
    key = ("encoder", str(path), str(mapped.bank.path))
    return encode(models.get(key, lambda: encoder_of(mapped.bank), path.name), image)[0]


def embedded_text(mapped: Mapped, text: str, folders: Folders, models: Models) -> Tensor:
    """Features [D] of a text. Raises ConfigError for a model without text."""
    path = folders.inside(checkpoint_of(mapped))
    if model_type(find_saved(path).folder()) != "omni":
        raise ConfigError("the model of these features does not read text; drop an image, or embed with an Omni")
    made = mapped.bank.origin
    model = models.get(("text", str(path)), lambda: load_omni(path, device="cpu"), path.name)
    return omni_features(model, [[text]], made.layer, made.pooling or "mean", made.attention or "causal")[0]


def checkpoint_of(mapped: Mapped) -> str:
    """The path of the model that made the file. Raises ConfigError if it is unknown."""
    if mapped.bank.origin.checkpoint is None:
        raise ConfigError("these features do not record which model made them")
    return mapped.bank.origin.checkpoint


def outliers(mapped: Mapped, num: int = 24) -> tuple[list[int], list[str]]:
    """Rows whose nearest others are farthest, and the mean cosine of these."""
    alike = mapped.vectors @ mapped.vectors.T
    alike.fill_diagonal_(-2)
    mean = alike.topk(max(1, min(NUM_NEAR, len(alike) - 1)), dim=1).values.mean(1)
    order = mean.argsort()[:num]
    return order.tolist(), [f"{value:.3f}" for value in mean[order].tolist()]


def duplicates(mapped: Mapped, least: float = 0.98, num: int = 24) -> tuple[list[int], list[str]]:
    """Pairs of rows that are nearly the same, one after the other, the most alike first."""
    alike = (mapped.vectors @ mapped.vectors.T).triu(1)
    best = alike.flatten().topk(min(num, alike.numel()))
    found, words = [], []
    for value, place in zip(best.values.tolist(), best.indices.tolist()):
        if value >= least:
            found += divmod(place, len(alike))
            words += [f"{value:.4f}"] * 2
    return found, words


def table(mapped: Mapped, places: Sequence[int]) -> str:
    """Rows as CSV."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["row", "key", "path", "label", "label_name"])
    for place in places:
        row = mapped.rows[place]
        number = mapped.numbers[place]
        lines.writerow([number, key_of(row, number), row.get("path"), row.get("label"), row.get("label_name")])
    return out.getvalue()


def thumbnail(folders: Folders, bank: Bank, number: int) -> Image.Image | None:
    """The picture of a row; None if it is missing or outside the given folders."""
    row = bank.rows([number])[0]
    source = str((bank.origin.data or {}).get("source", ""))
    path = row.get("path")
    try:
        if path:
            folders.inside(path)
        elif source != "emoji":
            if is_hub_id(source):
                return None
            folders.inside(source)
    except ConfigError:
        return None
    hit = Hit(1, 1.0, row.get("row", number), key_of(row, number), path, None, None)
    return images_of(bank, [hit])[0]
