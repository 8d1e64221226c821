"""An index of many features: built once, searched in milliseconds. Exact below 100,000 rows, approximate above, with
its measured recall. FAISS (MIT) does the work."""

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.files import check_target, new_folder, write_json
from ...core.saved import Count, Share, load
from ...errors import ConfigError, MissingExtra
from .stored import BEGUN, LIST, FeatureFile, StoredRows

if TYPE_CHECKING:
    import faiss

EXACT_ROWS = 100_000  # below, comparing with every row takes milliseconds
TRAIN_ROWS = 64  # per cluster, for k-means
QUERIES = 400  # rows for measuring recall: half for choosing, half for the result
NEIGHBOURS = 10  # of recall
SEED = 0
INDEX, ROWS, FACTS = "index.faiss", "rows.parquet", "index.json"
Report = Callable[[str, int, int], None]


@dataclass
class IndexFacts:
    """Content of index.json. kind: "exact", or "clusters": rows by nearest of `num_clusters` k-means centres, of which
    a search visits the `num_probes` nearest to the query, with vectors in 16 bits. recall: share of the true 10 nearest
    rows that are found, in [0, 1], mean over `num_queries` rows that had no part in choosing num_probes. seconds:
    building took.
    """

    kind: Literal["exact", "clusters"]
    num_rows: Count
    width: Count
    num_clusters: Count
    num_probes: Count
    recall: Share
    num_queries: Count
    seconds: float


class Indexed(NamedTuple):
    """The result of `build_index`."""

    path: Path
    facts: IndexFacts
    num_bytes: int


class FeatureIndex(StoredRows):
    """A folder that `build_index` wrote, with the methods of a `FeatureFile`. Raises ConfigError for another folder, or
    if its files do not belong together.
    """

    def __init__(self, path: str | os.PathLike[str]):
        folder = Path(path)
        missing = [name for name in (INDEX, ROWS, FACTS) if not (folder / name).is_file()]
        if missing:
            raise ConfigError(
                f"{folder} is not an index of features: {missing[0]} is missing (`nextembed index` makes one)"
            )
        super().__init__(folder / ROWS)
        self.facts = load(IndexFacts, folder / FACTS)
        self.width = self.facts.width
        library = _faiss()
        try:
            self.index = library.read_index(str(folder / INDEX))
        except (RuntimeError, MemoryError) as err:
            raise ConfigError(f"{folder / INDEX} cannot be read: {str(err).splitlines()[-1]}") from None
        sizes = {self.num_rows, self.facts.num_rows, int(self.index.ntotal)}
        if len(sizes) > 1 or self.index.d != self.width:
            raise ConfigError(f"{folder}: its files do not match each other; rebuild the index")
        if isinstance(self.index, library.IndexIVF):
            self.index.nprobe = self.facts.num_probes
            self.index.make_direct_map()  # rows by number

    def vector(self, number: int) -> Tensor:
        """Features [D] of a row, of length 1."""
        return F.normalize(torch.from_numpy(self.index.reconstruct(number)), dim=0)

    def nearest(self, vector: Tensor, top: int, leave_out: int | None = None) -> tuple[Tensor, Tensor]:
        """Cosines, float64, and numbers of the `top` rows found nearest to a vector [D]."""
        wanted = min(top + (leave_out is not None), self.num_rows)
        distances, numbers = self.index.search(F.normalize(vector.float(), dim=0)[None].numpy(), wanted)
        rows = torch.from_numpy(numbers[0])
        found = (rows >= 0) & (rows != (-1 if leave_out is None else leave_out))
        return (1 - torch.from_numpy(distances[0]).double() / 2)[found][:top], rows[found][:top]


def open_features(path: str | os.PathLike[str]) -> FeatureFile | FeatureIndex:
    """A file that `embed` wrote, or a folder that `index` wrote. Raises ConfigError for anything else."""
    is_index = Path(path).is_dir() and not any((Path(path) / name).exists() for name in (LIST, BEGUN))
    return FeatureIndex(path) if is_index else FeatureFile(path)


def build_index(
    features: str | os.PathLike[str] | FeatureFile,
    output: str | os.PathLike[str],
    recall: float = 0.95,
    exact_rows: int = EXACT_ROWS,
    report: Report | None = None,
) -> Indexed:
    """An index of a file of features, in a folder of its own; the file is no longer needed. Fewer than `exact_rows`
    rows are searched exactly. More are divided into 2 sqrt(rows) clusters, and enough of them are visited to find at
    least `recall` of the true nearest 10 rows. Memory: the index (2 bytes per number, 4 if exact) and a row group of
    the file.

    Args:
        features: a file that `embed` wrote, or any Parquet file with a fixed-size list column "embedding".
        output: a new folder.
        recall: how much of the true nearest rows has to be found, in (0, 1].
        exact_rows: below so many rows the index is exact.
        report: called with (what is done now, how much of it, of how much).

    Returns:
        Where it lies, its facts (with the measured recall) and its size.

    Raises:
        ConfigError: for a file without features or without rows, or a folder that is taken.
        DataError: for features that are not finite numbers.
        MissingExtra: without FAISS.
    """
    file = features if isinstance(features, FeatureFile) else FeatureFile(features)
    if not 0 < recall <= 1:
        raise ConfigError(f"recall should be above 0 and at most 1, got {recall}")
    if file.num_rows == 0:
        raise ConfigError(f"{file.path} has no rows to index")
    check_target(Path(output))
    library, began = _faiss(), time.perf_counter()
    tell = report or (lambda what, done, total: None)
    with new_folder(Path(output)) as folder:
        if file.num_rows < exact_rows:
            index, facts = _exact(library, file, tell), IndexFacts("exact", file.num_rows, file.width, 0, 0, 1.0, 0, 0)
        else:
            index, facts = _clustered(library, file, recall, tell)
        library.write_index(index, str(folder / INDEX))
        _write_rows(file, folder / ROWS)
        facts.seconds = round(time.perf_counter() - began, 2)
        write_json(folder / FACTS, asdict(facts))
    size = sum(path.stat().st_size for path in Path(output).iterdir())
    return Indexed(Path(output), facts, size)


def _exact(library: ModuleType, file: FeatureFile, tell: Report) -> "faiss.Index":
    index = library.IndexFlatL2(file.width)
    _add(index, file, tell)
    return index


def _clustered(library: ModuleType, file: FeatureFile, recall: float, tell: Report) -> "tuple[faiss.Index, IndexFacts]":
    count = max(1, round(2 * file.num_rows**0.5))
    index = library.index_factory(file.width, f"IVF{count},SQfp16")  # squared distances of unit vectors: 2 - 2 cosine
    tell("clustering", 0, 1)
    index.train(_drawn(file, min(file.num_rows, count * TRAIN_ROWS))[1].numpy())
    _add(index, file, tell)
    numbers, queries = _drawn(file, min(QUERIES, file.num_rows))
    truth = _true_neighbours(file, numbers, queries, tell)
    half = len(numbers) // 2
    probes, index.nprobe = 1, 1
    while _recall(index, numbers[:half], queries[:half], truth[:half]) < recall and probes < count:
        probes = index.nprobe = min(2 * probes, count)
    found = _recall(index, numbers[half:], queries[half:], truth[half:])
    facts = IndexFacts("clusters", file.num_rows, file.width, count, probes, round(found, 4), len(numbers) - half, 0)
    return index, facts


def _add(index: "faiss.Index", file: FeatureFile, tell: Report) -> None:
    for begin, bank in file.unit_vectors():
        index.add(bank.numpy())
        tell("adding rows", begin + len(bank), file.num_rows)


def _drawn(file: FeatureFile, count: int) -> tuple[Tensor, Tensor]:
    """Row numbers, ascending, and unit vectors of this many random rows."""
    order = torch.randperm(file.num_rows, generator=torch.Generator().manual_seed(SEED))
    numbers = order[:count].sort().values
    return numbers, file.gather(numbers)


def _true_neighbours(file: FeatureFile, numbers: Tensor, queries: Tensor, tell: Report) -> Tensor:
    """Row numbers of the true 10 nearest rows of each query, without itself, [Q, 10]."""
    best = torch.full((len(queries), 0), -2.0)
    rows = torch.empty(len(queries), 0, dtype=torch.long)
    for begin, bank in file.unit_vectors():
        cosine = queries @ bank.T  # [Q, n]
        inside = (numbers >= begin) & (numbers < begin + len(bank))
        cosine[inside.nonzero()[:, 0], numbers[inside] - begin] = -2.0
        best = torch.cat((best, cosine), 1)
        rows = torch.cat((rows, torch.arange(begin, begin + len(bank)).expand(len(queries), -1)), 1)
        kept = best.topk(min(NEIGHBOURS, best.shape[1]), dim=1)
        best, rows = kept.values, rows.gather(1, kept.indices)
        tell("measuring recall", begin + len(bank), file.num_rows)
    return rows


def _recall(index: "faiss.Index", numbers: Tensor, queries: Tensor, truth: Tensor) -> float:
    """Share of the true nearest rows that the index finds."""
    found = index.search(queries.numpy(), NEIGHBOURS + 1)[1]
    shares = [
        len(set(row[row != own][:NEIGHBOURS].tolist()) & set(true.tolist())) / len(true)
        for row, own, true in zip(found, numbers.tolist(), truth)
    ]
    return float(np.mean(shares))


def _write_rows(file: FeatureFile, target: Path) -> None:
    """All columns but the features, with the file's own metadata: which model made it."""
    schema = file.file.schema_arrow
    kept = pa.schema([schema.field(name) for name in file.columns], metadata=schema.metadata)
    if not file.columns:
        kept = pa.schema([pa.field("row", pa.int64())], metadata=schema.metadata)
    with pq.ParquetWriter(target, kept) as writer:
        for begin, table in file.groups(file.columns or ["embedding"]):
            if not file.columns:
                table = pa.table({"row": pa.array(range(begin, begin + table.num_rows), pa.int64())})
            writer.write_table(table.cast(kept))


def _faiss() -> ModuleType:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise MissingExtra("faiss-cpu", "search") from None
